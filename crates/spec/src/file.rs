//! The one way in which the crates open files that they did not write themselves.
//!
//! A path may come from anyone: a config, a link in a downloaded folder, a command line. A pipe waits for a writer, a
//! device may have no end, and a folder cannot be read; all are refused before they are opened. Links are followed, since
//! the hub's cache consists of them.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Opens a regular file.
///
/// # Errors
/// As [`File::open`]; [`InvalidInput`](ErrorKind::InvalidInput) for a folder, a pipe, a socket or a device.
pub fn open_file(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let meta = fs::metadata(path).map_err(|error| match fs::read_link(path) {
        Ok(target) if error.kind() == ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("a link to {}, which is missing", target.display()))
        }
        _ => error,
    })?;
    // Asked before opening, which would already wait for the writer of a pipe; and after, in case the file has been
    // replaced in between.
    let check = |is_file: bool| match is_file {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::InvalidInput, "not a regular file")),
    };
    check(meta.is_file())?;
    let file = File::open(path)?;
    check(file.metadata()?.is_file())?;
    Ok(file)
}

/// The content of a regular file.
///
/// # Errors
/// As [`open_file`], and those of reading.
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    read_file_within(path, u64::MAX)
}

/// The content of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`read_file`]; [`InvalidData`](ErrorKind::InvalidData) for a larger file, before it is read.
pub fn read_file_within(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let size = file.metadata()?.len();
    let too_large = |size: u64| {
        let reason = format!("is {size} bytes or more; the limit is {limit}");
        Err(Error::new(ErrorKind::InvalidData, reason))
    };
    if size > limit {
        return too_large(size);
    }
    // Some files of /proc have more bytes than they say.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return too_large(bytes.len() as u64);
    }
    Ok(bytes)
}

/// Whether something has this name: a file, or what is not one and must be refused rather than ignored, such as a
/// folder, a pipe, or a link to nothing.
pub fn is_present(path: impl AsRef<Path>) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        // A name in a folder that may not be searched could exist.
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = std::env::temp_dir().join(format!("lowrank-file-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [file, link, loose, looped] = ["file", "link", "loose", "looped"].map(|name| dir.join(name));
        fs::write(&file, "12345").unwrap();
        symlink(&file, &link).unwrap();
        symlink("absent", &loose).unwrap();
        symlink(&looped, &looped).unwrap();
        assert_eq!(read_file(&file).unwrap(), b"12345");
        assert_eq!(read_file_within(&link, 5).unwrap(), b"12345");
        let reason = |path: &Path| read_file_within(path, 4).unwrap_err().to_string();
        assert_eq!(reason(&file), "is 5 bytes or more; the limit is 4");
        assert_eq!(reason(&loose), "a link to absent, which is missing");
        for path in [dir.as_path(), "/dev/zero".as_ref(), "/dev/null".as_ref()] {
            assert_eq!(reason(path), "not a regular file");
        }
        // More than it says.
        assert!(read_file_within("/proc/self/status", 10).is_err());
        assert!(!read_file("/proc/self/status").unwrap().is_empty());
        assert!([&file, &loose, &looped, &dir].into_iter().all(is_present));
        assert!(!is_present(dir.join("absent")) && !is_present(file.join("below")));
        fs::remove_dir_all(dir).unwrap();
    }
}
