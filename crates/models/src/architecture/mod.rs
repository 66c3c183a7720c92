//! The architectures: a file each, and a line each in the registries below. `docs/architectures.md` says how to
//! add one.

mod bert;
mod distilbert;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod qwen2;
mod roberta;
mod stablelm;

use crate::decoder::{DecoderConfig, Keys};
use crate::encoder::EncoderNames;

/// Every encoder.
pub const ENCODERS: [&EncoderArchitecture; 3] =
    [&bert::ARCHITECTURE, &roberta::ARCHITECTURE, &distilbert::ARCHITECTURE];

/// Every decoder.
pub const DECODERS: [&DecoderArchitecture; 6] = [
    &gpt2::ARCHITECTURE,
    &llama::ARCHITECTURE,
    &mistral::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &stablelm::ARCHITECTURE,
    &gpt_neox::ARCHITECTURE,
];

/// Ends of the names of buffers that an encoder's checkpoint may hold.
pub(crate) const ENCODER_BUFFERS: [&str; 2] = ["embeddings.position_ids", "embeddings.token_type_ids"];

/// Whether a tensor of this name in a checkpoint is a buffer, which no model counts among its parameters.
pub fn is_buffer(name: &str) -> bool {
    let of_decoders = DECODERS.iter().flat_map(|a| a.names.buffers);
    // A whole part of the path: `attn.bias` is a buffer, `c_attn.bias` is not.
    let is_end =
        |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    ENCODER_BUFFERS.iter().chain(of_decoders).any(|end| is_end(end.trim_start_matches('.')))
}

/// What an encoder has of its own over the shared [`Encoder`](crate::encoder::Encoder).
#[derive(Debug)]
pub struct EncoderArchitecture {
    /// `model_type` in `config.json`; a config without one is the first architecture's.
    pub model_types: &'static [&'static str],
    /// Beginning of the class names in `architectures` (`Bert` of `BertForSequenceClassification`).
    pub class: &'static str,
    /// Keys of `config.json` that have other names in BERT's.
    pub config_keys: &'static [(&'static str, &'static str)],
    /// Whether positions count from `pad_token_id + 1`.
    pub positions_after_padding: bool,
    /// Where the encoder's tensors are.
    pub names: EncoderNames,
    /// The sequence classification head.
    pub head: HeadNames,
    /// The masked language modelling head.
    pub masked_lm: MaskedLmNames,
}

impl PartialEq for EncoderArchitecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

/// A sequence classification head: `output(dropout(act(dense(first token))))`.
#[derive(Debug)]
pub struct HeadNames {
    /// Path of the first map.
    pub dense: &'static str,
    /// Path of the map to the labels.
    pub output: &'static str,
    /// Name of the whole head in PEFT's `modules_to_save`, where it is a module of its own.
    pub saved_as: Option<&'static str>,
    /// Whether the first map belongs to the head (BERT's pooler belongs to the encoder).
    pub dense_is_head: bool,
    /// Tanh after the first map, ReLU otherwise.
    pub is_tanh: bool,
    /// Whether there is dropout before the first map too.
    pub drops_input: bool,
}

/// A masked language modelling head: `norm(act(transform(h)))·embeddingᵀ + bias`.
#[derive(Debug)]
pub struct MaskedLmNames {
    /// Path of the map before the norm.
    pub transform: &'static str,
    /// Path of the norm.
    pub norm: &'static str,
    /// Key of the bias.
    pub bias: &'static str,
    /// Key under which the bias may be stored once more.
    pub bias_copy: &'static str,
    /// Key under which the tied embedding may be stored once more.
    pub decoder: &'static str,
}

/// What a decoder has of its own over the shared [`Decoder`](crate::decoder::Decoder).
#[derive(Debug)]
pub struct DecoderArchitecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Where the tensors are.
    pub names: DecoderNames,
    /// Reads the config's keys.
    pub config: fn(&'static DecoderArchitecture, &Keys<'_>) -> Result<DecoderConfig, String>,
}

impl PartialEq for DecoderArchitecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// Where a decoder keeps what.
#[derive(Debug)]
pub struct DecoderNames {
    /// Prefix of all but the head's keys.
    pub prefix: &'static str,
    /// The word embedding.
    pub embedding: &'static str,
    /// The table of positions, where they are not rotary.
    pub positions: Option<&'static str>,
    /// The layers.
    pub layers: &'static str,
    /// Norm before the attention, below a layer.
    pub attention_norm: &'static str,
    /// Norm before the feed-forward part.
    pub mlp_norm: &'static str,
    /// The maps to queries, keys and values.
    pub qkv: QkvNames,
    /// The attention's output map.
    pub output: &'static str,
    /// The gate of the feed-forward part, where it has one.
    pub gate: Option<&'static str>,
    /// Its map to the inner width.
    pub up: &'static str,
    /// Its map back.
    pub down: &'static str,
    /// The final norm.
    pub norm: &'static str,
    /// The head, without the prefix.
    pub head: &'static str,
    /// Whether linear weights are stored as `(in, out)`.
    pub conv1d: bool,
    /// Ends of the names of buffers that a checkpoint may hold.
    pub buffers: &'static [&'static str],
}

impl DecoderNames {
    /// The path of something in a layer.
    pub fn in_layer(&self, index: usize, name: &str) -> String {
        format!("{}{}.{index}.{name}", self.prefix, self.layers)
    }
}

/// The maps to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub enum QkvNames {
    /// One each.
    Separate([&'static str; 3]),
    /// One for all.
    Fused {
        /// Its path below a layer.
        name: &'static str,
        /// Whether query, key and value of a head lie side by side, not those of all heads.
        by_head: bool,
    },
}

impl QkvNames {
    /// The paths, below a layer.
    pub fn paths(&self) -> &[&'static str] {
        match self {
            Self::Separate(paths) => paths,
            Self::Fused { name, .. } => std::slice::from_ref(name),
        }
    }
}

/// The decoder of a `model_type`.
///
/// # Errors
/// A line with the types that are known.
pub fn decoder(model_type: &str) -> Result<&'static DecoderArchitecture, String> {
    DECODERS.into_iter().find(|a| a.model_type == model_type).ok_or_else(|| {
        let known: Vec<&str> = DECODERS.iter().map(|a| a.model_type).collect();
        format!(
            "model_type '{model_type}' is not supported for decoders; expected one of {}",
            known.join(", ")
        )
    })
}

/// The encoder of a `model_type`.
///
/// # Errors
/// A line with the types that are known.
pub fn encoder(model_type: &str) -> Result<&'static EncoderArchitecture, String> {
    ENCODERS.into_iter().find(|a| a.model_types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<&str> = ENCODERS.iter().flat_map(|a| a.model_types).copied().collect();
        format!(
            "model_type '{model_type}' is not supported for encoders; expected one of {}",
            known.join(", ")
        )
    })
}
