//! The user's own tasks: a train and a dev file, tab-separated or JSON lines.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, Result};
use crate::glue::dataset::{Example, GlueDataset, Label};
use crate::glue::labels::Labels;
use crate::glue::task::{LabelSpace, TaskSpec};
use crate::io::{is_json_lines, read_text, rows};

/// A row whose label is not yet interpreted.
struct RawRow {
    row: usize,
    text: String,
    pair: Option<String>,
    label: RawLabel,
}

/// A label as it appears in a file.
enum RawLabel {
    /// `label`: one.
    One(String),
    /// `labels`: names.
    Several(Vec<String>),
    /// `labels`: numbers, which are classes, or 0 or 1 for each class.
    Numbers(Vec<f64>),
}

/// A file whose labels are not yet interpreted.
struct RawRows<'a> {
    path: &'a Path,
    rows: Vec<RawRow>,
    has_pair: bool,
}

/// Reads a task from two of the user's own files.
///
/// - `*.jsonl`: one object per line with `text`, optionally `text_pair`, and `label` (a string, a number or a boolean) or
///   `labels` (a list of names, of class numbers, or of 0 and 1 for every class);
/// - any other name: tab-separated, no quoting, with a header that names `text`, optionally `text_pair`, and `label`, or
///   `labels` separated by commas.
///
/// The labels are those of the train file. If all of them are numbers and one is written with a point or an exponent
/// (`2.0`), the task is a regression; with `labels` a row has any number of them; otherwise every distinct label is a
/// class. Integers are in numeric order and names in byte order. Rows of 0 and 1 for every class have the names of `known`, a
/// model's labels, if there are as many. Metrics: [`LabelSpace::metrics`].
///
/// # Errors
/// A missing file or column, a row without text or label, a label of the dev file that the train file lacks,
/// fewer than two classes, a text pair in only one of the files, bytes that are not UTF-8. Each error names
/// file and row.
pub fn read_custom(
    name: &str,
    train: &Path,
    dev: &Path,
    known: &[String],
) -> Result<(GlueDataset, GlueDataset)> {
    let (train, dev) = (RawRows::read(train)?, RawRows::read(dev)?);
    if train.has_pair != dev.has_pair {
        let (with, without) = if train.has_pair { (train.path, dev.path) } else { (dev.path, train.path) };
        return Err(DataError::MissingColumn {
            path: without.to_path_buf(),
            column: "text_pair".to_owned(),
            found: "text, label".to_owned(),
            remedy: format!("'{}' has one, and both files must agree", with.display()),
        });
    }
    let space = label_space(&train, known)?;
    let width = train.indicator_width();
    let same = |label: &str| Ok(space.names().iter().position(|name| name == label));
    let expected = "a label of the train file";
    let set = |file: RawRows<'_>| file.resolve(name, &space, width, same, expected);
    Ok((set(train)?, set(dev)?))
}

/// Reads a labelled file for a model whose labels are `space`.
///
/// Names are matched exactly, or else ignoring case and which of `-`, `_` and a space is written; if the model's are `LABEL_0`, `LABEL_1`, …,
/// the file's may be numbers.
///
/// # Errors
/// As [`read_custom`]; labels that the model does not have, or has several times.
pub fn read_labelled(name: &str, path: &Path, space: &LabelSpace) -> Result<GlueDataset> {
    let file = RawRows::read(path)?;
    let width = file.indicator_width().filter(|width| *width == space.width());
    let labels = Labels::new(space.names());
    file.resolve(name, space, width, |label| labels.place(label), "a label of the model")
}

