//! Data for fine-tuning: tasks, rows, tokens and packed batches.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

pub mod chat;
mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod glue;
pub mod images;
mod io;
pub mod mlm;
pub mod pack;
pub mod questions;
pub mod rows;
pub mod tokenize;

pub use error::{DataError, Result};
pub use io::is_json_lines;
