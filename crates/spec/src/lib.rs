//! The common vocabulary of the lowrank crates.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

pub mod blocks;
pub mod dropout;
pub mod error;
pub mod file;
pub mod names;
pub mod packed;
pub mod representation;
pub mod rng;
pub mod site;
pub mod storage;
pub mod suffix;
pub mod targets;
pub mod tensor;
pub mod text;

pub use blocks::BlockFormat;
pub use dropout::{Dropout, Mode, Stream};
pub use error::{Result, SpecError};
pub use file::{is_present, open_file, read_file, read_file_within};
pub use packed::PackedTokens;
pub use representation::{LowrankSection, ModuleEntry, Representation};
pub use site::Site;
pub use suffix::SuffixMap;
pub use targets::{Pattern, Targets};
pub use tensor::{HostTensor, transpose};
