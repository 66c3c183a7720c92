//! The crate's error type.

use std::path::PathBuf;

/// What can go wrong when a model is loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said, and what to do.
        reason: String,
    },
    /// A config that is malformed, or asks for what is not supported.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// What is wrong and what would be right.
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
    /// An input the model cannot take.
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

/// Problems on one line, the first dozen of them.
pub(crate) fn summary(problems: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = problems.len().saturating_sub(SHOWN);
    let shown = problems[..problems.len() - more].join(", ");
    if more > 0 { format!("{shown}, and {more} more") } else { shown }
}
