//! The architectures: a file each, and a line each in the registries below. `docs/architectures.md` says how to
//! add one.

mod albert;
mod arcee;
mod bart;
mod bert;
mod bloom;
mod cohere;
mod cohere2;
mod cwm;
mod deberta;
mod distilbert;
mod electra;
mod ernie;
mod ernie4_5;
mod exaone4;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3;
mod glm;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod gte;
mod helium;
mod hunyuan_v1_dense;
mod jais2;
mod jina;
mod llama;
mod ministral;
mod ministral3;
mod mistral;
mod mixtral;
mod modernbert;
mod mpnet;
mod mpt;
mod nemotron;
mod nomic;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod roformer;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod unknown;
mod vaultgemma;
mod vit;
mod xlm_roberta_xl;

use std::path::Path;

use lowrank_spec::storage::take_storage;
use serde_json::{Map, Value};

use crate::config::{
    BodyConfig, ClassifierConfig, DecoderArchitecture, DecoderConfig, EncoderArchitecture, EncoderConfig,
    HeadLevel, Keys, Seq2SeqArchitecture, Seq2SeqConfig, as_in_file, read_labels, read_object, renamed,
};
use crate::error::{ModelError, Result};

/// Every encoder.
pub const ENCODERS: &[&EncoderArchitecture] = &[
    &bert::ARCHITECTURE,
    &roberta::ARCHITECTURE,
    &distilbert::ARCHITECTURE,
    &electra::ARCHITECTURE,
    &albert::ARCHITECTURE,
    &modernbert::ARCHITECTURE,
    &mpnet::ARCHITECTURE,
    &deberta::ARCHITECTURE,
    &nomic::ARCHITECTURE,
    &gte::ARCHITECTURE,
    &jina::ARCHITECTURE,
    &roformer::ARCHITECTURE,
    &ernie::ARCHITECTURE,
    &xlm_roberta_xl::ARCHITECTURE,
    &t5::ARCHITECTURE,
    &vit::ARCHITECTURE,
];

/// Every decoder.
pub const DECODERS: &[&DecoderArchitecture] = &[
    &gpt2::ARCHITECTURE,
    &llama::ARCHITECTURE,
    &mistral::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &stablelm::ARCHITECTURE,
    &gpt_neox::ARCHITECTURE,
    &gemma::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &phi::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &granite::ARCHITECTURE,
    &starcoder2::ARCHITECTURE,
    &mixtral::ARCHITECTURE,
    &qwen2_moe::ARCHITECTURE,
    &qwen3_moe::ARCHITECTURE,
    &olmoe::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &vaultgemma::ARCHITECTURE,
    &cohere::ARCHITECTURE,
    &cohere2::ARCHITECTURE,
    &glm::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &olmo::ARCHITECTURE,
    &olmo3::ARCHITECTURE,
    &exaone4::ARCHITECTURE,
    &ministral::ARCHITECTURE,
    &ministral3::ARCHITECTURE,
    &seed_oss::ARCHITECTURE,
    &arcee::ARCHITECTURE,
    &nemotron::ARCHITECTURE,
    &jais2::ARCHITECTURE,
    &helium::ARCHITECTURE,
    &ernie4_5::ARCHITECTURE,
    &hunyuan_v1_dense::ARCHITECTURE,
    &cwm::ARCHITECTURE,
    &opt::ARCHITECTURE,
    &gptj::ARCHITECTURE,
    &gpt_neo::ARCHITECTURE,
    &gpt_bigcode::ARCHITECTURE,
    &falcon::ARCHITECTURE,
    &bloom::ARCHITECTURE,
    &mpt::ARCHITECTURE,
    &gpt_oss::ARCHITECTURE,
];

/// Every encoder-decoder model.
pub const SEQ2SEQ: &[&Seq2SeqArchitecture] = &[&t5::SEQ2SEQ, &bart::BART, &bart::MBART];

/// Whether a config is that of a supported encoder-decoder model: by its class, or without one by `is_encoder_decoder`.
pub(crate) fn is_seq2seq(config: &Map<String, Value>) -> bool {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some((_, prefix)) =
        SEQ2SEQ.iter().flat_map(|a| a.model_types).find(|(name, _)| Some(*name) == model_type)
    else {
        return false;
    };
    let classes = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
    match classes.filter_map(Value::as_str).next() {
        Some(class) => ["ForConditionalGeneration", "WithLMHeadModel", "Model"]
            .contains(&class.strip_prefix(prefix).unwrap_or_default()),
        None => config.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false),
    }
}

