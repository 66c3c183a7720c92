//! The nine tasks: names, folders, labels, splits and metrics.

use std::fmt;
use std::str::FromStr;

use crate::error::DataError;

/// One of the nine GLUE tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Task {
    /// Sentiment of film reviews (Socher et al. 2013).
    Sst2,
    /// Linguistic acceptability (Warstadt et al. 2018).
    Cola,
    /// Paraphrase of news sentences (Dolan and Brockett 2005).
    Mrpc,
    /// Semantic similarity, a score from 0 to 5 (Cer et al. 2017).
    Stsb,
    /// Duplicate questions (Quora).
    Qqp,
    /// Natural language inference in three classes (Williams et al. 2018).
    Mnli,
    /// Whether a sentence answers a question (Rajpurkar et al. 2016).
    Qnli,
    /// Textual entailment in two classes.
    Rte,
    /// Pronoun resolution as entailment (Levesque et al. 2011).
    Wnli,
}

impl Task {
    /// All tasks, in the order of the command line's documentation.
    pub const ALL: [Self; 9] = [
        Self::Sst2,
        Self::Cola,
        Self::Mrpc,
        Self::Stsb,
        Self::Qqp,
        Self::Mnli,
        Self::Qnli,
        Self::Rte,
        Self::Wnli,
    ];

    /// The name on the command line: `sst2`, `cola`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Sst2 => "sst2",
            Self::Cola => "cola",
            Self::Mrpc => "mrpc",
            Self::Stsb => "stsb",
            Self::Qqp => "qqp",
            Self::Mnli => "mnli",
            Self::Qnli => "qnli",
            Self::Rte => "rte",
            Self::Wnli => "wnli",
        }
    }

    /// The official folder below a GLUE root: `SST-2`, `CoLA`, …
    pub fn folder(self) -> &'static str {
        match self {
            Self::Sst2 => "SST-2",
            Self::Cola => "CoLA",
            Self::Mrpc => "MRPC",
            Self::Stsb => "STS-B",
            Self::Qqp => "QQP",
            Self::Mnli => "MNLI",
            Self::Qnli => "QNLI",
            Self::Rte => "RTE",
            Self::Wnli => "WNLI",
        }
    }

    /// The class names in label order; empty for STS-B, which is a regression.
    pub fn label_names(self) -> &'static [&'static str] {
        match self {
            Self::Sst2 => &["negative", "positive"],
            Self::Cola => &["unacceptable", "acceptable"],
            Self::Mrpc => &["not_equivalent", "equivalent"],
            Self::Stsb => &[],
            Self::Qqp => &["not_duplicate", "duplicate"],
            Self::Mnli => &["entailment", "neutral", "contradiction"],
            Self::Qnli | Self::Rte => &["entailment", "not_entailment"],
            Self::Wnli => &["not_entailment", "entailment"],
        }
    }

    /// Whether the labels are scores; true for STS-B only.
    pub fn is_regression(self) -> bool {
        self == Self::Stsb
    }

    /// The width of the head: the number of classes, or 1 for a regression.
    pub fn n_labels(self) -> usize {
        self.label_names().len().max(1)
    }

    /// Whether a row is a pair of texts.
    pub(crate) fn is_pair(self) -> bool {
        !matches!(self, Self::Sst2 | Self::Cola)
    }

    /// The task's metrics as defined by GLUE, the selecting one first.
    ///
    /// MRPC and QQP select by accuracy, as in the LoRA and LoTR papers: F1 is high for a constant answer.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Cola => &[Metric::Matthews],
            Self::Mrpc | Self::Qqp => &[Metric::Accuracy, Metric::F1],
            Self::Stsb => &[Metric::Pearson, Metric::Spearman],
            Self::Sst2 | Self::Mnli | Self::Qnli | Self::Rte | Self::Wnli => &[Metric::Accuracy],
        }
    }

    /// The splits to evaluate on: one, or MNLI's matched and mismatched.
    pub fn dev_splits(self) -> &'static [Split] {
        match self {
            Self::Mnli => &[Split::Dev, Split::DevMismatched],
            _ => &[Split::Dev],
        }
    }

    /// The file of `split`, or `None` if the task has no such split.
    pub fn file_name(self, split: Split) -> Option<&'static str> {
        match (self, split) {
            (_, Split::Train) => Some("train.tsv"),
            (Self::Mnli, Split::Dev) => Some("dev_matched.tsv"),
            (Self::Mnli, Split::DevMismatched) => Some("dev_mismatched.tsv"),
            (Self::Mnli, Split::Test) => Some("test_matched.tsv"),
            (Self::Mnli, Split::TestMismatched) => Some("test_mismatched.tsv"),
            (_, Split::Dev) => Some("dev.tsv"),
            (_, Split::Test) => Some("test.tsv"),
            (_, Split::DevMismatched | Split::TestMismatched) => None,
        }
    }

    /// The properties of the task that training needs.
    pub fn spec(self) -> TaskSpec {
        let labels = if self.is_regression() {
            LabelSpace::Score
        } else {
            LabelSpace::Classes(self.label_names().iter().map(ToString::to_string).collect())
        };
        TaskSpec {
            name: self.name().to_owned(),
            task: Some(self),
            labels,
            is_pair: self.is_pair(),
            metrics: self.metrics().to_vec(),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = DataError;

    /// Accepts the command-line name and the folder name, in any case.
    fn from_str(name: &str) -> Result<Self, DataError> {
        let found = Self::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name) || t.folder().eq_ignore_ascii_case(name));
        found.ok_or_else(|| DataError::UnknownTask {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// A part of a task's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Labelled rows to train on.
    Train,
    /// Labelled rows to evaluate on; MNLI's matched ones.
    Dev,
    /// MNLI's rows of genres that are not in its training set.
    DevMismatched,
    /// Unlabelled rows; MNLI's matched ones.
    Test,
    /// MNLI's unlabelled rows of other genres.
    TestMismatched,
}

impl Split {
    /// Whether the official files carry no labels.
    pub(crate) fn is_test(self) -> bool {
        matches!(self, Self::Test | Self::TestMismatched)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::DevMismatched => "dev_mismatched",
            Self::Test => "test",
            Self::TestMismatched => "test_mismatched",
        })
    }
}

