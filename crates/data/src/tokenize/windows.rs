//! A question with each of the windows over its context.

use std::ops::Range;

use tokenizers::{Encoding, TruncationDirection};

use crate::error::{DataError, Result};
use crate::questions::WindowOptions;
use crate::tokenize::long::check_length;
use crate::tokenize::{Encoded, TextTokenizer, added_tokens};

/// A question with a part of its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens of both, with the special ones.
    pub encoded: Encoded,
    /// The tokens of the context.
    pub context: Range<usize>,
    /// The characters of the context that each of these tokens covers, without spaces around it.
    pub tokens: Vec<Range<usize>>,
    /// The same of the words in the window that the tokens belong to.
    pub words: Vec<Range<usize>>,
    /// The places of the tokenizer's first special token, which stands for no answer.
    pub none: Vec<usize>,
}

impl Window {
    /// The first and last token of a range of characters of the context, `None` if the window does not contain all of it.
    pub fn locate(&self, characters: Range<usize>) -> Option<[usize; 2]> {
        let (first, last) = (self.tokens.first()?, self.tokens.last()?);
        if first.start > characters.start || last.end < characters.end {
            return None;
        }
        let start = self.tokens.iter().rposition(|token| token.start <= characters.start)?;
        let end = self.tokens.iter().position(|token| token.end >= characters.end)?;
        Some([start, end.max(start)].map(|token| self.context.start + token))
    }
}

impl TextTokenizer {
    /// Encodes a question and its context with the model's special tokens, the context in windows of at most
    /// `options.max_length` tokens: transformers' `truncation="only_second"` with `stride`.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] if the question leaves no room for the context, no token of a window would be new, or the
    /// context has no token; as [`TextTokenizer::encode`], for texts of more than 8 MiB too.
    pub fn encode_windows(
        &self,
        question: &str,
        context: &str,
        options: WindowOptions,
    ) -> Result<Vec<Window>> {
        check_length(question.len() + context.len())?;
        let question = self.inner.encode_char_offsets(question, false).map_err(DataError::encoding)?;
        let mut text = self.inner.encode_char_offsets(context, false).map_err(DataError::encoding)?;
        if text.is_empty() {
            return Err(DataError::OutOfRange {
                what: "the number of tokens of the context",
                got: "0".to_owned(),
                expected: "give a text that the tokenizer knows".to_owned(),
            });
        }
        let taken = question.len() + added_tokens(&self.inner, true);
        let room = options.max_length.saturating_sub(taken);
        if room == 0 {
            return Err(DataError::OutOfRange {
                what: "the number of tokens of the question",
                got: question.len().to_string(),
                expected: format!(
                    "with the special tokens it leaves no room for the context in {} tokens (--max-length); shorten it",
                    options.max_length
                ),
            });
        }
        // A tokenizer that does not split into words gives all tokens the same one.
        let is_split = text.get_word_ids().iter().flatten().any(|word| *word > 0)
            || !context.trim().contains(char::is_whitespace);
        let mut parts = Vec::new();
        if text.len() > room {
            text.truncate(room, options.stride_within(room)?, TruncationDirection::Right);
            parts = text.take_overflowing();
        }
        let characters: Vec<char> = context.chars().collect();
        std::iter::once(text)
            .chain(parts)
            .map(|part| self.window(question.clone(), part, &characters, is_split))
            .collect()
    }

    fn window(
        &self,
        question: Encoding,
        mut part: Encoding,
        characters: &[char],
        is_split: bool,
    ) -> Result<Window> {
        part.set_overflowing(Vec::new());
        part.set_type_ids(vec![1; part.len()]);
        // A second post-processing would trim the space off the offsets once more.
        let (offsets, of) = (part.get_offsets().to_vec(), part.get_word_ids().to_vec());
        let whole = self.inner.post_process(question, Some(part), true).map_err(DataError::encoding)?;
        let start = whole.get_sequence_ids().iter().position(|id| *id == Some(1)).unwrap_or(0);
        let end = start + offsets.len();
        let trimmed = |&(start, end): &(usize, usize)| {
            let end = end.min(characters.len());
            let text = &characters[start.min(end)..end];
            let before = text.iter().take_while(|c| c.is_whitespace()).count();
            let after = text[before..].iter().rev().take_while(|c| c.is_whitespace()).count();
            start + before..end - after
        };
        let tokens: Vec<Range<usize>> = offsets.iter().map(trimmed).collect();
        let word = |index: usize| match of[index].filter(|_| is_split) {
            None => tokens[index].clone(),
            Some(word) => {
                let same = |other: &usize| of[*other] == Some(word);
                let first = (0..=index).rev().take_while(same).last().unwrap_or(index);
                let last = (index..of.len()).take_while(same).last().unwrap_or(index);
                tokens[first].start..tokens[last].end
            }
        };
        let words = (0..tokens.len()).map(word).collect();
        let first_special = self.special.cls;
        let ids = whole.get_ids();
        let none = (0..ids.len()).filter(|&place| Some(ids[place]) == first_special).collect();
        Ok(Window { encoded: self.encoded(&whole), context: start..end, tokens, words, none })
    }
}
