//! Fine-tuning on burn-train: schedules, parameter groups, evaluation, checkpoints, logs.
//!
//! [`fit()`] trains a [`FineTuner`] (a classifier with its adapters) and gives back the weights of its best
//! evaluation. The loop is a burn-train learning strategy ([`strategy::StepStrategy`]) that counts optimizer steps.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod evaluate;
pub mod fit;
mod loader;
mod logger;
pub mod metrics;
pub mod optimizer;
pub mod pretrain;
pub mod renderer;
pub mod schedule;
pub mod strategy;
pub mod tuner;

pub use config::{SchedulerKind, TrainConfig};
pub use error::{Result, TrainError};
pub use evaluate::{DevSet, evaluate, predict};
pub use fit::{Fit, fit};
pub use pretrain::pretrain;
pub use renderer::ProgressRenderer;
pub use strategy::Outcome;
pub use tuner::FineTuner;
