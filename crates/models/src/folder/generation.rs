//! `generation_config.json`: the model's sampling defaults, of encoder-decoder models also in `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::read_json;
use crate::decoder::{Constraints, Sampling};
use crate::error::{ModelError, Result};

/// transformers' default of `top_k` if sampling is on.
const DEFAULT_TOP_K: usize = 50;

/// Contents of `generation_config.json`, or the settings of generation in `config.json`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct GenerationConfig {
    /// Sampling options; greedy unless the file has `do_sample`.
    pub sampling: Sampling,
    /// Constraints on tokens.
    pub constraints: Constraints,
    /// Maximum number of new tokens.
    pub max_new_tokens: Option<usize>,
    /// Maximum number of tokens of prompt and continuation.
    pub max_length: Option<usize>,
    /// Texts that end a continuation.
    pub stop_strings: Vec<String>,
    /// Unsupported keys with their values; they are ignored.
    pub ignored: Vec<String>,
    /// The file that holds the keys.
    pub source: GenerationSource,
}

/// The file that holds a model's settings of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GenerationSource {
    /// `generation_config.json`.
    #[default]
    Own,
    /// `config.json`, of a model without the other.
    Config,
}

impl GenerationSource {
    /// The name of the file.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Own => "generation_config.json",
            Self::Config => "config.json",
        }
    }
}

/// Keys that do not affect the generated tokens.
const SILENT: [&str; 16] = [
    "_from_model_config",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
    "cache_config",
    "disable_compile",
];

/// Unsupported keys, with the value at which they have no effect.
const NEUTRAL: [(&str, f64); 13] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("diversity_penalty", 0.0),
    ("length_penalty", 1.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("guidance_scale", 1.0),
    ("top_h", 1.0),
    ("min_p", 0.0),
];

/// Unsupported keys without such a value; in `config.json`, other keys are not about generation.
const UNSUPPORTED: [&str; 15] = [
    "bad_words_ids",
    "constraints",
    "dola_layers",
    "early_stopping",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_decoder_ids",
    "max_time",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "sequence_bias",
    "token_healing",
    "watermarking_config",
];

impl GenerationConfig {
    /// Reads the file of a folder. Without one the keys of `config` hold that are settings of generation, as old
    /// encoder-decoder models have them there.
    pub(super) fn read(folder: &Path, config: Option<&Map<String, Value>>) -> Result<Self> {
        let path = folder.join("generation_config.json");
        let wrong = |reason: String| ModelError::Config { path: path.clone(), reason };
        match read_json(&path)? {
            None => match config {
                None => Ok(Self::default()),
                Some(keys) => Self::parse(keys, GenerationSource::Config)
                    .map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason }),
            },
            Some(Value::Object(keys)) => Self::parse(&keys, GenerationSource::Own).map_err(wrong),
            Some(_) => Err(wrong("expected a JSON object".into())),
        }
    }

    fn parse(keys: &Map<String, Value>, source: GenerationSource) -> std::result::Result<Self, String> {
        let mut reader = Reader { keys, read: Vec::new() };
        let is_sampled = reader.flag("do_sample")?.unwrap_or(false);
        // Without do_sample, transformers ignores these three.
        let temperature = reader.number("temperature")?.unwrap_or(1.0);
        let top_k = reader.count("top_k")?.unwrap_or(DEFAULT_TOP_K);
        let top_p = reader.number("top_p")?.unwrap_or(1.0);
        let mut sampling = Sampling {
            repetition_penalty: reader.number("repetition_penalty")?.unwrap_or(1.0),
            ..Sampling::default()
        };
        if is_sampled {
            sampling = Sampling { temperature, top_k: (top_k > 0).then_some(top_k), top_p, ..sampling };
        }
        sampling.check()?;
        let min_length = reader.count("min_length")?.unwrap_or(0);
        let constraints = Constraints {
            no_repeat_ngram_size: reader.count("no_repeat_ngram_size")?.unwrap_or(0),
            suppressed: reader.ids("suppress_tokens")?,
            suppressed_first: reader.ids("begin_suppress_tokens")?,
            min_new_tokens: reader.count("min_new_tokens")?.unwrap_or(0),
            min_length,
            forced_first: reader.ids("forced_bos_token_id")?.first().copied(),
            forced_last: reader.ids("forced_eos_token_id")?,
        };
        let mut config = Self {
            sampling,
            constraints,
            max_new_tokens: reader.count("max_new_tokens")?,
            max_length: reader.count("max_length")?,
            stop_strings: reader.texts("stop_strings")?,
            ignored: Vec::new(),
            source,
        };
        if source == GenerationSource::Config && reader.flag("force_bos_token_to_be_generated")? == Some(true)
        {
            // BART's first published models.
            config.constraints.forced_first = reader.ids("bos_token_id")?.first().copied();
        }
        let is_setting = |key: &str| {
            source == GenerationSource::Own
                || NEUTRAL.iter().any(|(name, _)| *name == key)
                || UNSUPPORTED.contains(&key)
        };
        config.ignored = reader.rest(is_setting);
        Ok(config)
    }
}

