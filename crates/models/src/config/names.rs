//! Where an architecture keeps what: names of modules in checkpoints, and the type that carries them.

use serde_json::Value;

use crate::config::activation::Activation;
use crate::config::decoder::DecoderConfig;
use crate::config::encoder::EncoderConfig;
use crate::config::keys::Keys;

/// What distinguishes an encoder architecture from the shared [`Encoder`](crate::encoder::Encoder).
#[derive(Debug)]
pub struct EncoderArchitecture {
    /// `model_type` in `config.json`, and the beginning of the class names in `architectures` that go with it (`Bert` of
    /// `BertForSequenceClassification`).
    pub model_types: &'static [(&'static str, &'static str)],
    /// Keys of `config.json` that have other names in BERT's.
    pub config_keys: &'static [(&'static str, &'static str)],
    /// Whether positions count from `pad_token_id + 1`.
    pub positions_after_padding: bool,
    /// Defaults of keys that differ from BERT's.
    pub defaults: fn() -> Vec<(&'static str, Value)>,
    /// Reads the keys that BERT's config does not have.
    pub options: fn(EncoderConfig, &Keys<'_>) -> Result<EncoderConfig, String>,
    /// Prefixes of tensor names that are ignored, with or without the prefix of the model.
    pub extras: &'static [&'static str],
    /// Modules that transformers calls in place of the table of words, of which they are copies.
    pub words_copies: &'static [&'static str],
    /// Whether heads can be trained over it; otherwise it serves embeddings only.
    pub has_heads: bool,
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

/// The modules of an encoder.
#[derive(Debug)]
pub struct EncoderNames {
    /// Prefix of the encoder's keys in a checkpoint with a head.
    pub prefix: &'static str,
    /// The embeddings of tokens, below the prefix.
    pub embeddings: EmbeddingNames,
    /// The embedding of pictures in their place, in models that read them.
    pub patches: Option<PatchNames>,
    /// The layers, below the prefix.
    pub layers: &'static str,
    /// The maps to queries, keys and values, below a layer.
    pub qkv: QkvNames,
    /// The attention's output map.
    pub output: &'static str,
    /// Whether the norms of a layer come before its two parts, and not after them.
    pub norms_before: bool,
    /// Norm before or after the attention.
    pub attention_norm: &'static str,
    /// The gate of the feed-forward layer, if it is a separate map.
    pub gate: Option<&'static str>,
    /// The two maps of the feed-forward part.
    pub feed_forward: [&'static str; 2],
    /// Whether the first of them computes the gate too.
    pub up_has_gate: bool,
    /// Whether that gate comes after the inner values, and not before them.
    pub gate_is_last: bool,
    /// Norm before or after the feed-forward part.
    pub feed_forward_norm: &'static str,
    /// Norm after the last layer, below the prefix.
    pub final_norm: Option<&'static str>,
    /// The map from embeddings of another width than the layers', below the prefix; the widths are equal where it is absent.
    pub embedding_projection: Option<&'static str>,
    /// Whether that map is there for equal widths as well.
    pub projects_equal_widths: bool,
    /// The table of relative positions and what goes with it, in models that have one.
    pub relative: Option<RelativeNames>,
    /// The convolution beside the first layer and its norm, below the prefix, in models that have one.
    pub convolution: Option<[&'static str; 2]>,
    /// Layers that share their weights, in groups.
    pub shared_layers: Option<SharedLayers>,
    /// Applies dropout after the second map of the feed-forward layer.
    pub drops_feed_forward: bool,
    /// Applies dropout after the attention's output map.
    pub drops_attention_output: bool,
}

/// The tables of an encoder's embeddings and the norm over their sum.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingNames {
    /// Words.
    pub words: &'static str,
    /// Positions, where they have a table.
    pub positions: Option<&'static str>,
    /// Token types, where there are any.
    pub types: Option<&'static str>,
    /// Tasks, of which there is one here (ERNIE).
    pub tasks: Option<&'static str>,
    /// The norm, where there is one.
    pub norm: Option<&'static str>,
}

/// The embedding of pictures, below the prefix.
#[derive(Clone, Copy, Debug)]
pub struct PatchNames {
    /// The convolution over patches.
    pub projection: &'static str,
    /// The class token, a parameter.
    pub class: &'static str,
    /// The positions of class token and patches, a parameter.
    pub positions: &'static str,
}

/// The modules of relative positions.
#[derive(Clone, Copy, Debug)]
pub struct RelativeNames {
    /// The table, below the prefix.
    pub table: &'static str,
    /// The norm over its rows, below the prefix.
    pub norm: &'static str,
    /// Its map to keys, below a layer.
    pub key: &'static str,
    /// Its map to queries, below a layer.
    pub query: &'static str,
}

/// Groups of layers, each of which is run several times in a row: `num_hidden_layers` runs of `num_hidden_groups` groups of
/// `inner_group_num` layers.
#[derive(Clone, Copy, Debug)]
pub struct SharedLayers {
    /// The layers, below a group.
    pub inner: &'static str,
}

impl EncoderNames {
    /// The path of something in a layer; groups hold `in_group` layers each.
    pub fn in_layer(&self, index: usize, in_group: usize, name: &str) -> String {
        let Self { prefix, layers, .. } = self;
        match self.shared_layers {
            Some(SharedLayers { inner }) => {
                format!("{prefix}{layers}.{}.{inner}.{}.{name}", index / in_group, index % in_group)
            }
            None => format!("{prefix}{layers}.{index}.{name}"),
        }
    }
}

/// A sequence classification head: `output(dropout(norm(act(dense(first token)))))`, or of the mean over tokens.
#[derive(Clone, Copy, Debug)]
pub struct HeadNames {
    /// Path of the first map.
    pub dense: &'static str,
    /// Path of the norm after its activation, in heads that have one.
    pub norm: Option<&'static str>,
    /// Path of the map to the labels.
    pub output: &'static str,
    /// Path of the map to the start and end of an answer.
    pub spans: &'static str,
    /// Name of the whole head in PEFT's `modules_to_save`, if it is a separate module.
    pub saved_as: Option<&'static str>,
    /// Whether the first map belongs to the head (BERT's pooler belongs to the encoder).
    pub dense_is_head: bool,
    /// Whether the map to the labels is the whole head.
    pub is_bare: bool,
    /// Whether the heads over tokens and spans have the first map too.
    pub for_tokens: bool,
    /// After the first map, where the config does not say.
    pub activation: Activation,
    /// Applies dropout before the first map too.
    pub drops_input: bool,
}

/// A masked language modelling head: `norm(act(transform(h)))·embeddingᵀ + bias`.
#[derive(Clone, Copy, Debug)]
pub struct MaskedLmNames {
    /// Path of the map before the norm.
    pub transform: &'static str,
    /// Activation after that map; the layers' if `None`.
    pub activation: Option<Activation>,
    /// Path of the norm.
    pub norm: &'static str,
    /// Path of the module that the bias is stored under.
    pub bias: &'static str,
    /// Key under which the bias may be stored once more.
    pub bias_copy: &'static str,
    /// Key under which the tied embedding may be stored once more.
    pub decoder: &'static str,
}

/// What distinguishes a decoder architecture from the shared [`Decoder`](crate::decoder::Decoder).
#[derive(Clone, Copy, Debug)]
pub struct DecoderArchitecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Beginning of the class names in `architectures` (`Llama` of `LlamaForCausalLM`).
    pub class: &'static str,
    /// Keys of `config.json` that have other names in Llama's.
    pub config_keys: &'static [(&'static str, &'static str)],
    /// Where the tensors are.
    pub names: DecoderNames,
    /// Keys of the dropouts.
    pub dropouts: DropoutKeys,
    /// The head of a token classifier.
    pub token_head: TokenHead,
    /// Reads the config's keys.
    pub config: fn(&'static DecoderArchitecture, &Keys<'_>) -> Result<DecoderConfig, String>,
}

impl PartialEq for DecoderArchitecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// Keys of a decoder's dropouts, with their defaults; `None` for a place without dropout.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKeys {
    /// After the embeddings.
    pub embeddings: Option<(&'static str, f64)>,
    /// On attention probabilities.
    pub attention: Option<(&'static str, f64)>,
    /// After the attention's output map.
    pub attention_output: Option<(&'static str, f64)>,
    /// After the feed-forward layer.
    pub mlp_output: Option<(&'static str, f64)>,
}

/// The head of a token classifier over a decoder: a dropout and a linear map.
#[derive(Clone, Copy, Debug)]
pub struct TokenHead {
    /// Path of the map.
    pub path: &'static str,
    /// Keys of the dropout, of which the first with a value or a default counts; 0.1 by default.
    pub dropout: &'static [(&'static str, Option<f64>)],
}

/// The modules of a decoder.
#[derive(Clone, Copy, Debug)]
pub struct DecoderNames {
    /// Prefix of all but the head's keys.
    pub prefix: &'static str,
    /// The word embedding.
    pub embedding: &'static str,
    /// The norm over it, where there is one.
    pub embedding_norm: Option<&'static str>,
    /// The maps from the width of the embedding and back, in models in which it differs from the hidden width.
    pub embedding_projections: [&'static str; 2],
    /// The table of positions, where they are not rotary.
    pub positions: Option<&'static str>,
    /// The table of biases by relative position, which all layers read.
    pub relative: Option<&'static str>,
    /// The layers.
    pub layers: &'static str,
    /// The norms of a layer.
    pub norms: LayerNorms,
    /// The maps to queries, keys and values.
    pub qkv: QkvNames,
    /// Norms of queries and keys, in models that have them.
    pub qk_norms: [&'static str; 2],
    /// The attention's output map.
    pub output: &'static str,
    /// The attention over an encoder's states, in the decoder of an encoder-decoder model.
    pub cross: Option<CrossNames>,
    /// The gate of the feed-forward layer, if it is a separate map.
    pub gate: Option<&'static str>,
    /// Its map to the inner width, or to gate and inner width in one.
    pub up: &'static str,
    /// Whether `up` computes the gate too, before the inner values.
    pub up_has_gate: bool,
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

/// The attention over an encoder's states, below a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossNames {
    /// The maps to queries, keys and values.
    pub qkv: [&'static str; 3],
    /// The output map.
    pub output: &'static str,
    /// The norm before or after it.
    pub norm: &'static str,
}

/// What distinguishes an encoder-decoder architecture from the shared [`Seq2Seq`](crate::Seq2Seq).
#[derive(Debug)]
pub struct Seq2SeqArchitecture {
    /// `model_type` in `config.json`, and the beginning of the class names in `architectures`.
    pub model_types: &'static [(&'static str, &'static str)],
    /// The encoder, which owns the table of words.
    pub encoder: &'static EncoderArchitecture,
    /// The decoder.
    pub decoder: &'static DecoderArchitecture,
    /// Name of a buffer that is added to the logits.
    pub logits_bias: Option<&'static str>,
    /// Tables that a checkpoint may hold as copies of that of the words.
    pub copies: &'static [&'static str],
    /// Whether the decoder begins with the padding token where no file gives a first token.
    pub starts_with_padding: bool,
    /// Whether the decoder's first token is the target's last (mBART: its language); otherwise that of the config.
    pub starts_with_last: bool,
    /// Whether `tie_word_embeddings` says that the head is tied to the words; otherwise it is tied if the file has no head.
    pub says_tied: bool,
}

impl PartialEq for Seq2SeqArchitecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_types == other.model_types
    }
}

/// The maps of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpNames {
    /// The gate, if it is a separate map.
    pub gate: Option<&'static str>,
    /// The map to the inner width, or to gate and inner width in one.
    pub up: &'static str,
    /// Whether `up` computes the gate too, before the inner values.
    pub up_has_gate: bool,
    /// The map back.
    pub down: &'static str,
}

/// The modules of a mixture of experts, below a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertNames {
    /// The map to a score for each expert.
    pub router: &'static str,
    /// The list of experts.
    pub experts: &'static str,
    /// The maps of an expert, below it.
    pub maps: MlpNames,
    /// Whether files store the experts of a layer in one tensor per map, as gpt-oss does; they are named here as they are
    /// [read](lowrank_checkpoint::Checkpoint).
    pub is_fused: bool,
    /// The expert that all tokens take, in architectures that have one.
    pub shared: Option<SharedExpertNames>,
}