/// Ends of the names of buffers that an encoder's checkpoint may hold.
const ENCODER_BUFFERS: [&str; 3] =
    ["embeddings.position_ids", "embeddings.token_type_ids", "rotary_emb.inv_freq"];

/// Whether a tensor of an encoder's checkpoint is a buffer.
pub(crate) fn is_encoder_buffer(name: &str) -> bool {
    let is_end =
        |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    ENCODER_BUFFERS.iter().any(|end| is_end(end))
}

pub use lowrank_spec::names::is_buffer;

/// The decoder of a `model_type`.
///
/// # Errors
/// A line with the types that are known.
pub fn decoder(model_type: &str) -> std::result::Result<&'static DecoderArchitecture, String> {
    DECODERS.iter().copied().find(|a| a.model_type == model_type).ok_or_else(|| unknown::decoder(model_type))
}

/// The encoder of a `model_type`.
///
/// # Errors
/// A line with the types that are known.
pub fn encoder(model_type: &str) -> std::result::Result<&'static EncoderArchitecture, String> {
    ENCODERS
        .iter()
        .copied()
        .find(|a| a.model_types.iter().any(|(name, _)| *name == model_type))
        .ok_or_else(|| unknown::encoder(model_type))
}

impl EncoderConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::File`] where it cannot be read, [`ModelError::Config`] where it is malformed, names an
    /// unknown `model_type` or activation, or has absurd sizes.
    pub fn read(folder: &Path) -> Result<Self> {
        let raw = read_object(folder, "config.json")?;
        Self::parse(raw).map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })
    }

    /// Takes the object of a `config.json`.
    ///
    /// # Errors
    /// A one-line reason.
    pub fn parse(mut raw: Map<String, Value>) -> std::result::Result<Self, String> {
        take_storage(&mut raw).map_err(|e| e.to_string())?;
        let architecture =
            encoder(&encoder_type(&raw)?).map_err(|error| unknown::of_parts(&raw).unwrap_or(error))?;
        Self::of(architecture, raw)
    }
}

/// `model_type`, or if it is missing the type that the class in `architectures` belongs to: BERT's where that is
/// missing too.
fn encoder_type(raw: &Map<String, Value>) -> std::result::Result<String, String> {
    let keys = Keys::new(raw);
    if let Some(model_type) = keys.text("model_type")? {
        return Ok(model_type.to_string());
    }
    let classes = raw.get("architectures").and_then(Value::as_array).into_iter().flatten();
    let class = classes.filter_map(Value::as_str).next();
    let Some(class) = class else { return Ok("bert".into()) };
    // The longest beginning that fits: `DistilBert` before `Bert`.
    let all = ENCODERS.iter().flat_map(|a| a.model_types);
    let known = all.filter(|(_, beginning)| class.starts_with(beginning)).max_by_key(|(_, name)| name.len());
    known.map(|(model_type, _)| (*model_type).to_string()).ok_or_else(|| {
        format!(
            "model_type is missing, and the class '{class}' in architectures is not supported for encoders"
        )
    })
}

impl Seq2SeqConfig {
    /// Reads `config.json` of a model folder, and the start and ends of text of `generation_config.json` beside it.
    ///
    /// # Errors
    /// [`ModelError::File`] where it cannot be read, [`ModelError::Config`] where it is malformed, names an
    /// architecture or an option that is not supported, or has absurd sizes.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config = Self::parse(read_object(folder, "config.json")?)
            .map_err(|reason| ModelError::Config { path, reason })?;
        let path = folder.join("generation_config.json");
        if lowrank_checkpoint::has_file(&path) {
            let generation = read_object(folder, "generation_config.json")?;
            return config
                .with_generation(&Keys::new(&generation))
                .map_err(|reason| ModelError::Config { path, reason });
        }
        Ok(config)
    }

    /// Takes the object of a `config.json`.
    ///
    /// # Errors
    /// A one-line reason.
    pub fn parse(mut raw: Map<String, Value>) -> std::result::Result<Self, String> {
        take_storage(&mut raw).map_err(|e| e.to_string())?;
        let model_type = Keys::new(&raw).text("model_type")?.unwrap_or_default();
        let known = || SEQ2SEQ.iter().flat_map(|a| a.model_types).map(|(name, _)| *name);
        let found = SEQ2SEQ.iter().find(|a| a.model_types.iter().any(|(name, _)| *name == model_type));
        let architecture = found.copied().ok_or_else(|| {
            format!(
                "model_type '{model_type}' is not supported for encoder-decoder models; expected one of {}",
                known().collect::<Vec<_>>().join(", ")
            )
        })?;
        Self::of(architecture, raw)
    }
}

impl DecoderConfig {
    /// Reads `config.json` of a model folder, and the ends of text of `generation_config.json` beside it.
    ///
    /// # Errors
    /// [`ModelError::File`] where it cannot be read, [`ModelError::Config`] where it is malformed, names an
    /// architecture or an option that is not supported, or has absurd sizes.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut config = Self::parse(read_object(folder, "config.json")?)
            .map_err(|reason| ModelError::Config { path, reason })?;
        if lowrank_checkpoint::has_file(folder.join("generation_config.json")) {
            let generation = read_object(folder, "generation_config.json")?;
            // As in transformers, the file determines the ends where it exists, even if it names no token.
            config.eos = Keys::new(&generation).ids("eos_token_id").map_err(|reason| ModelError::Config {
                path: folder.join("generation_config.json"),
                reason,
            })?;
        }
        Ok(config)
    }

    /// Takes the object of a `config.json`.
    ///
    /// # Errors
    /// A one-line reason.
    pub fn parse(mut raw: Map<String, Value>) -> std::result::Result<Self, String> {
        take_storage(&mut raw).map_err(|e| e.to_string())?;
        let model_type = Keys::new(&raw).text("model_type")?.ok_or("model_type is missing")?;
        let architecture = decoder(model_type).map_err(|error| unknown::of_parts(&raw).unwrap_or(error))?;
        Self::of(architecture, raw)
    }

    /// The config of an architecture by the object of a `config.json`.
    pub(crate) fn of(
        architecture: &'static DecoderArchitecture,
        raw: Map<String, Value>,
    ) -> std::result::Result<Self, String> {
        let names = architecture.config_keys;
        let renamed = renamed(&raw, names);
        let prefix = HeadLevel::named(&raw).and_then(|level| renamed_prefix(architecture.model_type, level));
        let config = (architecture.config)(architecture, &Keys::new(&renamed)).and_then(|config| {
            let config = Self { raw: raw.clone(), prefix, ..config };
            config.check().map(|()| config)
        });
        config.map_err(|error| as_in_file(error, &raw, names))
    }
}

/// Decoders whose `…ForQuestionAnswering` in transformers has another prefix than their other classes, for compatibility with
/// its first versions.
const RENAMED_UNDER_SPANS: [&str; 10] = [
    "arcee",
    "exaone4",
    "llama",
    "ministral",
    "nemotron",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
];

/// The prefix of a decoder under a head, where it is not that of the architecture.
pub(crate) fn renamed_prefix(model_type: &str, level: HeadLevel) -> Option<&'static str> {
    (level == HeadLevel::Span && RENAMED_UNDER_SPANS.contains(&model_type)).then_some("transformer.")
}

impl ClassifierConfig {
    /// Reads `config.json` of a model folder, of an encoder or a decoder.
    ///
    /// # Errors
    /// As [`EncoderConfig::read`] and [`DecoderConfig::read`].
    pub fn read(folder: &Path) -> Result<Self> {
        let raw = read_object(folder, "config.json")?;
        Self::parse(raw).map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })
    }

    /// Takes the object of a `config.json`.
    ///
    /// # Errors
    /// A one-line reason.
    pub fn parse(raw: Map<String, Value>) -> std::result::Result<Self, String> {
        let model_type = Keys::new(&raw).text("model_type")?;
        if !model_type.is_some_and(|name| DECODERS.iter().any(|a| a.model_type == name)) {
            return EncoderConfig::parse(raw).map(Self::from);
        }
        let (labels, problem) = read_labels(&Keys::new(&raw))?;
        let level = HeadLevel::named(&raw).unwrap_or_default();
        let body = BodyConfig::Decoder(DecoderConfig::parse(raw)?);
        Ok(Self { labels, problem, level, body }.at_level(level))
    }
}

#[cfg(test)]
mod tests;
