//! Files of questions: JSON lines, a JSON list, and SQuAD's nested articles.

use std::path::Path;

use serde_json::Value;

use super::{Question, QuestionSet, Span};
use crate::error::{DataError, Result};
use crate::io::{read_head, read_text, rows};

/// What a row must have, for messages.
const FORM: &str = "a row has question, context and answers: {text: […], answer_start: […]}, with empty lists if the \
                    context does not answer the question";

/// Characters of a text that a message quotes.
const QUOTED: usize = 40;

/// Keys of rows for language models, in which `answers`, `question` or `context` may be remarks.
const OTHERS: [&str; 7] =
    ["prompt", "completion", "messages", "conversations", "instruction", "chosen", "text"];

/// Whether a file contains questions about contexts: JSON whose first row has two of `question`, `context` and `answers`,
/// or all three beside the keys of another kind of row, and no label; or SQuAD's `data` of `paragraphs`.
///
/// # Errors
/// A file that cannot be read.
pub fn are_questions(path: &Path) -> Result<bool> {
    if !lowrank_spec::is_present(path) {
        return Ok(false);
    }
    let first = match extension(path).as_str() {
        "jsonl" | "ndjson" => {
            let head = read_head(path)?;
            head.lines().find(|line| !line.trim().is_empty()).and_then(|line| serde_json::from_str(line).ok())
        }
        "json" => {
            let text = read_text(path)?;
            // Most files are told without parsing them.
            let has = |key: &str| text.contains(&format!("\"{key}\""));
            if !(has("answers") || has("question") && has("context")) {
                return Ok(false);
            }
            let value: Option<Value> = serde_json::from_str(&text).ok();
            let value = value.or_else(|| serde_json::from_str(text.lines().next()?).ok());
            value.as_ref().and_then(|value| match list(value) {
                Some(items) => items.first().cloned(),
                None => Some(value.clone()),
            })
        }
        _ => None,
    };
    Ok(first.is_some_and(|row: Value| {
        let has = |key: &str| row.get(key).is_some();
        let found = ["question", "context", "answers"].into_iter().filter(|key| has(key)).count();
        let is_row = found >= if OTHERS.into_iter().any(has) { 3 } else { 2 };
        has("paragraphs") || is_row && !has("label") && !has("labels")
    }))
}

/// Reads the questions of a file.
///
/// - `*.jsonl`: one object per line with `question`, `context` and `answers`, an object with the lists `text` and
///   `answer_start`, or a list of objects with these keys;
/// - `*.json`: a list of such objects, alone or under `data`, or SQuAD's own form, `data` of `paragraphs` of `qas`.
///
/// Offsets count characters (Unicode code points). `is_impossible`, if a row has it, must agree with its answers.
///
/// # Errors
/// A missing or empty file, malformed JSON, a row without one of the keys, an empty question or context, an answer that is
/// not at its offset. Each error names file and row.
pub fn read_questions(path: &Path) -> Result<QuestionSet> {
    if !lowrank_spec::is_present(path) {
        return Err(DataError::NotFound {
            what: "data file".to_owned(),
            path: path.to_path_buf(),
            remedy: format!("give a .jsonl or .json file of questions; {FORM}"),
        });
    }
    let text = read_text(path)?;
    let whole: Option<Value> =
        (extension(path) == "json").then(|| serde_json::from_str(&text).ok()).flatten();
    let counts_items = whole.as_ref().is_some_and(|value| list(value).is_some());
    let rows = match whole.as_ref().map(|value| (list(value), value)) {
        Some((Some(items), _)) => items_of(path, items)?,
        Some((None, value)) => vec![question(1, value).map_err(|message| at(path, false, 1, message))?],
        None => lines(path, &text)?,
    };
    if rows.is_empty() {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
            remedy: format!("give at least one; {FORM}"),
        });
    }
    Ok(QuestionSet { rows, path: path.to_path_buf(), counts_items })
}

