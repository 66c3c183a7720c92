//! Extractive question answering: questions, their contexts, and the spans of the contexts that answer them.
//!
//! Rajpurkar et al., «SQuAD: 100,000+ Questions for Machine Comprehension of Text», 2016; questions without an answer:
//! Rajpurkar et al., «Know What You Don't Know», 2018.

mod encode;
mod read;

use std::path::PathBuf;

use crate::error::DataError;

pub use encode::{Asked, AskedRow, AskedWindow, MAX_WINDOW, WindowOptions};
pub use read::{are_questions, read_questions};

/// A span of a context that answers a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its text.
    pub text: String,
    /// Its first character in the context, from 0.
    pub start: usize,
}

/// A question about a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its line in the file, or its number among the questions, from 1.
    pub row: usize,
    /// The question.
    pub question: String,
    /// The text that may answer it.
    pub context: String,
    /// The right answers; none if the context does not answer the question.
    pub answers: Vec<Span>,
}

/// The questions of a file.
#[derive(Debug, Clone)]
pub struct QuestionSet {
    /// The questions, in the file's order.
    pub rows: Vec<Question>,
    /// The file.
    pub path: PathBuf,
    /// Whether rows are counted as items of a JSON value, not as lines.
    counts_items: bool,
}

impl QuestionSet {
    /// Whether a question has no answer.
    pub fn has_unanswerable(&self) -> bool {
        self.rows.iter().any(|row| row.answers.is_empty())
    }

    /// The error of a row.
    fn error(&self, row: usize, message: String) -> DataError {
        read::at(&self.path, self.counts_items, row, message)
    }
}
