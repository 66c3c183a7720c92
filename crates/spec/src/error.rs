//! The crate's error type.

/// An invalid selection of layers or description of weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A pattern that matches no site.
    #[error("no layer matches '{pattern}'; nearest: {nearest}")]
    NoMatch {
        /// The given pattern.
        pattern: String,
        /// The most similar module names of the model, with the number of layers of each.
        nearest: String,
    },
    /// The exclusion or the choice of layers removes everything that the pattern matches.
    #[error("no match of '{pattern}' is left; check the exclusion and the choice of layers")]
    NothingLeft {
        /// The pattern of the selection.
        pattern: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} does not exist: the model has {n_layers} layers, counted from 0")]
    NoLayer {
        /// The requested layer.
        layer: usize,
        /// The model's number of layers.
        n_layers: usize,
    },
    /// A regular expression that does not compile.
    #[error("'{pattern}' is not a valid regular expression: {reason}")]
    BadRegex {
        /// The expression.
        pattern: String,
        /// The error of the regex engine.
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
