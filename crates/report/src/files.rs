//! Atomic file writes, and the order of file names.

use std::{
    cmp::Ordering,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use crate::{Error, Result};

/// A unique name in the same folder.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", process::id()));
    path.with_file_name(name)
}

/// Whether `name` is a [temporary name](temporary_name) of a file `of`, by whatever process.
pub(crate) fn is_temporary(name: &OsStr, of: &str) -> bool {
    let process =
        name.to_str().and_then(|name| name.strip_prefix(of)?.strip_prefix('.')?.strip_suffix(".tmp"));
    process.is_some_and(|process| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Writes `bytes` under a temporary name and renames that to `path`; after an error the previous file is
/// still there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_together(&[(path, bytes)])
}

/// Renames a complete file, durably on systems that can open folders.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("write", to))?;
    if cfg!(unix) {
        let folder = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

/// Writes files of different names: all under temporary names, which are renamed when the last of them is
/// complete, the first file last.
pub(crate) fn write_together(files: &[(impl AsRef<Path>, impl AsRef<[u8]>)]) -> Result<()> {
    let temporaries: Vec<PathBuf> = files.iter().map(|(path, _)| temporary_name(path.as_ref())).collect();
    let write = || {
        for ((path, bytes), temporary) in files.iter().zip(&temporaries) {
            // Conditions that would otherwise be found only after other files are renamed.
            if path.as_ref().is_dir() {
                return Err(Error::io("write", path.as_ref())(io::ErrorKind::IsADirectory.into()));
            }
            let mut file = File::create(temporary).map_err(Error::io("create", temporary))?;
            let written = file.write_all(bytes.as_ref()).and_then(|()| file.sync_all());
            written.map_err(Error::io("write", temporary))?;
        }
        for ((path, _), temporary) in files.iter().zip(&temporaries).rev() {
            rename(temporary, path.as_ref())?;
        }
        Ok(())
    };
    write().inspect_err(|_| {
        for temporary in &temporaries {
            // The first error is reported.
            let _ = fs::remove_file(temporary);
        }
    })
}

/// The order of paths in which numbers in their last parts compare as numbers: 9 before 10.
pub(crate) fn natural_order(one: &Path, other: &Path) -> Ordering {
    let names = [one, other].map(|path| path.file_name().unwrap_or_default().as_encoded_bytes());
    let [a, b] = names.map(pieces);
    a.cmp(b).then_with(|| one.cmp(other))
}

/// A piece of a name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    /// Digits without leading zeros, preceded by their count, by which numbers compare first.
    Number(usize, &'a [u8]),
    Text(&'a [u8]),
}

fn pieces(name: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    name.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()).map(|piece| {
        if !piece[0].is_ascii_digit() {
            return Piece::Text(piece);
        }
        let zeros = piece.iter().take_while(|digit| **digit == b'0').count();
        Piece::Number(piece.len() - zeros, &piece[zeros..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count() {
        let mut sorted = ["a.9", "b.10", "a.10.1", "a.10", "a.010", "a.99999999999999999999", "a.", "a.x"];
        sorted.sort_by(|a, b| natural_order(Path::new(a), Path::new(b)));
        assert_eq!(sorted, ["a.", "a.9", "a.010", "a.10", "a.10.1", "a.99999999999999999999", "a.x", "b.10"]);
        assert_eq!(natural_order(Path::new("b/1"), Path::new("a/2")), Ordering::Less);
        assert_eq!(natural_order(Path::new("b/1"), Path::new("a/1")), Ordering::Greater);
    }

    #[test]
    fn files_are_written_together_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let count = || fs::read_dir(dir.path()).unwrap().count();
        assert!(write_together(&[(&one, "1"), (&dir.path().join("absent/other"), "2")]).is_err());
        assert_eq!(count(), 0);
        write_together(&[(&one, "1"), (&other, "2")]).unwrap();
        assert_eq!((fs::read_to_string(one).unwrap(), count()), ("1".to_owned(), 2));
    }
}
