//! Values formatted as in Python: `json.dumps` and `repr`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use serde_json::Value as Json;

/// Options of `json.dumps` that transformers' `tojson` accepts.
#[derive(Debug, Default)]
pub(super) struct Dumps {
    /// Escape everything beyond ASCII.
    pub(super) ensure_ascii: bool,
    /// Indentation per level; `None` for a single line.
    pub(super) indent: Option<String>,
    /// Between items, and between key and value; by default `", "` (`","` with an indent) and `": "`.
    pub(super) separators: Option<(String, String)>,
    /// Keys in the order of their code points.
    pub(super) sort_keys: bool,
}

impl Dumps {
    /// The value as `json.dumps(value, …)`.
    pub(super) fn dump(&self, value: &Json) -> String {
        let mut out = String::new();
        self.write(&mut out, value, 0);
        out
    }

    fn write(&self, out: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => out.push_str(&number_repr(number)),
            Json::String(text) => self.string(out, text),
            Json::Array(items) => {
                self.container(out, ['[', ']'], items.iter(), depth, |out, item| {
                    self.write(out, item, depth + 1)
                });
            }
            Json::Object(object) => {
                let mut entries: Vec<_> = object.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| key.as_str());
                }
                let colon = self.separators.as_ref().map_or(": ", |(_, colon)| colon);
                self.container(out, ['{', '}'], entries.into_iter(), depth, |out, (key, item)| {
                    self.string(out, key);
                    out.push_str(colon);
                    self.write(out, item, depth + 1);
                });
            }
        }
    }

    fn container<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        write: impl Fn(&mut String, T),
    ) {
        let is_empty = items.len() == 0;
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !is_empty) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        let default = if self.indent.is_some() { "," } else { ", " };
        let comma = self.separators.as_ref().map_or(default, |(comma, _)| comma);
        out.push(open);
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(comma);
            }
            line(out, depth + 1);
            write(out, item);
        }
        line(out, depth);
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number_repr(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => float_repr(value),
        _ => number.to_string(),
    }
}

/// `repr` of a float. Rust's shortest digits equal Python's; the exponent formats differ.
fn float_repr(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        None if value.is_nan() => "nan".into(),
        None => text,
        Some((digits, exponent)) => {
            let digits = digits.strip_suffix(".0").unwrap_or(digits);
            let (sign, size) = exponent.strip_prefix('-').map_or(('+', exponent), |size| ('-', size));
            format!("{digits}e{sign}{size:0>2}")
        }
    }
}

/// `repr` of a value; `None` if it holds one that cannot be read.
pub(super) fn repr(value: &Value) -> Option<String> {
    Some(match value.kind() {
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => float_repr(f64::try_from(value.clone()).ok()?),
        ValueKind::String => string_repr(value.as_str()?),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().ok()?.map(|item| repr(&item)).collect::<Option<Vec<_>>>()?;
            match items.as_slice() {
                [item] if is_tuple(value) => format!("({item},)"),
                items if is_tuple(value) => format!("({})", items.join(", ")),
                items => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let entry = |key: Value| Some(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key).ok()?)?));
            let entries = value.try_iter().ok()?.map(entry).collect::<Option<Vec<_>>>()?;
            format!("{{{}}}", entries.join(", "))
        }
        ValueKind::Invalid => return None,
        _ => value.to_string(),
    })
}

/// Whether Python has a tuple here; the pairs of `groupby` are a separate type of the library.
pub(super) fn is_tuple(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("Tuple"))
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

/// Whether a character is printable to Python: no control or format character, surrogate, private use, unassigned code or
/// separator other than the space. Rust's escapes follow the same categories, and more for a first character.
fn is_printable(c: char) -> bool {
    matches!(c, '\'' | '"') || ['a', c].iter().collect::<String>().escape_debug().skip(1).eq([c])
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    /// Expected values are those of Python 3.11's `json.dumps` and `repr`.
    #[test]
    fn json_is_python_s() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-5, true, null], "a": "é\u{7f}\n\"", "c": {}, "d": []});
        let dump = |dumps: Dumps| dumps.dump(&value);
        assert_eq!(
            dump(Dumps::default()),
            "{\"b\": [1, 2.0, 1e+16, 1e-05, true, null], \"a\": \"é\u{7f}\\n\\\"\", \"c\": {}, \"d\": []}"
        );
        assert_eq!(
            dump(Dumps { indent: Some("  ".into()), ensure_ascii: true, ..Dumps::default() }),
            "{\n  \"b\": [\n    1,\n    2.0,\n    1e+16,\n    1e-05,\n    true,\n    null\n  ],\n  \"a\": \
             \"\\u00e9\\u007f\\n\\\"\",\n  \"c\": {},\n  \"d\": []\n}"
        );
        let tight = Dumps { separators: Some((",".into(), ":".into())), sort_keys: true, ..Dumps::default() };
        assert!(dump(tight).starts_with("{\"a\":\"é"));
        let astral = Dumps { ensure_ascii: true, ..Dumps::default() };
        assert_eq!(astral.dump(&json!("\u{1F600}")), "\"\\ud83d\\ude00\"");
    }

    #[test]
    fn repr_is_python_s() {
        let value = Value::from(Serde(json!({"it's": ["a\"b'c", "x\ty", -1.5e-7, false, null, 3]})));
        let expected = r#"{"it's": ['a"b\'c', 'x\ty', -1.5e-07, False, None, 3]}"#;
        assert_eq!(repr(&value).as_deref(), Some(expected));
        let unprintable =
            "a\u{200b}日\u{3000}\u{2028}\u{feff}\u{e000}\u{ffff}\u{378}\u{a0}\u{ad}\u{7f}\u{e0001}";
        assert_eq!(
            string_repr(unprintable),
            r"'a\u200b日\u3000\u2028\ufeff\ue000\uffff\u0378\xa0\xad\x7f\U000e0001'"
        );
        assert_eq!(string_repr("\u{1F600}\u{301} é"), "'\u{1F600}\u{301} é'");
        assert_eq!(float_repr(1.5e300), "1.5e+300");
        assert_eq!(float_repr(100.0), "100.0");
    }
}
