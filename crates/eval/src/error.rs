//! The crate's error type.

/// What can go wrong when predictions are scored.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum EvalError {
    /// A NaN or infinite logit.
    #[error(
        "row {row} of the predictions holds {value}; the model's weights are broken or the training diverged"
    )]
    NotFinite {
        /// Row, from 0.
        row: usize,
        /// The value.
        value: f32,
    },
    /// Different numbers of predictions and labels, or no rows.
    #[error("{predictions} predictions for {labels} labels; both must be the same number, at least 1")]
    Length {
        /// Number of predictions.
        predictions: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A perplexity over no tokens.
    #[error("no predicted tokens to take the perplexity of; give a text of at least two tokens")]
    NoTokens,
    /// A classification metric for scores, a regression metric for classes, or a row of logits of the wrong width.
    #[error("metric '{metric}' does not go with {what}")]
    Kind {
        /// The metric.
        metric: String,
        /// What the data are.
        what: &'static str,
    },
}

/// Result with [`EvalError`].
pub type Result<T> = std::result::Result<T, EvalError>;
