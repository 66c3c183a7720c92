//! The folders of a log tree, and what their names mean.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, files::natural_order};

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

/// The event files of a folder, by the numbers in their names: the time, then what a writer counts up.
pub(super) type Files = Vec<PathBuf>;

/// A log tree.
pub(super) struct Tree {
    /// The segments of the paths.
    pub(super) columns: Vec<Column>,
    /// The event files of every run, in the order of the table.
    pub(super) runs: Vec<Files>,
}

impl Tree {
    /// Looks for event files in the folders that are as deep below `root` as there are names; links are followed.
    /// What lies elsewhere, is no event file or cannot be read is left out with a warning.
    pub(super) fn walk(root: &Path, names: &[String], warnings: &mut Vec<String>) -> Result<Self> {
        let mut found: Vec<(Vec<String>, Files)> = Vec::new();
        // By depth: how many event files lie there, and one of them.
        let mut elsewhere: BTreeMap<usize, (usize, PathBuf)> = BTreeMap::new();
        let real = root.canonicalize().map_err(Error::io("read", root))?;
        fs::read_dir(root).map_err(Error::io("read", root))?;
        let mut open = vec![Folder { path: root.to_owned(), segments: Vec::new(), real: vec![real] }];
        while let Some(folder) = open.pop() {
            let mut files = folder.list(&mut open, warnings);
            if files.is_empty() {
                continue;
            }
            files.sort_by(|a, b| natural_order(a, b));
            let (depth, wanted) = (folder.segments.len(), names.len());
            if depth == wanted {
                found.push((folder.segments, files));
                continue;
            }
            let is = if depth < wanted { "shallower" } else { "deeper" };
            warnings.extend(files.iter().map(|path| {
                format!(
                    "{}: left out, {depth} folders below the root is {is} than {wanted} names",
                    path.display()
                )
            }));
            let (count, first) = elsewhere.entry(depth).or_insert_with(|| (0, files[0].clone()));
            *count += files.len();
            // Folders come in the file system's order.
            *first = first.clone().min(files[0].clone());
        }
        if found.is_empty() {
            let most = elsewhere.iter().max_by_key(|(_, (count, _))| *count);
            let hint = most.map_or(String::new(), |(depth, (_, path))| {
                format!("; there are some {depth} folders below, as {}: give as many --names", path.display())
            });
            let wanted = names.len();
            return Err(Error::Logs(format!(
                "no event file {wanted} folders below {}{hint}",
                root.display()
            )));
        }
        let tree = Self::sorted(found, names, warnings);
        warnings.sort();
        Ok(tree)
    }

    fn sorted(found: Vec<(Vec<String>, Files)>, names: &[String], warnings: &mut Vec<String>) -> Self {
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
        let order = |a: &[Value], b: &[Value]| {
            a.iter().zip(b).map(|(a, b)| a.order(b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        // Runs of equal values by folder, whose order is not the file system's.
        runs.sort_by(|(a, files), (b, others)| order(a, b).then_with(|| files.cmp(others)));
        // Names that differ may stand for one number, as 1e-3 and 0.001.
        runs.dedup_by(|(later, files), (earlier, kept)| {
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

/// A folder of the tree that is yet to be looked into.
struct Folder {
    path: PathBuf,
    /// The names from the root down.
    segments: Vec<String>,
    /// Where it and the folders above it really lie: a link may lead elsewhere.
    real: Vec<PathBuf>,
}

impl Folder {
    /// Its event files; the folders in it are added to `open`.
    fn list(&self, open: &mut Vec<Self>, warnings: &mut Vec<String>) -> Files {
        let mut files = Vec::new();
        let unreadable =
            |path: &Path, error| format!("{}: left out, it cannot be read: {error}", path.display());
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                warnings.push(unreadable(&self.path, error));
                return files;
            }
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.sort_in(&entry, &mut files, open).unwrap_or_else(|why| {
                    warnings.push(format!("{}: left out, {why}", entry.path().display()));
                }),
                Err(error) => warnings.push(unreadable(&self.path, error)),
            }
        }
        files
    }

    /// Puts an entry where it belongs; else why it is left out.
    fn sort_in(&self, entry: &DirEntry, files: &mut Files, open: &mut Vec<Self>) -> Result<(), String> {
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| "its name is no text")?;
        let cannot = |error: io::Error| format!("it cannot be read: {error}");
        let what = fs::metadata(&path).map_err(cannot)?;
        if what.is_dir() {
            let is_link = entry.file_type().map_err(cannot)?.is_symlink();
            let parent = self.real.last().unwrap_or(&self.path);
            let real = if is_link { path.canonicalize().map_err(cannot)? } else { parent.join(&name) };
            if is_link && self.real.iter().any(|above| above.starts_with(&real)) {
                return Err("it leads back to a folder above it".to_owned());
            }
            let segments = [&self.segments[..], &[name]].concat();
            open.push(Self { path, segments, real: [&self.real[..], &[real]].concat() });
        } else if !is_event_file(&name) {
            return Err("no event file".to_owned());
        } else if !what.is_file() {
            return Err("no regular file".to_owned());
        } else {
            files.push(path);
        }
        Ok(())
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

/// A number with digits: neither `inf`, which may be a model, nor 007, nor an integer that would become another.
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
        let run = |lr: &str, seed: &str| (vec![lr.to_owned(), seed.to_owned()], Vec::new());
        let found = vec![run("1e-3", "10"), run("5e-4", "9"), run("1e-3", "9")];
        let mut warnings = Vec::new();
        let tree = Tree::sorted(found, &["lr".to_owned(), "seed".to_owned()], &mut warnings);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(tree.columns[0].values, [5e-4, 1e-3, 1e-3].map(Value::Float));
        assert_eq!(tree.columns[1].values, [9, 9, 10].map(Value::Integer));
    }
}
