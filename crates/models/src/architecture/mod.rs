//! The architectures: a file each, and a line each in the registries below. `docs/architectures.md` says how to
//! add one.

mod bert;
mod distilbert;
mod roberta;

use crate::encoder::EncoderNames;

/// Every encoder.
pub const ENCODERS: [&EncoderArchitecture; 3] =
    [&bert::ARCHITECTURE, &roberta::ARCHITECTURE, &distilbert::ARCHITECTURE];

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
