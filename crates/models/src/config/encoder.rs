//! `config.json` of an encoder, validated before anything is allocated.

use serde_json::{Map, Value};

use crate::config::activation::Activation;
use crate::config::file::{MAX_LAYERS, lookup};
use crate::config::keys::Keys;
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
    /// Transformer layers.
    pub n_layers: usize,
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
    /// Whether the head predicts a number.
    pub regression: bool,
    /// Which modules are factors.
    pub lowrank: LowrankSection,
    /// The whole file, kept so that a saved model has all its keys.
    pub raw: Map<String, Value>,
}

/// `problem_type` of a head whose labels do not exclude each other.
const MULTI_LABEL: &str = "multi_label_classification";

impl EncoderConfig {
    /// The config of an architecture by the object of a `config.json`.
    pub(crate) fn of(
        architecture: &'static EncoderArchitecture,
        raw: Map<String, Value>,
    ) -> std::result::Result<Self, String> {
        let mut renamed = raw.clone();
        for (own, key) in architecture.config_keys {
            if let Some(value) = renamed.remove(*own) {
                renamed.insert((*key).into(), value);
            }
        }
        // Errors name the keys as the file has them.
        Self::of_keys(architecture, &Keys::new(&renamed)).map(|config| Self { raw, ..config }).map_err(
            |error| {
                let names = architecture.config_keys.iter().filter(|(own, _)| !renamed.contains_key(*own));
                names.fold(error, |error, (own, key)| match error.strip_prefix(key) {
                    Some(rest) if rest.starts_with(' ') => format!("{own}{rest}"),
                    _ => error,
                })
            },
        )
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
        let labels = labels(keys)?;
        let regression = match keys.text("problem_type")? {
            Some("regression") => true,
            Some("single_label_classification" | MULTI_LABEL) => false,
            Some(other) => {
                return Err(format!(
                    "problem_type '{other}' is not supported; expected regression, single_label_classification or \
                     {MULTI_LABEL}"
                ));
            }
            None => labels.len() == 1,
        };
        Ok(Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            d_model,
            n_layers: keys.size_within("num_hidden_layers", MAX_LAYERS)?,
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
            regression,
            lowrank: keys.section()?,
            raw: Map::new(),
        })
    }

    /// Whether each label is decided by itself, so that a text may have several or none.
    pub fn is_multi_label(&self) -> bool {
        self.raw.get("problem_type").and_then(Value::as_str) == Some(MULTI_LABEL)
    }

    /// Longest sequence the position embedding allows.
    pub const fn max_tokens(&self) -> usize {
        self.max_positions - self.position_offset
    }

    /// Sets the labels of the task at hand; one label with `regression` predicts a number.
    pub fn with_labels(mut self, labels: Vec<String>, regression: bool) -> Self {
        let numbered = || labels.iter().enumerate();
        let id2label: Map<String, Value> =
            numbered().map(|(i, l)| (i.to_string(), l.clone().into())).collect();
        let label2id: Map<String, Value> = numbered().map(|(i, l)| (l.clone(), i.into())).collect();
        self.raw.insert("id2label".into(), id2label.into());
        self.raw.insert("label2id".into(), label2id.into());
        let problem = if regression { "regression" } else { "single_label_classification" };
        self.raw.insert("problem_type".into(), problem.into());
        self.raw.remove("num_labels");
        Self { labels, regression, ..self }
    }
}

/// Label names in class order; transformers' default is two labels called `LABEL_0` and `LABEL_1`.
fn labels(keys: &Keys<'_>) -> std::result::Result<Vec<String>, String> {
    let Some(map) = keys.object("id2label")? else {
        let n = keys.size_or("num_labels", 2)?;
        return Ok((0..n).map(|i| format!("LABEL_{i}")).collect());
    };
    let mut labels = vec![None; map.len()];
    for (id, label) in map.entries() {
        let slot = id.parse::<usize>().ok().and_then(|i| labels.get_mut(i));
        let slot = slot.ok_or_else(|| format!("id2label has the key '{id}'; expected 0, 1, …"))?;
        *slot = Some(match label {
            Value::String(text) => text.clone(),
            // Names that are numbers are read as transformers writes them again.
            Value::Number(number) => number.to_string(),
            other => return Err(format!("id2label['{id}'] = {other}; expected a name")),
        });
    }
    labels
        .into_iter()
        .collect::<Option<Vec<String>>>()
        .filter(|l| !l.is_empty())
        .ok_or("id2label is empty".into())
}
