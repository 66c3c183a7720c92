//! `config.json` of an encoder, validated before anything is allocated.

use serde_json::{Map, Value};

use crate::config::activation::Activation;
use crate::config::file::{MAX_LAYERS, lookup};
use crate::config::keys::{Keys, as_in_file, renamed};
use crate::config::labels::{self, Problem};
use crate::config::names::EncoderArchitecture;
use lowrank_spec::LowrankSection;

/// Shape and hyper-parameters of an encoder.
///
/// Dimensions: `d_model` hidden width, `n_heads` attention heads of `d_model / n_heads`, `d_ff` inner width of
/// the feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Which architecture.
    pub architecture: &'static EncoderArchitecture,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Hidden width.
    pub d_model: usize,
    /// Width of the embeddings, where they are projected to the hidden width.
    pub embedding_size: usize,
    /// Transformer layers, as they are run.
    pub n_layers: usize,
    /// Groups of layers that share their weights, and the layers of each; as many groups of one as layers where none do.
    pub groups: [usize; 2],
    /// Attention heads.
    pub n_heads: usize,
    /// Inner width of the feed-forward part.
    pub d_ff: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// Rows of the token-type embedding.
    pub type_vocab_size: usize,
    /// Added to the variance in layer norms.
    pub norm_eps: f64,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Dropout on hidden states.
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Dropout before the classifier.
    pub classifier_dropout: f64,
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

impl EncoderConfig {
    /// The config of an architecture by the object of a `config.json`.
    pub(crate) fn of(
        architecture: &'static EncoderArchitecture,
        raw: Map<String, Value>,
    ) -> std::result::Result<Self, String> {
        let names = architecture.config_keys;
        match Self::of_keys(architecture, &Keys::new(&renamed(&raw, names))) {
            Ok(config) => Ok(Self { raw, ..config }),
            Err(error) => Err(as_in_file(error, &raw, names)),
        }
    }

    fn of_keys(
        architecture: &'static EncoderArchitecture,
        keys: &Keys<'_>,
    ) -> std::result::Result<Self, String> {
        let (d_model, n_heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        if !d_model.is_multiple_of(n_heads) {
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
        if let Some(kind) = keys.text("position_embedding_type")?.filter(|&kind| kind != "absolute") {
            return Err(format!("position_embedding_type '{kind}' is not supported; expected 'absolute'"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if keys.flag_or(key, false)? {
                return Err(format!("{key} = true is not supported for encoders; expected false"));
            }
        }
        let max_positions = keys.size_or("max_position_embeddings", 512)?;
        let position_offset = if architecture.positions_after_padding {
            // An id of -1 marks no token as padding, and positions count from 0.
            match keys.number_or("pad_token_id", 1.0)? {
                id if id >= -1.0 && id.fract() == 0.0 => (id + 1.0) as usize,
                id => return Err(format!("pad_token_id = {id}; expected a token id, or -1 for none")),
            }
        } else {
            0
        };
        if position_offset >= max_positions {
            return Err(format!(
                "pad_token_id = {} leaves no position of the {max_positions} for a token",
                position_offset - 1
            ));
        }
        let (labels, problem) = labels::read(keys)?;
        let runs = keys.size_within("num_hidden_layers", MAX_LAYERS)?;
        let groups = match architecture.names.shared_layers {
            Some(_) => [keys.size_or("num_hidden_groups", 1)?, keys.size_or("inner_group_num", 1)?],
            None => [runs, 1],
        };
        if groups[0] > runs || groups[1] > MAX_LAYERS {
            return Err(format!(
                "num_hidden_groups = {} of inner_group_num = {} layers for num_hidden_layers = {runs}; expected no more groups \
                 than layers",
                groups[0], groups[1]
            ));
        }
        Ok(Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            d_model,
            embedding_size: match architecture.names.embedding_projection {
                Some(_) => keys.size_or("embedding_size", 128)?,
                None => d_model,
            },
            n_layers: runs * groups[1],
            groups,
            n_heads,
            d_ff: keys.size("intermediate_size")?,
            max_positions,
            type_vocab_size: keys.size_or("type_vocab_size", 2)?,
            norm_eps,
            activation: lookup("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"), &Activation::NAMES)?,
            hidden_dropout,
            attention_dropout: keys.dropout("attention_probs_dropout_prob")?.unwrap_or(0.1),
            classifier_dropout: keys.dropout("classifier_dropout")?.unwrap_or(hidden_dropout),
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

    /// Longest sequence the position embedding allows.
    pub const fn max_tokens(&self) -> usize {
        self.max_positions - self.position_offset
    }
}