impl<'a> RawRows<'a> {
    /// Reads a file in either format.
    fn read(path: &'a Path) -> Result<Self> {
        if !lowrank_spec::is_present(path) {
            return Err(DataError::NotFound {
                what: "data file".to_owned(),
                path: path.to_path_buf(),
                remedy: "give a .tsv or .jsonl file with text, optionally text_pair, and label".to_owned(),
            });
        }
        let text = read_text(path)?;
        let (rows, has_pair) =
            if is_json_lines(path, &text) { read_jsonl(path, &text)? } else { read_tsv(path, &text)? };
        let Some(first) = rows.first() else {
            let remedy = "give at least one row of text and label".to_owned();
            return Err(DataError::Empty { path: path.to_path_buf(), remedy });
        };
        let is_one = |row: &RawRow| matches!(row.label, RawLabel::One(_));
        let file = Self { path, has_pair, rows: Vec::new() };
        if let Some(other) = rows.iter().find(|row| is_one(row) != is_one(first)) {
            let message = "some rows have 'label' and some 'labels'; give one of them in all".to_owned();
            return Err(file.bad(other.row, message));
        }
        let missing = |row: &&RawRow| match &row.label {
            RawLabel::One(label) => is_missing(label),
            RawLabel::Several(labels) => labels.iter().any(|label| is_missing(label)),
            RawLabel::Numbers(_) => false,
        };
        if let Some(missing) = rows.iter().find(missing) {
            let label = if let RawLabel::One(label) = &missing.label { label.as_str() } else { "" };
            let message = format!("the label is missing ('{label}'); fill it in or remove the row");
            return Err(file.bad(missing.row, message));
        }
        Ok(Self { rows, ..file })
    }

    fn bad(&self, row: usize, message: String) -> DataError {
        DataError::BadRow { path: self.path.to_path_buf(), row, message }
    }

    /// The number of classes, if every row has 0 or 1 for each.
    fn indicator_width(&self) -> Option<usize> {
        let rows = self.rows.iter().map(|row| match &row.label {
            RawLabel::Numbers(numbers) if numbers.iter().all(|n| [0.0, 1.0].contains(n)) => {
                Some(numbers.len())
            }
            _ => None,
        });
        let widths = rows.collect::<Option<Vec<_>>>()?;
        let width = *widths.first()?;
        (width >= 2 && widths.iter().all(|other| *other == width)).then_some(width)
    }

    /// Turns labels into class indices or scores; `class` maps a label to its class.
    fn resolve(
        self,
        name: &str,
        space: &LabelSpace,
        indicators: Option<usize>,
        class: impl Fn(&str) -> std::result::Result<Option<usize>, String>,
        expected: &str,
    ) -> Result<GlueDataset> {
        let names = space.names();
        let unknown = |row: usize, label: &str, expected: String| DataError::UnknownLabel {
            path: self.path.to_path_buf(),
            row,
            label: label.to_owned(),
            expected,
        };
        let one = |row: usize, label: &str| match class(label).map_err(|message| self.bad(row, message))? {
            Some(class) => Ok(class as u32),
            None => Err(unknown(row, label, format!("{expected}: {}", names.join(", ")))),
        };
        let resolve = |raw: &RawRow| -> Result<Label> {
            let label = match (space, &raw.label) {
                (LabelSpace::Score, RawLabel::One(label)) => match label.parse::<f32>() {
                    Ok(score) if score.is_finite() => Label::Score(score),
                    _ => return Err(unknown(raw.row, label, "a number, as in the train file".to_owned())),
                },
                (LabelSpace::Classes(_), RawLabel::One(label)) => Label::Class(one(raw.row, label)?),
                (LabelSpace::Sets(_), label) => {
                    let named = |labels: &[String]| -> Result<Vec<u32>> {
                        labels.iter().map(|label| one(raw.row, label)).collect()
                    };
                    let mut set = match (label, indicators) {
                        (RawLabel::One(_), _) => {
                            let message = "has 'label' in a multi-label file; rename the column to 'labels'";
                            return Err(self.bad(raw.row, message.into()));
                        }
                        (RawLabel::Several(labels), _) => named(labels)?,
                        (RawLabel::Numbers(numbers), None) => named(&self.names_of(raw.row, numbers)?)?,
                        (RawLabel::Numbers(numbers), Some(width)) => {
                            self.indicated(raw.row, numbers, width)?
                        }
                    };
                    set.sort_unstable();
                    set.dedup();
                    Label::Set(set)
                }
                (LabelSpace::Spans, _) => {
                    let message = "not a question; expected question, context and answers".to_owned();
                    return Err(self.bad(raw.row, message));
                }
                (LabelSpace::Tags(_), _) => {
                    let message = "has no tagged words; expected a tag for every word".to_owned();
                    return Err(self.bad(raw.row, message));
                }
                (_, _) => {
                    let message =
                        "has 'labels' in a single-label file; rename the column to 'label'".to_owned();
                    return Err(self.bad(raw.row, message));
                }
            };
            Ok(label)
        };
        let examples: Result<Vec<Example>> = self
            .rows
            .iter()
            .map(|raw| {
                Ok(Example { text: raw.text.clone(), pair: raw.pair.clone(), label: Some(resolve(raw)?) })
            })
            .collect();
        let spec = TaskSpec {
            name: name.to_owned(),
            task: None,
            labels: space.clone(),
            is_pair: self.has_pair,
            metrics: space.metrics(),
        };
        Ok(GlueDataset::from_examples(spec, examples?))
    }

