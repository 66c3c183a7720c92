//! Values by suffix of a module's path, like PEFT's `rank_pattern` and `alpha_pattern`.

use std::fmt;

use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;
use crate::targets::compile;

/// A list of keys with values, in the order of the file. A key is a regular expression with the syntax of Python's `re`
/// (look-around included) that matches the end of a module's path; the first matching key is used.
///
/// ```
/// use lowrank_spec::SuffixMap;
/// let ranks: SuffixMap<usize> = [("layer.0.query".into(), 2), ("query".into(), 4)].into_iter().collect();
/// assert_eq!(ranks.get("bert.layer.0.query"), Some(2));
/// assert_eq!(ranks.get("bert.layer.1.query"), Some(4));
/// assert_eq!(ranks.get("bert.layer.1.key"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuffixMap<T>(Vec<(String, T)>);

impl<T> Default for SuffixMap<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for SuffixMap<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl<T> SuffixMap<T> {
    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// Checks that every key is a regular expression.
    ///
    /// # Errors
    /// [`SpecError::BadRegex`](crate::SpecError::BadRegex).
    pub fn check(&self) -> Result<()> {
        self.keys().filter(|key| !is_plain(key)).try_for_each(|key| expression(key).map(|_| ()))
    }
}

impl<T: Copy> SuffixMap<T> {
    /// The keys with their values, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (String, T)> {
        self.0.iter().map(|(key, value)| (key.clone(), *value))
    }

    /// The value of a module; a key that is not a regular expression matches nothing (see [`SuffixMap::check`]).
    pub fn get(&self, path: &str) -> Option<T> {
        self.0.iter().find(|(key, _)| matches_end(key, path)).map(|(_, value)| *value)
    }
}

/// Whether a key of a [`SuffixMap`] matches the end of a path.
pub fn matches_end(key: &str, path: &str) -> bool {
    if is_plain(key) {
        // A dot of an expression stands for any character.
        let Some(at) = path.len().checked_sub(key.len()) else { return false };
        let ends = key.bytes().zip(path.bytes().skip(at)).all(|(k, p)| k == p || k == b'.');
        return ends && (at == 0 || path.as_bytes()[at - 1] == b'.');
    }
    expression(key).is_ok_and(|regex| regex.is_match(path).unwrap_or(false))
}

/// Whether a key is a dotted name, which needs no engine.
fn is_plain(key: &str) -> bool {
    key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
}

fn expression(key: &str) -> Result<Regex> {
    compile(&format!(r"^(?:.*\.)?(?:{key})$"), key)
}

impl<T: Serialize> Serialize for SuffixMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
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
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(SuffixMap(entries))
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
        assert_eq!(matches_end(key, path), hit);
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
        let map: SuffixMap<usize> = [("(query".to_string(), 1)].into_iter().collect();
        assert!(map.check().is_err());
    }
}
