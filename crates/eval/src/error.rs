//! The crate's error type.

/// Error of scoring predictions.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum EvalError {
    /// A NaN or infinite logit.
    #[error(
        "row {row} of the predictions holds {value}; the model's weights are corrupt or training diverged"
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
    #[error("perplexity needs at least one predicted token; give a text of at least two tokens")]
    NoTokens,
    /// A classification metric for real-valued labels, a regression metric for classes, or a row of logits of
    /// the wrong width.
    #[error("metric '{metric}' does not apply to {what}")]
    Kind {
        /// The metric.
        metric: String,
        /// The kind of the data.
        what: &'static str,
    },
}

/// Result with [`EvalError`].
pub type Result<T> = std::result::Result<T, EvalError>;
