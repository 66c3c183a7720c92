//! Words and their tokens: sentences given as words, and texts split into words.

use std::ops::Range;

use tokenizers::{Encoding, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::long::check_length;
use crate::tokenize::{Encoded, TextTokenizer, added_tokens, truncate};

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordSpan {
    /// Its character range in the text (not bytes), as in transformers.
    pub characters: Range<usize>,
    /// Its first token.
    pub token: usize,
}

impl TextTokenizer {
    /// Encodes a sentence of words with the model's special tokens; each token comes with its word.
    ///
    /// Equal to transformers' `is_split_into_words`, with `add_prefix_space` for GPT-2's and RoBERTa's tokenizers, which
    /// require it: in a text every word but the first follows a space.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_words(&self, words: &[String]) -> Result<(Encoded, Vec<Option<usize>>)> {
        check_length(words.iter().map(String::len).sum())?;
        let encoding = self.for_words().encode(words, false).map_err(DataError::encoding)?;
        let (encoding, _) = self.framed(self.cut(encoding))?;
        let words = encoding.get_word_ids().iter().map(|word| word.map(|word| word as usize)).collect();
        Ok((self.encoded(&encoding), words))
    }

    /// Encodes a text with the model's special tokens, and finds its words: the tokenizer's pre-tokenized
    /// parts, or the parts between spaces if it does not pre-tokenize. The first word gets the space that it
    /// has in [`encode_words`](Self::encode_words).
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_with_words(&self, text: &str) -> Result<(Encoded, Vec<WordSpan>)> {
        check_length(text.len())?;
        let encoding = self.for_words().encode_char_offsets(text, false).map_err(DataError::encoding)?;
        let encoding = self.cut(encoding);
        let characters: Vec<char> = text.chars().collect();
        let mut chunks = Vec::with_capacity(characters.len());
        for (place, c) in characters.iter().enumerate() {
            let before = chunks.last().copied().unwrap_or(0);
            let begins = place > 0 && characters[place - 1].is_whitespace() && !c.is_whitespace();
            chunks.push(before + usize::from(begins));
        }
        let is_split = encoding.get_word_ids().iter().flatten().any(|word| *word > 0);
        let mut words: Vec<WordSpan> = Vec::new();
        let mut last = None;
        let tokens = encoding.get_word_ids().iter().zip(encoding.get_offsets()).enumerate();
        for (token, (word, &(start, end))) in tokens {
            let Some(word) = word else { continue };
            // A token that includes the space before a word begins at the space.
            let blank = characters[start..end].iter().take_while(|c| c.is_whitespace()).count();
            let (start, word) = match chunks.get(start + blank) {
                Some(chunk) if !is_split => (start + blank, *chunk),
                _ => (start + blank, *word as usize),
            };
            if start >= end {
                continue;
            }
            match words.last_mut().filter(|_| last == Some(word)) {
                Some(span) => span.characters.end = span.characters.end.max(end),
                None => words.push(WordSpan { characters: start..end, token }),
            }
            last = Some(word);
        }
        let (encoding, before) = self.framed(encoding)?;
        words.iter_mut().for_each(|word| word.token += before);
        Ok((self.encoded(&encoding), words))
    }

    fn for_words(&self) -> &Tokenizer {
        self.of_words.get_or_init(|| with_prefix_space(&self.inner)).as_ref().unwrap_or(&self.inner)
    }

    /// A single text, truncated at the limit.
    fn cut(&self, mut encoding: Encoding) -> Encoding {
        if let Some(max_length) = self.max_length {
            let room = max_length - added_tokens(&self.inner, false);
            truncate(&mut encoding, None, room, self.truncated_side);
        }
        encoding
    }

    /// A single text with the special tokens around it, and the number of those before it.
    fn framed(&self, encoding: Encoding) -> Result<(Encoding, usize)> {
        let encoding = self.inner.post_process(encoding, None, true).map_err(DataError::encoding)?;
        let before = encoding.get_special_tokens_mask().iter().take_while(|added| **added == 1).count();
        Ok((encoding, before))
    }
}

/// A byte-level tokenizer that puts a space before every word; `None` if the tokenizer is of another kind, or
/// does so itself.
fn with_prefix_space(tokenizer: &Tokenizer) -> Option<Tokenizer> {
    match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(bytes)) if !bytes.add_prefix_space => {
            let mut spaced = tokenizer.clone();
            spaced.with_pre_tokenizer(Some(bytes.add_prefix_space(true)));
            // Trimming the spaces off token offsets must account for the space that the text does not have.
            match tokenizer.get_post_processor().cloned() {
                Some(PostProcessorWrapper::Roberta(around)) => {
                    spaced.with_post_processor(Some(around.add_prefix_space(true)));
                }
                Some(PostProcessorWrapper::ByteLevel(bytes)) => {
                    spaced.with_post_processor(Some(bytes.add_prefix_space(true)));
                }
                _ => {}
            }
            Some(spaced)
        }
        _ => None,
    }
}
