//! The errors of this crate.

use std::{io, path::PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of reading or writing logs and records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read, written or created.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted operation, as a verb: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file could not be written as a whole.
    #[error(transparent)]
    File(#[from] lowrank_checkpoint::CheckpointError),
    /// A `run.json` that does not have the documented format.
    #[error("{} is not a run record: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// A `run.json` in another version of the format.
    #[error("{} has format {found}, this build reads format {expected}; use the build that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its `format` as written.
        found: String,
        /// The format that this build reads.
        expected: u32,
    },
    /// A log tree that cannot be converted as requested.
    #[error("{0}")]
    Logs(String),
    /// A report that cannot be written as requested.
    #[error("{0}")]
    Report(String),
    /// An event tag cannot be written.
    #[error("event tag {tag:?} is empty or contains a control character")]
    Tag {
        /// The tag.
        tag: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
