//! One message of a conversation, with every key that its row had.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A message: `role`, `content`, and any other keys that a template may use (`tool_calls`, `name`, …).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A text message.
    pub fn new(role: &str, content: &str) -> Self {
        let mut object = Map::new();
        object.insert("role".into(), role.into());
        object.insert("content".into(), content.into());
        Self(object)
    }

    /// Creates a message from a JSON object with `role`, and `content` or `tool_calls`. Content in parts is
    /// joined if all parts are text.
    ///
    /// # Errors
    /// A short description of the problem.
    pub fn from_json(value: &Value) -> std::result::Result<Self, String> {
        let mut object = value.as_object().ok_or("a message is not an object")?.clone();
        if object.get("role").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err("a message has no string 'role'".into());
        }
        let has_calls = object.get("tool_calls").is_some_and(|calls| !calls.is_null());
        let content = match object.get("content") {
            Some(Value::Array(parts)) => Some(joined(parts)?),
            Some(Value::String(_)) => None,
            None | Some(Value::Null) if has_calls => None,
            _ => return Err("a message has no 'content' (a string or a list of text parts)".into()),
        };
        if let Some(content) = content {
            object.insert("content".into(), content.into());
        }
        Ok(Self(object))
    }

    /// The role of the speaker.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text; `None` for a message that only calls tools.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// The message with other content.
    pub(crate) fn with_content(&self, content: &str) -> Self {
        let mut object = self.0.clone();
        object.insert("content".into(), content.into());
        Self(object)
    }

    /// Whether the message calls tools.
    pub(crate) fn has_tool_calls(&self) -> bool {
        self.0.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
    }

    pub(crate) fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Total bytes of its strings.
    pub(super) fn size(&self) -> usize {
        self.0.values().map(size).sum()
    }

    /// Whether one of its strings contains one of these characters.
    pub(super) fn contains_any(&self, characters: &[char]) -> bool {
        self.0.values().any(|value| contains(value, characters))
    }
}

fn joined(parts: &[Value]) -> std::result::Result<String, String> {
    parts
        .iter()
        .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
            (None | Some("text"), Some(text)) => Ok(text),
            (kind, _) => Err(format!("content of type '{}' is not text", kind.unwrap_or("?"))),
        })
        .collect()
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(object) => object.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

fn contains(value: &Value, characters: &[char]) -> bool {
    match value {
        Value::String(text) => text.contains(characters),
        Value::Array(items) => items.iter().any(|item| contains(item, characters)),
        Value::Object(object) => object.values().any(|item| contains(item, characters)),
        _ => false,
    }
}
