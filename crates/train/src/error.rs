//! The crate's error type.

use std::path::PathBuf;

/// Error of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A hyper-parameter outside its range.
    #[error("{name} = {value} is out of range; expected {expected}")]
    BadValue {
        /// Name of the option.
        name: &'static str,
        /// The given value.
        value: String,
        /// The valid range.
        expected: &'static str,
    },
    /// A loss that is not finite.
    #[error("the loss is {loss} at step {step}; {}", advice(*step, *lr))]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
        /// The learning rate at that step.
        lr: f64,
    },
    /// A loss on the dev set that is not finite.
    #[error("the loss on the dev set is {loss} after step {step}; {}", advice(*step + 1, *lr))]
    DevLoss {
        /// The step, 0 before training.
        step: usize,
        /// The loss.
        loss: f64,
        /// The learning rate at that step.
        lr: f64,
    },
    /// A checkpoint that cannot be written, read or continued.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A batch or a record that does not fit the model.
    #[error("{0}")]
    Batch(String),
    /// A process of a data-parallel training that cannot be reached.
    #[error("{0}")]
    Team(String),
    /// The data.
    #[error(transparent)]
    Data(#[from] lowrank_data::DataError),
    /// The model.
    #[error(transparent)]
    Model(#[from] lowrank_models::ModelError),
    /// The adapters.
    #[error(transparent)]
    Adapter(#[from] lowrank_adapters::AdapterError),
    /// The log.
    #[error(transparent)]
    Report(#[from] lowrank_report::Error),
    /// The metrics.
    #[error(transparent)]
    Eval(#[from] lowrank_eval::EvalError),
}

/// Result with [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

/// Advice for a loss that is not finite.
fn advice(step: usize, lr: f64) -> String {
    match step {
        1 => "at the first step; check the checkpoint for NaN or Inf".into(),
        _ => format!("use a lower learning rate (now {lr:e}) or --max-grad-norm"),
    }
}
