//! Logs and records of training runs, and reports made from them.
//!
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod bootstrap;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzz;
pub mod html;
mod log_path;
pub mod logs;
mod metric;
mod proto;
pub mod run;
mod stats;
mod svg;
pub mod table;
pub mod tfevents;
mod timestamp;

pub use bootstrap::{PairedInterval, paired_bootstrap};
pub use error::{Error, Result};
pub use log_path::{LogKey, log_path, model_name};
pub use metric::Metric;
pub use stats::{Summary, summarize};
pub use timestamp::rfc3339_utc;
