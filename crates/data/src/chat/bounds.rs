//! Limits on what a chat template can compute, besides its fuel.
//!
//! Fuel bounds steps and strings. It does not bound how deep lists nest, which costs stack when they are compared,
//! printed or dropped, nor how often a shared list is visited: sixty times `x = [x, x]` is a value of 2⁶⁰ items that
//! occupies sixty lists. Values grow over steps only through variables, so every assignment passes through a function
//! that measures its value. Chains of operators cost stack when they are compiled; they are counted in the source.

use std::fmt::Write;

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::python::is_tuple;

/// Largest template; published ones have some 20 kB.
const MAX_SOURCE: usize = 1 << 20;
/// Most operators within one tag; published templates have fewer than a hundred.
const MAX_OPERATORS: usize = 2000;
/// Deepest nesting of lists and dictionaries.
const MAX_DEPTH: usize = 200;
/// Largest width or precision in `str.format`.
const MAX_WIDTH: u64 = 10_000;
/// Bytes that a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 64;

/// Measures the value of a variable.
const VALUE: &str = "__bounded";
/// Measures the value of a namespace's attribute.
const ATTRIBUTE: &str = "__bounded_attribute";

/// Adds the functions that [`guarded`] calls.
pub(super) fn add_functions(environment: &mut Environment<'_>) {
    environment.add_function(VALUE, |state: &State, value: Value| bounded(state, value, true));
    // A namespace in another one could contain itself.
    environment.add_function(ATTRIBUTE, |state: &State, value: Value, _namespaces: Rest<Value>| {
        bounded(state, value, false)
    });
}

/// The value, lazy sequences as lists, if it is neither too large nor nested too deeply.
fn bounded(state: &State, value: Value, with_namespaces: bool) -> Result<Value, Error> {
    let is_lazy = match value.kind() {
        ValueKind::Iterable => true,
        ValueKind::Seq => {
            value.as_object().is_some_and(|object| !object.type_name().contains("Vec<") && !is_tuple(&value))
        }
        _ => false,
    };
    // Lazy sequences refer to one another in chains that do not show in their items.
    let value = match is_lazy {
        true => {
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
            let mut items = Vec::new();
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                items.push(item);
            }
            Value::from(items)
        }
        false => value,
    };
    measure(state, &value, MAX_DEPTH, with_namespaces)?;
    Ok(value)
}

/// Charges the fuel for visiting all of a value.
///
/// # Errors
/// Out of fuel, or nested too deeply.
pub(super) fn charge(state: &State, value: &Value) -> Result<(), Error> {
    measure(state, value, MAX_DEPTH, true)
}

fn measure(state: &State, value: &Value, depth: usize, with_namespaces: bool) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return state.consume_fuel((text.len() / BYTES_PER_FUEL) as u64);
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    let refuse = |reason: String| Err(Error::new(ErrorKind::InvalidOperation, reason));
    let Some(below) = depth.checked_sub(1) else {
        return refuse(format!("a value is nested more than {MAX_DEPTH} levels deep"));
    };
    if !with_namespaces && value.as_object().is_some_and(|object| object.type_name().contains("Namespace")) {
        return refuse("a namespace in an attribute of a namespace is not supported".into());
    }
    let length = value.len();
    state.consume_fuel(1 + length.unwrap_or(0) as u64)?;
    let is_map = value.kind() == ValueKind::Map;
    for item in value.try_iter()? {
        if length.is_none() {
            state.consume_fuel(1)?;
        }
        measure(state, &item, below, with_namespaces)?;
        if is_map {
            measure(state, &value.get_item(&item)?, below, with_namespaces)?;
        }
    }
    Ok(())
}

/// Charges the fuel for the padding that a format string of Python's `str.format` asks for.
///
/// # Errors
/// Out of fuel, or a width of more than 10,000.
pub(super) fn check_format(state: &State, format: &str) -> Result<(), Error> {
    for digits in format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        let width = digits.parse::<u64>().unwrap_or(u64::MAX);
        if width > MAX_WIDTH && format.contains('{') {
            let reason = format!("format: {digits} in the format string exceeds {MAX_WIDTH}");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        state.consume_fuel(width / BYTES_PER_FUEL as u64)?;
    }
    Ok(())
}