struct Reader<'a> {
    keys: &'a Map<String, Value>,
    read: Vec<&'static str>,
}

impl Reader<'_> {
    fn value(&mut self, key: &'static str) -> Option<&Value> {
        self.read.push(key);
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn flag(&mut self, key: &'static str) -> std::result::Result<Option<bool>, String> {
        let read =
            |value: &Value| value.as_bool().ok_or_else(|| format!("{key} = {value}; expected a boolean"));
        self.value(key).map(read).transpose()
    }

    fn number(&mut self, key: &'static str) -> std::result::Result<Option<f64>, String> {
        let read =
            |value: &Value| value.as_f64().ok_or_else(|| format!("{key} = {value}; expected a number"));
        self.value(key).map(read).transpose()
    }

    fn count(&mut self, key: &'static str) -> std::result::Result<Option<usize>, String> {
        let read = |value: &Value| {
            let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
            count.ok_or_else(|| format!("{key} = {value}; expected a count"))
        };
        self.value(key).map(read).transpose()
    }

    fn ids(&mut self, key: &'static str) -> std::result::Result<Vec<u32>, String> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| format!("{key} = {value}; expected a list of token ids"))
    }

    fn texts(&mut self, key: &'static str) -> std::result::Result<Vec<String>, String> {
        let expected = |value: &Value| format!("{key} = {value}; expected a list of strings");
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(value @ Value::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(|| expected(value))
            }
            Some(other) => Err(expected(other)),
        }
    }

    /// The other settings with an effect, as `key = value`.
    fn rest(&self, is_setting: impl Fn(&str) -> bool) -> Vec<String> {
        let asks = |(key, value): &(&String, &Value)| {
            let neutral = NEUTRAL.iter().find(|(name, _)| name == key).map(|(_, neutral)| *neutral);
            let is_neutral = neutral.is_some_and(|neutral| value.as_f64() == Some(neutral));
            let is_known = self.read.contains(&key.as_str()) || SILENT.contains(&key.as_str());
            let is_off = matches!(value, Value::Null | Value::Bool(false))
                || value.as_array().is_some_and(Vec::is_empty);
            is_setting(key) && !is_known && !is_neutral && !is_off
        };
        self.keys.iter().filter(asks).map(|(key, value)| format!("{key} = {value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> std::result::Result<GenerationConfig, String> {
        GenerationConfig::parse(value.as_object().unwrap(), GenerationSource::Own)
    }

    #[test]
    fn sampling_is_heeded_only_where_it_is_on() {
        let config = parse(json!({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2})).unwrap();
        assert_eq!(config, GenerationConfig::default());
        let config = parse(json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9})).unwrap();
        let sampling = Sampling { temperature: 0.6, top_p: 0.9, top_k: Some(50), ..Sampling::default() };
        assert_eq!(config.sampling, sampling);
        assert_eq!(parse(json!({"do_sample": true, "top_k": 0})).unwrap().sampling.top_k, None);
    }

    #[test]
    fn other_keys_are_named_where_they_ask_for_something() {
        let config = parse(json!({
            "num_beams": 4, "length_penalty": 1.0, "early_stopping": false, "forced_eos_token_id": null,
            "bad_words_ids": [[5]], "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "max_length": 20,
            "stop_strings": "\n", "transformers_version": "5.0",
        }))
        .unwrap();
        assert_eq!(config.ignored, ["num_beams = 4", "bad_words_ids = [[5]]"]);
        assert_eq!(config.constraints.no_repeat_ngram_size, 3);
        assert_eq!(config.constraints.suppressed, [1, 2]);
        assert_eq!((config.max_length, config.stop_strings), (Some(20), vec!["\n".to_owned()]));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (value, part) in [
            (json!({"do_sample": true, "temperature": -1}), "temperature"),
            (json!({"suppress_tokens": [-1]}), "suppress_tokens = [-1]; expected a list of token ids"),
            (json!({"max_new_tokens": "many"}), "max_new_tokens"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