    /// The classes of a row that has 0 or 1 for each, whatever their names.
    fn indicated(&self, row: usize, numbers: &[f64], width: usize) -> Result<Vec<u32>> {
        if numbers.len() != width || numbers.iter().any(|n| ![0.0, 1.0].contains(n)) {
            return Err(self.bad(row, format!("'labels' is not 0 or 1 for each of the {width} classes")));
        }
        Ok((0..).zip(numbers).filter(|(_, n)| **n == 1.0).map(|(class, _)| class).collect())
    }

    /// The names of the classes given by a list of numbers.
    fn names_of(&self, row: usize, numbers: &[f64]) -> Result<Vec<String>> {
        let name = |n: &f64| {
            (n.fract() == 0.0 && *n >= 0.0 && *n < f64::from(u32::MAX)).then(|| (*n as u32).to_string())
        };
        let names: Option<Vec<String>> = numbers.iter().map(name).collect();
        let distinct: Option<BTreeSet<&String>> = names.as_ref().map(|names| names.iter().collect());
        match names {
            Some(names) if distinct.is_some_and(|set| set.len() == numbers.len()) => Ok(names),
            _ => Err(self.bad(
                row,
                "'labels' holds numbers that are neither distinct classes nor, in every row, 0 or 1 for each class"
                    .to_owned(),
            )),
        }
    }
}

/// Whether a label is missing: an empty cell, or `nan` or `<NA>` as written by pandas.
pub(super) fn is_missing(label: &str) -> bool {
    ["", "nan", "<na>"].iter().any(|missing| label.trim().eq_ignore_ascii_case(missing))
}

fn read_tsv(path: &Path, text: &str) -> Result<(Vec<RawRow>, bool)> {
    let header = text.lines().next().unwrap_or("");
    let names: Vec<&str> = header.split('\t').map(str::trim).collect();
    let bad = |row: usize, message: String| DataError::BadRow { path: path.to_path_buf(), row, message };
    let is_taken = |(at, name): &(usize, &&str)| !name.is_empty() && names[..*at].contains(name);
    if let Some((at, name)) = names.iter().enumerate().find(is_taken) {
        return Err(bad(1, format!("column {} has the name '{name}' of another; rename one", at + 1)));
    }
    let find = |column: &str| names.iter().position(|name| *name == column);
    let need = |column: &str| {
        find(column).ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            column: column.to_owned(),
            found: names.join(", "),
            remedy: "the first line names the tab-separated columns text, text_pair (optional), and label or labels"
                .to_owned(),
        })
    };
    let several = find("labels").filter(|_| find("label").is_none());
    let text_column = need("text")?;
    let (label_column, pair_column) = (several.map_or_else(|| need("label"), Ok)?, find("text_pair"));
    let needed = 1 + text_column.max(label_column).max(pair_column.unwrap_or(0));
    let mut out = Vec::new();
    for (row, line) in rows(text).skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        if cells.len() < needed {
            return Err(DataError::TooFewColumns {
                path: path.to_path_buf(),
                row,
                expected: needed,
                got: cells.len(),
            });
        }
        if cells.len() > names.len() {
            let message = format!(
                "{} columns, and the first line names {}; replace tabs in texts by spaces",
                cells.len(),
                names.len()
            );
            return Err(bad(row, message));
        }
        let cell = cells[label_column].trim();
        let label = match several {
            None => RawLabel::One(cell.to_owned()),
            // An empty cell is a row without labels.
            Some(_) if cell.is_empty() => RawLabel::Several(Vec::new()),
            Some(_) => RawLabel::Several(cell.split(',').map(|label| label.trim().to_owned()).collect()),
        };
        out.push(RawRow {
            row,
            text: cells[text_column].to_owned(),
            pair: pair_column.map(|c| cells[c].to_owned()),
            label,
        });
    }
    Ok((out, pair_column.is_some()))
}

