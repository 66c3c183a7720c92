//! `config.json` of a decoder, validated before anything is allocated.

use std::path::Path;

use serde_json::{Map, Value};

use crate::architecture::{self, DecoderArchitecture};
use crate::config::{Activation, MAX_DIM, MAX_LAYERS, lookup, read_object};
use crate::decoder::keys::Keys;
use crate::decoder::rope::RopeConfig;
use crate::error::{ModelError, Result};
use crate::norm::NormKind;
use lowrank_spec::LowrankSection;

/// How the two parts of a layer meet the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `h = x + attention(norm(x))`, `h + mlp(norm'(h))`.
    Sequential,
    /// `x + attention(norm(x)) + mlp(norm'(x))`.
    Parallel,
    /// `x + attention(norm(x)) + mlp(norm(x))`.
    ParallelOneNorm,
}

/// Shape and hyper-parameters of a decoder.
///
/// | dimension | meaning |
/// |---|---|
/// | d_model | hidden width |
/// | n_heads, n_kv_heads | heads of the queries, and of the keys and values, which divide them |
/// | head_dim | width of a head |
/// | d_ff | inner width of the feed-forward part |
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which architecture.
    pub architecture: &'static DecoderArchitecture,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Hidden width.
    pub d_model: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Heads of the queries.
    pub n_heads: usize,
    /// Heads of the keys and values.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward part.
    pub d_ff: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Which norm.
    pub norm: NormKind,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Rotary positions; an architecture without has a table of positions.
    pub rope: Option<RopeConfig>,
    /// Feed-forward activation, on the gate where there is one.
    pub activation: Activation,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output map has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward maps have a bias.
    pub mlp_bias: bool,
    /// How a layer's parts meet the residual stream.
    pub residual: Residual,
    /// Factor on the attention scores of each layer.
    pub score_scales: Vec<f32>,
    /// The keys each layer's queries see: the last so many, themselves included.
    pub windows: Vec<Option<usize>>,
    /// Whether the head is the word embedding.
    pub tied: bool,
    /// First token of a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Which modules are factors.
    pub lowrank: LowrankSection,
    /// The whole file.
    pub raw: Map<String, Value>,
}

impl DecoderConfig {
    /// Reads `config.json` of a model folder, and the ends of text of `generation_config.json` beside it.
    ///
    /// # Errors
    /// [`ModelError::File`] where it cannot be read, [`ModelError::Config`] where it is malformed, names an
    /// architecture or an option that is not supported, or has absurd sizes.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let error = |reason| ModelError::Config { path: path.clone(), reason };
        let mut config = Self::parse(read_object(folder, "config.json")?).map_err(error)?;
        if folder.join("generation_config.json").is_file() {
            let generation = read_object(folder, "generation_config.json")?;
            let eos = Keys::new(&generation).ids("eos_token_id").map_err(error)?;
            if !eos.is_empty() {
                config.eos = eos;
            }
        }
        Ok(config)
    }

    /// Takes the object of a `config.json`.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn parse(raw: Map<String, Value>) -> std::result::Result<Self, String> {
        let keys = Keys::new(&raw);
        let model_type = keys.text("model_type")?.ok_or("no model_type")?;
        let architecture = architecture::decoder(model_type)?;
        let config = Self { raw: raw.clone(), ..(architecture.config)(architecture, &keys)? };
        config.check()?;
        Ok(config)
    }

    /// A config by the keys that most architectures share: RMS norms, no biases, rotary positions over the
    /// whole head, sequential residuals, an untied head.
    pub(crate) fn common(
        architecture: &'static DecoderArchitecture,
        keys: &Keys<'_>,
    ) -> std::result::Result<Self, String> {
        let n_heads = keys.size("num_attention_heads")?;
        let d_model = keys.size("hidden_size")?;
        let n_layers = keys.size_within("num_hidden_layers", MAX_LAYERS)?;
        let head_dim = keys.size_or("head_dim", d_model / n_heads)?;
        Ok(Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            d_model,
            n_layers,
            n_heads,
            n_kv_heads: keys.size_or("num_key_value_heads", n_heads)?,
            head_dim,
            d_ff: keys.size("intermediate_size")?,
            max_positions: keys.size_or("max_position_embeddings", 2048)?,
            norm: NormKind::Rms,
            norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
            rope: Some(RopeConfig::read(keys, head_dim, "partial_rotary_factor", 1.0)?),
            activation: lookup("hidden_act", keys.text("hidden_act")?.unwrap_or("silu"), &Activation::NAMES)?,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            residual: Residual::Sequential,
            score_scales: vec![1.0 / (head_dim as f32).sqrt(); n_layers],
            windows: vec![None; n_layers],
            tied: keys.flag_or("tie_word_embeddings", false)?,
            bos: keys.ids("bos_token_id")?.first().copied(),
            eos: keys.ids("eos_token_id")?,
            lowrank: keys.section()?,
            raw: Map::new(),
        })
    }

    fn check(&self) -> std::result::Result<(), String> {
        let Self { d_model, n_heads, n_kv_heads, head_dim, .. } = *self;
        if head_dim == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(format!("{n_heads} heads over {n_kv_heads} key heads of width {head_dim}"));
        }
        if !self.raw.contains_key("head_dim") && !d_model.is_multiple_of(n_heads) {
            return Err(format!("hidden size {d_model} is no multiple of {n_heads} heads"));
        }
        for (what, heads) in [("queries", n_heads), ("keys", n_kv_heads)] {
            let width = heads.saturating_mul(head_dim);
            if width > MAX_DIM {
                return Err(format!("{what} are {width} wide; expected at most {MAX_DIM}"));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("the norms' epsilon {} is out of range", self.norm_eps));
        }
        Ok(())
    }

    /// Whether a sequence may not be longer than [`max_positions`](Self::max_positions): a table of positions
    /// ends there, rotary ones do not.
    pub const fn is_bounded(&self) -> bool {
        self.rope.is_none()
    }
}
