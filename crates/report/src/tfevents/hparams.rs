//! Hyper-parameters of a run in an event file, in the format of TensorBoard's HParams plugin.
//!
//! They are the content of the metadata of a value `_hparams_/session_start_info`: an `HParamsPluginData` of the
//! plugin's `plugin_data.proto`, whose `SessionStartInfo` maps names to `google.protobuf.Value`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::proto::{Field, Fields, Malformed, put_bytes, put_double, put_int64};

/// The tag of the value that contains them.
pub(super) const TAG: &str = "_hparams_/session_start_info";

/// A hyper-parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Hparam {
    /// A number; integers are exact up to 2⁵³.
    Number(f64),
    /// A boolean.
    Bool(bool),
    /// Any other value, as text.
    Text(String),
}

/// The session of a run at the beginning of its log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    /// Sessions of one group are one run, such as a resumed run; empty if a writer names none.
    pub group: String,
    /// Its hyper-parameters.
    pub hparams: BTreeMap<String, Hparam>,
}

impl Session {
    /// A session of `group` with all settings that are not null; lists and objects as their JSON text.
    pub fn from_settings(group: impl Into<String>, settings: &Map<String, Value>) -> Self {
        let hparam = |value: &Value| match value {
            Value::Null => None,
            Value::Bool(truth) => Some(Hparam::Bool(*truth)),
            Value::String(text) => Some(Hparam::Text(text.clone())),
            Value::Number(number) => {
                // A 64-bit seed may not be exact as a double.
                let exact = number.as_f64().filter(|float| match (number.as_u64(), number.as_i64()) {
                    (Some(integer), _) => *float as u64 == integer,
                    (_, Some(integer)) => *float as i64 == integer,
                    _ => true,
                });
                Some(exact.map_or_else(|| Hparam::Text(number.to_string()), Hparam::Number))
            }
            Value::Array(_) | Value::Object(_) => Some(Hparam::Text(value.to_string())),
        };
        let hparams = settings.iter().filter_map(|(name, value)| Some((name.clone(), hparam(value)?)));
        Self { group: group.into(), hparams: hparams.collect() }
    }

    /// Parses the content of a plugin's metadata; `None` if it describes something other than a session's
    /// start.
    pub(super) fn read(content: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut session = None;
        for field in Fields::new(content) {
            if let (3, Field::Bytes(info)) = field? {
                session = Some(Self::from_info(info)?);
            }
        }
        Ok(session)
    }

    fn from_info(info: &[u8]) -> Result<Self, Malformed> {
        let mut session = Self::default();
        for field in Fields::new(info) {
            match field? {
                (1, Field::Bytes(entry)) => {
                    let (name, value) = entry_of(entry)?;
                    session.hparams.extend(value.map(|value| (name, value)));
                }
                (4, Field::Bytes(group)) => session.group = text(group)?,
                _ => {}
            }
        }
        Ok(session)
    }

    /// The content that [`read`](Self::read) parses.
    pub(super) fn content(&self) -> Vec<u8> {
        let mut info = Vec::new();
        for (name, hparam) in &self.hparams {
            let (mut value, mut entry) = (Vec::new(), Vec::new());
            match hparam {
                Hparam::Number(number) => put_double(&mut value, 2, *number),
                Hparam::Text(text) => put_bytes(&mut value, 3, text.as_bytes()),
                Hparam::Bool(truth) => put_int64(&mut value, 4, i64::from(*truth)),
            }
            put_bytes(&mut entry, 1, name.as_bytes());
            put_bytes(&mut entry, 2, &value);
            put_bytes(&mut info, 1, &entry);
        }
        if !self.group.is_empty() {
            put_bytes(&mut info, 4, self.group.as_bytes());
        }
        let mut content = Vec::new();
        put_bytes(&mut content, 3, &info);
        content
    }
}

/// An entry of the map: a name, and its value unless that is null.
fn entry_of(entry: &[u8]) -> Result<(String, Option<Hparam>), Malformed> {
    let (mut name, mut value) = (String::new(), None);
    for field in Fields::new(entry) {
        match field? {
            (1, Field::Bytes(bytes)) => name = text(bytes)?,
            (2, Field::Bytes(message)) => value = hparam(message)?,
            _ => {}
        }
    }
    Ok((name, value))
}

fn hparam(message: &[u8]) -> Result<Option<Hparam>, Malformed> {
    let mut found = None;
    for field in Fields::new(message) {
        found = match field? {
            (2, Field::Fixed64(bytes)) => Some(Hparam::Number(f64::from_le_bytes(bytes))),
            (3, Field::Bytes(bytes)) => Some(Hparam::Text(text(bytes)?)),
            (4, Field::Varint(truth)) => Some(Hparam::Bool(truth != 0)),
            _ => found,
        };
    }
    Ok(found)
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let hparams = [
            ("alpha", Hparam::Number(16.0)),
            ("rslora", Hparam::Bool(false)),
            ("targets", Hparam::Text("query,value".to_owned())),
        ];
        let hparams = hparams.map(|(name, value)| (name.to_owned(), value)).into();
        let session = Session { group: "a".to_owned(), hparams };
        assert_eq!(Session::read(&session.content()), Ok(Some(session)));
    }

    #[test]
    fn settings_become_hyper_parameters() {
        let settings = serde_json::json!({
            "alpha": 16, "lr": 5e-4, "seed": 9_007_199_254_740_993_u64, "head_lr": null, "rslora": true,
            "targets": ["query", "value"],
        });
        let session = Session::from_settings("g", settings.as_object().unwrap());
        let expect = [
            ("alpha", Hparam::Number(16.0)),
            ("lr", Hparam::Number(5e-4)),
            ("rslora", Hparam::Bool(true)),
            ("seed", Hparam::Text("9007199254740993".to_owned())),
            ("targets", Hparam::Text(r#"["query","value"]"#.to_owned())),
        ];
        let expect = expect.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(session, Session { group: "g".to_owned(), hparams: expect });
    }

    #[test]
    fn the_bytes_of_pytorch() {
        // From `hparams({"lr": 0.5, "bn": True, "opt": "sgd"}, {})` of torch.utils.tensorboard.summary.
        let content =
            b"\x1a\x29\x0a\x0f\x0a\x02lr\x12\x09\x11\0\0\0\0\0\0\xe0\x3f\x0a\x08\x0a\x02bn\x12\x02\x20\x01\
                        \x0a\x0c\x0a\x03opt\x12\x05\x1a\x03sgd";
        let session = Session::read(content).unwrap().unwrap();
        let expect = [
            ("bn", Hparam::Bool(true)),
            ("lr", Hparam::Number(0.5)),
            ("opt", Hparam::Text("sgd".to_owned())),
        ];
        assert_eq!(session.hparams, expect.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn other_content_and_nulls() {
        // An Experiment, a SessionEndInfo, a null and a list.
        assert_eq!(Session::read(&[0x12, 0]), Ok(None));
        assert_eq!(Session::read(&[0x22, 2, 0x08, 1]), Ok(None));
        let content = b"\x1a\x12\x0a\x07\x0a\x01a\x12\x02\x08\0\x0a\x07\x0a\x01b\x12\x02\x32\0";
        assert_eq!(Session::read(content), Ok(Some(Session::default())));
        assert_eq!(Session::read(&[0x1a, 9]), Err(Malformed));
    }
}
