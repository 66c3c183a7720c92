//! Token classification data: CoNLL columns and JSON lines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{DataError, Result};
use crate::glue::custom::{in_numeric_order, is_missing};
use crate::glue::labels::Labels;
use crate::glue::task::{LabelSpace, TaskSpec};
use crate::io::{is_json_lines, read_head, read_text, rows};

/// A sentence of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedRow {
    /// Line of the file at which it begins, from 1.
    pub row: usize,
    /// Its words.
    pub words: Vec<String>,
    /// The class of each word.
    pub tags: Vec<u32>,
}

/// The sentences of a file.
#[derive(Debug, Clone)]
pub struct TaggedDataset {
    /// The task.
    pub spec: TaskSpec,
    /// The sentences, in the file's order.
    pub rows: Vec<TaggedRow>,
    /// The file.
    pub path: PathBuf,
}

/// A sentence whose tags are not yet interpreted.
struct RawRow {
    row: usize,
    words: Vec<String>,
    tags: Vec<String>,
    /// Line of each tag.
    lines: Vec<usize>,
}

/// Keys of the tags in JSON lines; the first one present is used.
const TAG_KEYS: [&str; 5] = ["tags", "ner_tags", "labels", "pos_tags", "chunk_tags"];
/// Keys of the words.
const WORD_KEYS: [&str; 2] = ["tokens", "words"];
/// Extensions of CoNLL files, whatever their tags.
const CONLL: [&str; 4] = ["conll", "bio", "iob", "iob2"];

/// Whether a file contains tagged words: JSON lines with a list `tokens` or `words`, a name that ends in `.conll`,
/// `.bio`, `.iob` or `.iob2`, or any other text of at least two columns whose last is an entity tag (`O`,
/// `B-PER`) in every line.
///
/// # Errors
/// A file that cannot be read.
pub fn is_tagged(path: &Path) -> Result<bool> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    if CONLL.contains(&extension.as_str()) {
        return Ok(true);
    }
    if !lowrank_spec::is_present(path) {
        return Ok(false);
    }
    let text = read_head(path)?;
    if ["json", "jsonl", "ndjson"].contains(&extension.as_str()) {
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let row: Option<Value> = serde_json::from_str(first).ok();
        return Ok(
            row.is_some_and(|row| WORD_KEYS.iter().any(|key| row.get(*key).is_some_and(Value::is_array)))
        );
    }
    let lines =
        text.lines().filter(|line| !line.trim().is_empty() && !is_document(line) && !line.starts_with('#'));
    let mut lines = lines.take(200).peekable();
    let is_tag = |tag: &str| {
        tag == "O"
            || tag.split_once('-').is_some_and(|(letter, _)| ["B", "I", "E", "S", "L", "U"].contains(&letter))
    };
    Ok(lines.peek().is_some()
        && lines.all(|line| {
            let columns = columns(line);
            columns.len() >= 2 && columns.last().is_some_and(|tag| is_tag(tag))
        }))
}

/// Reads the sentences of two files.
///
/// - `*.jsonl`: one object per line with `tokens` (or `words`) and `tags` (or `ner_tags`, `labels`, `pos_tags`,
///   `chunk_tags`), two lists of one length;
/// - any other name: CoNLL columns, one word per line with its tag in the last column, sentences separated by
///   empty lines; lines of `-DOCSTART-` and comments before a sentence are skipped.
///
/// The tags are those of the train file in byte order, integers in numeric order; or `known`, if it covers
/// all of them.
///
/// # Errors
/// A missing file, a row without a tag, lists of different lengths, a tag of the dev file that the train file
/// lacks, fewer than two tags. Each error names file and row.
pub fn read_tagged(
    name: &str,
    train: &Path,
    dev: &Path,
    known: &[String],
) -> Result<(TaggedDataset, TaggedDataset)> {
    let (train_rows, dev_rows) = (read(train)?, read(dev)?);
    let distinct: BTreeSet<&str> = train_rows.iter().flat_map(|row| &row.tags).map(String::as_str).collect();
    let names = if distinct.iter().all(|tag| known.iter().any(|name| name == tag)) {
        known.to_vec()
    } else {
        in_numeric_order(&distinct).unwrap_or_else(|| distinct.iter().map(|tag| (*tag).to_owned()).collect())
    };
    if names.len() < 2 {
        let message = format!("the only tag is '{}'; a task needs two or more", names.join(""));
        return Err(DataError::BadRow { path: train.to_path_buf(), row: train_rows[0].row, message });
    }
    let same = |tag: &str| Ok(names.iter().position(|name| name == tag));
    let set = |path, rows| resolve(name, path, rows, &names, same, "a tag of the train file");
    Ok((set(train, train_rows)?, set(dev, dev_rows)?))
}

