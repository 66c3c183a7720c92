//! Whole-file reading with errors that name the bad line.

use std::io::Read;
use std::path::Path;

use crate::error::{DataError, Result};

/// The UTF-8 byte order mark with which some editors (and the official MRPC files) begin a file.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads a UTF-8 file, without a leading byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut bytes = lowrank_checkpoint::read_file(path).map_err(DataError::io("read", path))?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        DataError::Utf8 { path: path.to_path_buf(), row: 1 + valid.iter().filter(|&&b| b == b'\n').count() }
    })
}

/// Whether a text is JSON lines, by the name of its file or, for `.json`, because it begins with an object.
pub fn is_json_lines(path: &Path, text: &str) -> bool {
    match path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" => true,
        "json" => text.trim_start().starts_with('{'),
        _ => false,
    }
}

/// Number of leading bytes used to distinguish two files of rows.
const HEAD: u64 = 1 << 20;

/// The beginning of a text file up to its last complete line, for detecting its format.
pub(crate) fn read_head(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = lowrank_spec::open_file(path).map_err(DataError::io("read", path))?;
    file.take(HEAD).read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    let end = if bytes.len() as u64 == HEAD {
        bytes.iter().rposition(|&b| b == b'\n').unwrap_or(0)
    } else {
        bytes.len()
    };
    let start = if bytes.starts_with(BOM) { BOM.len().min(end) } else { 0 };
    Ok(String::from_utf8_lossy(&bytes[start..end]).into_owned())
}

/// Parses a JSON file, if it exists.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !lowrank_checkpoint::has_file(path) {
        return Ok(None);
    }
    let text = read_text(path)?;
    let parsed = serde_json::from_str(&text).map_err(|e| DataError::Config {
        path: path.to_path_buf(),
        message: format!("{e}; restore it from the model's original folder"),
    })?;
    Ok(Some(parsed))
}

/// The lines of a text with their rows (from 1), without terminators (`\n` or `\r\n`) and without trailing
/// empty lines.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.trim_end_matches(['\n', '\r']).lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_bom_crlf_and_trailing_blanks_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tsv");
        std::fs::write(&path, b"\xef\xbb\xbfa\tb\r\n\r\nc\"d\n\n\n").unwrap();
        let text = read_text(&path).unwrap();
        assert_eq!(rows(&text).collect::<Vec<_>>(), [(1, "a\tb"), (2, ""), (3, "c\"d")]);
    }

    #[test]
    fn bad_utf8_is_named_by_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tsv");
        std::fs::write(&path, b"ok\nb\xffd\n").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("x.tsv:2: not valid UTF-8"), "{error}");
    }
}
