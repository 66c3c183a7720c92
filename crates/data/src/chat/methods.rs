//! Python's methods of strings, lists and dictionaries, and Jinja's filters, where the library lacks or bounds them.

use minijinja::value::{ArgType, Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::bounds;
use super::environment::python_str;

/// Most characters to which a text is padded.
const WIDEST: usize = 1 << 16;
/// Most bytes of an indented text.
const LARGEST: usize = 32 << 20;

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// A method that minijinja does not have itself.
pub(super) fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(state, text, name, args)?,
        (None, ValueKind::Map) if name == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        (None, ValueKind::Seq) if name == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == wanted);
            Some(place.ok_or_else(|| invalid(format!("{wanted:?} is not in the list")))?.into())
        }
        _ => None,
    };
    match own {
        Some(own) => {
            bounds::charge(state, &own)?;
            Ok(own)
        }
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn of_string(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let list = |parts: Vec<String>| Value::from(parts);
    Ok(Some(match name {
        "title" if args.is_empty() => title(text).into(),
        "format" => {
            bounds::check_format(state, text)?;
            return Ok(None);
        }
        "split" | "rsplit" => {
            let (by, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let (by, most) = (given(by, &options, "sep")?, given(most, &options, "maxsplit")?);
            options.assert_all_used()?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            let by = by.filter(|by| !by.is_none());
            match by.as_ref().map(|by| by.as_str().filter(|by| !by.is_empty())) {
                Some(None) => return Err(invalid(format!("{name}: the separator is empty or not a text"))),
                Some(Some(by)) => list(split_by(text, by, most, name == "rsplit")),
                None => list(split_words(text, most, name == "rsplit")),
            }
        }
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            let is_last = name == "rpartition";
            let parts = if is_last { text.rsplit_once(by) } else { text.split_once(by) };
            Value::from(match (parts, is_last) {
                (Some((before, after)), _) => (before, by, after),
                (None, false) => (text, "", ""),
                (None, true) => ("", "", text),
            })
        }
        "removeprefix" => text.strip_prefix(from_args::<(&str,)>(args)?.0).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(from_args::<(&str,)>(args)?.0).unwrap_or(text).into(),
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let place = if name == "index" { text.find(part) } else { text.rfind(part) };
            let place = place.ok_or_else(|| invalid(format!("{name}: substring not found")))?;
            text[..place].chars().count().into()
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            padded(text, width, fill.unwrap_or(" "), name)?.into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let sign = text.chars().next().filter(|sign| matches!(sign, '+' | '-'));
            let digits = &text[sign.map_or(0, char::len_utf8)..];
            let filled = padded(digits, width.saturating_sub(sign.map_or(0, |_| 1)), "0", "rjust")?;
            sign.into_iter().chain(filled.chars()).collect::<String>().into()
        }
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (part, start, end): (&str, i64, Option<i64>) = from_args(args)?;
            let part_of = slice(text, start, end);
            let is_there =
                if name == "startswith" { part_of.starts_with(part) } else { part_of.ends_with(part) };
            is_there.into()
        }
        _ => return Ok(None),
    }))
}

/// `text[start:end]`.
fn slice(text: &str, start: i64, end: Option<i64>) -> String {
    let n = text.chars().count();
    let place = |at: i64| {
        let magnitude = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 { n.saturating_sub(magnitude) } else { magnitude.min(n) }
    };
    let (start, end) = (place(start), end.map_or(n, place));
    text.chars().skip(start).take(end.saturating_sub(start)).collect()
}

/// Python's `title`: a word begins after every non-letter.
fn title(text: &str) -> String {
    let mut is_inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        is_inside = c.is_alphabetic();
    }
    out
}

fn split_by(text: &str, by: &str, most: Option<usize>, from_end: bool) -> Vec<String> {
    let count = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<String> = if from_end {
        text.rsplitn(count, by).map(str::to_owned).collect()
    } else {
        text.splitn(count, by).map(str::to_owned).collect()
    };
    if from_end {
        parts.reverse();
    }
    parts
}