/// Reads the sentences of a file for a model with these labels, matched by name as
/// [`read_labelled`](crate::glue::read_labelled) does.
///
/// # Errors
/// As [`read_tagged`]; tags that the model does not have.
pub fn read_tagged_file(name: &str, path: &Path, names: &[String]) -> Result<TaggedDataset> {
    let labels = Labels::new(names);
    resolve(name, path, read(path)?, names, |tag| labels.place(tag), "a label of the model")
}

fn resolve(
    name: &str,
    path: &Path,
    rows: Vec<RawRow>,
    names: &[String],
    class: impl Fn(&str) -> std::result::Result<Option<usize>, String>,
    expected: &str,
) -> Result<TaggedDataset> {
    let resolve = |raw: RawRow| {
        let tags = raw.tags.iter().zip(&raw.lines).map(|(tag, line)| match class(tag) {
            Ok(Some(class)) => Ok(class as u32),
            Err(message) => Err(DataError::BadRow { path: path.to_path_buf(), row: *line, message }),
            Ok(None) => Err(DataError::UnknownLabel {
                path: path.to_path_buf(),
                row: *line,
                label: tag.clone(),
                expected: format!("{expected}: {}", names.join(", ")),
            }),
        });
        Ok(TaggedRow { row: raw.row, tags: tags.collect::<Result<_>>()?, words: raw.words })
    };
    let rows = rows.into_iter().map(resolve).collect::<Result<_>>()?;
    let labels = LabelSpace::Tags(names.to_vec());
    let metrics = labels.metrics();
    let spec = TaskSpec { name: name.to_owned(), task: None, labels, is_pair: false, metrics };
    Ok(TaggedDataset { spec, rows, path: path.to_path_buf() })
}

fn read(path: &Path) -> Result<Vec<RawRow>> {
    if !lowrank_spec::is_present(path) {
        return Err(DataError::NotFound {
            what: "data file".to_owned(),
            path: path.to_path_buf(),
            remedy: "give a file of CoNLL columns, or a .jsonl file with tokens and tags".to_owned(),
        });
    }
    let text = read_text(path)?;
    let rows = if is_json_lines(path, &text) { read_jsonl(path, &text)? } else { read_conll(path, &text)? };
    if rows.is_empty() {
        let remedy = "give at least one sentence of words and tags".to_owned();
        return Err(DataError::Empty { path: path.to_path_buf(), remedy });
    }
    for row in &rows {
        if let Some((_, line)) = row.tags.iter().zip(&row.lines).find(|(tag, _)| is_missing(tag)) {
            let message = "a word has no tag; fill it in or remove the word".to_owned();
            return Err(DataError::BadRow { path: path.to_path_buf(), row: *line, message });
        }
    }
    Ok(rows)
}

/// The columns of a line, separated by tabs if it has any, otherwise by spaces.
fn columns(line: &str) -> Vec<&str> {
    if line.contains('\t') {
        line.split('\t').map(str::trim).collect()
    } else {
        // A no-break space is part of a word.
        line.split_ascii_whitespace().collect()
    }
}