/// A metric of predictions; `lowrank-eval` computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The fraction of correct answers.
    Accuracy,
    /// F1 of the positive class, label 1; for token classification, of the entities; for question answering, of the words
    /// of an answer.
    F1,
    /// The fraction of the predicted entities that are correct.
    Precision,
    /// The fraction of the labelled entities that are predicted.
    Recall,
    /// F1 over all labels and rows together.
    F1Micro,
    /// The mean F1 of the labels.
    F1Macro,
    /// The fraction of the answers that equal a right one, by SQuAD's normalization.
    ExactMatch,
    /// Matthews correlation.
    Matthews,
    /// Pearson correlation of scores.
    Pearson,
    /// Spearman rank correlation of scores.
    Spearman,
}

impl Metric {
    /// The name in logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::F1Micro => "f1_micro",
            Self::F1Macro => "f1_macro",
            Self::ExactMatch => "exact_match",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The kind of a task's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelSpace {
    /// Classes with their names in label order.
    Classes(Vec<String>),
    /// A real number.
    Score,
    /// Any number of these labels, in the order of their indices.
    Sets(Vec<String>),
    /// One of these classes for each word, in label order.
    Tags(Vec<String>),
    /// The span of a context that answers a question.
    Spans,
}

impl LabelSpace {
    /// The width of the head: the number of classes, 1 for a score, or 2 for the start and end of a span.
    pub fn width(&self) -> usize {
        match self {
            Self::Classes(names) | Self::Sets(names) | Self::Tags(names) => names.len(),
            Self::Score => 1,
            Self::Spans => 2,
        }
    }

    /// Names in label order; none for a score or a span.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Classes(names) | Self::Sets(names) | Self::Tags(names) => names,
            Self::Score | Self::Spans => &[],
        }
    }

    /// Whether tags mark the words of entities: `O`, and kinds after the letter of a scheme (`B-PER`).
    pub fn marks_entities(&self) -> bool {
        let Self::Tags(names) = self else { return false };
        let is_kind = |name: &String| {
            name.split_once('-').is_some_and(|(letter, kind)| {
                ["B", "I", "E", "S", "L", "U"].contains(&letter) && !kind.is_empty()
            })
        };
        names.iter().any(is_kind) && names.iter().all(|name| name == "O" || is_kind(name))
    }

    /// The metrics of a user's own task, the selecting one first.
    pub fn metrics(&self) -> Vec<Metric> {
        match self {
            Self::Score => vec![Metric::Pearson, Metric::Spearman],
            Self::Classes(names) if names.len() == 2 => vec![Metric::Accuracy, Metric::F1],
            Self::Classes(_) => vec![Metric::Accuracy],
            Self::Sets(_) => vec![Metric::F1Micro, Metric::F1Macro, Metric::Accuracy],
            Self::Tags(_) if self.marks_entities() => {
                vec![Metric::F1, Metric::Precision, Metric::Recall, Metric::Accuracy]
            }
            Self::Tags(_) => vec![Metric::Accuracy, Metric::F1Macro],
            Self::Spans => vec![Metric::F1, Metric::ExactMatch],
        }
    }
}

/// The properties of a task that training needs, for GLUE's tasks and the user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// The task's name, for folders and tables.
    pub name: String,
    /// The GLUE task, if it is one.
    pub task: Option<Task>,
    /// Its labels.
    pub labels: LabelSpace,
    /// Whether rows are pairs of texts.
    pub is_pair: bool,
    /// Its metrics, the selecting one first; never empty.
    pub metrics: Vec<Metric>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for task in Task::ALL {
            assert_eq!(task.name().parse::<Task>().unwrap(), task);
            assert_eq!(task.folder().parse::<Task>().unwrap(), task);
            assert_eq!(format!("{task:>5}").trim_start(), task.name());
        }
        let error = "sst3".parse::<Task>().unwrap_err().to_string();
        assert_eq!(error, "no task 'sst3'; tasks are sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli");
    }

    #[test]
    fn label_order_is_hugging_face_s() {
        assert_eq!(Task::Rte.label_names(), ["entailment", "not_entailment"]);
        assert_eq!(Task::Wnli.label_names(), ["not_entailment", "entailment"]);
        assert_eq!(Task::Mnli.label_names(), ["entailment", "neutral", "contradiction"]);
        assert_eq!(Task::Mnli.n_labels(), 3);
        assert_eq!(Task::Stsb.n_labels(), 1);
        assert_eq!(Task::Stsb.spec().labels, LabelSpace::Score);
        assert_eq!(Task::Cola.spec().labels.width(), 2);
    }

    #[test]
    fn only_mnli_has_mismatched_files() {
        for task in Task::ALL {
            let mismatched = task.file_name(Split::DevMismatched);
            assert_eq!(mismatched.is_some(), task == Task::Mnli);
            assert_eq!(task.dev_splits().len(), 1 + usize::from(task == Task::Mnli));
        }
    }
}