/// The source with every assigned value, macro parameter and variable of a recursive loop measured.
///
/// # Errors
/// What is too large, with its line.
pub(super) fn guarded(source: &str) -> Result<String, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("the template has {} bytes; the limit is {MAX_SOURCE}", source.len()));
    }
    let (mut out, mut at) = (String::with_capacity(source.len() + source.len() / 8), 0);
    while let Some(begin) = source[at..].find("{").map(|offset| at + offset) {
        let (open, close) = match source.as_bytes().get(begin + 1) {
            Some(b'#') => {
                let end = source[begin..].find("#}").map_or(source.len(), |end| begin + end + 2);
                out.push_str(&source[at..end]);
                at = end;
                continue;
            }
            Some(b'{') => (begin + 2, "}}"),
            Some(b'%') => (begin + 2, "%}"),
            _ => {
                out.push_str(&source[at..=begin]);
                at = begin + 1;
                continue;
            }
        };
        // A tag without an end is the compiler's to report.
        let Some(tag) = Tag::scan(&source[open..], close) else { break };
        if tag.operators > MAX_OPERATORS {
            let line = 1 + source[..begin].matches('\n').count();
            return Err(format!(
                "a tag with {} operators (line {line} of the template); the limit is {MAX_OPERATORS}",
                tag.operators
            ));
        }
        out.push_str(&source[at..open]);
        at = open + tag.inner.len() + close.len();
        match close {
            "%}" => tag.write(&mut out),
            _ => out.push_str(tag.inner),
        }
        out.push_str(close);
        if close == "%}" {
            let words = tag.inner.trim_matches(['-', '+']).trim();
            if words == "raw" {
                let end = end_of_raw(&source[at..]);
                out.push_str(&source[at..at + end]);
                at += end;
            }
            tag.write_guards(&mut out);
        }
    }
    out.push_str(&source[at..]);
    Ok(out)
}

/// Bytes up to the tag that ends a raw block.
fn end_of_raw(text: &str) -> usize {
    let is_end = |(begin, _): &(usize, &str)| {
        let inner = text[begin + 2..].trim_start_matches(['-', '+']).trim_start();
        inner.starts_with("endraw")
    };
    text.match_indices("{%").find(is_end).map_or(text.len(), |(begin, _)| begin)
}

/// A tag of a template.
struct Tag<'a> {
    /// What is between its delimiters.
    inner: &'a str,
    operators: usize,
    /// Position of the first `=` outside brackets that is an assignment.
    assignment: Option<usize>,
}

