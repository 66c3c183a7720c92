//! One training path: an [`Objective`] defines the loss, [`train()`] runs the steps.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

pub mod checkpoint;
pub mod classify;
pub mod config;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod groups;
pub mod language;
pub mod masked;
pub mod objective;
pub mod optimizer;
pub mod preference;
mod recompute;
pub mod record;
mod renderer;
pub mod schedule;
pub mod seq2seq;
pub mod show;
pub mod team;
pub mod train;
pub mod tuner;
pub mod watch;

pub use checkpoint::{CheckpointStore, Start};
pub use classify::Classification;
pub use config::{SchedulerKind, TrainConfig};
pub use error::{Result, TrainError};
pub use evaluate::{DevSet, evaluate, predict};
pub use events::EventWatch;
pub use groups::{Group, Groups, Rate};
pub use language::{NextToken, Samples, TunedDecoder, evaluate_rows};
pub use lowrank_data::pack::Shard;
pub use masked::{Masked, TunedMaskedLm};
pub use objective::{Better, EvalOutput, MicroBatch, Objective, Selection, StepBatches};
pub use preference::{DpoConfig, Preference};
pub use record::TrainedRecord;
pub use seq2seq::{SequencePairs, TunedSeq2Seq, evaluate_pairs};
pub use show::ShowWatch;
pub use team::{Alone, Team};
pub use train::{Outcome, Training, train};
pub use tuner::{FineTuner, Tuned};
pub use watch::{StepReport, Watch};