fn is_document(line: &str) -> bool {
    line.starts_with("-DOCSTART-")
}

fn read_conll(path: &Path, text: &str) -> Result<Vec<RawRow>> {
    let bad = |row: usize, message: String| DataError::BadRow { path: path.to_path_buf(), row, message };
    let mut out: Vec<RawRow> = Vec::new();
    // A line with another number of columns than a word is a comment, which begins with # at the start of a
    // sentence.
    let is_word = |line: &str| !line.trim().is_empty() && !line.starts_with('#') && !is_document(line);
    let mut width =
        rows(text).map(|(_, line)| line).find(|line| is_word(line)).map(|line| columns(line).len());
    let mut begins = true;
    for (row, line) in rows(text) {
        let columns = columns(line);
        let is_comment = begins && line.starts_with('#') && width.is_none_or(|width| columns.len() != width);
        if line.trim().is_empty() || is_document(line) || is_comment {
            begins = true;
            continue;
        }
        let expected = *width.get_or_insert(columns.len());
        if expected == 10 && columns[0].parse::<u32>().is_ok() {
            let message = "CoNLL-U columns are not read; write the word first and its tag last".to_owned();
            return Err(bad(row, message));
        }
        if columns.len() < 2 || columns.len() != expected {
            let expected = expected.max(2);
            let message =
                format!("{} column(s), {expected} expected: a word, and its tag last", columns.len());
            return Err(bad(row, message));
        }
        if begins {
            out.push(RawRow { row, words: Vec::new(), tags: Vec::new(), lines: Vec::new() });
            begins = false;
        }
        if let Some(sentence) = out.last_mut() {
            sentence.words.push(columns[0].to_owned());
            sentence.tags.push(columns[columns.len() - 1].to_owned());
            sentence.lines.push(row);
        }
    }
    let counts = |row: &RawRow| row.words.iter().zip(1..).all(|(word, number)| *word == number.to_string());
    if let Some(row) = out.iter().find(|row| row.words.len() > 1)
        && out.iter().all(counts)
    {
        let message = "the first column numbers the words; write the word first and its tag last".to_owned();
        return Err(bad(row.row, message));
    }
    Ok(out)
}

fn read_jsonl(path: &Path, text: &str) -> Result<Vec<RawRow>> {
    rows(text)
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(row, line)| {
            let value = serde_json::from_str(line)
                .map_err(|e| format!("not a JSON object ({e}); write one object per line"));
            let read = value.and_then(|value: Value| json_row(row, &value));
            read.map_err(|message| DataError::BadRow { path: path.to_path_buf(), row, message })
        })
        .collect()
}