impl<'a> Tag<'a> {
    /// The tag at the beginning of a text, which begins behind its opening delimiter.
    fn scan(text: &'a str, close: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (mut operators, mut assignment, mut depth, mut at) = (0, None, 0usize, 0);
        while at < bytes.len() {
            if depth == 0 && bytes[at..].starts_with(close.as_bytes()) {
                return Some(Self { inner: &text[..at], operators, assignment });
            }
            match bytes[at] {
                quote @ (b'"' | b'\'') => {
                    at += 1;
                    while *bytes.get(at)? != quote {
                        at += if bytes[at] == b'\\' { 2 } else { 1 };
                    }
                }
                b'(' | b'{' => depth += 1,
                b'[' => (depth, operators) = (depth + 1, operators + 1),
                b')' | b'}' | b']' => depth = depth.saturating_sub(1),
                b'=' | b'<' | b'>' | b'!' => {
                    let is_double = bytes.get(at + 1) == Some(&b'=');
                    if bytes[at] == b'=' && !is_double && depth == 0 {
                        assignment = assignment.or(Some(at));
                    }
                    operators += 1;
                    at += usize::from(is_double);
                }
                b'+' | b'-' | b'*' | b'/' | b'%' | b'~' | b'.' | b'|' => operators += 1,
                byte if is_name(byte) => {
                    let length = bytes[at..].iter().take_while(|byte| is_name(**byte)).count();
                    let word = &bytes[at..at + length];
                    let words: [&[u8]; 6] = [b"not", b"and", b"or", b"if", b"in", b"is"];
                    operators += usize::from(words.contains(&word));
                    at += length - 1;
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// The name of the statement, and what follows it.
    fn statement(&self) -> (&'a str, &'a str) {
        let inner = self.inner.trim_start_matches(['-', '+']).trim_start();
        let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
        let length = inner.bytes().take_while(|byte| is_name(*byte)).count();
        inner.split_at(length)
    }

    /// Writes what is between the delimiters.
    fn write(&self, out: &mut String) {
        let ("set", Some(equals)) = (self.statement().0, self.assignment) else {
            out.push_str(self.inner);
            return;
        };
        let (target, value) = (&self.inner[..equals], &self.inner[equals + 1..]);
        let (value, sign) = match value.strip_suffix(['-', '+']) {
            Some(shorter) => (shorter, &value[shorter.len()..]),
            None => (value, ""),
        };
        let function = if target.contains('.') { ATTRIBUTE } else { VALUE };
        let _ = write!(out, "{target}= {function}(({value})");
        // Macros and call blocks capture the variables that they read, which an assignment to an attribute does not do.
        let targets =
            target.trim_start_matches(['-', '+']).trim_start().strip_prefix("set").unwrap_or_default();
        for (namespace, _) in top_level(targets).iter().filter_map(|name| name.split_once('.')) {
            let _ = write!(out, ", {}", namespace.trim_matches(['(', ' ', '\n', '\t', '\r']));
        }
        let _ = write!(out, ") {sign}");
    }

    /// Writes tags that measure the variables that the tag brings into scope.
    fn write_guards(&self, out: &mut String) {
        let (name, rest) = self.statement();
        let names: &str = match name {
            "macro" => rest.split_once('(').map_or("", |(_, names)| names.trim_end().trim_end_matches(')')),
            "for" if rest.trim_end().ends_with("recursive") => {
                rest.split_once(" in ").map_or("", |(names, _)| names)
            }
            _ => return,
        };
        let sign = if self.inner.ends_with('-') { "-" } else { "" };
        for name in top_level(names) {
            let name =
                name.split('=').next().unwrap_or_default().trim_matches(['(', ')', ' ', '\n', '\t', '\r']);
            if !name.is_empty() && name.bytes().all(is_name) {
                let _ = write!(out, "{{% set {name} = {VALUE}(({name})) {sign}%}}");
            }
        }
    }
}

/// The parts of a list between commas outside brackets and strings.
fn top_level(list: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut quote) = (Vec::new(), 0, 0usize, None);
    for (at, c) in list.char_indices() {
        match (quote, c) {
            (Some(open), c) => quote = (c != open).then_some(open),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{' | '(') => depth += 1,
            (None, ']' | '}' | ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[begin..]);
    parts
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_and_parameters_are_measured_and_nothing_else_changes() {
        for (source, expected) in [
            ("{%- set x = 1 -%}\n", "{%- set x = __bounded(( 1 )) -%}\n"),
            ("{% set ns.x=a ~ '%}' %}", "{% set ns.x= __bounded_attribute((a ~ '%}' ), ns) %}"),
            ("{% set a, b = b, a == b %}", "{% set a, b = __bounded(( b, a == b )) %}"),
            ("{% set x %}a = b{% endset %}", "{% set x %}a = b{% endset %}"),
            (
                "{%- macro f(a, b=[1, ')']) -%} x",
                "{%- macro f(a, b=[1, ')']) -%}{% set a = __bounded((a)) -%}{% set b = __bounded((b)) -%} x",
            ),
            ("{{ {'a': {'b': '}}'}} }}{% if a == 1 %}", "{{ {'a': {'b': '}}'}} }}{% if a == 1 %}"),
            ("{# {% set x = 1 %} #}{ %", "{# {% set x = 1 %} #}{ %"),
            ("{% raw %}{% set x = 1 %}{% endraw %}", "{% raw %}{% set x = 1 %}{% endraw %}"),
            (
                "{% for a, b in x recursive %}{% for c in y %}",
                "{% for a, b in x recursive %}{% set a = __bounded((a)) %}{% set b = __bounded((b)) %}{% for c in y %}",
            ),
            ("{% set x = 'é", "{% set x = 'é"),
            ("{{ 'a\\", "{{ 'a\\"),
        ] {
            assert_eq!(guarded(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn long_chains_are_refused_with_their_line() {
        let source = format!("a\n{{{{ 1{} }}}}", "+1".repeat(MAX_OPERATORS + 1));
        let error = guarded(&source).unwrap_err();
        assert!(error.contains("2001 operators (line 2 of the template)"), "{error}");
        assert!(guarded(&" ".repeat(MAX_SOURCE + 1)).is_err());
    }
}
