//! `generation_config.json`: the model's sampling defaults, which old models have in `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::read_json;
use crate::decoder::{Beams, Constraints, Cutoffs, EarlyStopping, Sampling};
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
    /// Settings of beam search; one beam for none.
    pub beams: Beams,
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

/// Keys without effect on the tokens; those of beam search have none with one beam.
const SILENT: [&str; 22] = [
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
    "early_stopping",
    "length_penalty",
    "low_memory",
    "max_matching_ngram_size",
    "prompt_lookup_num_tokens",
    "renormalize_logits",
];

/// Unsupported keys, with the value at which they have no effect.
const NEUTRAL: [(&str, f64); 6] = [
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("guidance_scale", 1.0),
];

/// Unsupported keys without such a value; in `config.json`, other keys are not about generation.
const UNSUPPORTED: [&str; 9] = [
    "constraints",
    "dola_layers",
    "force_words_ids",
    "forced_decoder_ids",
    "max_time",
    "penalty_alpha",
    "remove_invalid_values",
    "token_healing",
    "watermarking_config",
];

impl GenerationConfig {
    /// The beam search that the file sets; `None` for one beam.
    pub fn beam_search(&self) -> Option<Beams> {
        Some(self.beams).filter(|beams| beams.count > 1)
    }

    /// Reads the file of a folder. Without one the keys of `config` hold that are settings of generation, as old models
    /// have them there.
    pub(super) fn read(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let path = folder.join("generation_config.json");
        let wrong = |reason: String| ModelError::Config { path: path.clone(), reason };
        match read_json(&path)? {
            None => Self::parse(config, GenerationSource::Config)
                .map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason }),
            Some(Value::Object(keys)) => Self::parse(&keys, GenerationSource::Own).map_err(wrong),
            Some(_) => Err(wrong("expected a JSON object".into())),
        }
    }

    fn parse(keys: &Map<String, Value>, source: GenerationSource) -> std::result::Result<Self, String> {
        let mut reader = Reader { keys, read: Vec::new() };
        let is_sampled = reader.flag("do_sample")?.unwrap_or(false);
        let mut sampling = Sampling {
            repetition_penalty: reader.number("repetition_penalty")?.unwrap_or(1.0),
            ..Sampling::default()
        };
        // Without do_sample, transformers ignores them, whatever their values.
        reader.read.extend(SAMPLED);
        if is_sampled {
            let top_k = reader.count("top_k")?.unwrap_or(DEFAULT_TOP_K);
            let none = Cutoffs::default();
            let cutoff = |value: Option<f64>| value.filter(|value| *value < 1.0).unwrap_or(0.0);
            sampling = Sampling {
                temperature: reader.number("temperature")?.unwrap_or(1.0),
                top_k: (top_k > 0).then_some(top_k),
                top_p: reader.number("top_p")?.unwrap_or(1.0),
                cutoffs: Cutoffs {
                    top_h: reader.number("top_h")?,
                    min_p: reader.number("min_p")?.unwrap_or(none.min_p),
                    typical_p: reader.number("typical_p")?.unwrap_or(none.typical_p).min(1.0),
                    epsilon: cutoff(reader.number("epsilon_cutoff")?),
                    eta: cutoff(reader.number("eta_cutoff")?),
                },
                ..sampling
            };
        }
        sampling.check()?;
        let min_length = reader.count("min_length")?.unwrap_or(0);
        let min_new_tokens = reader.count("min_new_tokens")?;
        let constraints = Constraints {
            no_repeat_ngram_size: reader.count("no_repeat_ngram_size")?.unwrap_or(0),
            bad_words: reader.sequences("bad_words_ids")?,
            sequence_biases: reader.biases()?,
            length_penalty: reader.length_penalty()?,
            suppressed: reader.present_ids("suppress_tokens")?,
            suppressed_first: reader.present_ids("begin_suppress_tokens")?,
            min_new_tokens: min_new_tokens.unwrap_or(0),
            // In transformers the other takes its place, even if it is 0.
            min_length: if min_new_tokens.is_some() { 0 } else { min_length },
            forced_first: reader.ids("forced_bos_token_id")?.first().copied(),
            forced_last: reader.ids("forced_eos_token_id")?,
        };
        let beams = reader.beams()?;
        let mut config = Self {
            sampling,
            constraints,
            beams,
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

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Token ids, one at least.
fn sequence(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(id).collect::<Option<Vec<u32>>>().filter(|ids| !ids.is_empty())
}

/// Keys of sampling.
const SAMPLED: [&str; 8] =
    ["temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"];

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

    fn beams(&mut self) -> std::result::Result<Beams, String> {
        let count = self.count("num_beams")?.unwrap_or(1);
        if count == 0 {
            return Err("num_beams = 0; expected 1 or more".into());
        }
        let early_stopping = match self.value("early_stopping") {
            None | Some(Value::Bool(false)) => EarlyStopping::Heuristic,
            Some(Value::Bool(true)) => EarlyStopping::Complete,
            Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
            Some(other) => return Err(format!("early_stopping = {other}; expected a boolean or \"never\"")),
        };
        let length_penalty = self.number("length_penalty")?.unwrap_or(1.0);
        let renormalize = self.flag("renormalize_logits")?.unwrap_or(false);
        Ok(Beams { count, length_penalty, early_stopping, renormalize })
    }

    /// A whole number; negative values count as 0, as in transformers.
    fn count(&mut self, key: &'static str) -> std::result::Result<Option<usize>, String> {
        let read = |value: &Value| {
            let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
            let whole = value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15);
            count
                .or(whole.map(|x| x.max(0.0) as usize))
                .ok_or_else(|| format!("{key} = {value}; expected a count"))
        };
        self.value(key).map(read).transpose()
    }

    fn ids(&mut self, key: &'static str) -> std::result::Result<Vec<u32>, String> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| format!("{key} = {value}; expected a list of token ids"))
    }

    /// The same, without the negative numbers that no token has.
    fn present_ids(&mut self, key: &'static str) -> std::result::Result<Vec<u32>, String> {
        let Some(Value::Array(values)) = self.value(key) else { return self.ids(key) };
        let present = values.iter().filter(|value| value.as_i64().is_none_or(|id| id >= 0));
        let ids: Option<Vec<u32>> = present.map(id).collect();
        ids.ok_or_else(|| format!("{key} = {}; expected a list of token ids", Value::from(values.clone())))
    }

    fn sequences(&mut self, key: &'static str) -> std::result::Result<Vec<Vec<u32>>, String> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let found: Option<Vec<Vec<u32>>> =
            value.as_array().and_then(|items| items.iter().map(sequence).collect());
        found.ok_or_else(|| format!("{key} = {value}; expected a list of lists of token ids"))
    }

    /// `sequence_bias`: a list of pairs, as JSON has no keys that are lists.
    fn biases(&mut self) -> std::result::Result<Vec<(Vec<u32>, f32)>, String> {
        let Some(value) = self.value("sequence_bias") else { return Ok(Vec::new()) };
        let pair = |item: &Value| match item.as_array()?.as_slice() {
            [tokens, bias] => {
                let bias = bias.as_f64()? as f32;
                bias.is_finite().then_some((sequence(tokens)?, bias))
            }
            _ => None,
        };
        let found: Option<Vec<(Vec<u32>, f32)>> =
            value.as_array().and_then(|items| items.iter().map(pair).collect());
        let found = found.ok_or_else(|| {
            format!("sequence_bias = {value}; expected a list of pairs of token ids and a bias")
        })?;
        // In transformers the last bias of a sequence holds.
        let is_last = |(at, (tokens, _)): &(usize, &(Vec<u32>, f32))| {
            found[at + 1..].iter().all(|(other, _)| other != tokens)
        };
        Ok(found.iter().enumerate().filter(is_last).map(|(_, pair)| pair.clone()).collect())
    }

    fn length_penalty(&mut self) -> std::result::Result<Option<(f64, f64)>, String> {
        let Some(value) = self.value("exponential_decay_length_penalty") else { return Ok(None) };
        let pair = match value.as_array().map(Vec::as_slice) {
            Some([start, factor]) => start.as_f64().zip(factor.as_f64()),
            _ => None,
        };
        pair.map(Some).ok_or_else(|| {
            format!("exponential_decay_length_penalty = {value}; expected a number of tokens and a factor")
        })
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
    fn numbers_are_those_that_transformers_takes() {
        let config = parse(json!({
            "top_k": -1, "temperature": -3, "min_length": -1, "max_new_tokens": 10.0, "suppress_tokens": [-1, 4],
            "bad_words_ids": [[1], [2, 3]], "sequence_bias": [[[1, 2], -1.5]], "early_stopping": true,
            "exponential_decay_length_penalty": [3, 1.1], "renormalize_logits": true, "min_p": 7,
        }))
        .unwrap();
        assert_eq!((config.sampling, config.max_new_tokens), (Sampling::default(), Some(10)));
        assert_eq!(config.ignored, [""; 0]);
        let constraints = Constraints {
            suppressed: vec![4],
            bad_words: vec![vec![1], vec![2, 3]],
            sequence_biases: vec![(vec![1, 2], -1.5)],
            length_penalty: Some((3.0, 1.1)),
            ..Constraints::default()
        };
        assert_eq!(config.constraints, constraints);
        let config =
            parse(json!({"do_sample": true, "min_p": 0.1, "typical_p": 0.9, "eta_cutoff": 0.2})).unwrap();
        let cutoffs = Cutoffs { min_p: 0.1, typical_p: 0.9, eta: 0.2, ..Cutoffs::default() };
        assert_eq!(config.sampling.cutoffs, cutoffs);
        let config = parse(json!({
            "num_beams": 3, "length_penalty": -0.5, "early_stopping": "never", "renormalize_logits": true
        }));
        let early_stopping = EarlyStopping::Never;
        let beams = Beams { count: 3, length_penalty: -0.5, early_stopping, renormalize: true };
        assert_eq!(config.unwrap().beam_search(), Some(beams));
        // For beams that the caller asks for.
        let config = parse(json!({"length_penalty": 2.0, "early_stopping": true})).unwrap();
        assert_eq!((config.beam_search(), config.beams.length_penalty), (None, 2.0));
        let config = parse(json!({"do_sample": true, "num_beams": 3})).unwrap();
        assert_eq!((config.beam_search(), config.sampling.temperature), (Some(Beams::new(3)), 1.0));
    }

    /// As transformers' `generate` takes them.
    #[test]
    fn of_two_settings_one_holds() {
        for (min_new_tokens, expect) in [(json!(null), (0, 9)), (json!(0), (0, 0)), (json!(2), (2, 0))] {
            let config = parse(json!({"min_length": 9, "min_new_tokens": min_new_tokens})).unwrap();
            assert_eq!((config.constraints.min_new_tokens, config.constraints.min_length), expect);
        }
        let config = parse(json!({"sequence_bias": [[[7], 1.0], [[8, 7], 2.0], [[7], 3.0]]})).unwrap();
        assert_eq!(config.constraints.sequence_biases, [(vec![8, 7], 2.0), (vec![7], 3.0)]);
        let config = parse(json!({"exponential_decay_length_penalty": [-1.5, 1.1]})).unwrap();
        assert_eq!(config.constraints.length_penalty, Some((-1.5, 1.1)));
    }

    #[test]
    fn other_keys_are_named_where_they_ask_for_something() {
        let config = parse(json!({
            "num_beams": 4, "length_penalty": 1.0, "early_stopping": false, "forced_eos_token_id": null,
            "bad_words_ids": [[5]], "watermarking_config": {"bias": 2}, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "max_length": 20,
            "stop_strings": "\n", "transformers_version": "5.0",
        }))
        .unwrap();
        assert_eq!(config.ignored, ["watermarking_config = {\"bias\":2}"]);
        assert_eq!(config.beam_search(), Some(Beams::new(4)));
        assert_eq!(config.constraints.no_repeat_ngram_size, 3);
        assert_eq!(config.constraints.suppressed, [1, 2]);
        assert_eq!((config.max_length, config.stop_strings), (Some(20), vec!["\n".to_owned()]));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (value, part) in [
            (json!({"do_sample": true, "temperature": -1}), "temperature"),
            (json!({"suppress_tokens": [0.5]}), "suppress_tokens = [0.5]; expected a list of token ids"),
            (json!({"bad_words_ids": [[]]}), "bad_words_ids = [[]]; expected a list of lists of token ids"),
            (json!({"sequence_bias": [[[1], "x"]]}), "sequence_bias"),
            (json!({"sequence_bias": [[[1], 1e39]]}), "sequence_bias"),
            (json!({"exponential_decay_length_penalty": [1]}), "a number of tokens and a factor"),
            (json!({"max_new_tokens": 1.5}), "max_new_tokens = 1.5; expected a count"),
            (json!({"do_sample": true, "min_p": 2}), "min-p 2"),
            (json!({"max_new_tokens": "many"}), "max_new_tokens"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
