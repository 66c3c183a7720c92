//! `config.json` of an encoder-decoder model: those of its two halves, and what joins them.

use serde_json::{Map, Value};

use crate::config::decoder::DecoderConfig;
use crate::config::encoder::EncoderConfig;
use crate::config::keys::Keys;
use crate::config::names::Seq2SeqArchitecture;
use crate::error::ModelError;
use crate::visit::Module;
use lowrank_spec::LowrankSection;

/// Shape and hyper-parameters of an encoder-decoder model.
#[derive(Clone, Debug, PartialEq)]
pub struct Seq2SeqConfig {
    /// The architecture.
    pub architecture: &'static Seq2SeqArchitecture,
    /// The encoder.
    pub encoder: EncoderConfig,
    /// The decoder, whose hidden states are multiplied by its `logit_scale` before the head.
    pub decoder: DecoderConfig,
    /// The first token of the decoder, if the files give one.
    pub start: Option<u32>,
    /// Which modules are factors.
    pub lowrank: LowrankSection,
    /// The whole file.
    pub raw: Map<String, Value>,
}

impl Seq2SeqConfig {
    /// Takes the object of a `config.json` of this architecture.
    pub(crate) fn of(
        architecture: &'static Seq2SeqArchitecture,
        mut raw: Map<String, Value>,
    ) -> Result<Self, String> {
        // transformers writes null for some keys that it would rather leave out.
        let whole = raw.clone();
        raw.retain(|_, value| !value.is_null());
        let encoder = EncoderConfig::of(architecture.encoder, raw.clone())?;
        let mut own = raw.clone();
        if own.contains_key("num_decoder_layers") {
            own.shift_remove("num_layers");
        }
        let decoder = DecoderConfig::of(architecture.decoder, own)?;
        if !Keys::new(&raw).flag_or("is_encoder_decoder", true)? {
            return Err("is_encoder_decoder = false is not supported for this class; expected true".into());
        }
        let decoder = DecoderConfig { first_layer: encoder.n_layers, ..decoder };
        let keys = Keys::new(&raw);
        let start = match first_token(&keys)? {
            None if architecture.starts_with_padding => {
                Some(keys.ids("pad_token_id")?.first().copied().unwrap_or(0))
            }
            start => start,
        };
        Ok(Self { architecture, encoder, start, lowrank: keys.section()?, decoder, raw: whole })
    }

    /// Takes the start and ends of text of a `generation_config.json`. As in transformers, they hold even if it has
    /// none, and those of `config.json` only without such a file.
    pub(crate) fn with_generation(mut self, generation: &Keys<'_>) -> Result<Self, String> {
        self.decoder.eos = generation.ids("eos_token_id")?;
        let is_given = first_token(&Keys::new(&self.raw))?.is_some();
        let padding = self.start.filter(|_| !is_given);
        self.start = first_token(generation)?.or(padding);
        Ok(self)
    }

    /// Beginning of the names of this model's classes in transformers.
    pub fn class(&self) -> &'static str {
        let own = self.raw.get("model_type").and_then(Value::as_str);
        let types = self.architecture.model_types;
        types.iter().find(|(name, _)| Some(*name) == own).unwrap_or(&types[0]).1
    }

    /// The first token of a generated text.
    ///
    /// # Errors
    /// [`ModelError::Input`] if neither `generation_config.json` nor `config.json` gives one.
    pub fn start_token(&self) -> crate::error::Result<u32> {
        self.start.ok_or_else(|| {
            ModelError::Input(
                "the model has neither decoder_start_token_id nor bos_token_id; set decoder_start_token_id in \
                 generation_config.json, or in config.json if the folder has no generation_config.json"
                    .into(),
            )
        })
    }

    /// The token of the language that the model writes, in architectures whose targets end with it.
    pub fn target_language(&self) -> Option<u32> {
        self.start.filter(|_| self.architecture.starts_with_last)
    }

    /// The tokens that the decoder reads to predict those of a target: a first token, then the target without its last token.
    /// Empty for an empty target.
    ///
    /// # Errors
    /// As [`start_token`](Self::start_token), unless the first token is the target's last, its language.
    pub fn decoder_inputs(&self, target: &[u32]) -> crate::error::Result<Vec<u32>> {
        let Some((last, before)) = target.split_last() else { return Ok(Vec::new()) };
        let first = if self.architecture.starts_with_last { *last } else { self.start_token()? };
        Ok([&[first], before].concat())
    }

    /// Number of layers of both halves.
    pub fn n_layers(&self) -> usize {
        self.encoder.n_layers + self.decoder.n_layers
    }

    /// Which of the layers of both halves a module is in: those of the decoder come after those of the encoder.
    pub fn layer_of(&self, module: &Module<'_>) -> Option<usize> {
        let index = module.layer?;
        let is_in_decoder = module.path.starts_with(&self.decoder.names().in_layer(index, ""));
        Some(if is_in_decoder { self.encoder.n_layers + index } else { index })
    }

    /// Path of the head.
    pub fn head(&self) -> &'static str {
        self.decoder.architecture.names.head
    }

    /// Path of the table of words.
    pub fn words(&self) -> String {
        let names = &self.encoder.architecture.names;
        format!("{}{}", names.prefix, names.embeddings.words)
    }

    /// The longest source and the longest target that the model takes, where positions bound them.
    pub fn limits(&self) -> [Option<usize>; 2] {
        [
            self.encoder.has_positions.then(|| self.encoder.max_tokens()),
            self.decoder.is_bounded().then_some(self.decoder.max_positions),
        ]
    }
}

/// The first token of a decoder by the keys of a file: `decoder_start_token_id`, else `bos_token_id`.
fn first_token(keys: &Keys<'_>) -> Result<Option<u32>, String> {
    let start = keys.ids("decoder_start_token_id")?;
    if start.len() > 1 {
        return Err(format!(
            "decoder_start_token_id = {start:?} has a token for each source of a batch; expected one token"
        ));
    }
    Ok(start.first().copied().or(keys.ids("bos_token_id")?.first().copied()))
}
