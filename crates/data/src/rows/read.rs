//! Files of rows.

use std::path::Path;

use serde_json::Value;

use super::{Row, Rows, at, parse};
use crate::error::{DataError, Result};
use crate::io::{read_text, rows};

/// Reads a file according to its extension.
pub(super) fn file(path: &Path) -> Result<Rows> {
    if !lowrank_spec::is_present(path) {
        let remedy = "give a .jsonl, .json or .txt file of rows".to_owned();
        return Err(DataError::NotFound { what: "data file".to_owned(), path: path.to_path_buf(), remedy });
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let text = match ending.as_str() {
        "txt" | "jsonl" | "json" | "ndjson" => read_text(path)?,
        _ => {
            let message = "the name of a file of rows must end in .jsonl, .json or .txt".to_owned();
            return Err(DataError::Config { path: path.to_path_buf(), message });
        }
    };
    let is_list = ending == "json" && text.trim_start().starts_with('[');
    let parsed = match ending.as_str() {
        "txt" if text.trim().is_empty() => Vec::new(),
        "txt" => vec![(1, Row::Text(text.replace("\r\n", "\n")))],
        _ if is_list => list(path, &text)?,
        _ => lines(path, &text)?,
    };
    let mut rows = Rows { path: path.to_path_buf(), rows: parsed, counts_items: is_list };
    if rows.rows.iter().any(|(_, row)| row.is_conversation_of_texts()) {
        // Texts are all of one form, with a system message in some rows or in all.
        rows.rows.iter_mut().for_each(|(_, row)| parse::make_conversation(row));
    }
    let Some((_, first)) = rows.rows.first() else {
        let remedy = "give at least one row".to_owned();
        return Err(DataError::Empty { path: path.to_path_buf(), remedy });
    };
    if let Some(other) = rows.rows.iter().position(|(_, row)| row.is_preference() != first.is_preference()) {
        let message =
            "some rows are preferences (chosen, rejected) and some are not; split them into two files";
        return Err(rows.error(other, message));
    }
    Ok(rows)
}

fn list(path: &Path, text: &str) -> Result<Vec<(usize, Row)>> {
    let items: Vec<Value> = serde_json::from_str(text).map_err(|e| DataError::Config {
        path: path.to_path_buf(),
        message: format!("malformed JSON: {e}; expected a list of objects"),
    })?;
    let row = |(index, item): (usize, &Value)| {
        parse::row(item).map(|row| (index + 1, row)).map_err(|message| at(path, true, index + 1, message))
    };
    items.iter().enumerate().map(row).collect()
}

fn lines(path: &Path, text: &str) -> Result<Vec<(usize, Row)>> {
    let mut out = Vec::new();
    for (number, line) in rows(text).filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |message: String| at(path, false, number, message);
        let value: Value = serde_json::from_str(line)
            .map_err(|e| bad(format!("malformed JSON ({e}); write one complete object per line")))?;
        out.push((number, parse::row(&value).map_err(bad)?));
    }
    Ok(out)
}
