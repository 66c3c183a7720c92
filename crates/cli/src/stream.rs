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

    /// Writes the new text, except an incomplete character, a possible beginning of a stop text and the last `unsettled`
    /// characters.
    pub(crate) fn advance(&mut self, text: &str, stops: &[String], unsettled: usize) -> Result<()> {
        match self.new_text(text, stops, unsettled) {
            Some(new) => self.show(new),
            None => Ok(()),
        }
    }

    fn new_text<'t>(&mut self, text: &'t str, stops: &[String], unsettled: usize) -> Option<&'t str> {
        let text = text.trim_end_matches('\u{FFFD}');
        let places = || text.char_indices().map(|(at, _)| at);
        let held = stops.iter().filter_map(|stop| text.find(stop)).min().unwrap_or_else(|| {
            let open = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
            places().find(open).unwrap_or(text.len())
        });
        let settled = places().chain([text.len()]).nth_back(unsettled).unwrap_or(0);
        let end = held.min(settled);
        let new = text.get(self.written..end).filter(|new| !new.is_empty())?;
        self.written = end;
        Some(new)
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
    use lowrank_data::tokenize::TextTokenizer;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_stop_cuts() {
        assert_eq!(cut("one two three".into(), &["three".into(), "two".into()]), "one ");
        assert_eq!(cut("one".into(), &["two".into()]), "one");
    }

    /// `clean_up_tokenization_spaces`: every sequence of five tokens, streamed.
    #[test]
    fn cleaning_never_changes_written_text() {
        const TOKENS: [&str; 8] = ["a", " ", "'", ".", " n", "'t", "t", "s"];
        let vocab: serde_json::Map<_, _> =
            (0..).zip(TOKENS).map(|(id, token): (u32, _)| (token.to_owned(), id.into())).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let config = json!({"clean_up_tokenization_spaces": true}).to_string();
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = TextTokenizer::from_folder(folder.path(), None).unwrap();
        let n = TOKENS.len() as u32;
        for number in 0..n.pow(5) {
            let ids: Vec<u32> = (0..5).map(|place| number / n.pow(place) % n).collect();
            let (mut stream, mut written) = (Stream::default(), String::new());
            for end in 1..=ids.len() {
                let text = tokenizer.decode(&ids[..end], true).unwrap();
                written.extend(stream.new_text(&text, &[], tokenizer.unsettled()));
            }
            let whole = tokenizer.decode(&ids, true).unwrap();
            written.extend(stream.new_text(&whole, &[], 0));
            assert_eq!(written, whole, "{ids:?}");
        }
    }
}
