//! Streaming of a continuation to the terminal.

use anyhow::Result;

use crate::terminal::print_text;

/// The text written so far.
#[derive(Default)]
pub(crate) struct Stream {
    written: usize,
}

impl Stream {
    /// Writes a text at once.
    pub(crate) fn show(&self, text: &str) -> Result<()> {
        print_text(text)
    }

    /// Writes the new text, except an incomplete character and a possible beginning of a stop text.
    pub(crate) fn advance(&mut self, text: &str, stops: &[String]) -> Result<()> {
        let text = text.trim_end_matches('\u{FFFD}');
        let held = stops.iter().filter_map(|stop| text.find(stop)).min().unwrap_or_else(|| {
            let open = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
            text.char_indices().map(|(at, _)| at).find(open).unwrap_or(text.len())
        });
        if let Some(new) = text.get(self.written..held).filter(|new| !new.is_empty()) {
            self.show(new)?;
            self.written = held;
        }
        Ok(())
    }
}

/// The text up to the first stop.
pub(crate) fn cut(mut text: String, stops: &[String]) -> String {
    if let Some(end) = stops.iter().filter_map(|stop| text.find(stop)).min() {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stop_cuts() {
        assert_eq!(cut("one two three".into(), &["three".into(), "two".into()]), "one ");
        assert_eq!(cut("one".into(), &["two".into()]), "one");
    }
}
