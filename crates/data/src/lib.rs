//! Data for fine-tuning: tasks, tokens, packed batches, and a small GLUE made by a grammar.
#![doc = include_str!("../README.md")]

mod error;
pub mod glue;
pub mod io;
pub mod pack;
pub mod rng;
pub mod tokenize;

pub use error::{DataError, Result};
