//! The Jinja environment of transformers' `apply_chat_template`, on minijinja.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};

use super::python::{Dumps, repr};
use super::{bounds, methods};

/// Marks the beginning of a `{% generation %}` block in the output. A noncharacter, which real text never
/// contains.
pub(super) const BEGIN: char = '\u{FDD0}';
/// Marks the end of a `{% generation %}` block in the output.
pub(super) const END: char = '\u{FDD1}';
/// Prefix of the message of `raise_exception`.
pub(super) const RAISED: &str = "raised: ";

/// The variable that holds the time for `strftime_now`.
pub(super) const NOW: &str = "__now";

/// The function that renders a `{% generation %}` block.
const GENERATION: &str = "__generation";

/// Base number of template steps, before the length of the conversation. A step is an instruction or 64
/// bytes, so that all strings created by one rendering stay below 32 MiB.
const BASE_FUEL: u64 = 1 << 19;

/// Fuel for a conversation of `size` bytes.
pub(super) fn fuel(size: usize) -> u64 {
    BASE_FUEL + 8 * size as u64
}

/// The environment without templates.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default(),
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(format);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function(GENERATION, generation);
    bounds::add_functions(&mut environment);
    methods::add_to(&mut environment);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", string);
    environment.add_filter("trim", trim);
    // In Python a string is a sequence and a dictionary is iterable.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable
        )
    });
    environment
}

/// A JSON object whose keys keep their order, like Python's dictionaries.
#[derive(Debug)]
struct Dictionary(Vec<(Value, Value)>);

impl Object for Dictionary {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(own, _)| own == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| key.clone()).collect())
    }
}

/// A JSON value for a template.
pub(super) fn value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Array(items) => Value::from(items.into_iter().map(value).collect::<Vec<_>>()),
        serde_json::Value::Object(object) => Value::from_object(dictionary(object)),
        other => Value::from(Serde(other)),
    }
}

fn dictionary(object: serde_json::Map<String, serde_json::Value>) -> Dictionary {
    Dictionary(object.into_iter().map(|(key, item)| (Value::from(key), value(item))).collect())
}

/// Python's `str` of a number, list, tuple or dictionary, which minijinja formats differently; `None` for all other
/// values.
pub(super) fn python_str(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::Number if value.is_integer() => None,
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => repr(value),
        _ => None,
    }
}

/// Formats printed values as Python does.
fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    bounds::charge(state, value)?;
    match python_str(value) {
        Some(text) => out.write_str(&text).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string())),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// `string`: Python's `str`.
fn string(state: &State, value: &Value) -> Result<String, Error> {
    bounds::charge(state, value)?;
    Ok(python_str(value).unwrap_or_else(|| value.to_string()))
}

/// `trim`: Python's `str(value).strip(chars)`.
fn trim(state: &State, value: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = string(state, value)?;
    Ok(match chars {
        None => text.trim().to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    })
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// Python's `datetime.now().strftime(format)`, in local time.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let error = |e: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    let now = match state.lookup(NOW).as_ref().and_then(Value::as_str) {
        Some(now) => now.parse::<jiff::civil::DateTime>().map_err(error)?,
        None => jiff::ZonedDateTime::now().datetime(),
    };
    jiff::fmt::strtime::format(format, now).map_err(error)
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    bounds::charge(state, value)?;
    let invalid = |message: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"));
    if value.is_undefined() {
        return Err(invalid("the value is undefined".into()));
    }
    let indent = methods::given(indent, &options, "indent")?;
    let ensure_ascii = methods::given(ensure_ascii, &options, "ensure_ascii")?;
    let indent = match indent {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                let width = usize::try_from(value).ok().filter(|width| *width <= 64);
                Some(" ".repeat(width.ok_or_else(|| invalid("indent is not a number up to 64".into()))?))
            }
        },
    };
    let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => None,
        Some([comma, colon]) => Some((comma.clone(), colon.clone())),
        Some(_) => return Err(invalid("separators are not two strings".into())),
    };
    let dumps = Dumps {
        ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
        indent,
        separators,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| invalid(e.to_string()))?;
    Ok(Value::from(dumps.dump(&value)))
}

/// The body of a `{% generation %}` block between its markers.
fn generation(state: &mut State, options: Kwargs) -> Result<Value, Error> {
    let body = options.get::<Value>("caller")?.call(state, &[])?;
    Ok(Value::from(format!("{BEGIN}{body}{END}")))
}

/// `{% generation %}` as a call block, as in transformers; the flag is set if the template has one.
pub(super) fn without_generation_tags(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(begin) = rest.find("{%") {
        let inner = &rest[begin + 2..];
        let Some(end) = inner.find("%}") else { break };
        let is_sign = |c: char| c == '-' || c == '+';
        let (name, replacement) = (
            inner[..end].trim_matches(is_sign).trim(),
            match () {
                () if is_tag(&inner[..end], "generation") => format!("call {GENERATION}()"),
                () if is_tag(&inner[..end], "endgeneration") => "endcall".to_owned(),
                () => String::new(),
            },
        );
        out.push_str(&rest[..begin + 2]);
        if replacement.is_empty() {
            out.push_str(&inner[..end]);
        } else {
            found = true;
            out.push_str(&inner[..end].replace(name, &format!(" {replacement} ")));
        }
        out.push_str("%}");
        rest = &inner[end + 2..];
    }
    out.push_str(rest);
    (out, found)
}

fn is_tag(inner: &str, name: &str) -> bool {
    inner.trim_matches(|c: char| c == '-' || c == '+').trim() == name
}
