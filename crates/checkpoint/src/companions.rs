//! The files in folders below a model folder that go with any weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether a file below a model folder, by its path with `/`, goes with any weights: a chat template of transformers'
/// (`additional_chat_templates/NAME.jinja`), or the config or weights of a module of sentence-transformers'
/// (`1_Pooling/config.json`, `2_Dense/model.safetensors`).
///
/// ```
/// use lowrank_checkpoint::is_nested_companion;
/// assert!(is_nested_companion("1_Pooling/config.json"));
/// assert!(is_nested_companion("additional_chat_templates/tool_use.jinja"));
/// assert!(!is_nested_companion("onnx/config.json"));
/// ```
pub fn is_nested_companion(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    if file.contains(['/', '\\']) {
        return false;
    }
    let number = folder.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    match folder {
        "additional_chat_templates" => file.ends_with(".jinja"),
        _ => {
            let is_of_module = ["config.json", "model.safetensors", "pytorch_model.bin"].contains(&file);
            number > 0 && folder[number..].starts_with('_') && is_of_module
        }
    }
}

/// The paths of all such files, relative to the folder, sorted.
///
/// # Errors
/// A folder that cannot be read.
pub fn nested_companions(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(below) = entry.file_name().into_string() else { continue };
        if !entry.path().is_dir() {
            continue;
        }
        for file in fs::read_dir(entry.path())? {
            let Ok(file) = file?.file_name().into_string() else { continue };
            let path = format!("{below}/{file}");
            if is_nested_companion(&path) {
                found.push(PathBuf::from(path));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_configs_of_modules_are_found() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "config.json",
            "1_Pooling/config.json",
            "1_Pooling/other.json",
            "2_Dense/model.safetensors",
            "2_Normalize/readme.md",
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/note.txt",
            "onnx/config.json",
            "_x/config.json",
            "1_Pooling/deeper/config.json",
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let expected =
            ["1_Pooling/config.json", "2_Dense/model.safetensors", "additional_chat_templates/rag.jinja"]
                .map(PathBuf::from);
        assert_eq!(nested_companions(root.path()).unwrap(), expected);
        assert!(nested_companions(&root.path().join("none")).is_err());
    }
}
