//! The error type of this crate: every variant names the file, the row if there is one, and the remedy.

use std::path::{Path, PathBuf};

use lowrank_spec::text::{escaped, excerpt};

/// Error of reading, tokenizing or writing data.
///
/// Rows are 1-based line numbers of the file, including its header, as in an editor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// An operation of the file system failed.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// The attempted operation, for example `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or folder is missing.
    #[error("no {what} at '{}'; {remedy}", path.display())]
    NotFound {
        /// The missing item.
        what: String,
        /// Where it was expected.
        path: PathBuf,
        /// The remedy.
        remedy: String,
    },
    /// A line is not UTF-8.
    #[error("{}:{row}: not valid UTF-8; re-encode the file as UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        row: usize,
    },
    /// The header lacks a column.
    #[error("{}:1: no column '{column}' in the header ({found}); {remedy}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The missing column.
        column: String,
        /// The existing columns.
        found: String,
        /// The remedy.
        remedy: String,
    },
    /// A row has fewer columns than its file needs.
    #[error(
        "{}:{row}: {got} tab-separated column(s), at least {expected} expected; complete or remove this row",
        path.display()
    )]
    TooFewColumns {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        row: usize,
        /// Columns the format needs.
        expected: usize,
        /// Columns found.
        got: usize,
    },
    /// A label that the task does not have.
    #[error("{}:{row}: unknown label '{}'; expected {}", path.display(), excerpt(label), escaped(expected))]
    UnknownLabel {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        row: usize,
        /// The label in the file.
        label: String,
        /// The valid labels.
        expected: String,
    },
    /// A row of a JSONL file is malformed.
    #[error("{}:{row}: {}", path.display(), escaped(message))]
    BadRow {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        row: usize,
        /// The problem and the remedy.
        message: String,
    },
    /// An item of a JSON list is malformed.
    #[error("{}: item {item}: {}", path.display(), escaped(message))]
    BadItem {
        /// The file.
        path: PathBuf,
        /// The item, from 1.
        item: usize,
        /// The problem and the remedy.
        message: String,
    },
    /// A chat template that cannot be compiled, or a conversation that it does not accept.
    #[error("{}: {message}", path.display())]
    Template {
        /// The file of the template.
        path: PathBuf,
        /// The problem and the remedy.
        message: String,
    },
    /// A file holds no rows.
    #[error("'{}' holds no rows; {remedy}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The remedy.
        remedy: String,
    },
    /// A picture, or a folder of pictures, cannot be used.
    #[error("'{}' {message}", path.display())]
    Image {
        /// The file or folder.
        path: PathBuf,
        /// The problem and the remedy.
        message: String,
    },
    /// A task name is unknown.
    #[error("no task '{name}'; tasks are {known}")]
    UnknownTask {
        /// The given name.
        name: String,
        /// The existing names.
        known: String,
    },
    /// A task has no such split.
    #[error("task {task} has no split '{split}'; it has {known}")]
    NoSuchSplit {
        /// The task.
        task: String,
        /// The requested split.
        split: String,
        /// The existing splits.
        known: String,
    },
    /// A JSON file of a model folder cannot be used.
    #[error("'{}': {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// A tokenizer that cannot be built or does not support the request.
    #[error("tokenizer '{}': {message}", path.display())]
    Tokenizer {
        /// The file or folder it came from.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// A text that a tokenizer refuses, or ids that it cannot decode.
    #[error("{what} cannot be tokenized: {message}")]
    Encoding {
        /// The text: its row, where it is one of several.
        what: String,
        /// The problem.
        message: String,
    },
    /// Incompatible rows in one batch.
    #[error("cannot pack the batch: {message}")]
    Batch {
        /// The incompatibility.
        message: String,
    },
    /// A resume state or an option is out of its range.
    #[error("{what} is {got}; {expected}")]
    OutOfRange {
        /// The quantity.
        what: &'static str,
        /// Its value.
        got: String,
        /// The allowed values.
        expected: String,
    },
}

impl DataError {
    /// Wraps an I/O error with the attempted operation and its path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Wraps an error of the tokenizers crate, flattened to one line.
    pub(crate) fn tokenizer(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Tokenizer { path: path.to_path_buf(), message: one_line(message) }
    }

    /// A text that cannot be tokenized or decoded.
    pub(crate) fn encoding(message: impl std::fmt::Display) -> Self {
        Self::Encoding { what: "the text".to_owned(), message: one_line(message) }
    }

    /// Names the text, by its index in a list.
    pub(crate) fn of_text(self, index: usize) -> Self {
        match self {
            Self::Encoding { message, .. } => Self::Encoding { what: format!("text {}", index + 1), message },
            other => other,
        }
    }
}

/// A message of a library on one line.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The result of this crate's fallible functions.
pub type Result<T, E = DataError> = std::result::Result<T, E>;
