//! Rows in memory, as a `burn_dataset::Dataset`.

use std::path::Path;

use burn_dataset::Dataset;

use crate::error::Result;
use crate::glue::official;
use crate::glue::task::{Split, Task, TaskSpec};

/// The label of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// An index into the task's class names.
    Class(u32),
    /// A score.
    Score(f32),
    /// Any number of classes, ascending.
    Set(Vec<u32>),
    /// A class for each token; `None` for tokens without one: special tokens, and all but the first of a
    /// word.
    Tags(Vec<Option<u32>>),
    /// The first and last token of the answer to a question.
    Span {
        /// The first token.
        start: u32,
        /// The last token.
        end: u32,
    },
}

/// One row of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The first or only text.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The label; `None` in unlabelled test files.
    pub label: Option<Label>,
}

/// The rows of one split of one task.
///
/// ```no_run
/// use burn_dataset::Dataset;
/// use lowrank_data::glue::{GlueDataset, Split, Task};
///
/// let dev = GlueDataset::read("glue".as_ref(), Task::Cola, Split::Dev)?;
/// println!("{} rows, the first: {:?}", dev.len(), dev.get(0));
/// # Ok::<(), lowrank_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct GlueDataset {
    spec: TaskSpec,
    examples: Vec<Example>,
    skipped: usize,
}

impl GlueDataset {
    /// Reads an official split below the GLUE root `root`, for example `root/SST-2/train.tsv`.
    ///
    /// QQP's official files contain a few rows broken by a line feed inside a question. They are skipped and
    /// counted in [`GlueDataset::skipped`], as long as they are fewer than one in a thousand; in all other
    /// files a broken row is an error.
    ///
    /// # Errors
    /// A missing folder or file, a header without a needed column, a row with too few columns, an unknown
    /// label, bytes that are not UTF-8, a file without rows, a split that the task does not have. Each error
    /// names file and row.
    pub fn read(root: &Path, task: Task, split: Split) -> Result<Self> {
        let (examples, skipped) = official::read(root, task, split)?;
        Ok(Self { spec: task.spec(), examples, skipped })
    }

    /// A data set of rows created in memory.
    pub fn from_examples(spec: TaskSpec, examples: Vec<Example>) -> Self {
        Self { spec, examples, skipped: 0 }
    }

    /// The task of the rows.
    pub fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    /// All rows, in the file's order.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Broken rows of the file that were skipped (QQP only).
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Keeps the first `len` rows.
    pub fn truncate(&mut self, len: usize) {
        self.examples.truncate(len);
    }
}

impl Dataset<Example> for GlueDataset {
    fn get(&self, index: usize) -> Option<Example> {
        self.examples.get(index).cloned()
    }

    fn len(&self) -> usize {
        self.examples.len()
    }
}
