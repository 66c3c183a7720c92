//! Names from files of others, inside the files that are written for readers and other programs.
//!
//! ```
//! use lowrank_spec::text::{csv_field, escaped, excerpt, printable, xml};
//!
//! assert_eq!(csv_field("=1+2,\u{1b}[2J"), "\"'=1+2,\u{fffd}[2J\"");
//! assert_eq!(xml("a<b\u{7}"), "a&lt;b\u{fffd}");
//! assert_eq!(escaped("it's\na\\b\u{1b}"), "it's\\na\\b\\u{1b}");
//! assert_eq!(excerpt(&"é".repeat(121)), "é".repeat(120) + "…");
//! assert_eq!(printable("a\u{1b}[31mb\tc\n"), "a\u{fffd}[31mb\tc\n");
//! ```

use std::borrow::Cow;

/// The text with U+FFFD for each control character but line breaks and tabs: XML and TeX refuse them, and a terminal obeys
/// them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.contains(acts) {
        true => Cow::Owned(text.replace(acts, "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

/// A text on one line: what is not plainly visible is escaped.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Quotes and backslashes are visible, and text that has already been escaped must not change again.
        if matches!(c, '\'' | '"' | '\\') {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

/// The first 120 characters of a text, [escaped], for messages.
pub fn excerpt(text: &str) -> String {
    const LIMIT: usize = 120;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => escaped(&text[..end]) + "…",
        None => escaped(text),
    }
}

/// A field of a CSV file, [printable] and quoted if RFC 4180 requires it. A spreadsheet would run a text that begins like a
/// formula: such a text gets an apostrophe in front, as OWASP recommends, and numbers stay as they are.
pub fn csv_field(text: &str) -> String {
    let text = printable(text);
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err();
    let mark = if is_formula { "'" } else { "" };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{mark}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{mark}{text}")
    }
}

/// Text for HTML, SVG and XML, between tags or in a quoted attribute: [printable] and escaped.
pub fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\r' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_are_no_formulas() {
        for (text, field) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("-1.5e-3", "-1.5e-3"),
            ("+2", "+2"),
            ("a=b", "a=b"),
            ("=1+2", "'=1+2"),
            ("-2+cmd", "'-2+cmd"),
            ("@sum", "'@sum"),
            ("=HYPERLINK(\"x\",1)", "\"'=HYPERLINK(\"\"x\"\",1)\""),
            ("a\nb", "\"a\nb\""),
            ("a\u{9b}2J\u{1b}c", "a\u{fffd}2J\u{fffd}c"),
        ] {
            assert_eq!(csv_field(text), field);
        }
    }
}
