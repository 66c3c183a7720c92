//! Tokenizers whose files are not one complete `tokenizer.json`, beside the ids and decoded texts of transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use lowrank_data::chat::{ChatTemplate, RenderOptions};
use lowrank_data::rows::{LossOn, RowEncoder, Rows};
use lowrank_data::tokenize::{Encoded, SpecialIds, TextTokenizer};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers")
}

fn read(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Records a mismatch.
fn compare(wrong: &mut Vec<String>, what: std::fmt::Arguments, got: &Value, expected: &Value) {
    if got != expected {
        wrong.push(format!("{what}\n  {got}\n  {expected}"));
    }
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
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
        let expected = read(folder.join("expected.json"));
        compare(
            &mut wrong,
            format_args!("{name}: length"),
            &json!(tokenizer.vocab_size()),
            &expected["length"],
        );
        let SpecialIds { cls, sep, pad, mask, unk, bos, eos } = tokenizer.special_ids();
        let got = json!({
            "cls_token": cls, "sep_token": sep, "pad_token": pad, "mask_token": mask, "unk_token": unk, "bos_token": bos,
            "eos_token": eos,
        });
        for (role, id) in expected["special_ids"].as_object().unwrap() {
            // Tokens without one of the seven roles have no id in `SpecialIds`.
            if let Some(got) = got.get(role) {
                compare(&mut wrong, format_args!("{name}: {role}"), got, id);
            }
        }
        let cases = expected["cases"].as_array().unwrap();
        assert!(cases.len() > 10, "{name}");
        for case in cases {
            let (text, pair) = (case["text"].as_str().unwrap(), case["text_pair"].as_str());
            let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
            let what = format_args!("{name}: {text:?} {pair:?}");
            let encoded = tokenizer.encode(text, pair).unwrap();
            compare(&mut wrong, what, &json!(encoded.ids), &case["input_ids"]);
            compare(&mut wrong, what, &json!(tokenizer.decode(&ids, false).unwrap()), &case["decoded"]);
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
    let table = read(fixtures().join("classes.json"));
    let texts: Vec<Vec<String>> = serde_json::from_value(table["texts"].clone()).unwrap();
    assert!(texts.iter().any(|text| text.len() == 2));
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
            let (from, to) = file.split_once('=').unwrap_or((file, file));
            std::fs::copy(base.join(from), folder.path().join(to)).unwrap();
        }
        if copied.is_empty() {
            let mut json = read(base.join("tokenizer.json"));
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
        compare(&mut wrong, format_args!("{name}: length"), &json!(tokenizer.vocab_size()), &row["length"]);
        let expected: Vec<Vec<u32>> = serde_json::from_value(row["ids"].clone()).unwrap();
        assert_eq!(expected.len(), texts.len(), "{name}");
        for (index, (text, expected)) in texts.iter().zip(&expected).enumerate() {
            let Encoded { ids, type_ids } =
                tokenizer.encode(&text[0], text.get(1).map(String::as_str)).unwrap();
            let types: String = type_ids.iter().map(u32::to_string).collect();
            for (key, got) in [
                ("ids", json!(ids)),
                ("type_ids", json!(types)),
                ("decoded", json!(tokenizer.decode(expected, false).unwrap())),
                ("unmarked", json!(tokenizer.decode(expected, true).unwrap())),
            ] {
                compare(&mut wrong, format_args!("{name}: {key} of {text:?}"), &got, &row[key][index]);
            }
        }
        if let Some(expected) = row.get("target") {
            let path = folder.path().join("rows.jsonl");
            std::fs::write(&path, json!({"prompt": "x", "completion": texts[0][0]}).to_string()).unwrap();
            let encoder = RowEncoder::new(&tokenizer, None, LossOn::Completion, 100).unwrap();
            let rows = encoder.encode_targets(&Rows::read(&path).unwrap()).unwrap();
            compare(&mut wrong, format_args!("{name}: target"), &json!(rows.rows[0].target), expected);
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
    let words = std::fs::read_to_string(fixtures().join("../bert-cls/tokenizer.json")).unwrap();
    let by_type = ("config.json", "{\"model_type\": \"albert\"}");
    refused(&[("tokenizer.json", &words), by_type], &["model_type", "Unigram", "PreTrainedTokenizerFast"]);
    refused(
        &[("tokenizer.json", &words), ("tokenizer_config.json", &class("AlbertTokenizer"))],
        &["'AlbertTokenizer'", "Unigram", "PreTrainedTokenizerFast"],
    );
    let pieces = std::fs::read_to_string(fixtures().join("../xlm-roberta-cls/tokenizer.json")).unwrap();
    for key in ["src_lang", "tgt_lang"] {
        let config = format!("{{\"tokenizer_class\": \"MBartTokenizer\", \"{key}\": \"tlh\"}}");
        refused(
            &[("tokenizer.json", &pieces), ("tokenizer_config.json", &config)],
            &[key, "'tlh', which is not in the vocabulary"],
        );
    }
}

/// DeBERTa's file is read whatever the model type, unless the files name another class.
#[test]
fn deberta_is_known_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join("sentencepiece-deberta/spm.model"), dir.path().join("spm.model")).unwrap();
    for model_type in ["albert", "deberta-v2", "llama", "t5", "xlm-roberta"] {
        let config = json!({"model_type": model_type}).to_string();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let tokenizer = TextTokenizer::from_folder(dir.path(), None).unwrap();
        let ids = tokenizer.encode("the cat", None).unwrap().ids;
        assert_eq!(ids[1..5], [5, 6, 31, 7], "{model_type}");
    }
}

/// Japanese BERT without a dictionary: ids and texts of transformers' `BertJapaneseTokenizer` for the same vocabulary.
#[test]
fn japanese_without_a_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n学\n生\nで\nす\nです\n##す\na\nb\n。\n##b\n,\n";
    std::fs::write(dir.path().join("vocab.txt"), vocab).unwrap();
    let open = |subword: &str| {
        let config = serde_json::json!({
            "tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic",
            "subword_tokenizer_type": subword, "do_lower_case": false,
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        TextTokenizer::from_folder(dir.path(), None).unwrap()
    };
    let ids = |subword: &str, text: &str| open(subword).encode(text, None).unwrap().ids;
    assert_eq!(ids("character", "学生です。"), [2, 5, 6, 7, 8, 13, 3]);
    assert_eq!(ids("character", "ab aＢ"), [2, 11, 12, 11, 1, 3]);
    assert_eq!(ids("wordpiece", "です ab 学生"), [2, 9, 11, 14, 1, 3]);
    for subword in ["character", "wordpiece"] {
        let tokenizer = open(subword);
        let ids = tokenizer.encode("a, b", None).unwrap().ids;
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "[CLS] a , b [SEP]", "{subword}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a , b", "{subword}");
    }
}