/// The error of a row: a line of the file, or an item of its JSON value.
pub(super) fn at(path: &Path, counts_items: bool, row: usize, message: String) -> DataError {
    let path = path.to_path_buf();
    match counts_items {
        true => DataError::BadItem { path, item: row, message },
        false => DataError::BadRow { path, row, message },
    }
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// The items of a list, or of the list under `data`.
fn list(value: &Value) -> Option<&Vec<Value>> {
    value.as_array().or_else(|| value.get("data")?.as_array())
}

fn lines(path: &Path, text: &str) -> Result<Vec<Question>> {
    let filled = rows(text).filter(|(_, line)| !line.trim().is_empty());
    let read = filled.map(|(row, line)| {
        let value = serde_json::from_str(line)
            .map_err(|e| format!("malformed JSON ({e}); write one complete object per line"));
        value.and_then(|value| question(row, &value)).map_err(|message| at(path, false, row, message))
    });
    read.collect()
}

/// Rows, or articles of paragraphs of questions.
fn items_of(path: &Path, items: &[Value]) -> Result<Vec<Question>> {
    let mut out = Vec::new();
    for (article, item) in items.iter().enumerate() {
        let Some(paragraphs) = item.get("paragraphs") else {
            let row = out.len() + 1;
            out.push(question(row, item).map_err(|message| at(path, true, row, message))?);
            continue;
        };
        let place = format!("data[{article}]");
        let bad = |row: usize, place: &str, message: &str| at(path, true, row, format!("{place}: {message}"));
        let paragraphs = paragraphs.as_array().ok_or_else(|| {
            bad(out.len() + 1, &place, "'paragraphs' is not a list of contexts with their qas")
        })?;
        for (paragraph, value) in paragraphs.iter().enumerate() {
            let place = format!("{place}.paragraphs[{paragraph}]");
            let qas = value.get("qas").and_then(Value::as_array);
            let qas = qas.ok_or_else(|| bad(out.len() + 1, &place, "no list 'qas' of questions"))?;
            for (index, qa) in qas.iter().enumerate() {
                let row = out.len() + 1;
                let found = parse(row, qa, value.get("context"));
                out.push(found.map_err(|message| bad(row, &format!("{place}.qas[{index}]"), &message))?);
            }
        }
    }
    Ok(out)
}

fn question(row: usize, value: &Value) -> Result<Question, String> {
    if !value.is_object() {
        return Err(format!("not an object; {FORM}"));
    }
    parse(row, value, value.get("context"))
}

fn parse(row: usize, value: &Value, context: Option<&Value>) -> Result<Question, String> {
    let filled = |key: &str, text: Option<&Value>| match text {
        None => Err(format!("no '{key}'; {FORM}")),
        Some(Value::String(text)) if text.trim().is_empty() => {
            Err(format!("'{key}' is empty; fill it in or remove the row"))
        }
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("'{key}' is {}; expected a text", quoted(&other.to_string()))),
    };
    let question = filled("question", value.get("question"))?;
    let context = filled("context", context)?;
    let answers = answers(value.get("answers"))?;
    match value.get("is_impossible").and_then(Value::as_bool) {
        Some(true) if !answers.is_empty() => {
            return Err("is_impossible is true and the row has answers; remove one of the two".into());
        }
        Some(false) if answers.is_empty() => {
            return Err(
                "is_impossible is false and the row has no answers; add them or set it to true".into()
            );
        }
        _ => {}
    }
    answers.iter().try_for_each(|answer| check(answer, &context))?;
    Ok(Question { row, question, context, answers })
}

