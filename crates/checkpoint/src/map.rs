//! The bytes of a file: mapped, or held in memory.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::Mmap;

use crate::{CheckpointError, fault::Region, gguf};

/// Files of at most this many bytes are copied into memory: adapters and small models, which training scripts
/// rewrite in place. Mapping them would not be worth the risk that [`map_file`] describes.
const COPIED: u64 = 16 << 20;

/// The content of a regular file, or of one of the [`MEMBERS`](crate::gguf::MEMBERS) of a GGUF file. A pipe,
/// which could block, and a device, which may have no end, are refused.
///
/// # Errors
/// As [`std::fs::read`], [`InvalidInput`](std::io::ErrorKind::InvalidInput) for anything but a regular file,
/// and [`InvalidData`](std::io::ErrorKind::InvalidData) for a GGUF file that does not have the member in a
/// supported form.
pub fn read_file(path: impl AsRef<Path>) -> std::io::Result<Vec<u8>> {
    read_file_within(path, u64::MAX)
}

/// The same for a file of at most `limit` bytes.
///
/// # Errors
/// As [`read_file`], and [`InvalidData`](std::io::ErrorKind::InvalidData) for a larger file.
pub fn read_file_within(path: impl AsRef<Path>, limit: u64) -> std::io::Result<Vec<u8>> {
    let path = path.as_ref();
    if let Some((file, name)) = member_of(path) {
        let invalid = |error: CheckpointError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let parts = Bytes::open(file).and_then(|bytes| gguf::open(file, bytes));
        let member = parts.and_then(|parts| gguf::member(&parts, name)).map_err(invalid)?;
        return member.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound));
    }
    lowrank_spec::read_file_within(path, limit)
}

/// Whether [`read_file`] has something to read or to refuse: anything of this name, or a member of a GGUF file.
#[must_use]
pub fn has_file(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    let has_member = |(file, name): (&Path, &str)| {
        let parts = Bytes::open(file).and_then(|bytes| gguf::open(file, bytes));
        // The error is for who reads the file.
        parts.map_or(true, |parts| gguf::has_member(&parts, name))
    };
    lowrank_spec::is_present(path) || member_of(path).is_some_and(has_member)
}

/// A GGUF file and the name of one of its members, if the path has this form.
fn member_of(path: &Path) -> Option<(&Path, &str)> {
    let (file, name) = (path.parent()?, path.file_name()?.to_str()?);
    (gguf::MEMBERS.contains(&name) && gguf::is_gguf(file)).then_some((file, name))
}

/// Bytes that do not move during the life of a checkpoint.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A mapped file.
    Mapped(Mapped),
    /// A small file, or bytes from the caller.
    Owned(Vec<u8>),
}

/// A mapped file, with what shows that it was changed in place.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// Before the map: a region is forgotten before it is unmapped.
    _region: Region,
    map: Mmap,
    file: File,
    path: PathBuf,
    /// Size and time of modification when it was opened.
    state: (u64, Option<SystemTime>),
}

impl Mapped {
    fn new(file: File, path: &Path) -> std::io::Result<Self> {
        let state = state_of(&file)?;
        let map = map_file(&file)?;
        let _region = Region::new(&map, path);
        Ok(Self { _region, map, file, path: path.to_owned(), state })
    }
}

fn state_of(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    file.metadata().map(|meta| (meta.len(), meta.modified().ok()))
}

impl Bytes {
    /// The content of a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = lowrank_spec::open_file(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidInput => CheckpointError::malformed(path, e.to_string()),
            _ => CheckpointError::io(path, "open", e),
        })?;
        let meta = file.metadata().map_err(|e| CheckpointError::io(path, "open", e))?;
        if meta.len() == 0 {
            return Err(CheckpointError::malformed(path, "empty file; download or write it again"));
        }
        if meta.len() > COPIED {
            let mapped = Mapped::new(file, path).map_err(|e| CheckpointError::io(path, "map", e))?;
            return Ok(Self::Mapped(mapped));
        }
        let mut bytes = Vec::with_capacity(meta.len() as usize + 1);
        file.take(COPIED + 1).read_to_end(&mut bytes).map_err(|e| CheckpointError::io(path, "read", e))?;
        if bytes.len() as u64 != meta.len() {
            let reason = format!(
                "had {} bytes when it was opened and {} when it was read; wait until it is written",
                meta.len(),
                bytes.len()
            );
            return Err(CheckpointError::malformed(path, reason));
        }
        Ok(Self::Owned(bytes))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => &mapped.map,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Refuses a mapped file that another process has changed in place since it was opened: its values would be a mixture of
    /// two files. A file that was replaced by renaming is still the old one here.
    pub(crate) fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let Self::Mapped(mapped) = self else { return Ok(()) };
        let state = state_of(&mapped.file).map_err(|e| CheckpointError::io(&mapped.path, "read", e))?;
        if state == mapped.state {
            return Ok(());
        }
        let reason = "was changed while it was read (its size or time of modification differs); wait until it is written, and start again";
        Err(CheckpointError::malformed(&mapped.path, reason))
    }

    /// Releases the pages of `part`, so that reading a large file does not keep a second copy of it
    /// resident. They are read from the file again when touched.
    ///
    /// The pages just before it are released too: the first touch of `part` brought them back.
    pub(crate) fn release(&self, part: &[u8]) {
        if let Self::Mapped(Mapped { map, .. }) = self {
            let start = (part.as_ptr().addr()).wrapping_sub(map.as_ptr().addr());
            if start <= map.len() && part.len() <= map.len() - start {
                let from = start.saturating_sub(MAPPED_AROUND);
                release_range(map, from, start - from + part.len());
            }
        }
    }
}

/// Linux maps cached pages of a file in runs around the touched one; with large pages, runs extend
/// as far as this.
const MAPPED_AROUND: usize = 2 << 20;

#[allow(unsafe_code, reason = "mapping a file has no safe form")]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and of a regular file, and this crate's writers replace files by renaming, which
    // leaves an open map as it is. What no check can rule out is a process that changes the file in place while it is
    // mapped: writing to it is a data race, undefined behaviour in the language's terms, and truncating it makes the
    // next access past the new end a SIGBUS. Both are accepted for files of more than `COPIED` bytes, since copying
    // would double the memory of a large model; [`Checkpoint`](crate::Checkpoint) says so to its callers. A changed file
    // is noticed around each read (`check_unchanged`), and a program can turn the signal into a message
    // (`report_cut_files`). The parsers bound the damage of changed bytes: every length and offset is checked against the map before
    // use, and elements are read as integers of any bit pattern.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "memmap2 counts MADV_DONTNEED among the unchecked kinds of advice")]
fn release_range(map: &Mmap, start: usize, len: usize) {
    // SAFETY: the range lies inside the map (checked by the caller), and the map is a read-only one of a file, so
    // that the dropped pages are read back from the file with the same content.
    let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
    // Advice is a hint: if the system ignores it, only memory is lost.
    drop(advised);
}

#[cfg(not(unix))]
fn release_range(_map: &Mmap, _start: usize, _len: usize) {}
