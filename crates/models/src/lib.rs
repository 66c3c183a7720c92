//! Pretrained transformers on packed tokens.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

pub mod adapt;
pub mod architecture;
pub mod batch;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod embedding;
pub mod encoder;
pub mod error;
mod folder;
#[doc(hidden)]
pub mod fuzz;
pub mod linear;
pub mod masked_lm;
mod merge_factors;
pub mod norm;
pub mod params;
pub mod projection;
pub mod tensor_train;

pub use adapt::Adaptable;
pub use batch::TokenBatch;
pub use classifier::{SequenceClassifier, Trainable};
pub use config::EncoderConfig;
pub use decoder::{Decoder, DecoderConfig};
pub use error::{ModelError, Result};
pub use folder::{GenerationConfig, ModelFolder, ModelKind, PoolingMode, SentencePooling};
pub use masked_lm::MaskedLm;
pub use merge_factors::merge_factors;
pub use projection::Projection;
