//! The runs of a log tree, and the columns that distinguish them.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    LogsOptions, hparams,
    walk::{Files, Found, walk},
};
use crate::{Error, Result, files::natural_order};

/// The column of a path's part below its last name: the sub-runs of `add_scalars` and `add_hparams`.
pub(super) const SUB_RUN: &str = "sub_run";

/// Kind of the values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// 64-bit integers.
    Integer,
    /// 64-bit floats.
    Float,
    /// Text, written as a dictionary.
    Text,
}

/// A column with one value per run.
#[derive(Debug)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// Kind of its values.
    pub(super) kind: ColumnType,
    /// One value per run, in the order of the runs; absent if a path is shorter, or a hyper-parameter is not
    /// set.
    pub(super) values: Vec<Option<Value>>,
}

/// A value of a column.
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

/// The order of two runs: a run comes before its sub-runs.
fn order(a: &[Option<Value>], b: &[Option<Value>]) -> Ordering {
    let order = |(a, b): (&Option<Value>, &Option<Value>)| match (a, b) {
        (Some(a), Some(b)) => a.order(b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    a.iter().zip(b).map(order).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// A run before its columns have types.
#[derive(Debug)]
pub(super) struct Run {
    /// The names of the folders from the root down.
    pub(super) segments: Vec<String>,
    /// One hyper-parameter for each such column.
    pub(super) hparams: Vec<Option<hparams::Cell>>,
    /// Its event files.
    pub(super) files: Files,
}

/// A log tree.
#[derive(Debug)]
pub(super) struct Tree {
    /// The columns before those of the values.
    pub(super) columns: Vec<Column>,
    /// The event files of every run, in the order of the table.
    pub(super) runs: Vec<Files>,
}

impl Tree {
    /// The runs below `root`. A path with fewer segments than there are names leaves the last columns empty; the rest of a
    /// longer one is in the column [`SUB_RUN`].
    pub(super) fn read(root: &Path, options: &LogsOptions, warnings: &mut Vec<String>) -> Result<Self> {
        let found = walk(root, warnings)?;
        check_depth(root, &found, options.names.len())?;
        let (hparams, runs) = hparams::tell_apart(found, options, warnings)?;
        let tree = Self::sorted(runs, &options.names, hparams, warnings)?;
        warnings.sort();
        Ok(tree)
    }

    fn sorted(
        runs: Vec<Run>,
        names: &[String],
        hparams: Vec<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let depth = names.len();
        let mut columns: Vec<Column> = Vec::new();
        let mut add =
            |name: &str, kind| columns.push(Column { name: name.to_owned(), kind, values: Vec::new() });
        for (index, name) in names.iter().enumerate() {
            add(name, kind(runs.iter().filter_map(|run| run.segments.get(index)).map(String::as_str)));
        }
        let has_sub_runs = runs.iter().any(|run| run.segments.len() > depth);
        if has_sub_runs {
            add(SUB_RUN, ColumnType::Text);
        }
        for (index, name) in hparams.iter().enumerate() {
            add(name, hparams::kind(runs.iter().filter_map(|run| run.hparams[index].as_ref())));
        }
        super::check_names(columns.iter().map(|column| column.name.as_str()))?;
        let kinds: Vec<ColumnType> = columns.iter().map(|column| column.kind).collect();
        let mut rows: Vec<(Vec<Option<Value>>, Files)> = runs
            .into_iter()
            .map(|run| {
                let mut rest = run.segments;
                let sub_run = rest.split_off(depth.min(rest.len())).join("/");
                let mut texts: Vec<Option<String>> = rest.into_iter().map(Some).collect();
                texts.resize(depth, None);
                if has_sub_runs {
                    texts.push((!sub_run.is_empty()).then_some(sub_run));
                }
                let path = texts.into_iter().zip(&kinds).map(|(text, kind)| Some(value(text?, *kind)));
                let hparams = run.hparams.into_iter().zip(&kinds[kinds.len() - hparams.len()..]);
                let hparams = hparams.map(|(cell, kind)| Some(cell?.value(*kind)));
                (path.chain(hparams).collect(), run.files)
            })
            .collect();
        // Runs of equal values by folder, whose order must not depend on the file system.
        rows.sort_by(|(a, files), (b, others)| order(a, b).then_with(|| files.cmp(others)));
        // Different names may stand for one number, as 1e-3 and 0.001.
        rows.dedup_by(|(later, files), (earlier, kept)| {
            let same = order(later, earlier).is_eq();
            if same {
                let folder = |files: &Files| files.first().and_then(|file| file.parent()).map(Path::to_owned);
                let [one, other] = [&*kept, &*files].map(|files| folder(files).unwrap_or_default());
                let (one, other) = (one.display(), other.display());
                warnings.push(format!("{one} and {other}: the same run by their numbers, read as one"));
                kept.append(files);
                kept.sort_by(|a, b| natural_order(a, b));
            }
            same
        });
        let mut files = Vec::with_capacity(rows.len());
        for (values, run) in rows {
            columns.iter_mut().zip(values).for_each(|(column, value)| column.values.push(value));
            files.push(run);
        }
        Ok(Self { columns, runs: files })
    }
}

/// Checks that some event file is as deep as there are names: otherwise the names are those of another tree.
fn check_depth(root: &Path, found: &[Found], wanted: usize) -> Result<()> {
    if found.iter().any(|folder| folder.segments.len() == wanted) {
        return Ok(());
    }
    // By depth: the number of event files, and the first of them.
    let mut depths: BTreeMap<usize, (usize, &PathBuf)> = BTreeMap::new();
    for folder in found {
        let (count, first) = depths.entry(folder.segments.len()).or_insert((0, &folder.files[0]));
        *count += folder.files.len();
        // Folders come in the file system's order.
        *first = (*first).min(&folder.files[0]);
    }
    let most = depths.iter().max_by_key(|(_, (count, _))| *count);
    let hint = most.map_or(String::new(), |(depth, (_, path))| match depth {
        0 => "; they are in it: give the folder above, and --names run".to_owned(),
        _ => {
            format!(
                "; most are {depth} folders below it, as {}: give {depth} names with --names",
                path.display()
            )
        }
    });
    Err(Error::Logs(format!("no event file {wanted} folders below {}{hint}", root.display())))
}

/// The kind of all of the texts.
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

/// An integer in canonical form: 007 is a name.
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

/// A number with digits: not `inf`, which may be a model, nor 007, nor an integer that would become another.
fn float(text: &str) -> Option<f64> {
    let digits = text.trim_start_matches('-');
    let begins = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    let is_integer = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| begins && !padded);
    number.filter(|number: &f64| !is_integer || format!("{number:.0}") == text)
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
        check(&["18446744073709551615"], ColumnType::Text);
        check(&["9223372036854775807", "0.5"], ColumnType::Text);
        check(&["1.5.2"], ColumnType::Text);
    }

    #[test]
    fn numbers_sort_as_numbers() {
        let run = |lr: &str, seed: &str| Run {
            segments: vec![lr.to_owned(), seed.to_owned()],
            hparams: Vec::new(),
            files: Vec::new(),
        };
        let runs = vec![run("1e-3", "10"), run("5e-4", "9"), run("1e-3", "9")];
        let mut warnings = Vec::new();
        let names = ["lr".to_owned(), "seed".to_owned()];
        let tree = Tree::sorted(runs, &names, Vec::new(), &mut warnings).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(tree.columns[0].values, [5e-4, 1e-3, 1e-3].map(|lr| Some(Value::Float(lr))));
        assert_eq!(tree.columns[1].values, [9, 9, 10].map(|seed| Some(Value::Integer(seed))));
    }
}
