//! The crate's error type.

use std::path::PathBuf;

/// Error of loading or saving a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system, and the remedy.
        reason: String,
    },
    /// A config that is malformed, or requests something unsupported.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The problem and the expected value.
        reason: String,
    },
    /// Tensors that are missing, unexpected or of the wrong shape.
    #[error("{}: weights do not fit the config: {details}", path.display())]
    Tensors {
        /// The checkpoint.
        path: PathBuf,
        /// Every problem found.
        details: String,
    },
    /// An input that the model does not accept.
    #[error("{0}")]
    Input(String),
    /// A tokenizer or a chat template that cannot be used.
    #[error(transparent)]
    Data(#[from] lowrank_data::DataError),
    /// A tensor file that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] lowrank_checkpoint::CheckpointError),
}

/// Result with [`ModelError`].
pub type Result<T> = std::result::Result<T, ModelError>;

/// Problems on one line, at most a dozen.
pub(crate) fn summary(problems: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = problems.len().saturating_sub(SHOWN);
    let shown = problems[..problems.len() - more].join(", ");
    if more > 0 { format!("{shown}, and {more} more") } else { shown }
}
