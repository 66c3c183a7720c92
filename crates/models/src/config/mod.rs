//! What a model is before any tensor exists: names of its parts, sizes, options. Everything else builds on this;
//! nothing here knows which architectures there are.

mod activation;
mod classifier;
mod decoder;
mod encoder;
mod experts;
mod file;
mod keys;
mod labels;
mod layer;
mod names;
mod relative;
mod rope;
mod seq2seq;

pub use activation::Activation;
pub use classifier::{BodyConfig, ClassifierConfig};
pub use decoder::{DecoderConfig, DecoderDropouts, QkNorm, Residual};
pub use encoder::{
    ConvolutionOptions, EncoderBiases, EncoderConfig, EncoderDropouts, EncoderLayerKind, HeadInput,
    HeadOptions, MaskedLmOptions, PatchOptions,
};
pub use experts::ExpertsConfig;
pub use keys::Keys;
pub use labels::{HeadLevel, Problem};
pub use layer::{LayerKind, NormKind};
pub use names::{
    CrossNames, DecoderArchitecture, DecoderNames, DropoutKeys, EmbeddingNames, EncoderArchitecture,
    EncoderNames, ExpertNames, HeadNames, LayerNorms, MaskedLmNames, MlpNames, PatchNames, QkvNames,
    RelativeNames, Seq2SeqArchitecture, SharedExpertNames, SharedLayers, TokenHead,
};
pub use relative::{DistanceBuckets, RelativeKind, RelativePositions};
pub use rope::{QueryGrowth, RopeConfig, RopeKeys, RopeScaling};
pub use seq2seq::Seq2SeqConfig;

pub(crate) use decoder::Defaults;
pub(crate) use file::{MAX_DIM, lookup, read_json, read_object};
pub(crate) use keys::{as_in_file, renamed};
pub(crate) use labels::read as read_labels;
