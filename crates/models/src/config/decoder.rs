//! `config.json` of a decoder, validated before anything is allocated.

use serde_json::{Map, Value};

use crate::config::activation::Activation;
use crate::config::experts::ExpertsConfig;
use crate::config::file::{MAX_DIM, MAX_LAYERS, lookup};
use crate::config::keys::Keys;
use crate::config::layer::{LayerKind, NormKind};
use crate::config::names::{DecoderArchitecture, DecoderNames};
use crate::config::relative::DistanceBuckets;
use crate::config::rope::{RopeConfig, RopeKeys};
use lowrank_kernels::Alibi;
use lowrank_spec::LowrankSection;

/// Maximum number of experts in all layers.
const MAX_ALL_EXPERTS: usize = 1 << 16;

/// Residual structure of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `h = x + attention(norm(x))`, `h + mlp(norm'(h))`.
    Sequential,
    /// `x + attention(norm(x)) + mlp(norm'(x))`; a layer without the second norm uses the first for both.
    Parallel,
    /// `h = norm(x + attention(x))`, `norm'(h + mlp(h))`.
    PostNorm,
}

/// Norms of queries and keys, before the rotation unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head separately; the norm weight has the width of a head.
    Head,
    /// The same after the rotation.
    HeadAfterRotation,
    /// Each head separately, as a layer norm with its own weights of shape `[heads, head_dim]`.
    HeadGains,
    /// All heads together.
    All,
}

/// Probabilities of dropping an element in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderDropouts {
    /// After the embeddings.
    pub embeddings: f64,
    /// On attention probabilities.
    pub attention: f64,
    /// After the attention's output map.
    pub attention_output: f64,
    /// On the inner values of the feed-forward layer, if it is not a mixture of experts.
    pub mlp_inner: f64,
    /// After the feed-forward layer.
    pub mlp_output: f64,
    /// After the final norm, in an encoder-decoder model.
    pub last: f64,
    /// Whether the outputs of both parts have the same mask, as a dropout on their sum has (Falcon).
    pub shares_mask: bool,
    /// Before the head of a token classifier.
    pub token_head: f64,
}

impl DecoderDropouts {
    /// From the keys of an architecture; null stands for 0.
    fn read(architecture: &DecoderArchitecture, keys: &Keys<'_>) -> std::result::Result<Self, String> {
        let names = architecture.dropouts;
        let read = |key: Option<(&str, f64)>| match key {
            Some((key, _)) if keys.has(key) => Ok(keys.dropout(key)?.unwrap_or(0.0)),
            key => Ok::<_, String>(key.map_or(0.0, |(_, default)| default)),
        };
        let mut token_head = None;
        for (key, default) in architecture.token_head.dropout {
            token_head = token_head.or(keys.dropout(key)?.or(*default));
        }
        Ok(Self {
            embeddings: read(names.embeddings)?,
            attention: read(names.attention)?,
            attention_output: read(names.attention_output)?,
            mlp_inner: 0.0,
            mlp_output: read(names.mlp_output)?,
            last: 0.0,
            shares_mask: false,
            token_head: token_head.unwrap_or(0.1),
        })
    }
}

/// Shape and hyper-parameters of a decoder.
///
/// | dimension | meaning |
/// |---|---|
/// | d_model | hidden width |
/// | n_heads, n_kv_heads | heads of the queries, and of the keys and values, which divide them |
/// | head_dim | width of a head |
/// | d_ff | inner width of the feed-forward layer |
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The architecture.
    pub architecture: &'static DecoderArchitecture,
    /// The prefix of the stack's paths, where it is not that of the architecture: under some heads for question answering.
    pub prefix: Option<&'static str>,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the word embedding, which is projected to the hidden width if they differ.
    pub embedding_width: usize,
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
    /// Inner width of the feed-forward layer.
    pub d_ff: usize,
    /// The experts of the layers that have any.
    pub experts: Option<ExpertsConfig>,
    /// Maximum number of positions of the model.
    pub max_positions: usize,
    /// Row of a sequence's first token in the position table, which has this many additional rows.
    pub position_offset: usize,
    /// Kind of norm.
    pub norm: NormKind,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// Rows of a table of relative positions, in an encoder-decoder model that has one.
    pub relative: Option<DistanceBuckets>,
    /// Number of layers before the first, those of the encoder in an encoder-decoder model.
    pub first_layer: usize,
    /// Kinds of rotary positions used by the layers; empty in an architecture with a position table.
    pub ropes: Vec<RopeConfig>,
    /// Feed-forward activation, on the gate if there is one.
    pub activation: Activation,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output map has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward maps have a bias.
    pub mlp_bias: bool,
    /// Residual structure of a layer.
    pub residual: Residual,
    /// Whether the last layer is followed by a norm.
    pub final_norm: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Bound to which queries, keys and values are clipped.
    pub clip_qkv: Option<f64>,
    /// Bound `c` of the scaled attention scores: they become `c·tanh(score / c)`.
    pub attention_softcap: Option<f32>,
    /// Biases of the attention scores by position.
    pub alibi: Option<Alibi>,
    /// Name of a layer's attention sinks, relative to the layer, if it has any: one logit per head in the softmax.
    pub sinks: Option<&'static str>,
    /// Length beyond which the keys of all tokens are computed anew, since their rotation changes (Phi-3).
    pub restart_length: Option<usize>,
    /// Dropouts in training.
    pub dropouts: DecoderDropouts,
    /// The layers, first to last.
    pub layers: Vec<LayerKind>,
    /// Multiplier on embedded tokens.
    pub embedding_scale: f64,
    /// Multiplier on the output of each sublayer before it is added to the residual stream.
    pub residual_scale: f64,
    /// Multiplier on the logits.
    pub logit_scale: f64,
    /// Bound `c` of the logits: they become `c·tanh(logit / c)`.
    pub logit_softcap: Option<f64>,
    /// Whether an untied head has a bias.
    pub head_bias: bool,
    /// Whether the head is tied to the word embedding.
    pub tied: bool,
    /// First token of a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The padding token of other implementations.
    pub padding: Option<u32>,
    /// The factored modules.
    pub lowrank: LowrankSection,
    /// The whole file.
    pub raw: Map<String, Value>,
}

