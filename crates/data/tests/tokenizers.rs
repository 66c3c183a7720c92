//! Tokenizers whose files are not one complete `tokenizer.json`, beside the ids of transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

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
