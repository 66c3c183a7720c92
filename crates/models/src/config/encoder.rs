//! `config.json` of an encoder, validated before anything is allocated.

use serde_json::{Map, Value};

use crate::config::activation::Activation;
use crate::config::file::{MAX_LAYERS, lookup};
use crate::config::keys::{Keys, as_in_file, renamed};
use crate::config::labels::{self, Problem};
use crate::config::layer::NormKind;
use crate::config::names::EncoderArchitecture;
use crate::config::relative::RelativePositions;
use crate::config::rope::RopeConfig;
use lowrank_spec::LowrankSection;

/// Shape and hyper-parameters of an encoder.
///
/// Dimensions: `d_model` hidden width, `n_heads` attention heads of `head_dim`, `d_ff` inner width of
/// the feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Which architecture.
    pub architecture: &'static EncoderArchitecture,
    /// Rows of the word embedding; 0 in models of pictures.
    pub vocab_size: usize,
    /// How pictures are cut into patches, in models that read them.
    pub patches: Option<PatchOptions>,
    /// Hidden width.
    pub d_model: usize,
    /// Width of the embeddings, where they are projected to the hidden width.
    pub embedding_size: usize,
    /// Multiplier on the embedded words.
    pub embedding_scale: f64,
    /// Transformer layers, as they are run.
    pub n_layers: usize,
    /// Groups of layers that share their weights, and the layers of each; as many groups of one as layers where none do.
    pub groups: [usize; 2],
    /// What each stored layer is like.
    pub layers: Vec<EncoderLayerKind>,
    /// The kinds of rotary positions that layers refer to.
    pub ropes: Vec<RopeConfig>,
    /// Relative positions, in models that have them.
    pub relative: Option<RelativePositions>,
    /// The convolution beside the first layer, in models that have one.
    pub convolution: Option<ConvolutionOptions>,
    /// Attention heads.
    pub n_heads: usize,
    /// Width of an attention head: `d_model / n_heads`, except in T5.
    pub head_dim: usize,
    /// Multiplier on the attention scores before the softmax.
    pub score_scale: f32,
    /// Inner width of the feed-forward part.
    pub d_ff: usize,
    /// Rows of the position table; without one, the maximum length of the model.
    pub max_positions: usize,
    /// Whether positions are embedded.
    pub has_positions: bool,
    /// Rows of the token-type embedding, 0 where it is absent.
    pub type_vocab_size: usize,
    /// Rows of the table of tasks, 0 where it is absent.
    pub task_types: usize,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Whether norms are RMS norms.
    pub norm_is_rms: bool,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Which maps and norms have biases.
    pub biases: EncoderBiases,
    /// Dropouts in the embeddings and the layers.
    pub dropouts: EncoderDropouts,
    /// Dropout before the classifier of sequences.
    pub classifier_dropout: f64,
    /// Dropout before the classifier of tokens.
    pub token_dropout: f64,
    /// Dropout before the map to the start and end of an answer.
    pub span_dropout: f64,
    /// The sequence classification head.
    pub head: HeadOptions,
    /// The masked language modelling head.
    pub masked_lm: MaskedLmOptions,
    /// Position of a sequence's first token (RoBERTa counts from `pad_token_id + 1`).
    pub position_offset: usize,
    /// Label names by class index.
    pub labels: Vec<String>,
    /// What the logits of the head mean.
    pub problem: Problem,
    /// Which modules are factors.
    pub lowrank: LowrankSection,
    /// The whole file, kept so that a saved model has all its keys.
    pub raw: Map<String, Value>,
}

/// What may differ from one layer of an encoder to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderLayerKind {
    /// A token at position `i` sees position `j` only if `|i - j| < window`; all of them without.
    pub window: Option<usize>,
    /// Index of its rotary positions in the config's list; `None` for a layer without.
    pub rope: Option<usize>,
    /// Whether the attention has its norm.
    pub attention_norm: bool,
}

/// Which maps and norms of an encoder have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderBiases {
    /// The maps to queries, keys and values.
    pub qkv: bool,
    /// The attention's output map.
    pub output: bool,
    /// The first map of the feed-forward part, and its gate.
    pub up: bool,
    /// Its second map.
    pub down: bool,
    /// All norms.
    pub norms: bool,
}

/// Probabilities of dropping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderDropouts {
    /// After the embeddings.
    pub embeddings: f64,
    /// On attention probabilities.
    pub attention: f64,
    /// After the attention's output map.
    pub attention_output: f64,
    /// On the inner values of the feed-forward part.
    pub inner: f64,
    /// After its second map.
    pub output: f64,
    /// On the rows of the table of relative positions.
    pub relative: f64,
    /// After the final norm.
    pub last: f64,
}

