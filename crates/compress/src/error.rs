//! The crate's error type.

use std::path::PathBuf;

use lowrank_factor::FactorError;

/// What can go wrong when a checkpoint is compressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// An option outside its range.
    #[error("{option} = {value} is out of range; expected {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The value given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Options that do not go together, or a model that cannot be compressed as asked.
    #[error("{0}")]
    Input(String),
    /// A weight that cannot be factored.
    #[error("'{module}': {source}")]
    Factor {
        /// The module, as the checkpoint names it.
        module: String,
        /// What the factorisation said.
        source: FactorError,
    },
    /// A budget that cannot be met.
    #[error(
        "a ratio of {ratio} would leave {budget} of the {total} parameters touched, and {minimum} is the least \
         there can be; lower --ratio or touch more layers"
    )]
    Budget {
        /// The ratio asked for.
        ratio: f64,
        /// Parameters that may remain in the touched layers.
        budget: i64,
        /// The least that can remain.
        minimum: u64,
        /// Parameters of the touched layers.
        total: u64,
    },
    /// A file that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said, and what to do.
        reason: String,
    },
    /// A tensor file that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] lowrank_checkpoint::CheckpointError),
    /// A selection of layers or a `lowrank` section that does not hold.
    #[error(transparent)]
    Spec(#[from] lowrank_spec::SpecError),
    /// Adapters that cannot be made or merged.
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

/// Names the module in a factorisation's error.
pub(crate) fn at(module: &str) -> impl FnOnce(FactorError) -> CompressError {
    let module = module.to_string();
    move |source| CompressError::Factor { module, source }
}
