//! Typed access to the keys of a `config.json`; null counts as absent.

use serde_json::{Map, Value};

use crate::config::file::MAX_DIM;
use lowrank_spec::LowrankSection;

type Result<T> = std::result::Result<T, String>;

/// Aliases in transformers: where a file has both, the common name wins. Other names are independent keys.
const SECOND_NAMES: &[&str] = &[
    "n_embd",
    "d_model",
    "dim",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "n_positions",
    "d_kv",
];

/// A config with the key names of another architecture: pairs of own and other name.
pub(crate) fn renamed(raw: &Map<String, Value>, names: &[(&str, &str)]) -> Map<String, Value> {
    let mut renamed = raw.clone();
    for (own, key) in names {
        let has_common = renamed.get(*key).is_some_and(|value| !value.is_null());
        if let Some(value) = renamed.remove(*own)
            && !(has_common && SECOND_NAMES.contains(own))
        {
            renamed.insert((*key).into(), value);
        }
    }
    renamed
}

/// An error about a [renamed](renamed) config, with the names of the keys in the file.
pub(crate) fn as_in_file(error: String, raw: &Map<String, Value>, names: &[(&str, &str)]) -> String {
    let others = names.iter().filter(|(_, key)| raw.get(*key).is_none_or(Value::is_null));
    let renamed = |word: &str| others.clone().find(|(_, key)| *key == word).map(|(own, _)| (*own).to_owned());
    let words = error.split(' ').map(|word| renamed(word).unwrap_or_else(|| word.to_owned()));
    words.collect::<Vec<_>>().join(" ")
}

/// The keys of a config.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    raw: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The keys of an object.
    pub const fn new(raw: &'a Map<String, Value>) -> Self {
        Self { raw }
    }

    /// The value of a key, unless it is null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    /// Refuses a config with keys for single layers.
    pub(crate) fn check_uniform(&self) -> Result<()> {
        let is_empty = |value: &Value| match value {
            Value::Object(layers) => layers.is_empty(),
            Value::Array(layers) => layers.is_empty(),
            _ => false,
        };
        match self.get("per_layer_config").is_none_or(is_empty) {
            true => Ok(()),
            false => Err("per_layer_config is not supported; expected a config for all layers".into()),
        }
    }

    /// Whether the key exists, even if null.
    pub fn has(&self, key: &str) -> bool {
        self.raw.contains_key(key)
    }

    /// An object under a key.
    pub fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        self.typed(key, "an object", |value| value.as_object().map(Keys::new))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A number above 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(format!("{key} = {x} is out of range; expected above 0")),
            x => Ok(x),
        }
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let number = |value: &Value| value.as_f64().filter(|x| x.is_finite());
        self.typed(key, "a list of numbers", |value| value.as_array()?.iter().map(number).collect())
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.raw.iter()
    }

    /// Whether the object is empty.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// A number, or a default if the key is absent.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    /// A boolean.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A required size.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_within(key, MAX_DIM)
    }

    /// A required size of at most `max`.
    pub(crate) fn size_within(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?.ok_or_else(|| format!("{key} is missing"))
    }

    /// A size, or a default if the key is absent.
    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key, MAX_DIM)?.unwrap_or(default))
    }

    /// A size, if the key exists.
    pub(crate) fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        size.map(Some).ok_or_else(|| format!("{key} = {value} is out of range; expected 1..={max}"))
    }

    /// A dropout probability, below 1.
    pub fn dropout(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(p) if !(0.0..1.0).contains(&p) => {
                Err(format!("{key} = {p} is out of range; expected a dropout of 0 <= p < 1"))
            }
            p => Ok(p),
        }
    }

    /// A token id, or a list of them; empty if the key is absent or -1.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key).filter(|value| value.as_i64() != Some(-1)) else {
            return Ok(Vec::new());
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| format!("{key} = {value}; expected a token id or a list of them"))
    }

    /// `layer_types`: the kind of attention of each layer.
    pub fn layer_types(&self, n_layers: usize) -> Result<Option<Vec<&'a str>>> {
        let Some(types) = self.typed("layer_types", "a list of names", |value| {
            value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()
        })?
        else {
            return Ok(None);
        };
        if types.len() != n_layers {
            return Err(format!("layer_types has {} entries for {n_layers} layers", types.len()));
        }
        let known = ["full_attention", "sliding_attention"];
        match types.iter().find(|name| !known.contains(name)) {
            Some(name) => {
                Err(format!("layer_types: '{name}' is not supported; expected one of {}", known.join(", ")))
            }
            None => Ok(Some(types)),
        }
    }

    /// The `lowrank` section.
    pub fn section(&self) -> Result<LowrankSection> {
        LowrankSection::of_config(self.raw).map_err(|e| e.to_string())
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("{key} = {value}; expected {what}"))
    }
}