fn read_jsonl(path: &Path, text: &str) -> Result<(Vec<RawRow>, bool)> {
    let bad = |row: usize, message: String| DataError::BadRow { path: path.to_path_buf(), row, message };
    let mut out: Vec<RawRow> = Vec::new();
    for (row, line) in rows(text).filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| bad(row, format!("not a JSON object ({e}); write one object per line")))?;
        let string = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let text = string("text")
            .ok_or_else(|| bad(row, "no string 'text'; each line needs text and label".to_owned()))?;
        let label = json_label(&value).map_err(|message| bad(row, message))?;
        let pair = match value.get("text_pair") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s.clone()),
            Some(_) => return Err(bad(row, "'text_pair' is not a string".to_owned())),
        };
        if out.first().is_some_and(|first| first.pair.is_some() != pair.is_some()) {
            let message = "some rows have 'text_pair' and some have not; give it in all or none".to_owned();
            return Err(bad(row, message));
        }
        out.push(RawRow { row, text, pair, label });
    }
    let has_pair = out.first().is_some_and(|first| first.pair.is_some());
    Ok((out, has_pair))
}

/// `label`, or `labels`: a list under either name.
fn json_label(row: &Value) -> Result<RawLabel, String> {
    let missing = "no 'label' (a string or a number), nor 'labels' (a list)";
    let label = [row.get("label"), row.get("labels")].into_iter().flatten().find(|value| !value.is_null());
    match label.ok_or(missing)? {
        Value::String(name) => Ok(RawLabel::One(name.clone())),
        value @ (Value::Number(_) | Value::Bool(_)) => Ok(RawLabel::One(value.to_string())),
        Value::Array(list) => {
            let number = |value: &Value| match value {
                Value::Number(number) => number.as_f64(),
                Value::Bool(is_set) => Some(f64::from(u8::from(*is_set))),
                _ => None,
            };
            let names: Option<Vec<String>> =
                list.iter().map(|value| value.as_str().map(str::to_owned)).collect();
            let numbers: Option<Vec<f64>> = list.iter().map(number).collect();
            match (names, numbers) {
                (Some(names), _) => Ok(RawLabel::Several(names)),
                (None, Some(numbers)) => Ok(RawLabel::Numbers(numbers)),
                (None, None) => Err("'labels' is neither a list of names nor a list of numbers".into()),
            }
        }
        _ => Err(missing.into()),
    }
}

/// Determines the kind of the train file's labels.
fn label_space(file: &RawRows<'_>, known: &[String]) -> Result<LabelSpace> {
    let one = |row: &RawRow| if let RawLabel::One(label) = &row.label { Some(label.clone()) } else { None };
    let Some(labels) = file.rows.iter().map(one).collect::<Option<Vec<String>>>() else {
        return Ok(LabelSpace::Sets(set_names(file, known)?));
    };
    let distinct: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
    if let Some(integers) = in_numeric_order(&distinct) {
        return classes(file, integers);
    }
    let score = |label: &str| label.parse::<f32>().ok().filter(|score| score.is_finite());
    if distinct.iter().all(|label| score(label).is_some()) {
        return Ok(LabelSpace::Score);
    }
    // One score with a decimal point makes a regression; a word among scores is a missing score, not a class.
    let decimal = distinct.iter().find(|label| score(label).is_some() && label.parse::<i64>().is_err());
    if let Some(decimal) = decimal
        && let Some((row, word)) = file.rows.iter().zip(&labels).find(|(_, label)| score(label).is_none())
    {
        return Err(file.bad(
            row.row,
            format!(
                "the label '{word}' is not a number, and others are scores ('{decimal}'); fill it in or remove the row"
            ),
        ));
    }
    classes(file, distinct.into_iter().map(str::to_owned).collect())
}

