//! Plots as SVG, to stand in a page that gives them their colours.
//!
//! A plot names its colours by the classes `s0` … `s7` and takes what it is drawn on from `currentColor`, so that
//! one picture serves a light and a dark page. Series differ by marker and dash as well as by colour.

mod axis;
mod plot;

pub(crate) use plot::{COLOURS, Plot, Point, Series, swatch};

/// Text as it may stand in HTML and SVG.
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
