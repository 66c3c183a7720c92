//! The crate's error type.

/// A selection of layers or a description of weights that does not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A pattern that matches no site.
    #[error("no layer matches '{pattern}'; nearest: {nearest}")]
    NoMatch {
        /// The pattern that was given.
        pattern: String,
        /// The most similar module names of the model, with how many layers carry each.
        nearest: String,
    },
    /// The exclusion or the choice of layers leaves nothing of what the pattern matches.
    #[error("nothing that '{pattern}' matches is left; check the exclusion and the choice of layers")]
    NothingLeft {
        /// The pattern of what is taken.
        pattern: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} does not exist: the model has {n_layers} layers, counted from 0")]
    NoLayer {
        /// The layer asked for.
        layer: usize,
        /// The model's number of layers.
        n_layers: usize,
    },
    /// A regular expression that does not compile.
    #[error("'{pattern}' is not a valid regular expression: {reason}")]
    BadRegex {
        /// The expression.
        pattern: String,
        /// What the regex engine reports.
        reason: String,
    },
    /// Lengths of sequences that do not add up to the tokens of their batch.
    #[error("{tokens} tokens for {sequences} sequences whose lengths add up to {sum}")]
    Packed {
        /// Number of sequences.
        sequences: usize,
        /// Sum of their lengths.
        sum: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// Ranks or cores that contradict each other or the weight's shape.
    #[error("{0}")]
    Representation(String),
    /// Weights in a form that cannot be read.
    #[error("{0}")]
    Storage(String),
    /// A `lowrank` section of a config that is malformed or too new.
    #[error("lowrank: {0}")]
    Section(String),
}

/// Result with [`SpecError`].
pub type Result<T> = std::result::Result<T, SpecError>;