/// At runs of white space; what is left after the last split keeps those inside and at its far end.
fn split_words(text: &str, most: Option<usize>, from_end: bool) -> Vec<String> {
    let near = |text| if from_end { str::trim_end(text) } else { str::trim_start(text) };
    let (mut parts, mut rest) = (Vec::new(), near(text));
    while !rest.is_empty() {
        let place = if from_end { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let is_last = most.is_some_and(|most| parts.len() >= most);
        let Some(place) = place.filter(|_| !is_last) else {
            parts.push(rest.to_owned());
            break;
        };
        let (left, right) = rest.split_at(place);
        let (word, others) = if from_end { (right.trim_start(), left) } else { (left, right) };
        parts.push(word.to_owned());
        rest = near(others);
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn padded(text: &str, width: usize, fill: &str, side: &str) -> Result<String, Error> {
    if width > WIDEST {
        return Err(invalid(format!("{side}: a width of {width} is too large")));
    }
    if fill.chars().count() != 1 {
        return Err(invalid(format!("{side}: the fill is not one character")));
    }
    let n = text.chars().count();
    let missing = width.saturating_sub(n);
    let left = match side {
        "ljust" => 0,
        "rjust" => missing,
        // CPython's `str.center`.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(fill.repeat(left) + text + &fill.repeat(missing - left))
}

/// Adds Jinja's filters, tests and functions.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter("center", |text: &str, width: Option<usize>| {
        padded(text, width.unwrap_or(80), " ", "center")
    });
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("truncate", minijinja_contrib::filters::truncate);
    environment.add_filter("striptags", minijinja_contrib::filters::striptags);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// An argument by position or name; `none` counts as absent.
pub(super) fn given<'a, T>(
    positional: Option<T>,
    options: &'a Kwargs,
    name: &'a str,
) -> Result<Option<T>, Error>
where
    Option<T>: ArgType<'a, Output = Option<T>>,
{
    positional.map_or_else(|| options.get(name), |value| Ok(Some(value)))
}

/// The arguments of a filter, at most `most` of them by position.
fn split(values: &[Value], most: usize) -> Result<(&[Value], Kwargs), Error> {
    let (positional, options) = from_args::<(&[Value], Kwargs)>(values)?;
    if positional.len() > most {
        return Err(ErrorKind::TooManyArguments.into());
    }
    Ok((positional, options))
}

/// An argument by position or name, which may be `none` or undefined.
fn argument(
    positional: &[Value],
    options: &Kwargs,
    place: usize,
    name: &str,
) -> Result<Option<Value>, Error> {
    match positional.get(place) {
        Some(value) => Ok(Some(value.clone())),
        None => options.has(name).then(|| options.get(name)).transpose(),
    }
}

/// `default(value, default_value="", boolean=False)`.
fn default(value: Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (positional, options) = split(&arguments, 2)?;
    let other = argument(positional, &options, 0, "default_value")?;
    let boolean = argument(positional, &options, 1, "boolean")?;
    options.assert_all_used()?;
    let is_missing =
        value.is_undefined() || boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if is_missing { other.unwrap_or_else(|| "".into()) } else { value })
}

/// `int(value, default=0, base=10)`.
fn int(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (positional, options) = split(&arguments, 2)?;
    let base = match argument(positional, &options, 1, "base")? {
        Some(base) => u32::try_from(base).ok(),
        None => Some(10),
    };
    let truncated = |x: f64| x.is_finite().then_some(x as i128);
    let number = match value.as_str() {
        Some(text) => base.and_then(|base| whole(text, base)).or_else(|| decimal(text).and_then(truncated)),
        None => {
            let whole = i128::try_from(value.clone()).ok();
            whole.or_else(|| f64::try_from(value.clone()).ok().and_then(truncated))
        }
    };
    fallback(number, positional, &options, 0)
}

/// `float(value, default=0.0)`.
fn float(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (positional, options) = split(&arguments, 1)?;
    let number = match value.as_str() {
        Some(text) => decimal(text),
        None => f64::try_from(value.clone()).ok(),
    };
    fallback(number, positional, &options, 0.0)
}