/// The modules of an expert that all tokens take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedExpertNames {
    /// The expert, with the same maps as the others.
    pub expert: &'static str,
    /// The map to the number whose sigmoid weighs it.
    pub gate: &'static str,
}

/// Norms around the two parts of a layer: `h = x + after(attention(before(x)))`, likewise for the feed-forward part. A
/// name that is absent is a norm that the layer has not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorms {
    /// Before the attention.
    pub attention: Option<&'static str>,
    /// After it, before the sum.
    pub attention_output: Option<&'static str>,
    /// Before the feed-forward part.
    pub mlp: Option<&'static str>,
    /// After it, before the sum.
    pub mlp_output: Option<&'static str>,
}

impl LayerNorms {
    /// Norms before the two parts, as in most decoders.
    pub const fn before(attention: &'static str, mlp: &'static str) -> Self {
        Self { attention: Some(attention), attention_output: None, mlp: Some(mlp), mlp_output: None }
    }
}

impl DecoderNames {
    /// The path of something in a layer.
    pub fn in_layer(&self, index: usize, name: &str) -> String {
        format!("{}{}.{index}.{name}", self.prefix, self.layers)
    }

    /// The maps of the feed-forward part.
    pub const fn mlp(&self) -> MlpNames {
        MlpNames { gate: self.gate, up: self.up, up_has_gate: self.up_has_gate, down: self.down }
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
        /// Whether the queries, the key and the value of a key head lie side by side, not those of all heads.
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
