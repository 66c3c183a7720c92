//! Errors of tensor files; every message is one line with the place, the problem and the remedy.

use std::{
    io,
    path::{Path, PathBuf},
};

pub(crate) use lowrank_spec::text::excerpt;

/// An error of reading or writing tensor files.
///
/// Names from a file are escaped and shortened before they are shown, so that a hostile file can
/// neither break the line nor flood the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// An error of the operating system, such as a full disk.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted operation, as a verb: «open», «write», «rename to …».
        action: String,
        /// The system's own error.
        source: io::Error,
    },
    /// A folder without a checkpoint, or a path that does not exist.
    #[error("{}: no checkpoint found; looked for {looked_for}", path.display())]
    NoCheckpoint {
        /// The given path.
        path: PathBuf,
        /// The names tried, in order.
        looked_for: String,
    },
    /// The file as a whole violates its format.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The problem and the remedy.
        reason: String,
    },
    /// One tensor of the file violates the format, or has an unsupported type.
    #[error("{}: tensor '{tensor}': {reason}", path.display())]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name, escaped for printing.
        tensor: String,
        /// The problem and the remedy.
        reason: String,
    },
    /// A pickle refers to something that is not tensor data. Nothing was executed.
    #[error(
        "{}: the pickle refers to '{global}', which is not plain tensor data, and nothing of it is executed; \
         save model.state_dict() alone, or convert the file to safetensors", path.display()
    )]
    ForbiddenGlobal {
        /// The file.
        path: PathBuf,
        /// `module.name` of the Python object, escaped for printing.
        global: String,
    },
    /// A requested tensor that the checkpoint lacks.
    #[error("{}: no tensor '{tensor}' among {count}; nearest: {nearest}", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The requested name.
        tensor: String,
        /// Number of tensors.
        count: usize,
        /// The name with the smallest edit distance, or «none».
        nearest: String,
    },
    /// A finite value that the output type cannot hold.
    #[error("{}: tensor '{tensor}': {value:e} overflows {dtype}; write bf16 or f32 instead", path.display())]
    Overflow {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The offending value.
        value: f32,
        /// The requested type.
        dtype: &'static str,
    },
    /// Experts that cannot be stored as one tensor.
    #[error("tensor '{tensor}': {reason}")]
    UnfusableExperts {
        /// A tensor of an expert, escaped for printing.
        tensor: String,
        /// The problem and the remedy.
        reason: String,
    },
    /// The destination exists and is not empty.
    #[error("{}: already exists and is not empty; choose another path", path.display())]
    DestinationExists {
        /// The destination.
        path: PathBuf,
    },
    /// A folder is in use by a running process.
    #[error("{}: another process is writing here; wait for it or choose another path", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A partial output was made by a different job.
    #[error("{}: cannot resume: {reason}", path.display())]
    CannotResume {
        /// The partial output.
        path: PathBuf,
        /// The reason and the remedy.
        reason: String,
    },
    /// A stream was finished before every planned tensor was written.
    #[error("{}: {missing} planned tensors were never written, the first is '{first}'", path.display())]
    Unfinished {
        /// The file or folder being written.
        path: PathBuf,
        /// Number of missing tensors.
        missing: usize,
        /// The first of them, in the plan's order.
        first: String,
    },
}

impl CheckpointError {
    pub(crate) fn io(path: &Path, action: impl Into<String>, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), action: action.into(), source }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::BadTensor { path: path.to_owned(), tensor: excerpt(tensor), reason: reason.into() }
    }
}

/// The finding of a parser, before the file is named.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The file as a whole.
    File(String),
    /// One tensor: name and reason.
    Tensor(String, String),
    /// A global of a pickle.
    Global(String),
}

impl Fault {
    pub(crate) fn file(reason: impl Into<String>) -> Self {
        Self::File(reason.into())
    }

    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor(name.to_owned(), reason.into())
    }

    /// Adds the name of the file.
    pub(crate) fn at(self, path: &Path) -> CheckpointError {
        match self {
            Self::File(reason) => CheckpointError::malformed(path, reason),
            Self::Tensor(name, reason) => CheckpointError::tensor(path, &name, reason),
            Self::Global(global) => {
                CheckpointError::ForbiddenGlobal { path: path.to_owned(), global: excerpt(&global) }
            }
        }
    }
}

/// The name with the smallest edit distance to `wanted`, if any.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names.min_by_key(|name| edit_distance(wanted, name))
}

/// Levenshtein distance of the first 200 bytes: enough for any sane name, bounded for the others.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(200)], &b.as_bytes()[..b.len().min(200)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_one_short_line() {
        let shown = excerpt(&format!("a\n\u{1b}[31m{}", "x".repeat(1000)));
        assert!(shown.starts_with("a\\n\\u{1b}[31mxx"), "{shown}");
        assert!(shown.chars().count() < 140 && shown.ends_with('…'));
        assert_eq!(excerpt("it's \"0\""), "it's \"0\"");
        assert_eq!(excerpt(&excerpt("a\nb")), "a\\nb");
    }

    #[test]
    fn nearest_is_by_edit_distance() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        let names = ["k_proj", "q_proj", "gate_proj"];
        assert_eq!(nearest("q_porj", names.into_iter()), Some("q_proj"));
        assert_eq!(nearest("x", std::iter::empty()), None);
    }
}
