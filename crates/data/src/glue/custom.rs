//! Tasks of the user's own: a train and a dev file, tab-separated or JSON lines.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, Result};
use crate::glue::dataset::{Example, GlueDataset, Label};
use crate::glue::task::{LabelSpace, Metric, TaskSpec};
use crate::io::{read_text, rows};

/// A row before its label has a meaning.
struct RawRow {
    row: usize,
    text: String,
    pair: Option<String>,
    label: String,
}

/// Reads a task from two files of the user's own.
///
/// - `*.jsonl`: one object per line with `text`, optionally `text_pair`, and `label` (a string, a number or a boolean);
/// - any other name: tab-separated, no quoting, with a header that names `text`, optionally `text_pair`, and `label`.
///
/// The labels are those of the train file. If all of them are numbers and one is written with a point or an exponent
/// (`2.0`), the task is a regression; otherwise every distinct label is a class, integers in numeric order and
/// names in byte order. Metrics: accuracy (with F1 for two classes), or Pearson and Spearman.
///
/// # Errors
/// A missing file or column, a row without text or label, a label of the dev file that the train file lacks, fewer
/// than two classes, a text pair in only one of the files, bytes that are not UTF-8. Each names file and row.
pub fn read_custom(name: &str, train: &Path, dev: &Path) -> Result<(GlueDataset, GlueDataset)> {
    let (train_rows, train_pair) = read_rows(train)?;
    let (dev_rows, dev_pair) = read_rows(dev)?;
    if train_pair != dev_pair {
        let (with, without) = if train_pair { (train, dev) } else { (dev, train) };
        return Err(DataError::MissingColumn {
            path: without.to_path_buf(),
            column: "text_pair".to_owned(),
            found: "text, label".to_owned(),
            remedy: format!("'{}' has one, and both files must agree", with.display()),
        });
    }
    let labels = label_space(train, &train_rows)?;
    let metrics = match &labels {
        LabelSpace::Score => vec![Metric::Pearson, Metric::Spearman],
        LabelSpace::Classes(names) if names.len() == 2 => vec![Metric::Accuracy, Metric::F1],
        LabelSpace::Classes(_) => vec![Metric::Accuracy],
    };
    let spec = TaskSpec { name: name.to_owned(), task: None, labels, is_pair: train_pair, metrics };
    let train_set = GlueDataset::from_examples(spec.clone(), resolve(train, train_rows, &spec.labels)?);
    let dev_set = GlueDataset::from_examples(spec.clone(), resolve(dev, dev_rows, &spec.labels)?);
    Ok((train_set, dev_set))
}

/// Reads a file in either format; the flag says whether it has pairs.
fn read_rows(path: &Path) -> Result<(Vec<RawRow>, bool)> {
    if !path.is_file() {
        return Err(DataError::NotFound {
            what: "data file".to_owned(),
            path: path.to_path_buf(),
            remedy: "give a .tsv or .jsonl file with text, optionally text_pair, and label".to_owned(),
        });
    }
    let text = read_text(path)?;
    let is_jsonl = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    let (rows, has_pair) = if is_jsonl { read_jsonl(path, &text)? } else { read_tsv(path, &text)? };
    if rows.is_empty() {
        let remedy = "give at least one row of text and label".to_owned();
        return Err(DataError::Empty { path: path.to_path_buf(), remedy });
    }
    if let Some(missing) = rows.iter().find(|row| is_missing(&row.label)) {
        let message = format!("the label is missing ('{}'); fill it in or remove the row", missing.label);
        return Err(DataError::BadRow { path: path.to_path_buf(), row: missing.row, message });
    }
    Ok((rows, has_pair))
}

/// Whether a label is missing: an empty cell, or a placeholder that table software writes.
fn is_missing(label: &str) -> bool {
    ["", "nan", "<na>"].iter().any(|missing| label.trim().eq_ignore_ascii_case(missing))
}

fn read_tsv(path: &Path, text: &str) -> Result<(Vec<RawRow>, bool)> {
    let header = text.lines().next().unwrap_or("");
    let names: Vec<&str> = header.split('\t').map(str::trim).collect();
    let find = |column: &str| names.iter().position(|name| *name == column);
    let need = |column: &str| {
        find(column).ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            column: column.to_owned(),
            found: names.join(", "),
            remedy: "the first line names the tab-separated columns text, text_pair (optional), label"
                .to_owned(),
        })
    };
    let (text_column, label_column, pair_column) = (need("text")?, need("label")?, find("text_pair"));
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
        out.push(RawRow {
            row,
            text: cells[text_column].to_owned(),
            pair: pair_column.map(|c| cells[c].to_owned()),
            label: cells[label_column].trim().to_owned(),
        });
    }
    Ok((out, pair_column.is_some()))
}

