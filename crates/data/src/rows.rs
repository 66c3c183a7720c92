//! Training rows of a language model: the common formats, recognized by their keys, and their tokens with
//! target flags.
//!
//! | keys | form |
//! |---|---|
//! | `messages` (OpenAI), `conversations` (ShareGPT) | a conversation, written out by the model's chat template |
//! | `instruction`, `input`, `output` (Alpaca) | a conversation of two messages |
//! | `prompt`, `completion` | two literal strings, or two lists of messages |
//! | `text` | plain text, with a loss on every token |
//! | `prompt`, `chosen`, `rejected` | a preference between two completions: strings or lists of messages |
//! | `conversations`, `chosen`, `rejected` | the same in ShareGPT's format |
//!
//! `chosen` and `rejected` may be whole conversations, whose common beginning is the prompt. Beside a conversation or an
//! instruction `system` is its first message, `chat_template_kwargs` has variables of the template, and `history` has the turns
//! before an instruction. An answer whose `weight` or `train` is 0 or false is never a target.
//!
//! Files are `.jsonl` (one object per line), `.json` (a list of objects, or lines) and `.txt` (one running
//! text).

mod encode;
mod parse;
mod read;
mod source_target;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::chat::Message;
use crate::error::{DataError, Result};

pub use encode::{EncodedRows, LossOn, PairRows, RowEncoder, TokenPair, TokenRow};
pub use source_target::{SourceTarget, SourceTargets};

/// One row.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Row {
    /// Plain text.
    Text(String),
    /// A literal text and its continuation.
    Completion {
        /// The prompt.
        prompt: String,
        /// The completion, on which the loss is computed.
        completion: String,
    },
    /// An instruction in Alpaca's format.
    Instruction {
        /// The instruction.
        instruction: String,
        /// Its input; may be empty.
        input: String,
        /// The answer.
        output: String,
    },
    /// A conversation.
    Chat(Conversation),
    /// Two completions of one literal text.
    PreferenceText {
        /// The prompt.
        prompt: String,
        /// The chosen continuation.
        chosen: String,
        /// The rejected one.
        rejected: String,
    },
    /// Two conversations with a common beginning.
    PreferenceChat {
        /// With the chosen answer.
        chosen: Conversation,
        /// With the rejected one.
        rejected: Conversation,
    },
}

impl Row {
    /// Whether the row is a preference.
    pub(crate) fn is_preference(&self) -> bool {
        matches!(self, Self::PreferenceText { .. } | Self::PreferenceChat { .. })
    }

    /// Whether the row is a conversation because of what it has beside its texts.
    fn is_conversation_of_texts(&self) -> bool {
        match self {
            Self::Chat(conversation) | Self::PreferenceChat { chosen: conversation, .. } => {
                conversation.is_of_texts
            }
            _ => false,
        }
    }
}

/// Messages, and the other inputs of the template.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The messages in order.
    pub messages: Vec<Message>,
    /// Number of leading messages that the row gives as its prompt; the rest is its completion. `None` if
    /// the row does not specify it.
    pub n_prompt: Option<usize>,
    /// Tools described by the template.
    pub tools: Option<Value>,
    /// Further variables of the template: the row's `chat_template_kwargs`.
    pub variables: Map<String, Value>,
    /// Whether the row has its prompt and its answer as texts.
    pub(crate) is_of_texts: bool,
}

/// The rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    path: PathBuf,
    /// Each row with its number in messages.
    rows: Vec<(usize, Row)>,
    /// Whether those numbers count items of a JSON list instead of lines.
    counts_items: bool,
}

impl Rows {
    /// Reads a file of rows.
    ///
    /// # Errors
    /// A missing or empty file, bytes that are not UTF-8, malformed JSON, a row of unknown format, an unknown
    /// role, an empty answer, a preference between equal answers, preferences mixed with other rows. Each
    /// error names file and row.
    pub fn read(path: &Path) -> Result<Self> {
        read::file(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.iter().map(|(_, row)| row)
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the set is empty, which no set read from a file is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the rows are preferences.
    pub fn are_preferences(&self) -> bool {
        self.rows.first().is_some_and(|(_, row)| row.is_preference())
    }

    /// Number of these rows that are also in `other`: a dev set that repeats training rows measures
    /// memorization.
    pub fn count_in(&self, other: &Self) -> usize {
        let key = |row: &Row| format!("{row:?}");
        let others: std::collections::HashSet<String> = other.iter().map(key).collect();
        self.iter().filter(|row| others.contains(&key(row))).count()
    }

    /// The name of a row, by its index, for messages: `file:12` or `file: item 12`.
    pub fn place(&self, index: usize) -> String {
        let number = self.rows.get(index).map_or(0, |(number, _)| *number);
        let path = self.path.display();
        if self.counts_items { format!("{path}: item {number}") } else { format!("{path}:{number}") }
    }

    /// An error at a row, given by its index.
    pub(crate) fn error(&self, index: usize, message: impl Into<String>) -> DataError {
        let number = self.rows.get(index).map_or(0, |(number, _)| *number);
        at(&self.path, self.counts_items, number, message)
    }
}

/// An error at a line or item of a file.
fn at(path: &Path, counts_items: bool, number: usize, message: impl Into<String>) -> DataError {
    let (path, message) = (path.to_path_buf(), message.into());
    if counts_items {
        DataError::BadItem { path, item: number, message }
    } else {
        DataError::BadRow { path, row: number, message }
    }
}
