//! What a training run leaves behind, and what is made of it: `tfevents` logs, `run.json` records, the
//! table of a grid of runs.
//!
//! No tensor library: this crate reads and writes files.
//!
//! - [`run`]: the record of one run, `run.json`.
//! - [`log_path`]: where a run's events lie in a log tree.
//! - [`tfevents`]: TensorBoard event files.
//! - [`logs`]: a tree of event files as one Parquet or CSV file.
//! - [`table`]: the table of a grid, as text, Markdown, CSV and LaTeX.
//! - [`html`]: the report of a grid, one HTML file.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod bootstrap;
mod error;
mod files;
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
