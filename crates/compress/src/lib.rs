//! Compression of transformer checkpoints into low-rank and tensor-train factors.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod allocate;
pub mod amount;
mod analyse;
pub mod error;
pub mod extract;
mod fit;
mod folder;
mod job;
pub mod method;
pub mod options;
mod parallel;
mod pass;
mod pivots;
mod plan;
pub mod products;
mod quant;
pub mod report;
mod rounding;
#[cfg(feature = "run")]
mod run;
mod scratch;
mod sided;
pub mod spectrum;
pub mod statistics;
mod unit;
pub mod weights;
mod write;

pub use amount::{Allocation, Amount, Of, parse_ranks};
pub use error::{CompressError, Result};
pub use extract::{Extracted, ExtractedModule, extract, extract_with};
pub use job::compress;
pub use method::{Method, Sides};
pub use options::{Calibrator, CompressedModule, Options, Progress};
pub use products::Products;
pub use quant::{Measure, quantize};
pub use report::{Change, ModuleReport, Report};
#[cfg(feature = "run")]
pub use run::{
    Answers, DeviceProducts, DistillOptions, GradientCalibrator, LayerRecovery, ModelCalibrator, Residuals,
    Tokens, Trained, distill, fisher, mean_nll, token_limit,
};
pub use statistics::{InputStatistics, SidedStatistics, Weighting, Weightings};
pub use weights::{Role, Weight};
