//! `config.json` of an encoder, validated before anything is allocated.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, silu};
use lowrank_kernels::{Gelu, Kernels, gelu};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::architecture::{self, EncoderArchitecture};
use crate::error::{ModelError, Result};
use lowrank_spec::LowrankSection;

/// Largest size accepted for any one dimension; real models stay far below.
pub(crate) const MAX_DIM: usize = 1 << 24;
/// Largest number of layers accepted.
pub(crate) const MAX_LAYERS: usize = 4096;

/// Activation between the two feed-forward maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Gaussian error linear unit, exact or by tanh.
    Gelu(Gelu),
    /// Rectifier.
    Relu,
    /// Sigmoid-weighted linear unit.
    Silu,
}

impl Activation {
    pub(crate) const NAMES: [(&'static str, Self); 8] = [
        ("gelu", Self::Gelu(Gelu::Erf)),
        ("gelu_python", Self::Gelu(Gelu::Erf)),
        ("gelu_new", Self::Gelu(Gelu::Tanh)),
        ("gelu_pytorch_tanh", Self::Gelu(Gelu::Tanh)),
        ("gelu_fast", Self::Gelu(Gelu::Tanh)),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];
}

impl Activation {
    /// Elementwise.
    pub fn apply<B: Kernels>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Gelu(kind) => gelu(x, kind),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
        }
    }
}

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

#[derive(Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_dropout")]
    hidden_dropout_prob: f64,
    #[serde(default = "default_dropout")]
    attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
}

fn default_positions() -> usize {
    512
}
fn default_types() -> usize {
    2
}
fn default_eps() -> f64 {
    1e-12
}
fn default_dropout() -> f64 {
    0.1
}
fn default_activation() -> String {
    "gelu".into()
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
    /// A line that says what is wrong.
    pub fn parse(raw: Map<String, Value>) -> std::result::Result<Self, String> {
        let model_type = raw.get("model_type").map_or(Some("bert"), Value::as_str);
        let architecture = architecture::encoder(model_type.ok_or("model_type is no string")?)?;
        let mut keys = raw.clone();
        for (own, key) in architecture.config_keys {
            if let Some(value) = keys.remove(*own) {
                keys.insert((*key).into(), value);
            }
        }
        let c: RawConfig = serde_json::from_value(Value::Object(keys)).map_err(|e| e.to_string())?;
        let activation = lookup("hidden_act", &c.hidden_act, &Activation::NAMES)?;
        for (name, value, max) in [
            ("vocab_size", c.vocab_size, MAX_DIM),
            ("hidden_size", c.hidden_size, MAX_DIM),
            ("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", c.num_attention_heads, MAX_DIM),
            ("intermediate_size", c.intermediate_size, MAX_DIM),
            ("max_position_embeddings", c.max_position_embeddings, MAX_DIM),
            ("type_vocab_size", c.type_vocab_size, MAX_DIM),
        ] {
            if value == 0 || value > max {
                return Err(format!("{name} = {value} is out of range; expected 1..={max}"));
            }
        }
        if !c.hidden_size.is_multiple_of(c.num_attention_heads) {
            return Err(format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                c.hidden_size, c.num_attention_heads
            ));
        }
        let dropouts =
            [c.hidden_dropout_prob, c.attention_probs_dropout_prob, c.classifier_dropout.unwrap_or(0.0)];
        if dropouts.iter().any(|p| !(0.0..1.0).contains(p)) {
            return Err("a dropout probability is outside 0 <= p < 1".into());
        }
        if !(c.layer_norm_eps.is_finite() && c.layer_norm_eps >= 0.0) {
            return Err(format!("layer_norm_eps = {} is out of range", c.layer_norm_eps));
        }
        if let Some(kind) = c.position_embedding_type.as_deref().filter(|&k| k != "absolute") {
            return Err(format!("position_embedding_type '{kind}' is not supported; expected 'absolute'"));
        }
        if c.is_decoder || c.add_cross_attention {
            return Err("is_decoder and add_cross_attention are not supported for encoders".into());
        }
        let position_offset = if architecture.positions_after_padding {
            c.pad_token_id.unwrap_or(1).saturating_add(1)
        } else {
            0
        };
        if position_offset >= c.max_position_embeddings {
            return Err("pad_token_id leaves no position for a token".into());
        }
        let labels = labels(c.id2label, c.num_labels)?;
        let regression = match c.problem_type.as_deref() {
            Some("regression") => true,
            Some("single_label_classification") => false,
            Some(other) => return Err(format!("problem_type '{other}' is not supported")),
            None => labels.len() == 1,
        };
        Ok(Self {
            architecture,
            vocab_size: c.vocab_size,
            d_model: c.hidden_size,
            n_layers: c.num_hidden_layers,
            n_heads: c.num_attention_heads,
            d_ff: c.intermediate_size,
            max_positions: c.max_position_embeddings,
            type_vocab_size: c.type_vocab_size,
            norm_eps: c.layer_norm_eps,
            activation,
            hidden_dropout: c.hidden_dropout_prob,
            attention_dropout: c.attention_probs_dropout_prob,
            classifier_dropout: c.classifier_dropout.unwrap_or(c.hidden_dropout_prob),
            position_offset,
            labels,
            regression,
            lowrank: LowrankSection::of_config(&raw).map_err(|e| e.to_string())?,
            raw,
        })
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

/// Largest config that is read; real ones are a few kilobytes, labels included.
const MAX_CONFIG: u64 = 64 << 20;

/// The JSON object in a file of a model folder.
pub(crate) fn read_object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if !folder.is_dir() {
        return Err(ModelError::File {
            path: folder.to_path_buf(),
            reason: "no such folder; expected a model folder with config.json and weights".into(),
        });
    }
    let unread = |reason: String| ModelError::File { path: path.clone(), reason };
    let size = std::fs::metadata(&path).map_err(|e| unread(format!("cannot be read: {e}")))?.len();
    if size > MAX_CONFIG {
        return Err(unread(format!("{size} bytes are no config; expected at most {MAX_CONFIG}")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| unread(format!("cannot be read: {e}")))?;
    let malformed = |reason: String| ModelError::Config { path: path.clone(), reason };
    match serde_json::from_str(&text).map_err(|e| malformed(format!("malformed JSON: {e}")))? {
        Value::Object(object) => Ok(object),
        _ => Err(malformed("expected a JSON object".into())),
    }
}

pub(crate) fn lookup<T: Copy>(key: &str, name: &str, table: &[(&str, T)]) -> std::result::Result<T, String> {
    table.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
        format!("{key} '{name}' is not supported; expected one of {}", known.join(", "))
    })
}

