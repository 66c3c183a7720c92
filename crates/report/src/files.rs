//! Writing files so that a reader sees a whole one or none.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process,
};

use crate::{Error, Result};

/// A name in the same folder that nobody else uses.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", process::id()));
    path.with_file_name(name)
}

/// Writes `bytes` under a temporary name and renames that to `path`; what was there before stays on an error.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_name(path);
    let write = || {
        let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(Error::io("write", path))
    };
    write().inspect_err(|_| {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&temporary);
    })
}
