//! The crate's error type.

use std::path::PathBuf;

use lowrank_factor::FactorError;

/// Error of compressing a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// An option outside its range.
    #[error("{option} = {value} is out of range; expected {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The given value.
        value: String,
        /// The valid values.
        expected: String,
    },
    /// Options that cannot be combined, or a model that cannot be compressed as requested.
    #[error("{0}")]
    Input(String),
    /// A weight that cannot be factored.
    #[error("'{module}': {source}")]
    Factor {
        /// The module, as named in the checkpoint.
        module: String,
        /// The error of the factorization.
        source: FactorError,
    },
    /// A budget that cannot be met.
    #[error(
        "a ratio of {ratio} would leave {budget} of the {total} parameters of the selected layers, but at least \
         {minimum} must remain; lower --ratio or select more layers"
    )]
    Budget {
        /// The requested ratio.
        ratio: f64,
        /// Parameters that may remain in the selected layers.
        budget: i64,
        /// The smallest possible number of remaining parameters.
        minimum: u64,
        /// Parameters of the selected layers.
        total: u64,
    },
    /// A size of the weight files that cannot be met.
    #[error(
        "a ratio of {ratio} allows the weight files {allowed} bytes, but they would take {needed}; lower --ratio to at \
         most {possible}, choose fewer bits or select more layers"
    )]
    FileBudget {
        /// The requested ratio.
        ratio: f64,
        /// Bytes that it allows.
        allowed: u64,
        /// Bytes that the files would take.
        needed: u64,
        /// The ratio at which these are allowed.
        possible: f64,
    },
    /// A file that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system, and what to do.
        reason: String,
    },
    /// A tensor file that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] lowrank_checkpoint::CheckpointError),
    /// A selection of layers or a `lowrank` section that is invalid.
    #[error(transparent)]
    Spec(#[from] lowrank_spec::SpecError),
    /// Adapters that cannot be created or merged.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::AdapterError),
    /// A recovery that fails.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Train(#[from] lowrank_train::TrainError),
    /// A model that cannot be loaded or run.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Model(#[from] lowrank_models::ModelError),
}

/// Result with [`CompressError`].
pub type Result<T, E = CompressError> = std::result::Result<T, E>;

/// Adds the name of the module to a factorization's error.
pub(crate) fn at(module: &str) -> impl FnOnce(FactorError) -> CompressError {
    let module = module.to_string();
    move |source| CompressError::Factor { module, source }
}
