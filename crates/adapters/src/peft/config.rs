//! `adapter_config.json`.

use lowrank_spec::names::path_in_module;
use lowrank_spec::targets::LayerPatterns;
use lowrank_spec::{Pattern, SuffixMap};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::experts::are_maps;
use super::init_tag::InitTag;
use crate::config::scale;
use crate::error::AdapterError;
use crate::methods::Method;

/// The keys of `adapter_config.json` that we read and write; others are kept in `other`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    /// `LORA`, `VERA`, a type of ours, or `HEAD` for a task head without adapters.
    pub peft_type: String,
    /// Inner dimension, unless a pattern sets another.
    #[serde(default = "eight")]
    pub r: usize,
    /// Alpha, unless a pattern sets another.
    #[serde(default = "eight_f64")]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input in training.
    #[serde(default, alias = "vera_dropout")]
    pub lora_dropout: f64,
    /// The sites of the adapter.
    #[serde(default)]
    pub target_modules: Option<Pattern>,
    /// The sites to exclude.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Pattern>,
    /// Transformer layers to adapt; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Layers>,
    /// Scale by alpha/√r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Weight-decomposed LoRA.
    #[serde(default)]
    pub use_dora: bool,
    /// Which biases the adapter contains: `none`, `all`, `lora_only`.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the second factor has a bias.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lora_bias: bool,
    /// Whether the base stores its weights as `[in, out]` (GPT-2's `Conv1D`).
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Rank by suffix of the module path.
    #[serde(default)]
    pub rank_pattern: SuffixMap<usize>,
    /// Alpha by suffix of the module path.
    #[serde(default)]
    pub alpha_pattern: SuffixMap<f64>,
    /// Initialization of the factors, which changes the base in some cases.
    #[serde(default = "plain_init")]
    pub init_lora_weights: Value,
    /// Modules trained and saved in full.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Whether a head that is tied to the embedding stays tied in the adapter.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ensure_weight_tying: bool,
    /// Rows of embedding tables that were trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
    /// PEFT's name of the task.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The base model.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Whether the adapter is only for inference, not for further training.
    #[serde(default)]
    pub inference_mode: bool,
    /// Paths of each group, if there are several (LoTR, LoRTA).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Vec<String>>,
    /// Everything else in the file.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A layer or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// A single layer.
    One(usize),
    /// Several layers.
    Many(Vec<usize>),
}

/// Trained rows of the input embedding, or of several tables by path suffix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Of the input embedding.
    Input(Vec<usize>),
    /// By table, in the order of the file.
    Tables(SuffixMap<Vec<usize>>),
}

impl TokenIndices {
    /// The row indices of a table, by the first name that matches it. Indices without a name apply to every table that has
    /// rows in the file.
    pub(super) fn of(&self, table: &str) -> Option<&[usize]> {
        match self {
            Self::Input(indices) => Some(indices),
            Self::Tables(tables) => {
                tables.entries().find(|(name, _)| is_name_of(name, table)).map(|(_, rows)| &rows[..])
            }
        }
    }
}

/// Whether a name in `trainable_token_indices` matches a table: the path ends with it. As in PEFT, the match may start within a
/// segment.
pub(super) fn is_name_of(name: &str, table: &str) -> bool {
    table.ends_with(name) || path_in_module(table).is_some_and(|table| table.ends_with(name))
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            use_rslora: false,
            use_dora: false,
            bias: none(),
            lora_bias: false,
            fan_in_fan_out: false,
            rank_pattern: SuffixMap::default(),
            alpha_pattern: SuffixMap::default(),
            init_lora_weights: plain_init(),
            modules_to_save: None,
            ensure_weight_tying: false,
            trainable_token_indices: None,
            task_type: None,
            base_model_name_or_path: None,
            inference_mode: false,
            groups: Vec::new(),
            other: Map::new(),
        }
    }
}