/// The answers of a row, in either form.
fn answers(value: Option<&Value>) -> Result<Vec<Span>, String> {
    let span = |text: Option<&Value>, start: Option<&Value>| {
        let text = text.and_then(Value::as_str).ok_or("an answer without its text")?;
        if text.trim().is_empty() {
            return Err("an answer is empty; a question without an answer has empty lists".to_owned());
        }
        let start = start.and_then(Value::as_u64).ok_or_else(|| {
            format!("the answer {} has no answer_start; expected its first character, from 0", quoted(text))
        })?;
        Ok(Span { text: text.to_owned(), start: usize::try_from(start).unwrap_or(usize::MAX) })
    };
    match value {
        None => Err(format!("no 'answers'; {FORM}")),
        Some(Value::Array(list)) => {
            list.iter().map(|answer| span(answer.get("text"), answer.get("answer_start"))).collect()
        }
        Some(Value::Object(lists)) => {
            let list = |key: &str| lists.get(key).and_then(Value::as_array);
            let (Some(texts), Some(starts)) = (list("text"), list("answer_start")) else {
                return Err(format!("'answers' lacks a list 'text' or 'answer_start'; {FORM}"));
            };
            if texts.len() != starts.len() {
                let (texts, starts) = (texts.len(), starts.len());
                return Err(format!(
                    "{texts} texts and {starts} offsets in 'answers'; expected one offset per text"
                ));
            }
            texts.iter().zip(starts).map(|(text, start)| span(Some(text), Some(start))).collect()
        }
        Some(other) => Err(format!("'answers' is {}; {FORM}", quoted(&other.to_string()))),
    }
}

/// Checks that an answer is at its offset.
fn check(answer: &Span, context: &str) -> Result<(), String> {
    let at = |start: usize| context.char_indices().map(|(byte, _)| byte).chain([context.len()]).nth(start);
    let found = at(answer.start).map(|byte| &context[byte..]);
    if found.is_some_and(|rest| rest.starts_with(&answer.text)) {
        return Ok(());
    }
    let there = match found {
        Some(rest) if !rest.is_empty() => {
            let n = answer.text.chars().count();
            format!("where the context has {}", quoted(&rest.chars().take(n).collect::<String>()))
        }
        _ => format!("beyond the context of {} characters", context.chars().count()),
    };
    let remedy = match context.find(&answer.text) {
        Some(byte) => format!("it occurs at {} (offsets count characters)", context[..byte].chars().count()),
        None => "it does not occur in the context; copy it from there".to_owned(),
    };
    Err(format!(
        "the answer {} is not at answer_start {}, {there}; {remedy}",
        quoted(&answer.text),
        answer.start
    ))
}

