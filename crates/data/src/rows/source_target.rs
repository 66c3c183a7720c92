//! Rows as the tokens of a text and of the text to be written from it, for encoder-decoders.

use rayon::prelude::*;

use super::encode::{RowEncoder, alpaca_prompt, located, unfit};
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
    /// Number of rows of which a text was truncated.
    pub n_cut: usize,
}

impl RowEncoder<'_> {
    /// Encodes a file's rows on all cores: prompts as sources, completions as targets, each truncated at the maximum
    /// length with its special tokens kept, as tokenizers do. An instruction is a prompt in Alpaca's own words.
    ///
    /// # Errors
    /// Plain texts, conversations and preferences; a prompt without tokens; a tokenizer without an end-of-text token.
    /// Each error names file and row.
    pub fn encode_targets(&self, rows: &Rows) -> Result<SourceTargets> {
        let row = |(index, row): (usize, &Row)| self.targets(row).map_err(|e| located(rows, index, e));
        let parts: Vec<(SourceTarget, bool)> =
            rows.iter().enumerate().collect::<Vec<_>>().into_par_iter().map(row).collect::<Result<_>>()?;
        let n_cut = parts.iter().filter(|(_, is_cut)| *is_cut).count();
        Ok(SourceTargets { rows: parts.into_iter().map(|(row, _)| row).collect(), n_cut })
    }

    /// The row, and whether one of its texts was truncated.
    fn targets(&self, row: &Row) -> Result<(SourceTarget, bool)> {
        let (prompt, completion) = match row {
            Row::Completion { prompt, completion } => (prompt.clone(), completion),
            Row::Instruction { instruction, input, output } => (alpaca_prompt(instruction, input), output),
            Row::Text(_) => return Err(refused("plain text")),
            Row::Chat(_) => return Err(refused("a conversation")),
            Row::PreferenceText { .. } | Row::PreferenceChat { .. } => return Err(refused("a preference")),
        };
        let (before, after) = &self.frame;
        let source = self.framed(&prompt, after)?;
        if source.0.is_empty() {
            return Err(unfit("the prompt has no tokens; an encoder needs a text to read"));
        }
        let eos = if after.is_empty() { vec![self.eos()?] } else { after.clone() };
        if before.len() + eos.len() >= self.max_length {
            return Err(unfit("the maximum length leaves no token of a target; raise it"));
        }
        let target = self.framed(completion, &eos)?;
        Ok((SourceTarget { source: source.0, target: target.0 }, source.1 || target.1))
    }

    /// A text of at most the maximum length, the tokens before and `after` it included, and whether it was truncated.
    fn framed(&self, text: &str, after: &[u32]) -> Result<(Vec<u32>, bool)> {
        let (mut ids, _) = self.tokenizer.encode_spans(text)?;
        let room = self.max_length.saturating_sub(self.frame.0.len() + after.len());
        let is_cut = ids.len() > room;
        ids.truncate(room);
        Ok(([self.frame.0.as_slice(), &ids, after].concat(), is_cut))
    }
}

fn refused(what: &str) -> DataError {
    unfit(&format!("the row is {what}; an encoder-decoder learns from prompt and completion as strings"))
}