/// Names and defaults of keys that differ between architectures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// Width of a head; the hidden width divided by the heads if `None`.
    pub(crate) head_dim: Option<usize>,
    /// The key of the feed-forward activation, and its default.
    pub(crate) activation_key: &'static str,
    pub(crate) activation: &'static str,
    /// The key of the norms' epsilon, and its default.
    pub(crate) norm_eps_key: &'static str,
    pub(crate) norm_eps: f64,
    /// Rotary positions.
    pub(crate) rope: RopeKeys,
    /// Whether the head is tied to the word embedding.
    pub(crate) tied: bool,
    /// Maximum number of positions of the model.
    pub(crate) max_positions: usize,
    /// Ratio of inner to hidden width if no key gives the former; the key is required if `None`.
    pub(crate) widening: Option<usize>,
}

impl Defaults {
    /// Llama's.
    pub(crate) const DEFAULT: Self = Self {
        head_dim: None,
        activation_key: "hidden_act",
        activation: "silu",
        norm_eps_key: "rms_norm_eps",
        norm_eps: 1e-6,
        rope: RopeKeys::DEFAULT,
        tied: false,
        max_positions: 2048,
        widening: None,
    };
}

impl DecoderConfig {
    /// Whether a sequence whose first `read` tokens are cached has to be read again at `length` tokens: its keys have the
    /// rotation of short sequences, as in transformers.
    pub(crate) fn restarts(&self, read: usize, length: usize) -> bool {
        self.restart_length.is_some_and(|limit| read <= limit && length > limit)
    }

    /// The names of the modules.
    pub fn names(&self) -> DecoderNames {
        let names = self.architecture.names;
        DecoderNames { prefix: self.prefix.unwrap_or(names.prefix), ..names }
    }