/// Label names in class order; transformers' default is two labels called `LABEL_0` and `LABEL_1`.
fn labels(
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
) -> std::result::Result<Vec<String>, String> {
    let Some(map) = id2label else {
        let n = num_labels.unwrap_or(2);
        if n == 0 || n > MAX_DIM {
            return Err(format!("num_labels = {n} is out of range"));
        }
        return Ok((0..n).map(|i| format!("LABEL_{i}")).collect());
    };
    let mut labels = vec![None; map.len()];
    for (id, label) in map {
        let slot = id.parse::<usize>().ok().and_then(|i| labels.get_mut(i));
        *slot.ok_or_else(|| format!("id2label has the key '{id}'; expected 0, 1, …"))? = Some(label);
    }
    labels
        .into_iter()
        .collect::<Option<Vec<String>>>()
        .filter(|l| !l.is_empty())
        .ok_or("id2label is empty".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn config(changes: &str) -> std::result::Result<EncoderConfig, String> {
        let mut base: Map<String, Value> = serde_json::from_str(
            r#"{"model_type":"bert","vocab_size":100,"hidden_size":32,"num_hidden_layers":2,
                "num_attention_heads":4,"intermediate_size":64}"#,
        )
        .unwrap();
        base.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        EncoderConfig::parse(base)
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let c = config("{}").unwrap();
        assert_eq!((c.max_tokens(), c.type_vocab_size, c.norm_eps), (512, 2, 1e-12));
        assert_eq!(c.activation, Activation::Gelu(Gelu::Erf));
        assert_eq!(c.labels, ["LABEL_0", "LABEL_1"]);
        assert!(!c.regression);
    }

    #[test]
    fn roberta_counts_positions_from_the_padding() {
        let c = config(r#"{"model_type":"roberta","max_position_embeddings":514,"pad_token_id":1}"#).unwrap();
        assert_eq!((c.position_offset, c.max_tokens()), (2, 512));
    }

    #[rstest]
    #[case(r#"{"model_type":"bart"}"#, "model_type 'bart' is not supported")]
    #[case(r#"{"hidden_act":"mish"}"#, "hidden_act 'mish' is not supported")]
    #[case(r#"{"hidden_size":30}"#, "no multiple of num_attention_heads")]
    #[case(r#"{"num_hidden_layers":0}"#, "num_hidden_layers = 0 is out of range")]
    #[case(r#"{"vocab_size":99999999999}"#, "vocab_size = 99999999999 is out of range")]
    #[case(r#"{"hidden_size":"wide"}"#, "invalid type")]
    #[case(r#"{"hidden_dropout_prob":1.5}"#, "dropout")]
    #[case(r#"{"position_embedding_type":"relative_key"}"#, "relative_key")]
    #[case(r#"{"id2label":{"0":"a","2":"b"}}"#, "id2label has the key '2'")]
    #[case(r#"{"model_type":"roberta","pad_token_id":511}"#, "no position")]
    fn what_cannot_be_run_is_refused(#[case] changes: &str, #[case] message: &str) {
        let error = config(changes).unwrap_err();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn labels_are_written_back() {
        let c = config("{}").unwrap().with_labels(vec!["no".into(), "yes".into()], false);
        let again = EncoderConfig::parse(c.raw.clone()).unwrap();
        assert_eq!(again.labels, ["no", "yes"]);
        let score = c.with_labels(vec!["score".into()], true);
        assert!(EncoderConfig::parse(score.raw).unwrap().regression);
    }
}
