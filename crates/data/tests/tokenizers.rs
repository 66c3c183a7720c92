//! Tokenizers whose files are not one complete `tokenizer.json`, beside the ids of transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use lowrank_data::chat::{ChatTemplate, RenderOptions};
use lowrank_data::tokenize::TextTokenizer;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers")
}

#[test]
fn ids_are_those_of_transformers() {
    let names = [
        "added-decoder",
        "added-json",
        "added-named",
        "added-special",
        "clip-vocab",
        "gpt2-vocab",
        "gpt2-vocab-space",
        "qwen2-vocab",
        "roberta-vocab",
        "roberta-vocab-space",
        "sentencepiece-bpe",
        "sentencepiece-bpe-legacy",
        "sentencepiece-deberta",
        "sentencepiece-unigram",
    ];
    let mut wrong = Vec::new();
    for name in names {
        let folder = fixtures().join(name);
        let tokenizer = TextTokenizer::from_folder(&folder, None).unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        assert_eq!(tokenizer.vocab_size() as u64, expected["length"].as_u64().unwrap(), "{name}");
        for case in expected["cases"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
            let got =
                tokenizer.encode(case["text"].as_str().unwrap(), case["text_pair"].as_str()).unwrap().ids;
            if got != ids {
                wrong.push(format!("{name}: {} {}\n  {got:?}\n  {ids:?}", case["text"], case["text_pair"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// RFC 7386: null removes a key.
fn merge(base: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = Value::Object(serde_json::Map::new());
    }
    let base = base.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            base.remove(key);
        } else {
            merge(base.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Which class a folder means, what it keeps of a `tokenizer.json`, and the special tokens that templates see.
#[test]
fn classes_are_those_of_transformers() {
    let table: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("classes.json")).unwrap()).unwrap();
    let rows = table["rows"].as_array().unwrap();
    let mut names: Vec<&String> =
        rows.iter().flat_map(|row| row["special"].as_object().unwrap().keys()).collect();
    let additional = "additional_special_tokens".to_owned();
    names.push(&additional);
    names.sort_unstable();
    names.dedup();
    let template: String =
        names.iter().map(|name| format!("{{{{ '{name}=' ~ {name} ~ ' ' if {name} is defined }}}}")).collect();
    let mut wrong = Vec::new();
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let base = fixtures().join("..").join(row["base"].as_str().unwrap());
        let copied = row["copied"].as_array().unwrap();
        for file in copied.iter().filter_map(Value::as_str) {
            std::fs::copy(base.join(file), folder.path().join(file)).unwrap();
        }
        if copied.is_empty() {
            let json = std::fs::read(base.join("tokenizer.json")).unwrap();
            let mut json: Value = serde_json::from_slice(&json).unwrap();
            merge(&mut json, &row["patch"]);
            std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        }
        std::fs::write(folder.path().join("chat_template.jinja"), &template).unwrap();
        for (file, content) in row["files"].as_object().unwrap() {
            std::fs::write(folder.path().join(file), content.to_string()).unwrap();
        }
        let tokenizer = match TextTokenizer::from_folder(folder.path(), None) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if tokenizer.vocab_size() as u64 != row["length"].as_u64().unwrap() {
            wrong.push(format!("{name}: {} tokens instead of {}", tokenizer.vocab_size(), row["length"]));
        }
        for (text, ids) in table["texts"].as_array().unwrap().iter().zip(row["ids"].as_array().unwrap()) {
            let got = tokenizer.encode(text.as_str().unwrap(), None).unwrap().ids;
            if serde_json::json!(got) != *ids {
                wrong.push(format!("{name}: {text}\n  {got:?}\n  {ids}"));
            }
        }
        let special = row["special"].as_object().unwrap();
        let expected: String = names
            .iter()
            .filter_map(|name| Some(format!("{name}={} ", special.get(*name)?.as_str()?)))
            .collect();
        let template = ChatTemplate::from_folder(folder.path()).unwrap().unwrap();
        let got = template.render(&[], &RenderOptions::default()).unwrap();
        if got != expected {
            wrong.push(format!("{name}: {got} instead of {expected}"));
        }
    }
    assert!(rows.len() > 100 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[track_caller]
fn refused(files: &[(&str, &str)], parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let error = TextTokenizer::from_folder(dir.path(), None).unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n";
    let class = |name: &str| format!("{{\"tokenizer_class\": \"{name}\"}}");
    let japanese =
        "{\"tokenizer_class\": \"BertJapaneseTokenizer\", \"word_tokenizer_type\": \"mecab\"}".to_owned();
    refused(
        &[("vocab.txt", vocab), ("tokenizer_config.json", &japanese)],
        &["BertJapaneseTokenizer", "by a dictionary"],
    );
    refused(&[("vocab.txt", vocab), ("config.json", &japanese)], &["BertJapaneseTokenizer"]);
    let other = class("PhobertTokenizer");
    refused(
        &[("vocab.txt", vocab), ("tokenizer_config.json", &other)],
        &["PhobertTokenizer", "tokenizer.json"],
    );
    refused(
        &[
            ("vocab.json", "{\"a\": 0}"),
            ("merges.txt", ""),
            ("tokenizer_config.json", &class("CTRLTokenizer")),
        ],
        &["CTRLTokenizer"],
    );
    refused(&[("tokenizer.model", "")], &["tokenizer.model", "holds no SentencePiece model"]);
    refused(&[("tokenizer.model", "abc")], &["is not a SentencePiece model, or is cut off"]);
    refused(
        &[("tokenizer.model", "\n\u{3}\n\u{1}a"), ("tokenizer_config.json", &class("BarthezTokenizer"))],
        &["BarthezTokenizer", "save_pretrained"],
    );
    refused(&[("tokenizer.model", "\n\u{3}\n\u{1}a")], &["SentencePiece", "save_pretrained"]);
}

/// Japanese BERT without a dictionary: ids of transformers' `BertJapaneseTokenizer` for the same vocabulary.
#[test]
fn japanese_without_a_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n学\n生\nで\nす\nです\n##す\na\nb\n。\n##b\n";
    std::fs::write(dir.path().join("vocab.txt"), vocab).unwrap();
    let ids = |subword: &str, text: &str| {
        let config = serde_json::json!({
            "tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic",
            "subword_tokenizer_type": subword, "do_lower_case": false,
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        TextTokenizer::from_folder(dir.path(), None).unwrap().encode(text, None).unwrap().ids
    };
    assert_eq!(ids("character", "学生です。"), [2, 5, 6, 7, 8, 13, 3]);
    assert_eq!(ids("character", "ab aＢ"), [2, 11, 12, 11, 1, 3]);
    assert_eq!(ids("wordpiece", "です ab 学生"), [2, 9, 11, 14, 1, 3]);
}
