//! The crate's error type.

use std::path::PathBuf;

/// Error of configuring, reading or writing adapters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A key of a rank or alpha pattern that matches no adapted module's path.
    #[error("no adapted layer ends in '{key}', for which a rank or alpha is given")]
    IdlePattern {
        /// The key.
        key: String,
    },
    /// A rank of zero, or above the maximum of the layer.
    #[error("rank {rank} is out of range for {site} ({d_input} -> {d_output}); use 1..={max}")]
    RankOutOfRange {
        /// Requested rank.
        rank: usize,
        /// Module path of the site.
        site: String,
        /// Input width.
        d_input: usize,
        /// Output width.
        d_output: usize,
        /// Largest useful rank.
        max: usize,
    },
    /// A hyper-parameter outside its range.
    #[error("{name} = {value} is out of range; expected {expected}")]
    BadValue {
        /// Name of the hyper-parameter.
        name: &'static str,
        /// The given value.
        value: String,
        /// The valid range.
        expected: &'static str,
    },
    /// An option that a method does not have or that is outside its range.
    #[error("{name} = {value} is out of range; expected {expected}")]
    BadOption {
        /// Name of the option.
        name: String,
        /// The given value.
        value: String,
        /// The values that the method accepts.
        expected: String,
    },
    /// A method with an unknown name.
    #[error("unknown method '{name}'; expected one of {known}")]
    UnknownMethod {
        /// The name.
        name: String,
        /// The names of all methods.
        known: String,
    },
    /// An adapter folder whose tensors do not fit the model or the config.
    #[error("{}: adapter tensors do not fit: {details}", path.display())]
    Tensors {
        /// Adapter folder.
        path: PathBuf,
        /// Missing, unexpected and misshaped keys.
        details: String,
    },
    /// An invalid config.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A method that needs the base's weight, at a site whose weight is not available.
    #[error(
        "{site}: {method} starts from the base's weight; give the base model, with this weight as a matrix and not as a tensor train"
    )]
    NoWeight {
        /// The site.
        site: String,
        /// Method or initialization.
        method: String,
    },
    /// Several adapters that cannot be combined.
    #[error("{0}")]
    Incompatible(String),
    /// A selection of layers that is invalid.
    #[error(transparent)]
    Spec(#[from] lowrank_spec::SpecError),
    /// A decomposition that failed.
    #[error(transparent)]
    Factor(#[from] lowrank_factor::FactorError),
    /// A tensor file that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] lowrank_checkpoint::CheckpointError),
}

/// Result with [`AdapterError`].
pub type Result<T> = std::result::Result<T, AdapterError>;
