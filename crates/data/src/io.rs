//! Whole-file reading and writing: a reader that names the bad line, a writer that leaves nothing half-written.

use std::io::Write;
use std::path::Path;

use crate::error::{DataError, Result};

/// The UTF-8 byte order mark that some editors (and the official MRPC files) put first.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Writes `bytes` to `path` through a temporary file of the same folder and a rename, so that a reader sees the old
/// file or the new one and never a part. The folder is created where it is missing.
///
/// # Errors
/// [`DataError::Io`] when the folder, the temporary file or the rename fails; the temporary file is then removed.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lowrank-").suffix(".tmp");
    // Temporary files are private by default; what is kept gets the permissions of a plainly created file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file =
        builder.tempfile_in(folder).map_err(DataError::io("create a temporary file in", folder))?;
    file.write_all(bytes).map_err(DataError::io("write", path))?;
    file.persist(path).map_err(|e| DataError::io("write", path)(e.error))?;
    Ok(())
}

/// Reads a UTF-8 file, without a leading byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    // A pipe would be waited for, and a device may have no end.
    let is_file = std::fs::metadata(path).map_err(DataError::io("read", path))?.is_file();
    if !is_file {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        return Err(DataError::io("read", path)(error));
    }
    let mut bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        DataError::Utf8 { path: path.to_path_buf(), row: 1 + valid.iter().filter(|&&b| b == b'\n').count() }
    })
}

/// Parses a JSON file, if it is there.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_text(path)?;
    let parsed = serde_json::from_str(&text).map_err(|e| DataError::Config {
        path: path.to_path_buf(),
        message: format!("{e}; restore it from the model's original folder"),
    })?;
    Ok(Some(parsed))
}

/// The lines of a text with their rows (from 1), without terminators (`\n` or `\r\n`) and without the empty lines at
/// its end.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.trim_end_matches(['\n', '\r']).lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_replaces_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("x"), b"").unwrap();
        let error = write_atomic(&path, b"one").unwrap_err().to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

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