fn json_row(row: usize, value: &Value) -> Result<RawRow, String> {
    let list = |keys: &[&'static str]| keys.iter().find_map(|key| Some((*key, value.get(key)?.as_array()?)));
    let name = |value: &Value| match value {
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => number.as_i64().map(|number| number.to_string()),
        _ => None,
    };
    let (word_key, words) = list(&WORD_KEYS).ok_or("no list 'tokens' of words")?;
    let (tag_key, tags) = list(&TAG_KEYS).ok_or("no list 'tags' beside the words")?;
    let words: Option<Vec<String>> = words.iter().map(|word| word.as_str().map(str::to_owned)).collect();
    let words = words.ok_or_else(|| format!("'{word_key}' is not a list of strings"))?;
    let tags: Option<Vec<String>> = tags.iter().map(name).collect();
    let tags = tags.ok_or_else(|| format!("'{tag_key}' is not a list of names or whole numbers"))?;
    if tags.iter().any(|tag| tag == "-100") {
        return Err(format!(
            "-100 in '{tag_key}', which marks pieces that do not count; give whole words and a tag for each"
        ));
    }
    if words.len() != tags.len() || words.is_empty() {
        return Err(format!(
            "{} words in '{word_key}' and {} tags in '{tag_key}'; expected one tag for each word",
            words.len(),
            tags.len()
        ));
    }
    Ok(RawRow { row, lines: vec![row; words.len()], words, tags })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn written(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| dir.path().join(name)).collect();
        for (path, (_, text)) in paths.iter().zip(files) {
            std::fs::write(path, text).unwrap();
        }
        (dir, paths)
    }

    const CONLL: &str = "-DOCSTART- -X- O\n\n# a comment of more words\nAnna NNP B-PER\nsings VB O\n\n\n# NN O\nRome NNP B-LOC\n";

    #[test]
    fn columns_and_lists_say_the_same() {
        let json = "{\"tokens\":[\"Anna\",\"sings\"],\"ner_tags\":[\"B-PER\",\"O\"]}\n\
                    {\"words\":[\"#\",\"Rome\"],\"tags\":[\"O\",\"B-LOC\"],\"pos_tags\":[1,2]}\n";
        let (_dir, paths) = written(&[("a.conll", CONLL), ("b.jsonl", json)]);
        let (conll, json) = read_tagged("own", &paths[0], &paths[1], &[]).unwrap();
        assert_eq!(conll.spec.labels, LabelSpace::Tags(["B-LOC", "B-PER", "O"].map(String::from).into()));
        let names: Vec<&str> = conll.spec.metrics.iter().map(|metric| metric.name()).collect();
        assert_eq!(names, ["f1", "precision", "recall", "accuracy"]);
        let bare = |set: &TaggedDataset| -> Vec<_> {
            set.rows.iter().map(|row| (row.words.clone(), row.tags.clone())).collect()
        };
        assert_eq!(bare(&conll), bare(&json));
        assert_eq!(bare(&conll)[1], (vec!["#".into(), "Rome".into()], vec![2, 0]));
        assert_eq!(conll.rows[1].row, 8);
        // A model's own labels are kept if they cover all tags.
        let known = ["O", "B-PER", "B-LOC", "I-LOC"].map(String::from);
        let (set, _) = read_tagged("own", &paths[0], &paths[1], &known).unwrap();
        assert_eq!((set.spec.labels.names(), &set.rows[1].tags), (&known[..], &vec![0, 2]));
        let (set, _) = read_tagged("own", &paths[0], &paths[1], &known[..2]).unwrap();
        assert_eq!(set.spec.labels.width(), 3);
    }

    #[test]
    fn json_lines_are_told_by_lists_of_words() {
        for (line, expect) in [
            ("{\"tokens\":[\"a\"],\"tags\":[\"O\"]}\n", true),
            ("{\"words\":[\"a\"]}\n", true),
            ("{\"text\":\"a\",\"tokens\":3}\n", false),
            ("{\"prompt\":\"a\",\"completion\":\"b\",\"words\":\"many\"}\n", false),
        ] {
            let (_dir, paths) = written(&[("a.jsonl", line)]);
            assert_eq!(is_tagged(&paths[0]).unwrap(), expect, "{line}");
        }
    }

    #[test]
    fn a_word_that_is_a_number_sign_may_come_first() {
        let (_dir, paths) = written(&[("a.conll", "# two words\n#\tO\nBob\tB-PER\n")]);
        let (set, _) = read_tagged("own", &paths[0], &paths[0], &[]).unwrap();
        assert_eq!(set.rows[0].words, ["#", "Bob"]);
    }

    #[test]
    fn words_are_numbers_and_have_no_break_spaces() {
        let (_dir, paths) = written(&[("a.conll", "1 B-X\n\n3 O\n10\u{a0}000 B-X\n")]);
        let (set, _) = read_tagged("own", &paths[0], &paths[0], &[]).unwrap();
        let words: Vec<&str> = set.rows.iter().flat_map(|row| row.words.iter().map(String::as_str)).collect();
        assert_eq!(words, ["1", "3", "10\u{a0}000"]);
    }

    #[test]
    fn tags_without_a_scheme_are_parts_of_speech() {
        let (_dir, paths) = written(&[("a.conll", "dogs\tNOUN\nbark\tVERB\n")]);
        let (set, _) = read_tagged("own", &paths[0], &paths[0], &[]).unwrap();
        let names: Vec<&str> = set.spec.metrics.iter().map(|metric| metric.name()).collect();
        assert_eq!(names, ["accuracy", "f1_macro"]);
    }

    #[rstest]
    #[case("x.conll", "a b\n", true)]
    #[case("x.txt", CONLL, true)]
    #[case("x.txt", "# a heading\nAnna sings.\n", false)]
    #[case("x.txt", "-DOCSTART- O\n\nAnna B-PER\nsings O\n", true)]
    #[case("x.tsv", "text\tlabel\nAnna\tO\n", false)]
    #[case("x.txt", "Anna sings.\n", false)]
    #[case("x.txt", "\n", false)]
    #[case("x.jsonl", "{\"tokens\":[],\"tags\":[]}\n", true)]
    #[case("x.jsonl", "{\"text\":\"a\",\"label\":1}\n", false)]
    #[case("x.json", "\n{\"tokens\":[\"a\"],\"tags\":[\"O\"]}\n", true)]
    #[case("x.json", "[{\"tokens\":[\"a\"],\"tags\":[\"O\"]}]\n", false)]
    fn files_of_words_are_told(#[case] name: &str, #[case] text: &str, #[case] expect: bool) {
        let (_dir, paths) = written(&[(name, text)]);
        assert_eq!(is_tagged(&paths[0]).unwrap(), expect);
    }

    #[rstest]
    #[case("a.conll", "Anna B-PER\nsings\n", "a.conll:2: 1 column(s), 2 expected")]
    #[case("a.conll", "Anna NNP B-PER\n\nsings O\n", "a.conll:3: 2 column(s), 3 expected")]
    #[case("a.conll", "Anna\tB-PER\nsings\t\n", "a.conll:2: a word has no tag")]
    #[case("a.conll", "1 a b c d e f g h i\n", "a.conll:1: CoNLL-U columns are not read")]
    #[case(
        "a.conll",
        "1\tAnna\tB-PER\tO\n2\tsings\tO\tO\n\n1\tRome\tO\tO\n",
        "a.conll:1: the first column numbers the words"
    )]
    #[case("a.conll", "\n", "holds no rows")]
    #[case("a.conll", "Anna O\n", "a.conll:1: the only tag is 'O'")]
    #[case(
        "a.jsonl",
        "{\"tokens\":[\"a\"],\"tags\":[]}\n",
        "a.jsonl:1: 1 words in 'tokens' and 0 tags in 'tags'"
    )]
    #[case("a.jsonl", "{\"tokens\":[],\"tags\":[]}\n", "a.jsonl:1: 0 words in 'tokens'")]
    #[case("a.jsonl", "{\"tokens\":[\"a\"],\"tags\":[null]}\n", "'tags' is not a list of names")]
    #[case("a.jsonl", "{\"tokens\":[\"a\", \"b\"],\"labels\":[0, -100]}\n", "a.jsonl:1: -100 in 'labels'")]
    #[case("a.jsonl", "{\"tokens\":[\"a\"]}\n", "a.jsonl:1: no list 'tags'")]
    fn bad_rows_are_named(#[case] name: &str, #[case] text: &str, #[case] part: &str) {
        let (_dir, paths) = written(&[(name, text)]);
        let error = read_tagged("own", &paths[0], &paths[0], &[]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn tags_that_the_model_lacks_are_named() {
        let (_dir, paths) = written(&[("a.conll", "Anna B-PER\nsings O\n")]);
        let error = read_tagged_file("a", &paths[0], &["O".into(), "B-LOC".into()]).unwrap_err().to_string();
        assert!(
            error.contains("a.conll:1: unknown label 'B-PER'; expected a label of the model: O, B-LOC"),
            "{error}"
        );
    }
}
