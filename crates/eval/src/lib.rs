//! The metrics of GLUE, from logits and labels.

mod error;
mod metrics;
mod score;

pub use error::{EvalError, Result};
pub use metrics::{accuracy, f1, matthews, pearson, spearman};
pub use score::{argmax, score};
