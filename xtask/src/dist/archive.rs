//! Archives whose bytes depend on their content alone.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Packs a folder as a `.tar.gz`: sorted names, no owners, no times but `time` (seconds since 1970).
pub(crate) fn pack(folder: &Path, name: &str, time: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(GzBuilder::new().mtime(0).write(Vec::new(), Compression::best()));
    for path in tree(folder)? {
        let inside = Path::new(name).join(path.strip_prefix(folder)?);
        let mut header = Header::new_ustar();
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        let is_program = path.parent() == Some(folder) && path.extension().is_none_or(|end| end == "exe");
        let is_plain = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("LICENSE"));
        if path.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, inside.join(""), &[][..])?;
        } else {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            header.set_mode(if is_program && !is_plain { 0o755 } else { 0o644 });
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, inside, bytes.as_slice())?;
        }
    }
    let mut zipped = builder.into_inner().context("cannot pack")?;
    zipped.flush()?;
    Ok(zipped.finish()?)
}

/// All files and folders of a folder, itself first, sorted.
fn tree(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut at) = (vec![folder.to_owned()], 0);
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
                found.push(entry?.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The checksums of the files of a folder whose names begin with `prefix`, as `sha256sum` writes them.
pub(crate) fn sums(folder: &Path, prefix: &str) -> Result<String> {
    let mut out = String::new();
    for path in tree(folder)? {
        let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
        if !path.is_file() || !name.starts_with(prefix) {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        out.push_str(&format!("{digits}  {name}\n"));
    }
    Ok(out)
}
