//! What a model is before any tensor exists: names of its parts, sizes, options. Everything else builds on this;
//! nothing here knows which architectures there are.

mod activation;
mod decoder;
mod encoder;
mod file;
mod keys;
mod layer;
mod names;
mod rope;

pub use activation::Activation;
pub use decoder::{DecoderConfig, QkNorm, Residual};
pub use encoder::EncoderConfig;
pub use keys::Keys;
pub use layer::{LayerKind, NormKind};
pub use names::{
    DecoderArchitecture, DecoderNames, EncoderArchitecture, EncoderNames, HeadNames, LayerNorms,
    MaskedLmNames, QkvNames,
};
pub use rope::{RopeConfig, RopeKeys, RopeScaling};

pub(crate) use file::{MAX_DIM, MAX_LAYERS, lookup, read_object};