    /// A config from the keys that most architectures share, under the names and with the defaults of `defaults`: RMS
    /// norms, no biases, rotary positions, sequential residuals, an untied head.
    pub(crate) fn with(
        architecture: &'static DecoderArchitecture,
        keys: &Keys<'_>,
        defaults: Defaults,
    ) -> std::result::Result<Self, String> {
        keys.check_uniform()?;
        // transformers takes null, too, for a model whose tokens see those after them.
        if keys.has("is_causal") && !(keys.get("is_causal").is_some() && keys.flag_or("is_causal", true)?) {
            return Err("is_causal = false or null is not supported for decoders; expected true".into());
        }
        let n_heads = keys.size("num_attention_heads")?;
        let d_model = keys.size("hidden_size")?;
        let n_layers = keys.size_within("num_hidden_layers", MAX_LAYERS)?;
        let head_dim = keys.size_or("head_dim", defaults.head_dim.unwrap_or(d_model / n_heads))?;
        let d_ff = match (keys.optional_size("intermediate_size", MAX_DIM)?, defaults.widening) {
            (Some(d_ff), _) => d_ff,
            (None, Some(widening)) => widening * d_model,
            (None, None) => return Err("intermediate_size is missing".into()),
        };
        let activation = keys.text(defaults.activation_key)?.unwrap_or(defaults.activation);
        let rope = RopeKeys { max_positions: defaults.max_positions, ..defaults.rope };
        let layer = LayerKind {
            window: None,
            rope: Some(0),
            scale: 1.0 / (head_dim as f32).sqrt(),
            norms: architecture.names.norms,
            experts: false,
        };
        Ok(Self {
            architecture,
            prefix: None,
            vocab_size: keys.size("vocab_size")?,
            embedding_width: d_model,
            d_model,
            n_layers,
            n_heads,
            n_kv_heads: keys.size_or("num_key_value_heads", n_heads)?,
            head_dim,
            d_ff,
            experts: None,
            max_positions: keys.size_or("max_position_embeddings", defaults.max_positions)?,
            position_offset: 0,
            norm: NormKind::Rms,
            norm_eps: keys.number_or(defaults.norm_eps_key, defaults.norm_eps)?,
            relative: None,
            first_layer: 0,
            ropes: vec![RopeConfig::read_with(keys, head_dim, rope)?],
            activation: lookup(defaults.activation_key, activation, &Activation::NAMES)?,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            residual: Residual::Sequential,
            final_norm: true,
            qk_norm: None,
            clip_qkv: None,
            attention_softcap: None,
            alibi: None,
            sinks: None,
            restart_length: None,
            dropouts: DecoderDropouts::read(architecture, keys)?,
            layers: vec![layer; n_layers],
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
            head_bias: false,
            tied: keys.flag_or("tie_word_embeddings", defaults.tied)?,
            bos: keys.ids("bos_token_id")?.first().copied(),
            eos: keys.ids("eos_token_id")?,
            padding: keys.ids("pad_token_id")?.first().copied(),
            lowrank: keys.section()?,
            raw: Map::new(),
        })
    }

    /// Sets the window of the layers to which the config gives one: those called `sliding_attention` in
    /// `layer_types`, or, without such a list, those selected by `is_sliding`. A list that asks for a window where the config
    /// has none is refused.
    pub(crate) fn with_windows(
        mut self,
        keys: &Keys<'_>,
        window: Option<usize>,
        is_sliding: impl Fn(usize) -> bool,
    ) -> std::result::Result<Self, String> {
        let types = keys.layer_types(self.n_layers)?;
        if window.is_none() && types.iter().flatten().any(|name| *name == "sliding_attention") {
            let gate = match keys.get("use_sliding_window") {
                Some(_) => " and use_sliding_window",
                None => "",
            };
            return Err(format!(
                "layer_types has sliding_attention, and the config switches the window off; set sliding_window{gate}"
            ));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let slides = match &types {
                Some(types) => types[index] == "sliding_attention",
                None => is_sliding(index),
            };
            layer.window = window.filter(|_| slides);
        }
        Ok(self)
    }

    /// Gives every layer the same window; `layer_types` is not read.
    pub(crate) fn with_window(mut self, window: Option<usize>) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.window = window);
        self
    }

    /// The same without rotary positions.
    pub(crate) fn without_ropes(mut self) -> Self {
        self.ropes.clear();
        self.layers.iter_mut().for_each(|layer| layer.rope = None);
        self
    }

    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let Self { d_model, n_heads, n_kv_heads, head_dim, .. } = *self;
        if head_dim == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(format!(
                "num_attention_heads = {n_heads}, num_key_value_heads = {n_kv_heads}, head_dim = {head_dim}; expected a \
                 multiple of the key heads, and heads of some width"
            ));
        }
        let keys = Keys::new(&self.raw);
        let is_derived = ["head_dim", "d_kv"].iter().all(|key| keys.get(key).is_none());
        if is_derived && head_dim == d_model / n_heads && !d_model.is_multiple_of(n_heads) {
            return Err(format!(
                "hidden_size = {d_model} is not a multiple of num_attention_heads = {n_heads}"
            ));
        }
        self.ropes.iter().try_for_each(RopeConfig::check)?;
        let experts = self.experts.map_or(0, |experts| experts.count).saturating_mul(self.n_layers);
        if experts > MAX_ALL_EXPERTS {
            return Err(format!("{experts} experts in all layers; expected at most {MAX_ALL_EXPERTS}"));
        }
        for (what, heads) in [("queries", n_heads), ("keys", n_kv_heads)] {
            let width = heads.saturating_mul(head_dim);
            if width > MAX_DIM {
                return Err(format!("{what} are {width} wide; expected at most {MAX_DIM}"));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("the epsilon of the norms is {}; expected 0 or more", self.norm_eps));
        }
        Ok(())
    }

    /// Whether sequences are limited to [`max_positions`](Self::max_positions): a position table
    /// ends there, rotary positions do not.
    pub fn is_bounded(&self) -> bool {
        self.architecture.names.positions.is_some()
    }
}