/// How pictures are cut into patches, which are the tokens after the class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchOptions {
    /// Height and width of a picture in pixels.
    pub picture: [usize; 2],
    /// Height and width of a patch.
    pub patch: [usize; 2],
    /// Values of a pixel.
    pub channels: usize,
}

impl PatchOptions {
    /// Rows and columns of patches; pixels beyond the last whole patch are not read.
    pub const fn grid(&self) -> [usize; 2] {
        [self.picture[0] / self.patch[0], self.picture[1] / self.patch[1]]
    }

    /// Patches of a picture.
    pub const fn n_patches(&self) -> usize {
        self.grid()[0] * self.grid()[1]
    }

    /// Channels, height and width of a patch.
    pub const fn kernel(&self) -> [usize; 3] {
        [self.channels, self.patch[0], self.patch[1]]
    }

    /// Values of a patch.
    pub const fn width(&self) -> usize {
        self.channels * self.patch[0] * self.patch[1]
    }
}

/// A convolution over neighbouring tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvolutionOptions {
    /// Neighbours that it sees, the token itself among them; odd.
    pub kernel: usize,
    /// After it.
    pub activation: Activation,
}

/// What a sequence classification head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadInput {
    /// The first token.
    First,
    /// The mean over tokens.
    Mean,
}

/// Options of a sequence classification head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadOptions {
    /// What it reads.
    pub input: HeadInput,
    /// Dropout on that.
    pub input_dropout: f64,
    /// Whether the first map has a bias.
    pub bias: bool,
    /// After the first map.
    pub activation: Activation,
}

/// Options of a masked language modelling head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskedLmOptions {
    /// Whether the map before the norm has a bias.
    pub transform_bias: bool,
    /// After that map.
    pub activation: Activation,
    /// Whether the logits have a bias.
    pub bias: bool,
}

impl EncoderConfig {
    /// The config of an architecture by the object of a `config.json`.
    pub(crate) fn of(
        architecture: &'static EncoderArchitecture,
        raw: Map<String, Value>,
    ) -> std::result::Result<Self, String> {
        let names = architecture.config_keys;
        let mut renamed = renamed(&raw, names);
        for (key, value) in (architecture.defaults)() {
            renamed.entry(key).or_insert(value);
        }
        let keys = Keys::new(&renamed);
        let config = Self::of_keys(architecture, &keys)
            .and_then(|config| (architecture.options)(config, &keys))
            .and_then(|config| config.ropes.iter().try_for_each(RopeConfig::check).map(|()| config));
        match config {
            Ok(config) => Ok(Self { raw, ..config }),
            Err(error) => Err(as_in_file(error, &raw, names)),
        }
    }

