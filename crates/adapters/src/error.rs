//! The crate's error type.

use std::path::PathBuf;

/// What can go wrong when adapters are configured, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// `--targets` (or an exclusion, or a layer subset) left no site.
    #[error("no layer matches '{pattern}'; nearest: {nearest}")]
    NoMatch {
        /// The pattern that was given.
        pattern: String,
        /// The most similar module names of the model, with how many layers carry each.
        nearest: String,
    },
    /// What is left out leaves nothing of what is taken.
    #[error(
        "of what '{pattern}' matches nothing is left; look at what is excluded, and at the choice of layers"
    )]
    NothingLeft {
        /// The pattern of what is taken.
        pattern: String,
    },
    /// A layer that the model does not have.
    #[error("there is no layer {layer}: the model has {n_layers}, counted from 0")]
    NoLayer {
        /// The layer asked for.
        layer: usize,
        /// How many there are.
        n_layers: usize,
    },
    /// A key of a rank or alpha pattern that ends no adapted module's path.
    #[error("no adapted layer ends in '{key}', for which a rank or alpha is given")]
    IdlePattern {
        /// The key.
        key: String,
    },
    /// A regular expression that does not compile.
    #[error("targets '{pattern}' is not a valid regular expression: {reason}")]
    BadRegex {
        /// The expression.
        pattern: String,
        /// What the regex engine says.
        reason: String,
    },
    /// A rank of zero, or above what the layer can use.
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
        /// The value given.
        value: String,
        /// The valid range.
        expected: &'static str,
    },
    /// An adapter folder whose tensors do not fit the model or the config.
    #[error("{}: adapter tensors do not fit: {details}", path.display())]
    Tensors {
        /// Adapter folder.
        path: PathBuf,
        /// Missing, unexpected and misshaped keys.
        details: String,
    },
    /// A config that cannot be understood.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A method that starts from the base's weight, at a site whose weight is not at hand.
    #[error("{site}: {method} starts from the weight, which is not at hand; load the model's weights")]
    NoWeight {
        /// The site.
        site: String,
        /// Method or initialisation.
        method: String,
    },
    /// Several adapters that cannot go together.
    #[error("{0}")]
    Incompatible(String),
    /// A decomposition that failed.
    #[error(transparent)]
    Factor(#[from] lowrank_factor::FactorError),
    /// A tensor file that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] lowrank_checkpoint::CheckpointError),
}

/// Result with [`AdapterError`].
pub type Result<T> = std::result::Result<T, AdapterError>;
