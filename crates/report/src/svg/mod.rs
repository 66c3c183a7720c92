//! Plots as SVG, for a page that defines their colours.
//!
//! A plot names its colours by the classes `s0` … `s7` and its foreground by `currentColor`, so that
//! one image serves a light and a dark page. Series differ by marker and dash as well as by colour.

mod axis;
mod plot;

pub(crate) use plot::{COLOURS, Plot, Point, Series, swatch};

/// Text escaped for HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
