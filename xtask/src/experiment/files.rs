//! Files and folders of a grid that a power cut leaves whole or absent.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use anyhow::{Context, Result};

/// Creates a folder and its missing parents, durably.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(folder)
        .and_then(|()| missing.into_iter().rev().try_for_each(sync_parent))
        .with_context(|| format!("cannot make {}", folder.display()))
}

/// Gives a complete file its name, durably.
pub(crate) fn put(file: &Path, name: &Path) -> Result<()> {
    File::open(file)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(file, name))
        .and_then(|()| sync_parent(name))
        .with_context(|| format!("cannot write {}", name.display()))
}

/// Writes a file atomically.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
    put(&temporary, path)
}

/// Makes the name of a file or folder durable, on systems that can open folders.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if cfg!(unix) { File::open(parent)?.sync_all() } else { Ok(()) }
}
