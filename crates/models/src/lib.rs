//! Pretrained transformers on packed tokens.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

pub mod adapt;
pub mod architecture;
pub mod batch;
mod body;
mod cache;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod embedding;
pub mod encoder;
pub mod error;
mod folder;
#[doc(hidden)]
pub mod fuzz;
mod kept;
mod language;
pub mod linear;
pub mod masked_lm;
mod merge_factors;
pub mod norm;
pub mod params;
pub mod projection;
mod rope;
mod run;
mod save;
pub mod seq2seq;
mod stack;
mod stored;
pub mod tensor_train;
pub mod visit;

pub use adapt::Adaptable;
pub use batch::{Rows, TokenBatch, Tokens};
pub use classifier::{Classifier, Trainable};
pub use config::{
    ClassifierConfig, DecoderConfig, EncoderConfig, HeadInput, HeadLevel, Problem, Seq2SeqConfig,
};
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use folder::{
    Dense, EmbeddingStep, GenerationConfig, GenerationSource, ModelFolder, ModelKind, PoolingMode,
    SentencePooling,
};
pub use language::LanguageModel;
pub use masked_lm::MaskedLm;
pub use projection::Projection;
pub use run::Run;
pub use save::copy_companions;
pub use seq2seq::{PairBatch, Seq2Seq};
pub use stack::{Parameters, Stack};
pub use stored::{Blocks, Stored};
pub use visit::{Layout, ParamVisitor, Parameter, Part, Role};
