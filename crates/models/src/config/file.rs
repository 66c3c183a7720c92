//! Reading JSON files of a model folder, with limits on accepted values.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Largest size accepted for any one dimension; real models stay far below.
pub(crate) const MAX_DIM: usize = 1 << 24;
/// Largest number of layers accepted.
pub(crate) const MAX_LAYERS: usize = 4096;
/// Largest JSON file that is read; real ones are a few kilobytes, including labels.
const MAX_JSON: u64 = 64 << 20;

/// The JSON object in a file of a model folder.
pub(crate) fn read_object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if !folder.is_dir() && !lowrank_checkpoint::gguf::is_gguf(folder) {
        return Err(ModelError::File {
            path: folder.to_path_buf(),
            reason: "no such folder; expected a model folder with config.json and weights".into(),
        });
    }
    match parse(&path)? {
        Value::Object(object) => Ok(object),
        _ => Err(ModelError::Config { path, reason: "expected a JSON object".into() }),
    }
}

/// A JSON file, or such a member of a GGUF file; `None` if it is missing.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    lowrank_checkpoint::has_file(path).then(|| parse(path)).transpose()
}

fn parse(path: &Path) -> Result<Value> {
    let text = lowrank_checkpoint::read_file_within(path, MAX_JSON)
        .map_err(|e| ModelError::File { path: path.to_path_buf(), reason: format!("cannot be read: {e}") })?;
    serde_json::from_slice(&text)
        .map_err(|e| ModelError::Config { path: path.to_path_buf(), reason: format!("malformed JSON: {e}") })
}

/// The value of a name in a table.
pub(crate) fn lookup<T: Copy>(key: &str, name: &str, table: &[(&str, T)]) -> std::result::Result<T, String> {
    table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
        format!("{key} '{name}' is not supported; expected one of {}", known.join(", "))
    })
}
