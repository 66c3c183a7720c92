//! Locations of chat templates in a model folder.

use std::path::{Path, PathBuf};

use lowrank_checkpoint::has_file;
use serde_json::Value;

use crate::error::{DataError, Result};
use crate::io::{read_json, read_text};

/// Templates by name.
pub(super) struct Found {
    /// The file of the default template.
    pub(super) path: PathBuf,
    /// Name and source.
    pub(super) templates: Vec<(String, String)>,
}

/// Finds templates as transformers does: `.jinja` files take precedence over `tokenizer_config.json`, and
/// over the older `chat_template.json`.
pub(super) fn find(folder: &Path) -> Result<Option<Found>> {
    let file = folder.join("chat_template.jinja");
    let more = named_files(&folder.join("additional_chat_templates"))?;
    if has_file(&file) || !more.is_empty() {
        let mut templates = Vec::new();
        if has_file(&file) {
            templates.push((super::DEFAULT.to_owned(), read_text(&file)?));
        }
        templates.extend(more);
        return Ok(Some(Found { path: file, templates }));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = folder.join(name);
        let Some(config) = read_json::<Value>(&path)? else { continue };
        let templates = match config.get("chat_template") {
            None | Some(Value::Null) => continue,
            Some(value) => templates(value).ok_or_else(|| DataError::Config {
                path: path.clone(),
                message: "chat_template is neither a string nor a list of objects with name and template"
                    .into(),
            })?,
        };
        return Ok(Some(Found { path, templates }));
    }
    Ok(None)
}

/// The value of the key `chat_template`: one source, several with their names, or an object from name to source.
fn templates(value: &Value) -> Option<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let templates: Vec<_> = match value {
        Value::String(source) => vec![(super::DEFAULT.to_owned(), source.clone())],
        Value::Array(items) => items
            .iter()
            .map(|item| Some((text(&item["name"])?, text(&item["template"])?)))
            .collect::<Option<_>>()?,
        Value::Object(object) => {
            object.iter().map(|(name, source)| Some((name.clone(), text(source)?))).collect::<Option<_>>()?
        }
        _ => return None,
    };
    (!templates.is_empty()).then_some(templates)
}

/// The `.jinja` files of a folder by their stems, sorted by name.
fn named_files(folder: &Path) -> Result<Vec<(String, String)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(DataError::io("read", folder))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let named = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((stem, read_text(path)?))
    };
    paths.iter().map(named).collect()
}
