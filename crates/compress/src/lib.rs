//! Compression of transformer checkpoints: a model folder in, a smaller model folder out that runs on its factors.
//!
//! Weights are mapped and read one at a time, factors are appended to the output as they are made, and the output is a
//! model folder like any other whose `config.json` says which modules are factors
//! ([`LowrankSection`](lowrank_spec::representation::LowrankSection)). Nothing here depends on the architecture but
//! calibration, which runs the model.
//!
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod adam;
mod allocate;
pub mod amount;
pub mod calibrate;
pub mod error;
pub mod fisher;
mod fit;
mod folder;
pub mod job;
pub mod method;
mod network;
pub mod options;
mod parallel;
pub mod recover;
pub mod report;
mod scratch;
pub mod spectrum;
pub mod statistics;
mod unit;
pub mod weights;

pub use amount::{Allocation, Amount, Of, parse_ranks};
pub use calibrate::ModelCalibrator;
pub use error::{CompressError, Result};
pub use fisher::{Answers, fisher};
pub use job::compress;
pub use method::{Method, Sides};
pub use network::{Tokens, token_limit};
pub use options::{Calibrator, CompressedModule, Options, Progress};
pub use recover::{DistillOptions, LayerRecovery, Trained, distill};
pub use report::{Change, ModuleReport, Report};
pub use statistics::{InputStatistics, Weighting, Weightings};
pub use weights::{Role, Weight};
