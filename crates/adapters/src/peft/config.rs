//! `adapter_config.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::scale;
use lowrank_spec::Site;
use lowrank_spec::targets::{Pattern, by_suffix, has_suffix};

/// The keys of `adapter_config.json` that we read and write; others are kept as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    /// `LORA`, `VERA`, one of our own, or `HEAD` for a task head without adapters.
    pub peft_type: String,
    /// Inner width where no pattern says otherwise.
    #[serde(default = "eight")]
    pub r: usize,
    /// Strength where no pattern says otherwise.
    #[serde(default = "eight_f64")]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input in training.
    #[serde(default, alias = "vera_dropout")]
    pub lora_dropout: f64,
    /// Where the adapter sits.
    #[serde(default)]
    pub target_modules: Option<Pattern>,
    /// What of that is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Pattern>,
    /// Transformer layers it is limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Layers>,
    /// Scale by alpha/√r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Weight-decomposed LoRA.
    #[serde(default)]
    pub use_dora: bool,
    /// Which biases the adapter carries: `none`, `all`, `lora_only`.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the base stores its weights as `[in, out]` (GPT-2's `Conv1D`).
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Rank by suffix of the module path.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha by suffix of the module path.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules trained and saved in full.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// PEFT's name of the task.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The base model.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// True for an adapter that is to be used, not trained further.
    #[serde(default)]
    pub inference_mode: bool,
    /// Paths of each group, where there are several (LoTR, LoRTA).
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
    /// One.
    One(usize),
    /// Several.
    Many(Vec<usize>),
}

impl Layers {
    fn contains(&self, layer: usize) -> bool {
        match self {
            Self::One(one) => *one == layer,
            Self::Many(many) => many.contains(&layer),
        }
    }
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
            fan_in_fan_out: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: None,
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

/// The types that are read and written.
pub(super) const TYPES: [&str; 7] = ["LORA", "LOTR", "VERA", "LORETTA", "TT_LORA", "LORTA", "HEAD"];

/// Options of newer PEFT versions that change what an adapter computes, and that are not supported.
const UNSUPPORTED: [&str; 8] = [
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
];

impl PeftConfig {
    /// What of the config cannot be honoured, if anything.
    pub(super) fn unsupported(&self) -> Option<String> {
        if !TYPES.contains(&self.peft_type.as_str()) {
            return Some(format!(
                "peft_type '{}' is not supported; expected one of {}",
                self.peft_type,
                TYPES.join(", ")
            ));
        }
        if self.r == 0 && self.peft_type != "HEAD" {
            return Some("r = 0 is out of range; expected 1 or more".into());
        }
        if self.rank_pattern.values().any(|r| *r == 0) {
            return Some("rank_pattern holds a rank of 0; expected 1 or more".into());
        }
        if !["none", "all", "lora_only", "vera_only"].contains(&self.bias.as_str()) {
            return Some(format!("bias '{}' is not supported; expected none, all or lora_only", self.bias));
        }
        let is_set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        let found = UNSUPPORTED.iter().find(|key| self.other.get(**key).is_some_and(is_set))?;
        Some(format!("{found} is not supported"))
    }

    pub(super) fn rank_of(&self, path: &str) -> usize {
        by_suffix(&self.rank_pattern, path).unwrap_or(self.r)
    }

    pub(super) fn scale_of(&self, path: &str) -> f64 {
        let alpha = by_suffix(&self.alpha_pattern, path).unwrap_or(self.lora_alpha);
        scale(alpha, self.rank_of(path), self.use_rslora)
    }

    /// Whether the config puts an adapter on a site.
    pub(super) fn targets(&self, site: &Site) -> bool {
        // An adapter made over the bare encoder has no prefix in its paths.
        let bare = site.path.split_once('.').map_or(site.path.as_str(), |(_, rest)| rest);
        let bare = Site { path: bare.to_string(), ..site.clone() };
        let hit = |pattern: &Pattern| pattern.takes(site) || pattern.takes(&bare);
        let in_layers = match (&self.layers_to_transform, site.layer) {
            (Some(layers), Some(layer)) => layers.contains(layer),
            (Some(_), None) => false,
            (None, _) => true,
        };
        in_layers
            && self.target_modules.as_ref().is_some_and(hit)
            && !self.exclude_modules.as_ref().is_some_and(hit)
            && !self.saves(&site.path)
    }

    /// Whether a module is saved in full: `modules_to_save` names it, or a module around it.
    pub(super) fn saves(&self, module: &str) -> bool {
        let saved = self.modules_to_save.iter().flatten();
        saved.into_iter().any(|name| has_suffix(module, name) || within(module, name))
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        if let (Value::Object(map), "VERA") = (&mut value, self.peft_type.as_str()) {
            // PEFT refuses a config with keys of another method.
            for key in
                ["lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"]
            {
                map.remove(key);
            }
            map.insert("vera_dropout".into(), json!(self.lora_dropout));
            map.insert("save_projection".into(), json!(true));
            map.entry("projection_prng_key").or_insert(json!(0));
        }
        serde_json::to_string_pretty(&value)
    }
}

/// Whether `name` is a run of whole segments of `path`.
fn within(path: &str, name: &str) -> bool {
    format!(".{path}.").contains(&format!(".{name}."))
}
