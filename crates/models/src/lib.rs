//! Pretrained transformers on packed tokens.
//!
//! A batch is the concatenation of its sequences ([`batch::TokenBatch`]): no padding is ever computed. Weights
//! come from Hugging Face folders, under their own keys; every linear map is a [`linear::Linear`] whose weight
//! has several representations and which an adapter may serve.

pub mod batch;
pub mod classifier;
pub mod config;
pub mod encoder;
pub mod error;
pub mod linear;
pub mod masked_lm;
pub mod params;

pub use batch::TokenBatch;
pub use classifier::{SequenceClassifier, Trainable};
pub use config::{Architecture, EncoderConfig};
pub use error::{ModelError, Result};
pub use masked_lm::MaskedLm;
