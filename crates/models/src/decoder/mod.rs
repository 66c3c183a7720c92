//! Decoders: language models on packed tokens, one structure for every architecture.

mod cache;
mod config;
mod constraints;
mod generate;
pub(crate) mod keys;
mod layer;
mod likelihood;
mod model;
pub(crate) mod rope;
mod sample;

pub use cache::KvCache;
pub use config::{DecoderConfig, Residual};
pub use constraints::Constraints;
pub use generate::{Finish, Generated, GenerationOptions};
pub use keys::Keys;
pub use layer::{Attention, DecoderLayer, Mlp, Step};
pub use likelihood::TokenNll;
pub use model::{Decoder, LogitRows};
pub use rope::{Angles, RopeConfig, RopeScaling};
pub use sample::{Sampler, Sampling};