/// A text in quotes on one line, cut if it is long.
fn quoted(text: &str) -> String {
    let text = text.replace(['\n', '\r', '\t'], " ");
    let cut: String = text.chars().take(QUOTED).collect();
    if cut.len() < text.len() { format!("'{cut}…'") } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    const ROWS: &str = r#"{"id":"1","question":"Où?","context":"À l’été, Rome.","answers":{"text":["Rome","l’été"],"answer_start":[9,2]}}

{"question":"Who?","context":"Nobody.","answers":{"text":[],"answer_start":[]}}
"#;
    const NESTED: &str = r#"{"version":"v2.0","data":[{"title":"t","paragraphs":[
        {"context":"À l’été, Rome.","qas":[{"id":"1","question":"Où?","is_impossible":false,
          "answers":[{"text":"Rome","answer_start":9},{"text":"l’été","answer_start":2}]}]},
        {"context":"Nobody.","qas":[{"id":"2","question":"Who?","answers":[],"is_impossible":true,
          "plausible_answers":[{"text":"Nobody","answer_start":0}]}]}]}]}"#;

    #[test]
    fn lines_lists_and_articles_say_the_same() {
        let list = format!("[{}]", ROWS.trim().replace("\n\n", ","));
        let under_data = format!("{{\"data\":{list}}}");
        let bare = |name: &str, text: &str| {
            let (_dir, path) = written(name, text);
            assert!(are_questions(&path).unwrap(), "{name}");
            let set = read_questions(&path).unwrap();
            assert!(set.has_unanswerable());
            set.rows.into_iter().map(|row| (row.question, row.context, row.answers)).collect::<Vec<_>>()
        };
        let rows = bare("a.jsonl", ROWS);
        assert_eq!(rows[0].2[1], Span { text: "l’été".into(), start: 2 });
        for (name, text) in [
            ("a.json", ROWS.replace("\n\n", "\n")),
            ("b.json", list),
            ("c.json", under_data),
            ("d.json", NESTED.into()),
        ] {
            assert_eq!(bare(name, &text), rows, "{name}");
        }
    }

    #[rstest]
    #[case("a.jsonl", "{\"question\":\"a\",\"context\":\"b\"}\n", true)]
    #[case("a.jsonl", "{\"question\":\"a\",\"answers\":[]}\n", true)]
    #[case("a.jsonl", "{\"question\":\"a\",\"context\":\"b\",\"label\":1}\n", false)]
    #[case("a.jsonl", "{\"text\":\"a\",\"label\":1}\n", false)]
    #[case("a.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\",\"answers\":[\"b\"]}\n", false)]
    #[case("a.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\",\"question\":\"c\",\"answers\":[]}\n", false)]
    #[case("a.json", "[{\"messages\":[],\"answers\":[\"b\"]}]", false)]
    #[case("a.jsonl", "{\"text\":\"a\",\"question\":\"a\",\"context\":\"b\",\"answers\":[]}\n", true)]
    #[case("a.json", "[{\"messages\":[]}]", false)]
    #[case("a.json", "[]", false)]
    #[case("a.tsv", ROWS, false)]
    fn files_of_questions_are_told(#[case] name: &str, #[case] text: &str, #[case] expect: bool) {
        let (_dir, path) = written(name, text);
        assert_eq!(are_questions(&path).unwrap(), expect);
    }

    #[rstest]
    #[case("a.jsonl", "{\"question\":\"a\",\"context\":\"b\"}", "a.jsonl:1: no 'answers'; a row has")]
    #[case("a.jsonl", "{\"context\":\"b\",\"answers\":[]}", "a.jsonl:1: no 'question'; a row has")]
    #[case(
        "a.jsonl",
        "\n{\"question\":\"a\",\"context\":\" \",\"answers\":[]}",
        "a.jsonl:2: 'context' is empty"
    )]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":[1],\"answers\":[]}",
        "'context' is '[1]'; expected a text"
    )]
    #[case("a.jsonl", "{\"question\":", "a.jsonl:1: malformed JSON")]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"été Rome\",\"answers\":{\"text\":[\"Rome\"],\"answer_start\":[6]}}",
        "the answer 'Rome' is not at answer_start 6, where the context has 'me'; it occurs at 4"
    )]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"b\",\"answers\":{\"text\":[\"x\"],\"answer_start\":[9]}}",
        "is not at answer_start 9, beyond the context of 1 characters; it does not occur"
    )]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"b\",\"answers\":{\"text\":[\"b\"],\"answer_start\":[-1]}}",
        "the answer 'b' has no answer_start"
    )]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"b\",\"answers\":{\"text\":[\"b\"],\"answer_start\":[]}}",
        "1 texts and 0 offsets"
    )]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"b\",\"answers\":{\"text\":[\"b\"]}}",
        "lacks a list"
    )]
    #[case("a.jsonl", "{\"question\":\"a\",\"context\":\"b\",\"answers\":3}", "'answers' is '3'")]
    #[case(
        "a.jsonl",
        "{\"question\":\"a\",\"context\":\"b\",\"answers\":[],\"is_impossible\":false}",
        "is_impossible is false and the row has no answers"
    )]
    #[case(
        "a.json",
        "[{\"question\":\"a\",\"context\":\"b\",\"answers\":[]},{}]",
        "a.json: item 2: no 'question'"
    )]
    #[case(
        "a.json",
        "{\"data\":[{\"paragraphs\":[{\"context\":\"b\",\"qas\":[{\"question\":\"a\"}]}]}]}",
        "a.json: item 1: data[0].paragraphs[0].qas[0]: no 'answers'"
    )]
    #[case(
        "a.json",
        "{\"data\":[{\"paragraphs\":[{\"context\":\"b\"}]}]}",
        "data[0].paragraphs[0]: no list 'qas'"
    )]
    #[case("a.json", "[]", "holds no rows")]
    fn bad_rows_are_named(#[case] name: &str, #[case] text: &str, #[case] part: &str) {
        let (_dir, path) = written(name, text);
        let error = read_questions(&path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