// PEFT's own defaults.
fn eight() -> usize {
    8
}
fn eight_f64() -> f64 {
    8.0
}
fn none() -> String {
    "none".into()
}
fn plain_init() -> Value {
    Value::Bool(true)
}
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Options of newer PEFT versions that change an adapter's computation and are not supported.
const UNSUPPORTED: [&str; 9] = [
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// Keys of `other` that remain valid for an adapter with recomputed factors.
const LASTING: [&str; 3] = ["auto_mapping", "revision", "megatron_core"];

/// Switches for which PEFT reads null as false.
const SWITCHES: [&str; 6] =
    ["use_rslora", "use_dora", "fan_in_fan_out", "inference_mode", "lora_bias", "ensure_weight_tying"];

/// Whether a value has a key's type.
type Fits = fn(&Value) -> bool;

/// Keys and their expected values, for messages.
const KEYS: [(&str, &str, Fits); 21] = [
    ("r", "an integer", is::<usize>),
    ("lora_alpha", "a number", is::<f64>),
    ("lora_dropout", "a number", is::<f64>),
    ("vera_dropout", "a number", is::<f64>),
    ("target_modules", "a list of names or an expression", is::<Option<Pattern>>),
    ("exclude_modules", "a list of names or an expression", is::<Option<Pattern>>),
    ("layers_to_transform", "a layer or a list of layers", is::<Option<Layers>>),
    ("layers_pattern", "a name or a list of names", is::<Option<Pattern>>),
    ("use_rslora", "true or false", is::<bool>),
    ("use_dora", "true or false", is::<bool>),
    ("bias", "none, all or lora_only", is::<String>),
    ("lora_bias", "true or false", is::<bool>),
    ("fan_in_fan_out", "true or false", is::<bool>),
    ("rank_pattern", "a map from module names to ranks", is::<SuffixMap<usize>>),
    ("alpha_pattern", "a map from module names to numbers", is::<SuffixMap<f64>>),
    ("modules_to_save", "a list of names", is::<Option<Vec<String>>>),
    ("ensure_weight_tying", "true or false", is::<bool>),
    ("trainable_token_indices", "a list of token ids, or lists by table", is::<Option<TokenIndices>>),
    ("task_type", "a name", is::<Option<String>>),
    ("inference_mode", "true or false", is::<bool>),
    ("groups", "lists of module names", is::<Vec<Vec<String>>>),
];

fn is<T: serde::de::DeserializeOwned>(value: &Value) -> bool {
    serde_json::from_value::<T>(value.clone()).is_ok()
}

/// The supported types.
fn known_types() -> Vec<&'static str> {
    let mut types: Vec<&str> = Vec::new();
    for name in Method::all().map(|method| method.peft_type).chain(["HEAD"]) {
        if !types.contains(&name) {
            types.push(name);
        }
    }
    types
}

/// Fuzz target: any bytes given as an `adapter_config.json` are parsed, or rejected in one line.
#[doc(hidden)]
pub fn fuzz_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(message) = PeftConfig::parse(text) {
        assert!(!message.contains('\n'), "{message:?}");
    }
}

