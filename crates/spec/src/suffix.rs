//! Values by suffix of a module's path, like PEFT's `rank_pattern` and `alpha_pattern`.

use std::fmt;

use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;
use crate::targets::compile;

/// Keys with values, in the order of the file. A key is a regular expression in the syntax of Python's `re` (look-around
/// included) for the end of a module's path; the first match wins. Keys are compiled when the map is built.
///
/// ```
/// use lowrank_spec::SuffixMap;
/// let ranks: SuffixMap<usize> = [("layer.0.query".into(), 2), ("query".into(), 4)].into_iter().collect();
/// assert_eq!(ranks.get("bert.layer.0.query"), Some(2));
/// assert_eq!(ranks.get("bert.layer.1.query"), Some(4));
/// assert_eq!(ranks.get("bert.layer.1.key"), None);
/// ```
#[derive(Clone, Debug)]
pub struct SuffixMap<T>(Vec<(Key, T)>);

impl<T> Default for SuffixMap<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> PartialEq for SuffixMap<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries().eq(other.entries())
    }
}

impl<T: Eq> Eq for SuffixMap<T> {}

impl<T> FromIterator<(String, T)> for SuffixMap<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (Key::new(key), value)).collect())
    }
}

impl<T> SuffixMap<T> {
    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys with their values, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (key.text.as_str(), value))
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The first key that matches none of the paths.
    pub fn idle_key<'p>(&self, paths: impl Iterator<Item = &'p str> + Clone) -> Option<&str> {
        let is_idle = |key: &&Key| !paths.clone().any(|path| key.matches_end(path));
        self.0.iter().map(|(key, _)| key).find(is_idle).map(|key| key.text.as_str())
    }

    /// Checks that every key is a valid regular expression.
    ///
    /// # Errors
    /// [`SpecError::BadRegex`](crate::SpecError::BadRegex).
    pub fn check(&self) -> Result<()> {
        let broken = self.0.iter().find(|(key, _)| matches!(key.form, KeyForm::Broken));
        broken.map_or(Ok(()), |(key, _)| expression(&key.text).map(|_| ()))
    }
}

impl<T: Copy> SuffixMap<T> {
    /// The value for a module. An invalid key matches nothing (see [`SuffixMap::check`]).
    pub fn get(&self, path: &str) -> Option<T> {
        self.0.iter().find(|(key, _)| key.matches_end(path)).map(|(_, value)| *value)
    }
}

/// A key of a [`SuffixMap`].
#[derive(Clone, Debug)]
struct Key {
    text: String,
    form: KeyForm,
}

/// The compiled form of a key.
#[derive(Clone, Debug)]
enum KeyForm {
    /// A dotted name, matched without the regex engine.
    Plain,
    Expression(Regex),
    /// Invalid: matches nothing.
    Broken,
}

impl Key {
    fn new(text: String) -> Self {
        let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        let form = if is_plain {
            KeyForm::Plain
        } else {
            expression(&text).map_or(KeyForm::Broken, KeyForm::Expression)
        };
        Self { text, form }
    }

    /// Whether the key matches the end of a path.
    fn matches_end(&self, path: &str) -> bool {
        match &self.form {
            KeyForm::Plain => {
                let key = self.text.as_bytes();
                let Some(at) = path.len().checked_sub(key.len()) else { return false };
                // An unescaped dot matches any character.
                let ends = key.iter().zip(path.bytes().skip(at)).all(|(&k, p)| k == p || k == b'.');
                ends && (at == 0 || path.as_bytes()[at - 1] == b'.')
            }
            KeyForm::Expression(regex) => regex.is_match(path).unwrap_or(false),
            KeyForm::Broken => false,
        }
    }
}

fn expression(key: &str) -> Result<Regex> {
    compile(&format!(r"^(?:.*\.)?(?:{key})$"), key)
}

impl<T: Serialize> Serialize for SuffixMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for SuffixMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = SuffixMap<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from module names to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries: Vec<(String, T)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("query", "l.0.query", true)]
    #[case("query", "l.0.subquery", false)]
    #[case("0.query", "l.0.query", true)]
    #[case(".*(?<!layers)\\.0\\.q", "blocks.0.q", true)]
    #[case(".*(?<!layers)\\.0\\.q", "model.layers.0.q", false)]
    #[case("(?!lm_head).*", "lm_head", false)]
    #[case("layers\\.[0-1]\\.q|k", "model.layers.1.q", true)]
    #[case("layers\\.[0-1]\\.q|k", "model.layers.7.k", true)]
    #[case("^model.q", "model.q", true)]
    fn a_key_matches_the_end_as_in_python(#[case] key: &str, #[case] path: &str, #[case] hit: bool) {
        assert_eq!(Key::new(key.into()).matches_end(path), hit);
    }

    #[test]
    fn the_first_key_of_the_file_holds() {
        let text = r#"{"z.*query": 1, "query": 2, "a": 3}"#;
        let map: SuffixMap<usize> = serde_json::from_str(text).unwrap();
        assert_eq!(map.get("zebra.query"), Some(1));
        assert_eq!(map.get("b.query"), Some(2));
        assert_eq!(serde_json::to_string(&map).unwrap(), text.replace(": ", ":").replace(", ", ","));
    }

    #[test]
    fn a_key_that_does_not_compile_is_an_error() {
        let map: SuffixMap<usize> = [("key".to_string(), 2), ("(query".to_string(), 1)].into_iter().collect();
        let error = map.check().unwrap_err().to_string();
        assert!(error.starts_with("'(query'"), "{error}");
        assert_eq!(map.get("(query"), None);
    }

    #[test]
    fn an_idle_key_is_found() {
        let map: SuffixMap<usize> =
            ["query", r"l\.[0-2]\.key", "value"].map(|key| (key.to_string(), 1)).into_iter().collect();
        let idle = |paths: &[&str]| map.idle_key(paths.iter().copied()).map(str::to_string);
        assert_eq!(idle(&["l.0.query", "l.1.key", "l.0.value"]), None);
        assert_eq!(idle(&["l.0.query", "l.3.key", "l.0.subvalue"]).as_deref(), Some(r"l\.[0-2]\.key"));
    }
}