    fn of_keys(
        architecture: &'static EncoderArchitecture,
        keys: &Keys<'_>,
    ) -> std::result::Result<Self, String> {
        let (d_model, n_heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        let head_dim = keys.has("d_kv").then(|| keys.size("d_kv")).transpose()?;
        if head_dim.is_none() && !d_model.is_multiple_of(n_heads) {
            return Err(format!(
                "hidden_size = {d_model} is not a multiple of the {n_heads} attention heads"
            ));
        }
        let norm_eps = keys.number_or("layer_norm_eps", 1e-12)?;
        if norm_eps < 0.0 {
            return Err(format!("layer_norm_eps = {norm_eps} is out of range; expected 0 or more"));
        }
        for key in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
            if keys.has(key) && keys.get(key).is_none() {
                return Err(format!("{key} = null; expected a number of 0 <= p < 1"));
            }
        }
        let hidden_dropout = keys.dropout("hidden_dropout_prob")?.unwrap_or(0.1);
        keys.check_uniform()?;
        // Encoders without a table of positions have rotary ones whatever the key says, in transformers too.
        let is_rotary = architecture.names.embeddings.positions.is_none();
        let is_known = |kind: &str| kind == "absolute" || is_rotary && matches!(kind, "rope" | "rotary");
        if let Some(kind) = keys.text("position_embedding_type")?.filter(|kind| !is_known(kind)) {
            return Err(format!("position_embedding_type '{kind}' is not supported; expected 'absolute'"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if keys.flag_or(key, false)? {
                return Err(format!("{key} = true is not supported for encoders; expected false"));
            }
        }
        let max_positions = keys.size_or("max_position_embeddings", 512)?;
        let position_offset = position_offset(architecture, keys, max_positions)?;
        let (labels, problem) = labels::read(keys)?;
        let runs = keys.size_within("num_hidden_layers", MAX_LAYERS)?;
        let groups = match architecture.names.shared_layers {
            Some(_) => [keys.size_or("num_hidden_groups", 1)?, keys.size_or("inner_group_num", 1)?],
            None => [runs, 1],
        };
        if groups[0] > runs || runs.saturating_mul(groups[1]) > MAX_LAYERS {
            return Err(format!(
                "num_hidden_groups = {} of inner_group_num = {} layers for num_hidden_layers = {runs}; expected no more groups \
                 than layers, and at most {MAX_LAYERS} layers in all",
                groups[0], groups[1]
            ));
        }
        let names = &architecture.names;
        let activation =
            lookup("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"), &Activation::NAMES)?;
        let classifier_dropout = keys.dropout("classifier_dropout")?.unwrap_or(hidden_dropout);
        let dropped = |is_dropped: bool| if is_dropped { hidden_dropout } else { 0.0 };
        Ok(Self {
            architecture,
            vocab_size: if names.patches.is_some() { 0 } else { keys.size("vocab_size")? },
            patches: None,
            d_model,
            embedding_size: match names.embedding_projection {
                Some(_) => keys.size_or("embedding_size", 128)?,
                None => d_model,
            },
            embedding_scale: 1.0,
            n_layers: runs * groups[1],
            groups,
            layers: vec![
                EncoderLayerKind { window: None, rope: None, attention_norm: true };
                groups[0] * groups[1]
            ],
            ropes: Vec::new(),
            relative: None,
            convolution: None,
            n_heads,
            head_dim: head_dim.unwrap_or(d_model / n_heads),
            score_scale: 1.0 / ((d_model / n_heads) as f32).sqrt(),
            d_ff: keys.size("intermediate_size")?,
            max_positions,
            has_positions: names.embeddings.positions.is_some(),
            type_vocab_size: match names.embeddings.types {
                // 0 stands for no such table.
                Some(_) if keys.number("type_vocab_size")? == Some(0.0) => 0,
                Some(_) => keys.size_or("type_vocab_size", 2)?,
                None => 0,
            },
            task_types: 0,
            norm_eps,
            norm_is_rms: false,
            activation,
            biases: EncoderBiases { qkv: true, output: true, up: true, down: true, norms: true },
            dropouts: EncoderDropouts {
                embeddings: hidden_dropout,
                attention: keys.dropout("attention_probs_dropout_prob")?.unwrap_or(0.1),
                attention_output: dropped(names.drops_attention_output),
                inner: 0.0,
                output: dropped(names.drops_feed_forward),
                relative: 0.0,
                last: 0.0,
            },
            classifier_dropout,
            token_dropout: classifier_dropout,
            span_dropout: 0.0,
            head: HeadOptions {
                input: HeadInput::First,
                input_dropout: if architecture.head.drops_input { classifier_dropout } else { 0.0 },
                bias: true,
                activation: architecture.head.activation,
            },
            masked_lm: MaskedLmOptions {
                transform_bias: true,
                activation: architecture.masked_lm.activation.unwrap_or(activation),
                bias: true,
            },
            position_offset,
            labels,
            problem,
            lowrank: keys.section()?,
            raw: Map::new(),
        })
    }

    /// Beginning of the names of this model's classes in transformers.
    pub fn class(&self) -> &'static str {
        let own = self.raw.get("model_type").and_then(Value::as_str);
        let types = self.architecture.model_types;
        types.iter().find(|(name, _)| Some(*name) == own).unwrap_or(&types[0]).1
    }

    /// Whether layers share their weights, so that a stored layer is run several times.
    pub const fn shares_layers(&self) -> bool {
        self.groups[0] * self.groups[1] != self.n_layers
    }

    /// The stored layer that is run as layer `index`.
    pub(crate) const fn stored_layer(&self, index: usize) -> usize {
        let ([groups, in_group], runs) = (self.groups, self.n_layers / self.groups[1]);
        let (run, inner) = (index / in_group, index % in_group);
        run * groups / runs * in_group + inner
    }

    /// The kind of the norms.
    pub(crate) const fn norm_kind(&self) -> NormKind {
        match (self.norm_is_rms, self.biases.norms) {
            (true, _) => NormKind::Rms,
            (false, true) => NormKind::Layer,
            (false, false) => NormKind::LayerGain,
        }
    }

    /// Maximum sequence length of the model.
    pub const fn max_tokens(&self) -> usize {
        self.max_positions - self.position_offset
    }
}

/// The row of the position embedding for the first token of a sequence.
fn position_offset(
    architecture: &EncoderArchitecture,
    keys: &Keys<'_>,
    max_positions: usize,
) -> std::result::Result<usize, String> {
    if !architecture.positions_after_padding {
        return Ok(0);
    }
    // An id of -1 marks no token as padding, and positions count from 0.
    let offset = match keys.number_or("pad_token_id", 1.0)? {
        id if id >= -1.0 && id.fract() == 0.0 => (id + 1.0) as usize,
        id => return Err(format!("pad_token_id = {id}; expected a token id, or -1 for none")),
    };
    if offset >= max_positions {
        return Err(format!(
            "pad_token_id = {} leaves no position of the {max_positions} for a token",
            offset as i64 - 1
        ));
    }
    Ok(offset)
}
