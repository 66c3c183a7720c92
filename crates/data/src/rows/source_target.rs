//! Rows as source and target token sequences, for encoder-decoders.

use std::borrow::Cow;

use super::encode::{RowEncoder, alpaca_prompt, each, unfit};
use super::{Row, Rows};
use crate::error::{DataError, Result};
use crate::tokenize::TextTokenizer;

/// A text and the text to be written from it, each with the special tokens that the tokenizer adds to a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceTarget {
    /// Token ids of the source, shape `[tokens]`.
    pub source: Vec<u32>,
    /// Token ids of the target, shape `[tokens]`; the last ends the text.
    pub target: Vec<u32>,
}

impl SourceTarget {
    /// Number of tokens of both texts.
    pub fn n_tokens(&self) -> usize {
        self.source.len() + self.target.len()
    }

    /// Both texts, with `⟦` and `⟧` around the target.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn show(&self, tokenizer: &TextTokenizer) -> Result<String> {
        let text = |ids: &[u32]| tokenizer.decode(ids, false);
        Ok(format!("{} ⟦{}⟧", text(&self.source)?, text(&self.target)?))
    }
}

/// All rows of a file as sources and targets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceTargets {
    /// The rows in order.
    pub rows: Vec<SourceTarget>,
    /// Number of rows with a truncated source or target.
    pub n_cut: usize,
}

impl RowEncoder<'_> {
    /// Encodes a file's rows on all cores: prompts as sources, completions as targets, each truncated at the maximum
    /// length with its special tokens kept, as tokenizers do; in a target the tokenizer's `tgt_lang` replaces the language of
    /// sources. An instruction is a prompt in Alpaca's format.
    ///
    /// # Errors
    /// Plain texts, conversations and preferences; a prompt without tokens; a tokenizer without an end-of-text token.
    /// Each error names file and row.
    pub fn encode_targets(&self, rows: &Rows) -> Result<SourceTargets> {
        let parts = each(rows, |row| self.targets(row))?;
        let n_cut = parts.iter().filter(|(_, is_cut)| *is_cut).count();
        Ok(SourceTargets { rows: parts.into_iter().map(|(row, _)| row).collect(), n_cut })
    }

    /// The row, and whether one of its texts was truncated.
    fn targets(&self, row: &Row) -> Result<(SourceTarget, bool)> {
        let (prompt, completion) = match row {
            Row::Completion { prompt, completion } => (Cow::Borrowed(prompt.as_str()), completion),
            Row::Instruction { instruction, input, output } => {
                (Cow::Owned(alpaca_prompt(instruction, input)), output)
            }
            Row::Text(_) => return Err(refused("plain text")),
            Row::Chat(_) => return Err(refused("a conversation")),
            Row::PreferenceText { .. } | Row::PreferenceChat { .. } => return Err(refused("a preference")),
        };
        let (before, after) = &self.frame;
        let source = self.framed(&prompt, before, after)?;
        if source.0.is_empty() {
            return Err(unfit("the prompt has no tokens; an encoder needs a text to read"));
        }
        let eos = if after.is_empty() { vec![self.eos()?] } else { after.clone() };
        let target = self.framed(completion, &self.in_target(before), &self.in_target(&eos))?;
        Ok((SourceTarget { source: source.0, target: target.0 }, source.1 || target.1))
    }

    /// The tokens of a text between `before` and `after`, truncated to the maximum length in total; and
    /// whether any were cut.
    fn framed(&self, text: &str, before: &[u32], after: &[u32]) -> Result<(Vec<u32>, bool)> {
        let room = self.max_length - before.len() - after.len();
        let (ids, is_cut) = self.tokenizer.encode_within(text, room)?;
        Ok(([before, &ids, after].concat(), is_cut))
    }

    /// Special tokens of a source as those of a target, which may have another language.
    fn in_target(&self, ids: &[u32]) -> Vec<u32> {
        let languages = self.tokenizer.languages();
        let target = |id| languages.filter(|own| own.source == id).and_then(|own| own.target).unwrap_or(id);
        ids.iter().map(|&id| target(id)).collect()
    }
}

fn refused(what: &str) -> DataError {
    unfit(&format!("the row is {what}; an encoder-decoder learns from prompt and completion as strings"))
}
