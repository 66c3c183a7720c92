//! Questions as tokens: windows over contexts that are longer than the model.

use std::ops::Range;

use rayon::prelude::*;

use super::{Question, QuestionSet};
use crate::error::{DataError, Result};
use crate::glue::Label;
use crate::pack::EncodedDataset;
use crate::tokenize::{TextTokenizer, Window};

/// Default limit on the tokens of a window, as in transformers.
pub const MAX_WINDOW: usize = 384;

/// Default limit on the context tokens that two windows share, as in transformers.
const MAX_STRIDE: usize = 128;

/// How a long context is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowOptions {
    /// Tokens of a window, those of the question and the special ones included.
    pub max_length: usize,
    /// Context tokens that a window repeats from the one before; `None`: half of a window, at most 128, and at most half
    /// of the room that the question leaves.
    pub stride: Option<usize>,
}

impl WindowOptions {
    /// The tokens that windows of `room` context tokens share.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] if no token of the context would be new.
    pub(crate) fn stride_within(self, room: usize) -> Result<usize> {
        let Some(stride) = self.stride else {
            let stride = (self.max_length / 2).min(MAX_STRIDE);
            return Ok(if stride < room { stride } else { room / 2 });
        };
        if stride < room {
            return Ok(stride);
        }
        Err(DataError::OutOfRange {
            what: "the overlap of windows (--doc-stride)",
            got: stride.to_string(),
            expected: format!("the question leaves room for {room} context tokens, so give less than that"),
        })
    }
}

/// A context with its right answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedRow {
    /// The context.
    pub context: String,
    /// The texts of the right answers, none if the context does not answer the question.
    pub answers: Vec<String>,
}

/// A window over a context, beside the encoded row of the same index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedWindow {
    /// The question's index.
    pub question: usize,
    /// The tokens of the context.
    pub context: Range<usize>,
    /// The characters of the context that the word of each of these tokens covers, without spaces around it.
    pub words: Vec<Range<usize>>,
    /// The tokens that stand for no answer, which take part in the probabilities.
    pub none: Vec<usize>,
}

/// What is needed to turn the logits of windows into answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The questions.
    pub rows: Vec<AskedRow>,
    /// The windows of all questions, in order.
    pub windows: Vec<AskedWindow>,
}

impl Asked {
    /// Tokenizes the questions of a file. The rows of the data set are windows, labelled with the tokens of the first
    /// answer; one that does not contain it is labelled with its first special token.
    ///
    /// # Errors
    /// A question that leaves no room for the context, named by its row, and as [`TextTokenizer::encode`].
    pub fn encode(
        set: &QuestionSet,
        tokenizer: &TextTokenizer,
        options: WindowOptions,
    ) -> Result<(Self, EncodedDataset)> {
        let windows = |row: &Question| {
            tokenizer.encode_windows(&row.question, &row.context, options).map_err(|error| match error {
                DataError::OutOfRange { .. } | DataError::Encoding { .. } => {
                    set.error(row.row, error.to_string())
                }
                other => other,
            })
        };
        let encoded: Vec<Vec<Window>> = set.rows.par_iter().map(windows).collect::<Result<_>>()?;
        let mut asked = Self::default();
        let mut rows = Vec::new();
        for (row, windows) in set.rows.iter().zip(encoded) {
            for window in windows {
                let answer = row.answers.first();
                let place = answer.and_then(|a| window.locate(a.start..a.start + a.text.chars().count()));
                let none = window.none.first().copied().unwrap_or(0);
                let [start, end] = place.unwrap_or([none; 2]).map(|token| token as u32);
                rows.push((window.encoded.clone(), Label::Span { start, end }));
                asked.push(window);
            }
            asked.ask(&row.context, row.answers.iter().map(|answer| answer.text.clone()).collect());
        }
        Ok((asked, EncodedDataset::labelled(rows)))
    }

    /// Tokenizes questions without answers, pairs of a question and a context.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode_windows`], with the index of the question.
    pub fn encode_pairs(
        pairs: &[(&str, &str)],
        tokenizer: &TextTokenizer,
        options: WindowOptions,
    ) -> std::result::Result<(Self, EncodedDataset), (usize, DataError)> {
        let (mut asked, mut rows) = (Self::default(), Vec::new());
        for (index, (question, context)) in pairs.iter().enumerate() {
            for window in
                tokenizer.encode_windows(question, context, options).map_err(|error| (index, error))?
            {
                rows.push(window.encoded.clone());
                asked.push(window);
            }
            asked.ask(context, Vec::new());
        }
        Ok((asked, EncodedDataset::unlabelled(rows)))
    }

    /// Adds a window of the question that [`ask`](Self::ask) adds next.
    fn push(&mut self, window: Window) {
        let Window { context, words, none, .. } = window;
        self.windows.push(AskedWindow { question: self.rows.len(), context, words, none });
    }

    fn ask(&mut self, context: &str, answers: Vec<String>) {
        self.rows.push(AskedRow { context: context.to_owned(), answers });
    }
}