/// Labels that are all integers, in their order.
pub(super) fn in_numeric_order(labels: &BTreeSet<&str>) -> Option<Vec<String>> {
    let integers =
        labels.iter().map(|s| s.parse::<i64>().map(|i| (i, *s))).collect::<Result<BTreeSet<_>, _>>();
    Some(integers.ok()?.into_iter().map(|(_, s)| s.to_owned()).collect())
}

/// The labels of rows with any number of them.
fn set_names(file: &RawRows<'_>, known: &[String]) -> Result<Vec<String>> {
    let width = file.indicator_width();
    if let Some(width) = width {
        if known.len() == width {
            return Ok(known.to_vec());
        }
        return Ok((0..width).map(|class| class.to_string()).collect());
    }
    let mut all = BTreeSet::new();
    for row in &file.rows {
        match &row.label {
            RawLabel::Several(names) => all.extend(names.iter().cloned()),
            RawLabel::Numbers(numbers) => all.extend(file.names_of(row.row, numbers)?),
            RawLabel::One(_) => {}
        }
    }
    let distinct: BTreeSet<&str> = all.iter().map(String::as_str).collect();
    if distinct.is_empty() {
        return Err(file.bad(file.rows[0].row, "no row has a label".to_owned()));
    }
    Ok(in_numeric_order(&distinct).unwrap_or_else(|| all.into_iter().collect()))
}

