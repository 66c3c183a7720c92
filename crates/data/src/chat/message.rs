//! One message of a conversation, with every key that its row had.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Keys that say whether an answer is learnt: OpenAI's, and those of ShareGPT's turns.
pub(crate) const FLAGS: [&str; 2] = ["weight", "train"];

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

    /// Creates a message from a JSON object with `role`, and `content`, `tool_calls` or reasoning. Content may be in parts
    /// of text. Keys without a value are left out, as in transformers.
    ///
    /// # Errors
    /// A short description of the problem.
    pub fn from_json(value: &Value) -> std::result::Result<Self, String> {
        let mut object = value.as_object().ok_or("a message is not an object")?.clone();
        object.retain(|_, value| !value.is_null());
        if object.get("role").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err("a message has no string 'role'".into());
        }
        match object.get("content") {
            Some(Value::Array(parts)) => drop(joined(parts)?),
            Some(Value::String(_)) => {}
            None if object.contains_key("tool_calls") || reasoning(&object).is_some() => {}
            _ => return Err("a message has no 'content' (a string or a list of text parts)".into()),
        }
        Ok(Self(object))
    }

    /// The role of the speaker.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text; `None` for a message that only calls tools.
    pub fn content(&self) -> Option<Cow<'_, str>> {
        match self.0.get("content")? {
            Value::Array(parts) => joined(parts).ok().map(Cow::Owned),
            content => content.as_str().map(Cow::Borrowed),
        }
    }

    /// Content that is in parts.
    pub(super) fn parts(&self) -> Option<&Value> {
        self.0.get("content").filter(|content| content.is_array())
    }

    /// The message with its parts as one text; `None` if some are not text.
    pub(super) fn joined(&self) -> Option<Self> {
        match self.parts() {
            Some(_) => self.content().map(|content| self.with(content.into())),
            None => Some(self.clone()),
        }
    }

    /// The message with another text, in a part if its content is in parts.
    pub(super) fn with_content(&self, content: &str) -> Self {
        self.with(match self.parts() {
            Some(_) => serde_json::json!([{"type": "text", "text": content}]),
            None => content.into(),
        })
    }

    fn with(&self, content: Value) -> Self {
        let mut object = self.0.clone();
        object.insert("content".into(), content);
        Self(object)
    }

    /// Whether the template must render the content. It may omit empty text and text beside a tool call.
    pub(crate) fn must_show(&self) -> bool {
        !self.has_tool_calls() && self.content().is_some_and(|content| !content.trim().is_empty())
    }

    /// Whether an answer may be a target: OpenAI's `weight`, and `train` of ShareGPT's turns, are neither 0 nor false.
    pub(crate) fn is_target(&self) -> bool {
        let is_off =
            |value: &Value| value.as_bool() == Some(false) || value.as_f64().is_some_and(|n| n == 0.0);
        !FLAGS.iter().any(|key| self.0.get(*key).is_some_and(is_off))
    }

    /// Whether it is marked to be learnt.
    pub(crate) fn is_marked(&self) -> bool {
        self.is_target() && FLAGS.iter().any(|key| self.0.contains_key(*key))
    }

    /// Whether the message calls tools.
    pub(crate) fn has_tool_calls(&self) -> bool {
        self.n_tool_calls() > 0
    }

    /// Number of tools that it calls.
    pub(crate) fn n_tool_calls(&self) -> usize {
        self.0.get("tool_calls").and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// The message with another name of the function that one of its calls names; `None` if it names none.
    pub(super) fn with_call(&self, index: usize, name: &str) -> Option<Self> {
        let mut object = self.0.clone();
        rename(object.get_mut("tool_calls")?.get_mut(index)?, name).then_some(Self(object))
    }

    /// Arguments of its calls that are the JSON of an object, as in OpenAI's messages.
    pub(super) fn arguments_in_json(&self) -> impl Iterator<Item = &str> {
        let calls = self.0.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        let arguments = calls.filter_map(|call| function(call).get("arguments")?.as_str());
        arguments.filter(|text| decoded(text).is_some())
    }

    /// The message with such arguments replaced by what `other` gives for them.
    pub(super) fn with_arguments(&self, other: impl Fn(&str) -> Option<Value>) -> Self {
        let mut object = self.0.clone();
        let calls = object.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let call = if call.get("function").is_some() { &mut call["function"] } else { call };
            let arguments = call.get("arguments").and_then(Value::as_str);
            if let Some(arguments) = arguments.filter(|text| decoded(text).is_some()).and_then(&other) {
                call["arguments"] = arguments;
            }
        }
        Self(object)
    }

    /// What a template sees: reasoning has all names that templates read, in transformers' order.
    pub(super) fn for_template(&self) -> Value {
        let Some(reasoning) = reasoning(&self.0).cloned() else { return Value::Object(self.0.clone()) };
        let mut object = Map::new();
        object.insert("thinking".into(), reasoning.clone());
        object.extend(self.0.clone());
        object.insert("reasoning_content".into(), reasoning);
        Value::Object(object)
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

/// What a call or a tool says of its function, which may be the call itself.
fn function(call: &Value) -> &Value {
    call.get("function").unwrap_or(call)
}

/// Gives the function of a call or a tool another name; false if it has none.
pub(super) fn rename(call: &mut Value, new: &str) -> bool {
    let function = if call.get("function").is_some() { &mut call["function"] } else { call };
    let name = function.get_mut("name").filter(|name| name.is_string());
    name.map(|name| *name = new.into()).is_some()
}

/// An object from its JSON.
pub(super) fn decoded(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().filter(Value::is_object)
}

/// The reasoning of a message, by the first of its names that is there.
fn reasoning(message: &Map<String, Value>) -> Option<&Value> {
    ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| message.get(*name))
}

/// The text of content in parts, which may be plain strings.
fn joined(parts: &[Value]) -> std::result::Result<String, String> {
    parts
        .iter()
        .map(|part| match (part["type"].as_str(), part.as_str().or(part["text"].as_str())) {
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
