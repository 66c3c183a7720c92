//! Decoders: language models on packed tokens, one structure for every architecture.

mod beams;
pub(crate) mod body;
mod constraints;
pub(crate) mod cross;
mod experts;
pub(crate) mod generate;
pub(crate) mod head;
mod layer;
mod likelihood;
mod mlp;
mod model;
mod sample;

pub use crate::cache::KvCache;
pub use beams::{Beams, EarlyStopping};
pub use constraints::Constraints;
pub use cross::CrossAttention;
pub use generate::{Finish, Generated, GenerationOptions};
pub use layer::{Attention, DecoderLayer};
pub use likelihood::TokenNll;
pub use mlp::Mlp;
pub use model::Decoder;
pub use sample::{Cutoffs, Sampler, Sampling};
