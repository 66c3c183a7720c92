//! Readers of the official GLUE files: tab-separated, no quoting, `\n` or `\r\n`, with or without a byte
//! order mark.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::glue::dataset::{Example, Label};
use crate::glue::task::{Split, Task};
use crate::io::{read_text, rows};

/// QQP may lack columns in one row of this many, see [`crate::glue::GlueDataset::read`].
const ROWS_PER_BROKEN_ROW: usize = 1_000;

/// Column indices of the fields of a row.
struct Columns {
    text: usize,
    pair: Option<usize>,
    label: Option<usize>,
    has_header: bool,
}

impl Columns {
    /// The minimum number of columns of a row.
    fn needed(&self) -> usize {
        1 + self.text.max(self.pair.unwrap_or(0)).max(self.label.unwrap_or(0))
    }
}

/// Reads `root/<folder>/<file>`; returns the rows and the number of skipped broken ones.
pub(crate) fn read(root: &Path, task: Task, split: Split) -> Result<(Vec<Example>, usize)> {
    let path = locate(root, task, split)?;
    let text = read_text(&path)?;
    let columns = columns(&path, task, split, text.lines().next().unwrap_or(""))?;
    let needed = columns.needed();

    let mut examples = Vec::new();
    let mut broken: Vec<DataError> = Vec::new();
    for (row, line) in rows(&text).skip(usize::from(columns.has_header)) {
        let cells: Vec<&str> = line.split('\t').collect();
        if cells.len() < needed {
            let error =
                DataError::TooFewColumns { path: path.clone(), row, expected: needed, got: cells.len() };
            if task == Task::Qqp && !split.is_test() {
                broken.push(error);
                continue;
            }
            return Err(error);
        }
        let label = columns.label.map(|c| parse_label(&path, row, task, cells[c])).transpose()?;
        examples.push(Example {
            text: cells[columns.text].to_owned(),
            pair: columns.pair.map(|c| cells[c].to_owned()),
            label,
        });
    }

    let skipped = broken.len();
    if skipped * ROWS_PER_BROKEN_ROW > examples.len() {
        return Err(broken.swap_remove(0));
    }
    if examples.is_empty() {
        let remedy = "give a file with rows below its header".to_owned();
        return Err(DataError::Empty { path, remedy });
    }
    Ok((examples, skipped))
}

/// The file of a split, or an error that says which part of the path is missing.
fn locate(root: &Path, task: Task, split: Split) -> Result<PathBuf> {
    let Some(file) = task.file_name(split) else {
        return Err(DataError::NoSuchSplit {
            task: task.to_string(),
            split: split.to_string(),
            known: "train, dev, test".to_owned(),
        });
    };
    let folder = root.join(task.folder());
    let missing = |what: String, path: &Path, remedy: String| {
        Err(DataError::NotFound { what, path: path.to_path_buf(), remedy })
    };
    if !root.is_dir() {
        let remedy = format!("--data names a folder that holds '{}/{file}'", task.folder());
        return missing("data folder".to_owned(), root, remedy);
    }
    if !folder.is_dir() {
        let remedy = if root.join(file).is_file() {
            format!(
                "'{}' is itself a task's folder: name its parent, and call it {}",
                root.display(),
                task.folder()
            )
        } else {
            format!("a GLUE root holds '{}/{file}'{}", task.folder(), neighbours(root))
        };
        return missing(format!("folder of task {task}"), &folder, remedy);
    }
    let path = folder.join(file);
    if !lowrank_spec::is_present(&path) {
        let remedy = format!("the {split} split of {task} is that file");
        return missing(format!("file of task {task}"), &path, remedy);
    }
    Ok(path)
}

/// The task folders that a root does hold, for an error message.
fn neighbours(root: &Path) -> String {
    let found: Vec<&str> =
        Task::ALL.into_iter().map(Task::folder).filter(|folder| root.join(folder).is_dir()).collect();
    if found.is_empty() { String::new() } else { format!("; here are {}", found.join(", ")) }
}

/// Finds the columns by the header's names; CoLA's labelled files have none.
fn columns(path: &Path, task: Task, split: Split, header: &str) -> Result<Columns> {
    if task == Task::Cola && !split.is_test() {
        return Ok(Columns { text: 3, pair: None, label: Some(1), has_header: false });
    }
    let names: Vec<&str> = header.split('\t').map(str::trim).collect();
    let find = |column: &str| {
        names.iter().position(|name| *name == column).ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            column: column.to_owned(),
            found: names.join(", "),
            remedy: format!("this should be the official {} file", task.folder()),
        })
    };
    let (text, pair, label) = match task {
        Task::Sst2 | Task::Cola => ("sentence", None, "label"),
        Task::Mrpc => ("#1 String", Some("#2 String"), "Quality"),
        Task::Stsb => ("sentence1", Some("sentence2"), "score"),
        Task::Qqp => ("question1", Some("question2"), "is_duplicate"),
        Task::Mnli => ("sentence1", Some("sentence2"), "gold_label"),
        Task::Qnli => ("question", Some("sentence"), "label"),
        Task::Rte | Task::Wnli => ("sentence1", Some("sentence2"), "label"),
    };
    let label = if split.is_test() { None } else { Some(find(label)?) };
    Ok(Columns { text: find(text)?, pair: pair.map(find).transpose()?, label, has_header: true })
}

/// Reads a label as the task's official files write it.
fn parse_label(path: &Path, row: usize, task: Task, cell: &str) -> Result<Label> {
    let names = task.label_names();
    let unknown = |expected: String| {
        Err(DataError::UnknownLabel { path: path.to_path_buf(), row, label: cell.to_owned(), expected })
    };
    match task {
        Task::Stsb => match cell.trim().parse::<f32>() {
            Ok(score) if (0.0..=5.0).contains(&score) => Ok(Label::Score(score)),
            _ => unknown("a score from 0 to 5".to_owned()),
        },
        Task::Mnli | Task::Qnli | Task::Rte => match names.iter().position(|name| *name == cell) {
            Some(class) => Ok(Label::Class(class as u32)),
            None => unknown(names.join(" or ")),
        },
        Task::Sst2 | Task::Cola | Task::Mrpc | Task::Qqp | Task::Wnli => match cell {
            "0" => Ok(Label::Class(0)),
            "1" => Ok(Label::Class(1)),
            _ => unknown(format!("0 ({}) or 1 ({})", names[0], names[1])),
        },
    }
}
