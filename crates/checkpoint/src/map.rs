//! The bytes of a file: mapped, or held in memory.

use std::{fs, fs::File, path::Path};

use memmap2::Mmap;

use crate::CheckpointError;

/// Bytes that stay where they are for the life of a checkpoint.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A mapped file.
    Mapped(Mmap),
    /// Bytes that somebody handed over.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file.
    pub(crate) fn map(path: &Path) -> Result<Self, CheckpointError> {
        // Asked before opening: opening a pipe would wait for a writer.
        let meta = fs::metadata(path).map_err(|e| CheckpointError::io(path, "open", e))?;
        if !meta.is_file() {
            return Err(CheckpointError::malformed(path, "not a regular file"));
        }
        if meta.len() == 0 {
            return Err(CheckpointError::malformed(path, "empty file; download or write it again"));
        }
        let file = File::open(path).map_err(|e| CheckpointError::io(path, "open", e))?;
        let map = map_file(&file).map_err(|e| CheckpointError::io(path, "map", e))?;
        Ok(Self::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Lets go of the pages that `part` lies in, so that reading a large file does not keep a second copy of it
    /// resident. They come back from the file when touched again.
    ///
    /// The pages just before go too: the first touch of `part` brought them back.
    pub(crate) fn release(&self, part: &[u8]) {
        if let Self::Mapped(map) = self {
            let start = (part.as_ptr().addr()).wrapping_sub(map.as_ptr().addr());
            if start <= map.len() && part.len() <= map.len() - start {
                let from = start.saturating_sub(MAPPED_AROUND);
                release_range(map, from, start - from + part.len());
            }
        }
    }
}

/// Linux maps pages of a file that it has in memory by runs around the one touched, and runs of large pages reach as
/// far as this.
const MAPPED_AROUND: usize = 2 << 20;

#[allow(unsafe_code, reason = "mapping a file has no safe form")]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private to this crate and read-only. Its bytes are only ever read as integers and
    // validated before use, so a file that another process rewrites in place yields wrong numbers, not undefined
    // values; our own writers never do that, they write a new file and rename it.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "memmap2 counts MADV_DONTNEED among the unchecked kinds of advice")]
fn release_range(map: &Mmap, start: usize, len: usize) {
    // SAFETY: the range lies inside the map (checked by the caller), and the map is a read-only one of a file, so
    // that the dropped pages are read back from the file with the same content.
    let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
    // Advice is a hint: where the system does not take it, only memory is lost.
    drop(advised);
}

#[cfg(not(unix))]
fn release_range(_map: &Mmap, _start: usize, _len: usize) {}