impl PeftConfig {
    /// Parses the file's text; the error names the key at fault.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut map: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| format!("is not a JSON object: {e}"))?;
        // The kind of adapter determines the meaning of some keys.
        match map.get("peft_type").and_then(Value::as_str) {
            Some(name) if known_types().contains(&name) => {}
            Some(name) => {
                return Err(format!(
                    "peft_type '{name}' is not supported; expected one of {}",
                    known_types().join(", ")
                ));
            }
            None => return Err("'peft_type' is missing; expected a name, as LORA".into()),
        }
        for key in SWITCHES {
            if map.get(key).is_some_and(Value::is_null) {
                map.remove(key);
            }
        }
        if let Some((key, expected, _)) =
            KEYS.iter().find(|(key, _, fits)| map.get(*key).is_some_and(|value| !fits(value)))
        {
            let value = map.get(*key).map(Value::to_string).unwrap_or_default();
            return Err(format!("'{key}' is {value}; expected {expected}"));
        }
        let config: Self = serde_json::from_value(Value::Object(map)).map_err(|e| e.to_string())?;
        match config.unsupported() {
            Some(reason) => Err(reason),
            None => Ok(config),
        }
    }

    /// The first unsupported setting of the config, if any.
    fn unsupported(&self) -> Option<String> {
        if self.r == 0 && self.peft_type != "HEAD" {
            return Some("r = 0 is out of range; expected 1 or more".into());
        }
        if self.rank_pattern.values().any(|r| *r == 0) {
            return Some("rank_pattern holds a rank of 0; expected 1 or more".into());
        }
        let patterns = [&self.target_modules, &self.exclude_modules].into_iter().flatten();
        let broken = self.rank_pattern.check().and_then(|()| self.alpha_pattern.check());
        let broken = broken.and_then(|()| patterns.into_iter().try_for_each(Pattern::check));
        let broken = broken.and_then(|()| LayerPatterns::new(&self.layers_pattern()).map(|_| ()));
        if let Err(error) = broken {
            return Some(error.to_string());
        }
        if !["none", "all", "lora_only", "vera_only"].contains(&self.bias.as_str()) {
            return Some(format!("bias '{}' is not supported; expected none, all or lora_only", self.bias));
        }
        if self.lora_bias && self.use_dora {
            return Some("lora_bias and use_dora exclude each other".into());
        }
        if self.peft_type == "LORA"
            && let Err(reason) = InitTag::parse(&self.init_lora_weights)
        {
            return Some(reason);
        }
        let is_set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        let is_known = |key: &str, value: &Value| key == "target_parameters" && are_maps(value);
        let found = UNSUPPORTED
            .iter()
            .find(|key| self.other.get(**key).is_some_and(|value| is_set(value) && !is_known(key, value)))?;
        Some(format!("{found} is not supported"))
    }

    /// `layers_pattern`: names of the module list that holds the layers, or expressions for it.
    pub(super) fn layers_pattern(&self) -> Vec<&str> {
        match self.other.get("layers_pattern") {
            Some(Value::String(one)) if !one.is_empty() => vec![one],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Change of the base by the initialization at load.
    pub(crate) fn init_tag(&self) -> InitTag {
        match self.peft_type.as_str() {
            "LORA" => InitTag::parse(&self.init_lora_weights).unwrap_or_default(),
            _ => InitTag::Plain,
        }
    }

    pub(crate) fn rank_of(&self, path: &str) -> usize {
        at(&self.rank_pattern, path).unwrap_or(self.r)
    }

    pub(crate) fn scale_of(&self, path: &str) -> f64 {
        let alpha = at(&self.alpha_pattern, path).unwrap_or(self.lora_alpha);
        scale(alpha, self.rank_of(path), self.use_rslora)
    }

    /// Whether a bias of a module (not of `lora_bias`) is saved with the adapter.
    pub(super) fn carries_bias(&self, is_adapted: bool) -> bool {
        match self.bias.as_str() {
            "all" => true,
            "lora_only" | "vera_only" => is_adapted,
            _ => false,
        }
    }

    /// The config of several combined adapters, which covers everything that any of them saves besides factors.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for adapters with different tasks, different trained rows, or tied and
    /// untied tables.
    pub fn united(configs: &[&Self]) -> Result<Self, AdapterError> {
        let Some((first, rest)) = configs.split_first() else { return Ok(Self::default()) };
        let mut united = (*first).clone();
        for config in rest {
            let clash = |key: &str| {
                Err(AdapterError::Incompatible(format!(
                    "'{key}' differs between the adapters; convert or merge one of them first"
                )))
            };
            match (&united.task_type, &config.task_type) {
                (Some(a), Some(b)) if a != b => return clash("task_type"),
                (None, Some(b)) => united.task_type = Some(b.clone()),
                _ => {}
            }
            match (&united.trainable_token_indices, &config.trainable_token_indices) {
                (Some(a), Some(b)) if a != b => return clash("trainable_token_indices"),
                (None, Some(b)) => united.trainable_token_indices = Some(b.clone()),
                _ => {}
            }
            if united.ensure_weight_tying != config.ensure_weight_tying {
                let tables = |c: &Self| c.modules_to_save.is_some() || c.ensure_weight_tying;
                if tables(&united) && tables(config) {
                    return clash("ensure_weight_tying");
                }
                united.ensure_weight_tying |= config.ensure_weight_tying;
            }
            let rank = |bias: &str| match bias {
                "none" => 0,
                "all" => 2,
                _ => 1,
            };
            if rank(&config.bias) > rank(&united.bias) {
                united.bias.clone_from(&config.bias);
            }
            let mut modules = united.modules_to_save.take().unwrap_or_default();
            for module in config.modules_to_save.iter().flatten() {
                if !modules.contains(module) {
                    modules.push(module.clone());
                }
            }
            united.modules_to_save = (!modules.is_empty()).then_some(modules);
        }
        Ok(united)
    }

    /// The config for recomputed factors, without the keys of another initialization or layout.
    pub(super) fn renewed(self) -> Self {
        let other = self.other.into_iter().filter(|(key, _)| LASTING.contains(&key.as_str())).collect();
        Self {
            rank_pattern: SuffixMap::default(),
            alpha_pattern: SuffixMap::default(),
            exclude_modules: None,
            layers_to_transform: None,
            groups: Vec::new(),
            init_lora_weights: plain_init(),
            other,
            ..self
        }
    }

    /// The config with module paths as in transformers 5.
    pub(super) fn in_modules(&self) -> Self {
        let path = |path: &str| path_in_module(path).unwrap_or_else(|| path.to_string());
        let paths = |names: &[String]| names.iter().map(|name| path(name)).collect::<Vec<_>>();
        let pattern = |pattern: &Option<Pattern>| match pattern {
            Some(Pattern::Names(names)) => Some(Pattern::Names(paths(names))),
            other => other.clone(),
        };
        let trainable_token_indices = match &self.trainable_token_indices {
            Some(TokenIndices::Tables(tables)) => {
                let tables = tables.entries().map(|(table, rows)| (path(table), rows.clone()));
                Some(TokenIndices::Tables(tables.collect()))
            }
            other => other.clone(),
        };
        Self {
            target_modules: pattern(&self.target_modules),
            exclude_modules: pattern(&self.exclude_modules),
            modules_to_save: self.modules_to_save.as_deref().map(paths),
            trainable_token_indices,
            rank_pattern: self.rank_pattern.entries().map(|(key, rank)| (path(key), *rank)).collect(),
            alpha_pattern: self.alpha_pattern.entries().map(|(key, alpha)| (path(key), *alpha)).collect(),
            groups: self.groups.iter().map(|group| paths(group)).collect(),
            ..self.clone()
        }
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        if let (Value::Object(map), "VERA") = (&mut value, self.peft_type.as_str()) {
            // PEFT rejects a config with keys of another method.
            for key in [
                "lora_alpha",
                "lora_dropout",
                "use_rslora",
                "use_dora",
                "rank_pattern",
                "alpha_pattern",
                "init_lora_weights",
                "lora_bias",
                "ensure_weight_tying",
                "trainable_token_indices",
            ] {
                map.remove(key);
            }
            map.insert("vera_dropout".into(), json!(self.lora_dropout));
            map.insert("save_projection".into(), json!(true));
        }
        serde_json::to_string_pretty(&value)
    }
}

/// The value for a module, by its path in model files or in transformers 5.
fn at<T: Copy>(map: &SuffixMap<T>, path: &str) -> Option<T> {
    map.get(path).or_else(|| map.get(&path_in_module(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(r#"{"peft_type": "ADALORA", "rank_pattern": null}"#, "peft_type 'ADALORA' is not supported")]
    #[case(r#"{"peft_type": "IA3"}"#, "peft_type 'IA3' is not supported")]
    #[case(r#"{"r": 4}"#, "'peft_type' is missing")]
    #[case(r#"{"peft_type": "LORA", "r": null}"#, "'r' is null; expected an integer")]
    #[case(r#"{"peft_type": "LORA", "rank_pattern": null}"#, "'rank_pattern' is null; expected a map")]
    #[case(r#"{"peft_type": "LORA", "lora_dropout": null}"#, "'lora_dropout' is null; expected a number")]
    #[case(r#"{"peft_type": "LORA", "rank_pattern": {"(q": 2}}"#, "'(q' is not a valid regular expression")]
    #[case(r#"{"peft_type": "LORA", "target_modules": "(q"}"#, "'(q' is not a valid regular expression")]
    #[case(r#"{"peft_type": "LORA", "layers_pattern": "(h"}"#, "'(h' is not a valid regular expression")]
    #[case(
        r#"{"peft_type": "LORA", "layers_pattern": ["h", "(h"]}"#,
        "'(h' is not a valid regular expression"
    )]
    #[case(r#"{"peft_type": "LORA", "layers_pattern": 3}"#, "'layers_pattern' is 3; expected a name")]
    #[case(r#"{"peft_type": "LORA", "init_lora_weights": "loftq"}"#, "init_lora_weights 'loftq'")]
    #[case(r#"{"peft_type": "LORA", "velora_config": {"scale": 1}}"#, "velora_config is not supported")]
    #[case(r#"{"peft_type": "LORA", "init_lora_weights": "corda"}"#, "init_lora_weights 'corda'")]
    #[case(r#"{"peft_type": "LORA", "init_lora_weights": "milora"}"#, "init_lora_weights 'milora'")]
    fn an_error_names_the_key(#[case] text: &str, #[case] start: &str) {
        let error = PeftConfig::parse(text).unwrap_err();
        assert!(error.starts_with(start) && error.lines().count() == 1, "{error}");
    }

    /// PEFT wraps a table once, for the first name that matches.
    #[rstest]
    #[case(r#"{"tokens": [1], "embed_tokens": [2]}"#, "model.embed_tokens", Some(1))]
    #[case(r#"{"embed_tokens": [2], "tokens": [1]}"#, "model.embed_tokens", Some(2))]
    #[case(r#"{"embed_tokens": [2], "head": [3]}"#, "lm_head", Some(3))]
    #[case(r#"{"embed_tokens": [2]}"#, "lm_head", None)]
    // In model files, GPT-NeoX's head is `embed_out`.
    #[case(r#"{"lm_head": [4]}"#, "embed_out", Some(4))]
    #[case(r#"{"embed_out": [4]}"#, "embed_out", Some(4))]
    #[case(r#"{"mlp.fc1": [5]}"#, "vit.encoder.layer.0.intermediate.dense", Some(5))]
    fn rows_are_those_of_the_first_name(
        #[case] tables: &str,
        #[case] path: &str,
        #[case] expect: Option<usize>,
    ) {
        let text = format!(r#"{{"peft_type": "LORA", "trainable_token_indices": {tables}}}"#);
        let indices = PeftConfig::parse(&text).unwrap().trainable_token_indices.unwrap();
        assert_eq!(indices.of(path), expect.map(|row| vec![row]).as_deref());
    }

    #[test]
    fn switches_that_are_null_are_off() {
        let text = r#"{"peft_type": "LORA", "use_rslora": null, "use_dora": null, "fan_in_fan_out": null,
            "inference_mode": null, "modules_to_save": null, "init_lora_weights": null}"#;
        let config = PeftConfig::parse(text).unwrap();
        assert!(!config.use_rslora && !config.use_dora && !config.fan_in_fan_out);
        assert_eq!(config.init_tag(), InitTag::Plain);
    }

    #[test]
    fn every_name_is_written_as_in_transformers() {
        let head = || vec!["embed_out".to_string(), "dense".to_string()];
        let config = PeftConfig {
            target_modules: Some(Pattern::Names(head())),
            exclude_modules: Some(Pattern::Names(head())),
            modules_to_save: Some(head()),
            trainable_token_indices: Some(TokenIndices::Tables(
                [("embed_out".to_string(), vec![1])].into_iter().collect(),
            )),
            rank_pattern: [("embed_out".into(), 2)].into_iter().collect(),
            alpha_pattern: [("embed_out".into(), 2.0)].into_iter().collect(),
            groups: vec![head()],
            ..PeftConfig::default()
        };
        let text = config.in_modules().to_json().unwrap();
        assert_eq!(text.matches("\"lm_head\"").count(), 7, "{text}");
        assert!(!text.contains("embed_out") && text.matches("\"dense\"").count() == 4, "{text}");
    }

    #[test]
    fn patterns_keep_the_order_of_the_file() {
        let text = r#"{"peft_type": "LORA", "rank_pattern": {"z.*proj": 2, "q_proj": 4}}"#;
        let config = PeftConfig::parse(text).unwrap();
        assert_eq!(config.rank_of("model.z.q_proj"), 2);
        assert_eq!(config.rank_of("model.q_proj"), 4);
    }

    #[test]
    fn mutated_configs_are_parsed_or_refused() {
        let text = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q", "v"], "use_dora": true,
            "rank_pattern": {"q": 4}, "init_lora_weights": "pissa_niter_4", "modules_to_save": ["head"], "bias": "none"}"#;
        lowrank_checkpoint::fuzz::on_mutations(11, 5000, text.as_bytes(), fuzz_config);
    }
}