/// The number, or the filter's `default` argument, or `zero` if it is not given.
fn fallback<T: Into<Value>>(
    number: Option<T>,
    positional: &[Value],
    options: &Kwargs,
    zero: T,
) -> Result<Value, Error> {
    let default = argument(positional, options, 0, "default")?;
    options.assert_all_used()?;
    Ok(number.map(Into::into).or(default).unwrap_or_else(|| zero.into()))
}

/// Python's `int(text, base)`.
fn whole(text: &str, base: u32) -> Option<i128> {
    let text = text.trim().to_ascii_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .filter(|(_, own)| [0, *own].contains(&base))
        .find_map(|(prefix, own)| Some((digits.strip_prefix(prefix)?, own)));
    let (digits, base) = match prefixed {
        Some((digits, own)) => (digits.strip_prefix('_').unwrap_or(digits), own),
        // Base 0 reads Python's literals, in which only zero may begin with 0.
        None if base == 0 && digits.starts_with('0') && !digits.trim_matches(['0', '_']).is_empty() => {
            return None;
        }
        None => (digits, if base == 0 { 10 } else { base }),
    };
    let is_group = |group: &str| !group.is_empty() && group.chars().all(|c| c.is_digit(base));
    if !(2..=36).contains(&base) || !digits.split('_').all(is_group) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).ok()
}

/// Python's `float(text)`: `_` may stand between two digits.
fn decimal(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let mut separators = text.match_indices('_').map(|(at, _)| (&text[..at], &text[at + 1..]));
    if separators.any(|(left, right)| !is_digit(left.chars().next_back()) || !is_digit(right.chars().next()))
    {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `escape(s)`: HTML by markupsafe's table.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    bounds::charge(state, value)?;
    let text = python_str(value).unwrap_or_else(|| value.to_string());
    let parts = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ("\"", "&#34;")];
    Ok(Value::from_safe_string(parts.iter().fold(text, |text, (from, to)| text.replace(from, to))))
}

