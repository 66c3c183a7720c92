//! The folders of a log tree, and what their names mean.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// 64-bit integers.
    Integer,
    /// 64-bit floats.
    Float,
    /// Text, written as a dictionary.
    Text,
}

/// A segment of the path, over all runs.
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// What its values are.
    pub(super) kind: ColumnType,
    /// A value per run, in the order of the runs.
    pub(super) values: Vec<Value>,
}

/// A segment of a run's path, as what its column is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Text(String),
}

impl Value {
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            // A column's values are of one kind.
            _ => Ordering::Equal,
        }
    }
}

/// The event files of a folder, by name: a later one of the same writer has a later time in its name.
pub(super) type Files = Vec<PathBuf>;

/// A log tree.
pub(super) struct Tree {
    /// The segments of the paths.
    pub(super) columns: Vec<Column>,
    /// The event files of every run, in the order of the table.
    pub(super) runs: Vec<Files>,
}

impl Tree {
    /// Looks for event files in the folders that are as deep below `root` as there are names. What lies
    /// elsewhere, and what is no event file, is left out with a warning.
    pub(super) fn walk(root: &Path, names: &[String], warnings: &mut Vec<String>) -> Result<Self> {
        let mut found: Vec<(Vec<String>, Files)> = Vec::new();
        let mut open: Vec<(PathBuf, Vec<String>)> = vec![(root.to_owned(), Vec::new())];
        while let Some((folder, segments)) = open.pop() {
            let mut files = Vec::new();
            for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
                let entry = entry.map_err(Error::io("read", &folder))?;
                let path = entry.path();
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    warnings.push(format!("{}: left out, its name is no text", path.display()));
                    continue;
                };
                if entry.file_type().map_err(Error::io("read", &path))?.is_dir() {
                    open.push((path, [&segments[..], &[name]].concat()));
                } else if is_event_file(&name) {
                    files.push(path);
                } else {
                    warnings.push(format!("{}: left out, no event file", path.display()));
                }
            }
            if files.is_empty() {
                continue;
            }
            if segments.len() == names.len() {
                files.sort();
                found.push((segments, files));
                continue;
            }
            let (depth, wanted) = (segments.len(), names.len());
            let is = if depth < wanted { "shallower" } else { "deeper" };
            warnings.extend(files.iter().map(|path| {
                format!(
                    "{}: left out, {depth} folders below the root is {is} than {wanted} names",
                    path.display()
                )
            }));
        }
        // Folders come in the file system's order.
        warnings.sort();
        if found.is_empty() {
            let wanted = names.len();
            return Err(Error::Logs(format!("no event file {wanted} folders below {}", root.display())));
        }
        Ok(Self::sorted(found, names))
    }

    fn sorted(found: Vec<(Vec<String>, Files)>, names: &[String]) -> Self {
        let kinds: Vec<ColumnType> = (0..names.len())
            .map(|index| kind(found.iter().map(|(segments, _)| segments[index].as_str())))
            .collect();
        let mut runs: Vec<(Vec<Value>, Files)> = found
            .into_iter()
            .map(|(segments, files)| {
                let values = segments.into_iter().zip(&kinds).map(|(text, kind)| value(text, *kind));
                (values.collect(), files)
            })
            .collect();
        runs.sort_by(|(a, _), (b, _)| {
            a.iter().zip(b).map(|(a, b)| a.order(b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
        let mut columns: Vec<Column> = names
            .iter()
            .zip(kinds)
            .map(|(name, kind)| Column { name: name.clone(), kind, values: Vec::with_capacity(runs.len()) })
            .collect();
        let mut files = Vec::with_capacity(runs.len());
        for (values, run) in runs {
            columns.iter_mut().zip(values).for_each(|(column, value)| column.values.push(value));
            files.push(run);
        }
        Self { columns, runs: files }
    }
}

fn is_event_file(name: &str) -> bool {
    name.contains("tfevents")
}

/// What all of the texts are.
fn kind<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> ColumnType {
    if texts.clone().all(|text| integer(text).is_some()) {
        ColumnType::Integer
    } else if texts.clone().all(|text| float(text).is_some()) {
        ColumnType::Float
    } else {
        ColumnType::Text
    }
}

fn value(text: String, kind: ColumnType) -> Value {
    match kind {
        ColumnType::Integer => integer(&text).map(Value::Integer),
        ColumnType::Float => float(&text).map(Value::Float),
        ColumnType::Text => None,
    }
    .unwrap_or(Value::Text(text))
}

/// An integer as it is written out again: 007 is a name.
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

/// A number with digits: neither `inf`, which may be a model, nor 007.
fn float(text: &str) -> Option<f64> {
    let digits = text.trim_start_matches('-');
    let begins = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    if begins && !padded { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(texts: &[&str], expect: ColumnType) {
        assert_eq!(kind(texts.iter().copied()), expect, "{texts:?}");
    }

    #[test]
    fn columns_are_what_all_their_segments_are() {
        check(&["1", "-2", "0"], ColumnType::Integer);
        check(&["1", "2.5"], ColumnType::Float);
        check(&["5e-4", "1e-3", "1"], ColumnType::Float);
        check(&["1", "a"], ColumnType::Text);
        check(&["nan", "inf"], ColumnType::Text);
        check(&["007"], ColumnType::Text);
        check(&["1", "+1"], ColumnType::Text);
        check(&["9223372036854775808"], ColumnType::Float);
        check(&["1.5.2"], ColumnType::Text);
    }

    #[test]
    fn numbers_sort_as_numbers() {
        let run = |lr: &str, seed: &str| (vec![lr.to_owned(), seed.to_owned()], Vec::new());
        let found = vec![run("1e-3", "10"), run("5e-4", "9"), run("1e-3", "9")];
        let tree = Tree::sorted(found, &["lr".to_owned(), "seed".to_owned()]);
        assert_eq!(tree.columns[0].values, [5e-4, 1e-3, 1e-3].map(Value::Float));
        assert_eq!(tree.columns[1].values, [9, 9, 10].map(Value::Integer));
    }
}