fn read_jsonl(path: &Path, text: &str) -> Result<(Vec<RawRow>, bool)> {
    let bad = |row: usize, message: String| DataError::BadRow { path: path.to_path_buf(), row, message };
    let mut out: Vec<RawRow> = Vec::new();
    for (row, line) in rows(text) {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| bad(row, format!("not a JSON object ({e}); write one object per line")))?;
        let string = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let text = string("text")
            .ok_or_else(|| bad(row, "no string 'text'; each line needs text and label".to_owned()))?;
        let label = match value.get("label") {
            Some(Value::String(s)) => s.clone(),
            Some(v @ (Value::Number(_) | Value::Bool(_))) => v.to_string(),
            _ => return Err(bad(row, "no 'label' (a string or a number)".to_owned())),
        };
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

/// Decides what the labels of the train file are.
fn label_space(path: &Path, rows: &[RawRow]) -> Result<LabelSpace> {
    let distinct: BTreeSet<&str> = rows.iter().map(|r| r.label.as_str()).collect();
    let integers =
        distinct.iter().map(|s| s.parse::<i64>().map(|i| (i, *s))).collect::<Result<BTreeSet<_>, _>>();
    if let Ok(integers) = integers {
        return classes(path, integers.into_iter().map(|(_, s)| s.to_owned()).collect());
    }
    let score = |label: &str| label.parse::<f32>().ok().filter(|score| score.is_finite());
    if distinct.iter().all(|label| score(label).is_some()) {
        return Ok(LabelSpace::Score);
    }
    // One score with a point makes a regression; a word among scores is a missing score, not a class.
    let decimal = distinct.iter().find(|label| score(label).is_some() && label.parse::<i64>().is_err());
    if let Some(decimal) = decimal
        && let Some(word) = rows.iter().find(|row| score(&row.label).is_none())
    {
        let message = format!(
            "the label '{}' is not a number, and others are scores ('{decimal}'); fill it in or remove the row",
            word.label
        );
        return Err(DataError::BadRow { path: path.to_path_buf(), row: word.row, message });
    }
    classes(path, distinct.into_iter().map(str::to_owned).collect())
}

fn classes(path: &Path, names: Vec<String>) -> Result<LabelSpace> {
    if names.len() < 2 {
        let message = format!("the only label is '{}'; a task needs two or more", names.join(""));
        return Err(DataError::BadRow { path: path.to_path_buf(), row: 2, message });
    }
    Ok(LabelSpace::Classes(names))
}

/// Turns labels into class indices or scores.
fn resolve(path: &Path, rows: Vec<RawRow>, space: &LabelSpace) -> Result<Vec<Example>> {
    let unknown = |row: usize, label: &str, expected: String| DataError::UnknownLabel {
        path: path.to_path_buf(),
        row,
        label: label.to_owned(),
        expected,
    };
    rows.into_iter()
        .map(|r| {
            let label = match space {
                LabelSpace::Score => match r.label.parse::<f32>() {
                    Ok(score) if score.is_finite() => Label::Score(score),
                    _ => return Err(unknown(r.row, &r.label, "a number, as in the train file".to_owned())),
                },
                LabelSpace::Classes(names) => match class_of(names, &r.label) {
                    Some(class) => Label::Class(class),
                    None => {
                        let expected = format!("a label of the train file: {}", names.join(", "));
                        return Err(unknown(r.row, &r.label, expected));
                    }
                },
            };
            Ok(Example { text: r.text, pair: r.pair, label: Some(label) })
        })
        .collect()
}

fn class_of(names: &[String], label: &str) -> Option<u32> {
    names.iter().position(|name| name == label).map(|class| class as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(train: (&str, &str), dev: (&str, &str)) -> Result<(GlueDataset, GlueDataset)> {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join(train.0), dir.path().join(dev.0));
        std::fs::write(&a, train.1).unwrap();
        std::fs::write(&b, dev.1).unwrap();
        read_custom("own", &a, &b)
    }

    fn labels(set: &GlueDataset) -> Vec<Label> {
        set.examples().iter().map(|e| e.label.unwrap()).collect()
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
        fails(good, ("d.tsv", "text\ttext_pair\tlabel\na\tb\tno\n"), "b.tsv:1: no column 'text_pair'");
    }
}