/// `indent(s, width=4, first=False, blank=False)`; a text as the width is put before the lines.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = given(width, &options, "width")?;
    let (first, blank) = (given(first, &options, "first")?, given(blank, &options, "blank")?);
    options.assert_all_used()?;
    let before = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => padded("", usize::try_from(width)?, " ", "indent")?,
        },
    };
    let text = python_str(value).unwrap_or_else(|| value.to_string());
    let lines: Vec<&str> = text.split('\n').collect();
    if text.len().saturating_add(lines.len().saturating_mul(before.len())) > LARGEST {
        return Err(invalid("indent: the text becomes too large"));
    }
    let lines = lines.iter().enumerate().map(|(at, line)| {
        let is_indented = if at == 0 { first == Some(true) } else { blank == Some(true) || !line.is_empty() };
        if is_indented { format!("{before}{line}") } else { (*line).to_owned() }
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn methods_and_filters_are_python_s() {
        let mut environment = super::super::environment::new();
        environment.set_fuel(Some(100_000));
        // Each expected text is what Jinja 3.1 writes under transformers' settings.
        for (source, expected) in [
            ("{{ 'a b  c '.split(none, 1) }}", "['a', 'b  c ']"),
            ("{{ ' a b  c '.rsplit(maxsplit=1) }}", "[' a b', 'c']"),
            ("{{ 'a,b,c'.split(sep=',') }}", "['a', 'b', 'c']"),
            ("{{ 'a,b,c'.rsplit(',', 1) }}", "['a,b', 'c']"),
            ("{{ 'a,b,c'.split(',', maxsplit=1) }}", "['a', 'b,c']"),
            ("{{ 'a=b=c'.partition('=')[2] }}", "b=c"),
            ("{{ 'a=b=c'.rpartition('=')[0] }}", "a=b"),
            ("{{ 'abc'.partition('=')[0] }}", "abc"),
            ("{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}", "bcab"),
            ("{{ 'éabc'.index('b') }}{{ 'abab'.rindex('b') }}{{ [1, 2].index(2) }}", "231"),
            (
                "{{ 'ab'.center(5, '*') }}|{{ 'abc'.center(6) }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }}",
                "**ab*| abc  |a  |  a",
            ),
            ("{{ '-7'.zfill(4) }}{{ '7'.zfill(3) }}", "-007007"),
            ("{{ 'aBß'.swapcase() }}{{ 'Straße'.casefold() }}", "AbSSstrasse"),
            ("{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith('b', 0, -1) }}", "TrueTrue"),
            ("{{ x | default('a') }}{{ '' | default('b', boolean=True) }}{{ '' | d('c', true) }}", "abc"),
            (
                "{{ x | default(none) is none }}{{ none | default('a', 1) }}{{ x | d(default_value=2) }}",
                "Truea2",
            ),
            (
                "{{ 'z' | int(none) is none }}{{ 'z' | int(default=3) }}{{ 'z' | float(none) is none }}",
                "True3True",
            ),
            ("{{ 'z' | int }}{{ 'z' | int(5) }}{{ '3.9' | int }}{{ 2.7 | int }}", "0532"),
            (
                "{{ 'ff' | int(0, 16) }}|{{ ' -0XfF' | int(base=16) }}|{{ '0b1' | int(0, 16) }}|{{ 'zz' | int(7, 16) }}",
                "255|-255|177|7",
            ),
            (
                "{{ '0b11' | int(0, 0) }}|{{ '+0o17' | int(5, 8) }}|{{ '017' | int(5, 0) }}|{{ '0xff' | int }}",
                "3|15|17|0",
            ),
            (
                "{{ '3.9' | int(0, 16) }}|{{ '12' | int(0, none) }}|{{ '12' | int(0, 99) }}|{{ 15 | int(0, 16) }}",
                "3|12|12|15",
            ),
            (
                "{{ '1_0' | int }}|{{ '1__0' | int }}|{{ '0x_1' | int(0, 16) }}|{{ '+-1' | int }}|{{ '_1_0' | float }}",
                "10|0|1|0|0.0",
            ),
            ("{{ '99999999999999999999' | int }}|{{ '1e400' | int(4) }}", "99999999999999999999|4"),
            ("{{ 'x' | float }}{{ '1.5' | float }}{{ '1_0' | float }}", "0.01.510.0"),
            ("{{ x | default(y) is defined }}{{ 'z' | int(y) is defined }}", "FalseFalse"),
            ("{{ \"'a/&\\\"<>\" | e }}|{{ '&' | escape | e }}", "&#39;a/&amp;&#34;&lt;&gt;|&amp;"),
            ("{{ 'a\nb\n\nc' | indent('>>') }}", "a\n>>b\n\n>>c"),
            ("{{ 'a\nb' | indent(2, first=True) }}", "  a\n  b"),
            ("{{ 'two words, more' | wordcount }}{{ raise_exception is callable }}", "3True"),
            ("{{ {'a': 'é'} | tojson(true, 2) }}", "{\n  \"a\": \"\\u00e9\"\n}"),
            ("{{ {'a': 'é'} | tojson(false) }}", "{\"a\": \"é\"}"),
            ("{{ {'a': 1}.copy().a }}{% set j = joiner('-') %}{{ j() }}{{ j() }}", "1-"),
        ] {
            assert_eq!(environment.render_str(source, ()).unwrap(), expected, "{source}");
        }
        for source in [
            "{{ 'a'.center(100000000) }}",
            "{{ 'abc'.index('x') }}",
            "{{ 'a'.split('') }}",
            "{{ 'z' | int(1, 2, 3) }}",
            "{{ 'z' | int(1, default=2) }}",
            "{{ 'z' | float(1, 2) }}",
            "{{ x | default(1, 2, 3) }}",
            "{{ 'a' | indent(2, true, true, 1) }}",
        ] {
            assert!(environment.render_str(source, ()).is_err(), "{source}");
        }
    }
}
