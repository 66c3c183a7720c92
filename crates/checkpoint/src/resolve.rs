//! From a path to a checkpoint: selection of a folder's file, detection of its format, and the contents of an
//! index.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Checkpoint, CheckpointError,
    error::{Fault, excerpt},
    gguf,
    header::{self, MAX_HEADER, Strings},
    map::Bytes,
    packed,
    source::Table,
    torch,
};

/// The file names of a model folder, in order of precedence.
const MODEL: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// The file names of an adapter folder, in order of precedence.
const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Which files take precedence in a folder that has both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Prefer {
    Model,
    Adapter,
}

pub(crate) fn open(path: &Path, prefer: Prefer) -> Result<Checkpoint, CheckpointError> {
    if path.is_dir() {
        let order: Vec<&str> = match prefer {
            Prefer::Model => MODEL.into_iter().chain(ADAPTER).collect(),
            Prefer::Adapter => ADAPTER.into_iter().chain(MODEL).collect(),
        };
        // A folder of this name, or a broken link, is an error and must not be skipped.
        match order.iter().map(|name| path.join(name)).find(|file| file.symlink_metadata().is_ok()) {
            Some(file) => open_file(&file),
            None => {
                let mut looked_for = order.join(", ");
                if let Some(other) = other_tensor_file(path) {
                    looked_for += &format!("; to open '{}' name the file itself", excerpt(&other));
                }
                Err(CheckpointError::NoCheckpoint { path: path.to_owned(), looked_for })
            }
        }
    } else if path.exists() {
        open_file(path)
    } else {
        let looked_for = "a file or folder of this name".to_owned();
        Err(CheckpointError::NoCheckpoint { path: path.to_owned(), looked_for })
    }
}

/// The first file of a folder, by name, with the extension of a tensor file.
fn other_tensor_file(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| [".safetensors", ".bin", ".pt", ".pth", ".gguf"].iter().any(|end| name.ends_with(end)))
        .min()
}

fn open_file(path: &Path) -> Result<Checkpoint, CheckpointError> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return open_index(path);
    }
    let file = Bytes::open(path)?;
    if gguf::recognises(file.as_slice()) {
        return of_gguf(path.to_owned(), gguf::open(path, file)?);
    }
    of_bytes(path.to_owned(), file)
}

fn of_gguf(path: PathBuf, parts: Vec<gguf::Part>) -> Result<Checkpoint, CheckpointError> {
    let (table, beside) = gguf::table(&parts)?;
    let files = parts.into_iter().map(|part| part.bytes).chain([beside]).collect();
    Ok(Checkpoint::new(path, files, table))
}

/// A checkpoint from the bytes of a file.
pub(crate) fn of_bytes(path: PathBuf, file: Bytes) -> Result<Checkpoint, CheckpointError> {
    if gguf::recognises(file.as_slice()) {
        let part = gguf::Part { path: path.clone(), bytes: file };
        return of_gguf(path, vec![part]);
    }
    let mut table = parse(&path, file.as_slice())?;
    let files = vec![file];
    packed::resolve(&path, &files, &mut table)?;
    Ok(Checkpoint::new(path, files, table))
}

/// Parses a file according to its content.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Table, CheckpointError> {
    // A safetensors file has the opening brace of its header at byte 8; neither a zip (a compression method) nor
    // the old torch format (the middle of a magic number) can.
    if file.get(8) == Some(&b'{') {
        return header::parse(file).map_err(|fault| fault.at(path));
    }
    if torch::recognises(file) {
        return torch::parse(file).map_err(|fault| fault.at(path));
    }
    let name = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let fault = if file.starts_with(b"version https://git-lfs") {
        Fault::file("a git-lfs pointer instead of the file; run `git lfs pull`")
    } else if name == "safetensors" {
        // Gives the precise reason.
        return header::parse(file).map_err(|fault| fault.at(path));
    } else {
        Fault::file("neither safetensors nor GGUF nor a file of torch.save")
    };
    Err(fault.at(path))
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    weight_map: Strings,
}

/// The contents of an index: its metadata as strings, and the tensors of each shard.
type Shards = (BTreeMap<String, String>, BTreeMap<String, Vec<String>>);

pub(crate) fn parse_index(text: &[u8]) -> Result<Shards, Fault> {
    let index: Index = serde_json::from_slice(text)
        .map_err(|e| Fault::file(format!("shard index: {}", excerpt(&e.to_string()))))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        if !is_inside(&shard) {
            return Err(Fault::tensor(
                &tensor,
                format!("the index names the shard '{}', which is outside its folder", excerpt(&shard)),
            ));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    let metadata = index.metadata.into_iter().filter_map(|(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        serde_json::Value::Number(number) => Some((key, number.to_string())),
        _ => None,
    });
    Ok((metadata.collect(), shards))
}

/// Whether a shard's name stays in the index's folder on every system.
fn is_inside(shard: &str) -> bool {
    let path = Path::new(shard);
    !shard.contains(['\\', ':', '\0'])
        && path.components().next().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn open_index(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let text =
        lowrank_spec::read_file_within(path, MAX_HEADER).map_err(|e| CheckpointError::io(path, "read", e))?;
    let (metadata, shards) = parse_index(&text).map_err(|fault| fault.at(path))?;
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let mut files = Vec::with_capacity(shards.len());
    let mut all = Table { metadata, ..Table::default() };
    for (shard, names) in shards {
        let shard_path = folder.join(&shard);
        if !shard_path.exists() {
            let reason = format!(
                "the index names the shard '{}', which is missing; download it again",
                excerpt(&shard)
            );
            return Err(CheckpointError::malformed(path, reason));
        }
        let file = Bytes::open(&shard_path)?;
        let mut table = parse(&shard_path, file.as_slice())?;
        for name in names {
            let Some(mut entry) = table.tensors.remove(&name) else {
                let reason = "the index places it in this shard, which lacks it; rebuild the index";
                return Err(CheckpointError::tensor(&shard_path, &name, reason));
            };
            entry.source = files.len();
            all.tensors.insert(name, entry);
        }
        for (key, value) in table.metadata {
            all.metadata.entry(key).or_insert(value);
        }
        files.push(file);
    }
    packed::resolve(path, &files, &mut all)?;
    Ok(Checkpoint::new(path.to_owned(), files, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_stay_in_the_folder() {
        for name in ["model-00001-of-00002.safetensors", "part/a.bin"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "c:\\x", "..\\x", "a\0b", "./x"] {
            assert!(!is_inside(name), "{name}");
        }
    }

    #[test]
    fn an_index_is_grouped_by_shard() {
        let (metadata, shards) = parse_index(
            br#"{"metadata":{"total_size":8,"format":"pt","x":[1]},"weight_map":{"b":"1","a":"2","c":"1"}}"#,
        )
        .unwrap();
        assert_eq!(
            metadata.into_iter().collect::<Vec<_>>(),
            [("format".to_owned(), "pt".to_owned()), ("total_size".to_owned(), "8".to_owned())]
        );
        assert_eq!(shards["1"], ["b", "c"]);
        assert_eq!(shards["2"], ["a"]);
        for bad in [
            r#"{"weight_map":{"a":"1","a":"2"}}"#,
            r#"{"weight_map":[]}"#,
            "{}",
            "",
            r#"{"weight_map":{"a":1}}"#,
        ] {
            assert!(parse_index(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
