//! Models by their names on the Hugging Face hub, through the hub's own client and cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo};
use lowrank_checkpoint::{Checkpoint, is_nested_companion};

use crate::error::{ModelError, Result};
use crate::save::companions;

/// Weights, best first: of each entry, the first name decides whether a repository has it.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Whether a repository's file goes with any weights.
fn is_beside(file: &str) -> bool {
    file == "config.json" || companions().any(|name| name == file) || is_nested_companion(file)
}

/// The path as a hub name: `name` or `owner/name`, of letters, digits, `-`, `_` and `.`.
pub(super) fn name(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let is_part = |part: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(legal)
            && !part.contains("..")
    };
    let parts: Vec<&str> = name.split('/').collect();
    (parts.len() <= 2 && parts.iter().all(|part| is_part(part))).then_some(name)
}

/// The folder of a model in the hub's cache; missing files are downloaded.
///
/// With `HF_HUB_OFFLINE` set, only the cache is searched.
pub(super) fn fetch(name: &str) -> Result<PathBuf> {
    let cache = Cache::from_env();
    if let Some(folder) = cached(&cache, name) {
        return Ok(folder);
    }
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !["", "0", "false"].contains(&v.as_str())) {
        let cache = cache.path().display();
        return Err(refused(
            name,
            format!(
                "no such folder; the name is not in the hub's cache at {cache}, and HF_HUB_OFFLINE is set"
            ),
        ));
    }
    let client = ApiBuilder::from_env().build();
    let client = client.map_err(|e| refused(name, format!("the hub's client does not start: {e}")))?;
    let repo = client.model(name.into());
    let missing = |e| {
        refused(name, format!("no such folder, and no model of this name could be fetched from the hub: {e}"))
    };
    let info = repo.info().map_err(missing)?;
    let files: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let Some(weights) = WEIGHTS.iter().find(|weights| files.contains(weights)) else {
        return Err(refused(name, format!("has no weights on the hub; looked for {}", WEIGHTS.join(", "))));
    };
    // The shards of `model.safetensors.index.json` are `model-00001-of-00002.safetensors` and so on.
    let (stem, end) = match weights.strip_suffix(".index.json").and_then(|file| file.rsplit_once('.')) {
        Some((stem, extension)) => (format!("{stem}-"), format!(".{extension}")),
        None => (String::new(), "\0".into()),
    };
    let is_wanted =
        |file: &str| is_beside(file) || file == *weights || (file.starts_with(&stem) && file.ends_with(&end));
    let mut folder = None;
    let is_here = |file: &str| is_beside(file) || !file.contains(['/', '\\']);
    for file in files.into_iter().filter(|file| is_wanted(file) && is_here(file)) {
        let path = repo
            .get(file)
            .map_err(|e| refused(name, format!("'{file}' cannot be fetched from the hub: {e}")))?;
        if file == "config.json" {
            folder = path.parent().map(Path::to_path_buf);
        }
    }
    folder.ok_or_else(|| refused(name, "has no config.json on the hub".into()))
}

/// The folder of a model that the cache has with its weights.
fn cached(cache: &Cache, name: &str) -> Option<PathBuf> {
    let config = cache.repo(Repo::model(name.into())).get("config.json")?;
    let folder = config.parent()?.to_path_buf();
    // An interrupted fetch leaves files out; opening the weights finds missing shards.
    let complete = WEIGHTS.iter().any(|weights| folder.join(weights).exists());
    (complete && Checkpoint::open(&folder).is_ok()).then_some(folder)
}

fn refused(name: &str, reason: String) -> ModelError {
    ModelError::File { path: name.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for path in ["gpt2", "sentence-transformers/all-MiniLM-L6-v2", "a/b.c_d"] {
            assert_eq!(name(Path::new(path)), Some(path));
        }
        for path in ["", "/a", "./a", "../a", "a/b/c", "a b", "a/", "a/..", "models\\a", ".cache/x", "a..b"] {
            assert_eq!(name(Path::new(path)), None, "{path}");
        }
    }
}