fn classes(file: &RawRows<'_>, names: Vec<String>) -> Result<LabelSpace> {
    if names.len() < 2 {
        let message = format!("the only label is '{}'; a task needs two or more", names.join(""));
        return Err(file.bad(file.rows.first().map_or(1, |row| row.row), message));
    }
    Ok(LabelSpace::Classes(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(train: (&str, &str), dev: (&str, &str)) -> Result<(GlueDataset, GlueDataset)> {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join(train.0), dir.path().join(dev.0));
        std::fs::write(&a, train.1).unwrap();
        std::fs::write(&b, dev.1).unwrap();
        read_custom("own", &a, &b, &[])
    }

    fn labels(set: &GlueDataset) -> Vec<Label> {
        set.examples().iter().map(|e| e.label.clone().unwrap()).collect()
    }

    #[test]
    fn tsv_with_named_classes_and_pairs() {
        let (train, dev) = files(
            ("a.tsv", "label\ttext\ttext_pair\nyes\tone\t\"two\nno\t\tfour\r\n"),
            ("b.tsv", "text\ttext_pair\tlabel\nx\ty\tyes\n"),
        )
        .unwrap();
        assert_eq!(train.spec().labels, LabelSpace::Classes(vec!["no".into(), "yes".into()]));
        assert_eq!(labels(&train), [Label::Class(1), Label::Class(0)]);
        assert_eq!(train.examples()[0].pair.as_deref(), Some("\"two"));
        assert_eq!(train.examples()[1].text, "");
        assert_eq!(labels(&dev), [Label::Class(1)]);
        assert!(train.spec().is_pair);
    }

    #[test]
    fn integers_are_classes_in_numeric_order_and_decimals_are_scores() {
        let (train, _) =
            files(("a.tsv", "text\tlabel\na\t10\nb\t9\n"), ("b.tsv", "text\tlabel\na\t9\n")).unwrap();
        assert_eq!(train.spec().labels, LabelSpace::Classes(vec!["9".into(), "10".into()]));
        let (train, dev) = files(
            ("a.jsonl", "{\"text\":\"a\",\"label\":1.5}\n{\"text\":\"b\",\"label\":-2}\n"),
            ("b.tsv", "text\tlabel\na\t3\n"),
        )
        .unwrap();
        assert_eq!(train.spec().labels, LabelSpace::Score);
        assert_eq!(labels(&train), [Label::Score(1.5), Label::Score(-2.0)]);
        assert_eq!(labels(&dev), [Label::Score(3.0)]);
    }

    /// JSON lines in a `.json` are recognized by content; empty lines are skipped.
    #[test]
    fn lines_of_objects_under_any_name() {
        let lines = "\n{\"text\":\"a\",\"label\":1}\n\n{\"text\":\"b\",\"label\":0}\n";
        let (train, dev) = files(("a.json", lines), ("b.ndjson", lines)).unwrap();
        assert_eq!(labels(&train), [Label::Class(1), Label::Class(0)]);
        assert_eq!(labels(&dev), labels(&train));
    }

    #[test]
    fn rows_of_several_labels() {
        let set = |classes: &[u32]| Label::Set(classes.to_vec());
        let named = |names: &[&str]| LabelSpace::Sets(names.iter().map(|s| (*s).to_owned()).collect());
        let (train, dev) = files(
            ("a.jsonl", "{\"text\":\"a\",\"labels\":[\"sea\",\"joy\"]}\n{\"text\":\"b\",\"labels\":[]}\n"),
            ("b.tsv", "text\tlabels\nx\tjoy\ny\t\nz\tsea, joy\n"),
        )
        .unwrap();
        assert_eq!(train.spec().labels, named(&["joy", "sea"]));
        assert_eq!(train.spec().metrics[0].name(), "f1_micro");
        assert_eq!(labels(&train), [set(&[0, 1]), set(&[])]);
        assert_eq!(labels(&dev), [set(&[0]), set(&[]), set(&[0, 1])]);
        // Numbers: classes, or 0 and 1 for each of them.
        let (train, _) = files(
            ("a.jsonl", "{\"text\":\"a\",\"labels\":[10]}\n{\"text\":\"b\",\"labels\":[9,10]}\n"),
            ("b.jsonl", "{\"text\":\"a\",\"labels\":[9]}\n"),
        )
        .unwrap();
        assert_eq!(train.spec().labels, named(&["9", "10"]));
        assert_eq!(labels(&train), [set(&[1]), set(&[0, 1])]);
        let (train, dev) = files(
            ("a.jsonl", "{\"text\":\"a\",\"labels\":[1.0,0,0]}\n{\"text\":\"b\",\"label\":[0,1,1]}\n"),
            ("b.jsonl", "{\"text\":\"a\",\"labels\":[true,false,true]}\n"),
        )
        .unwrap();
        assert_eq!(train.spec().labels, named(&["0", "1", "2"]));
        assert_eq!((labels(&train), labels(&dev)), (vec![set(&[0]), set(&[1, 2])], vec![set(&[0, 2])]));
    }

    /// The classes of 0 and 1 are those of a model's outputs, in their order.
    #[test]
    fn indicators_are_by_position() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\":\"a\",\"labels\":[0,1,0]}\n{\"text\":\"b\",\"labels\":[1.0,0,1]}\n")
            .unwrap();
        for names in [["joy", "rain", "sea"], ["1", "2", "3"], ["2", "1", "0"]] {
            let names = names.map(str::to_owned).to_vec();
            let set = read_labelled("a", &path, &LabelSpace::Sets(names)).unwrap();
            assert_eq!(labels(&set), [Label::Set(vec![1]), Label::Set(vec![0, 2])]);
            let (train, _) = read_custom("a", &path, &path, set.spec().labels.names()).unwrap();
            assert_eq!((&train.spec().labels, labels(&train)), (&set.spec().labels, labels(&set)));
            let (other, _) = read_custom("a", &path, &path, &["joy".into()]).unwrap();
            assert_eq!(other.spec().labels.names(), ["0", "1", "2"]);
        }
    }

    #[test]
    fn labels_of_a_model_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tsv");
        let read = |text: &str, names: &[&str]| {
            std::fs::write(&path, text).unwrap();
            let names = names.iter().map(|s| (*s).to_owned()).collect();
            read_labelled("a", &path, &LabelSpace::Classes(names)).map(|set| labels(&set))
        };
        let text = "text\tlabel\na\tnot-equal\nb\tequal\n";
        assert_eq!(read(text, &["Equal", "NOT_EQUAL"]).unwrap(), [Label::Class(1), Label::Class(0)]);
        let text = "text\tlabel\na\t1\n";
        assert_eq!(read(text, &["LABEL_0", "LABEL_1"]).unwrap(), [Label::Class(1)]);
        let error = read(text, &["no", "yes"]).unwrap_err().to_string();
        assert!(
            error.contains("a.tsv:2: unknown label '1'; expected a label of the model: no, yes"),
            "{error}"
        );
        let error = read("text\tlabels\na\tno\n", &["no", "yes"]).unwrap_err().to_string();
        assert!(error.contains("a.tsv:2: has 'labels' in a single-label file"), "{error}");
    }

    #[track_caller]
    fn fails(train: (&str, &str), dev: (&str, &str), part: &str) {
        let error = files(train, dev).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn bad_input_is_named() {
        let good = ("b.tsv", "text\tlabel\na\tno\nb\tyes\n");
        fails(good, ("d.tsv", "text\tlabel\na\tmaybe\n"), "d.tsv:2: unknown label 'maybe'");
        fails(good, ("d.tsv", "text\tlabel\na\n"), "d.tsv:2: 1 tab-separated column(s), at least 2");
        fails(("a.tsv", "sentence\tlabel\na\t1\n"), good, "no column 'text' in the header (sentence, label)");
        fails(("a.tsv", "text\tlabel\n"), good, "holds no rows");
        fails(("a.tsv", "text\tlabel\na\tno\n"), good, "the only label is 'no'");
        fails(("a.jsonl", "{\"text\":\"a\",\"label\":null}\n"), good, "a.jsonl:1: no 'label'");
        fails(("a.tsv", "text\tlabel\na\tno\nb\t\n"), good, "a.tsv:3: the label is missing ('')");
        fails(good, ("d.tsv", "text\tlabel\na\tno\nb\tNaN\n"), "d.tsv:3: the label is missing ('NaN')");
        fails(("a.jsonl", "{\"text\":\"a\",\"label\":\" \"}\n"), good, "a.jsonl:1: the label is missing");
        fails(
            ("a.tsv", "text\tlabel\na\t1.5\nb\t2\nc\tN/A\n"),
            good,
            "a.tsv:4: the label 'N/A' is not a number, and others are scores ('1.5')",
        );
        fails(("a.jsonl", "{\"text\":\"a\",\n"), good, "a.jsonl:1: not a JSON object");
        let both = "{\"text\":\"a\",\"label\":\"x\"}\n{\"text\":\"a\",\"labels\":[\"x\"]}\n";
        fails(("a.jsonl", both), good, "a.jsonl:2: some rows have 'label' and some 'labels'");
        let several = ("a.tsv", "text\tlabels\na\tx,y\n");
        fails(several, good, "b.tsv:2: has 'label' in a multi-label file");
        fails(several, ("d.tsv", "text\tlabels\na\tx,z\n"), "d.tsv:2: unknown label 'z'");
        fails(
            ("a.tsv", "text\tlabels\na\tx,,y\n"),
            ("d.tsv", "text\tlabels\na\tx\n"),
            "a.tsv:2: the label is missing",
        );
        let twice = "{\"text\":\"a\",\"labels\":[2,2]}\n";
        fails(("a.jsonl", twice), several, "a.jsonl:1: 'labels' holds numbers that are neither");
        let nulls = "{\"text\":\"a\",\"labels\":null}\n";
        fails(("a.jsonl", nulls), several, "a.jsonl:1: no 'label'");
        fails(good, ("d.tsv", "text\ttext_pair\tlabel\na\tb\tno\n"), "b.tsv:1: no column 'text_pair'");
        let wide = ("d.tsv", "text\tlabel\na good\tfilm\tno\n");
        fails(good, wide, "d.tsv:2: 3 columns, and the first line names 2");
        fails(good, ("d.tsv", "text\tlabel\tlabel\na\tno\tno\n"), "d.tsv:1: column 3 has the name 'label'");
    }
}
