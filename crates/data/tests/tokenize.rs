//! Tokenizers give what transformers gives on the same folders; bad folders are refused in one line.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use lowrank_data::questions::WindowOptions;
use lowrank_data::tokenize::TextTokenizer;
use serde_json::Value;

fn own(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(case)
}

/// The model fixtures of the workspace.
fn shared(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(case)
}

fn read(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Compares every row of an `expected.json`; the key names are those of its maker.
#[track_caller]
fn check(folder: &Path, expected: &Value, rows: &str, [text, pair, ids, types]: [&str; 4]) {
    let max_length = expected["max_length"].as_u64().unwrap() as usize;
    let tokenizer = TextTokenizer::from_folder(folder, Some(max_length)).unwrap();
    let rows = expected[rows].as_array().unwrap();
    assert!(rows.len() >= 10);
    let inputs: Vec<(&str, Option<&str>)> =
        rows.iter().map(|row| (row[text].as_str().unwrap(), row[pair].as_str())).collect();
    let batch = tokenizer.encode_batch(inputs.iter().copied()).unwrap();
    for ((row, input), encoded) in rows.iter().zip(&inputs).zip(&batch) {
        assert_eq!(encoded.ids, numbers(&row[ids]), "{input:?}");
        assert_eq!(encoded.type_ids, numbers(&row[types]), "{input:?}");
        assert_eq!(*encoded, tokenizer.encode(input.0, input.1).unwrap(), "{input:?}");
        assert!(encoded.ids.len() <= max_length);
    }
}

#[test]
fn bare_vocabularies_equal_transformers() {
    for case in ["bert-cased", "bert-plain", "roberta-spaced", "gpt2-plain"] {
        let folder = own(case);
        check(&folder, &read(folder.join("expected.json")), "rows", ["text", "pair", "ids", "type_ids"]);
    }
}

const MODEL_KEYS: [&str; 4] = ["text", "text_pair", "input_ids", "token_type_ids"];

#[test]
fn tokenizer_json_equals_transformers() {
    for case in ["bert-cls", "roberta-cls"] {
        let folder = shared(case);
        check(&folder, &read(folder.join("expected.json")), "cases", MODEL_KEYS);
    }
}

#[test]
fn without_tokenizer_json_the_vocabulary_gives_the_same() {
    for (case, files) in [
        ("bert-cls", ["vocab.txt", "tokenizer_config.json"].as_slice()),
        ("roberta-cls", &["vocab.json", "merges.txt", "tokenizer_config.json"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::copy(shared(case).join(file), folder.path().join(file)).unwrap();
        }
        let mut expected = read(shared(case).join("expected.json"));
        // The fixture's tokenizer.json lets <mask> swallow the space before it, which a bare vocabulary cannot say.
        if let Some(cases) = expected["cases"].as_array_mut() {
            cases.retain(|c| c["name"] != "special_in_text");
        }
        check(folder.path(), &expected, "cases", MODEL_KEYS);
    }
}

/// As transformers 5: settings count where the class is one that builds its own rules.
#[test]
fn what_the_configuration_states_wins_over_tokenizer_json() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(shared("bert-cls").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let ids = |config: Option<&str>| {
        if let Some(config) = config {
            std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        }
        TextTokenizer::from_folder(folder.path(), None).unwrap().encode("The", None).unwrap().ids
    };
    let lower = ids(None);
    assert_eq!(lower, [2, 69, 3]);
    assert_eq!(ids(Some(r#"{"do_lower_case": false}"#)), lower);
    assert_ne!(ids(Some(r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": false}"#)), lower);
    assert_eq!(ids(Some(r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#)), lower);
}

/// As transformers: the last tokens of each text are kept, of a pair as many of each as on the right.
#[test]
fn the_files_name_the_side_that_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    let json = std::fs::read_to_string(shared("bert-cls").join("tokenizer.json")).unwrap();
    let encode = |max_length: Option<usize>, pair: Option<&str>| {
        let tokenizer = TextTokenizer::from_folder(folder.path(), max_length).unwrap();
        tokenizer.encode("the cat sat on the mat", pair).unwrap().ids
    };
    write("tokenizer.json", &json);
    let [full, both] = [None, Some("a dog ran")].map(|pair| encode(None, pair));
    let (n, m) = (full.len() - 2, both.len() - full.len() - 1);
    let [right, right_pair] = [None, Some("a dog ran")].map(|pair| encode(Some(7), pair));
    assert_eq!((&right[..6], right_pair.len()), (&full[..6], 7));
    let check = || {
        assert_eq!(encode(Some(7), None), [&full[..1], &full[1 + n - 5..]].concat());
        let pair = [&both[..1], &full[1 + n - 2..], &both[full.len() + m - 2..]].concat();
        assert_eq!(encode(Some(7), Some("a dog ran")), pair);
    };
    write("tokenizer_config.json", r#"{"truncation_side": "left"}"#);
    check();
    // transformers takes it from tokenizer.json if the config says nothing.
    write("tokenizer_config.json", "{}");
    let mut value: Value = serde_json::from_str(&json).unwrap();
    value["truncation"] = serde_json::json!(
        {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    );
    write("tokenizer.json", &value.to_string());
    check();
    write("tokenizer_config.json", r#"{"truncation_side": "right"}"#);
    assert_eq!(encode(Some(7), None), right);
    write("tokenizer_config.json", r#"{"truncation_side": "middle"}"#);
    let error = TextTokenizer::from_folder(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("'middle'; expected left or right"), "{error}");
}

#[test]
fn roles_and_sizes_come_from_the_files() {
    let tokenizer = TextTokenizer::from_folder(&shared("roberta-cls"), None).unwrap();
    let special = tokenizer.special_ids();
    assert_eq!((special.cls, special.pad, special.sep, special.unk), (Some(0), Some(1), Some(2), Some(3)));
    assert_eq!(special.mask, tokenizer.token_to_id("<mask>"));
    assert_eq!(tokenizer.vocab_size(), special.mask.unwrap() as usize + 1);
    assert_eq!(tokenizer.model_max_length(), Some(30));
    assert_eq!(tokenizer.reserved_ids(), [0, 1, 2, 3, special.mask.unwrap()]);
    assert_eq!(tokenizer.decode(&tokenizer.encode(" the cat", None).unwrap().ids, true).unwrap(), " the cat");
    let gpt2 = TextTokenizer::from_folder(&own("gpt2-plain"), None).unwrap().special_ids();
    assert_eq!((gpt2.cls, gpt2.mask, gpt2.eos), (None, None, Some(0)));
}

/// Loads a folder of the given files and expects one line that holds `part`.
#[track_caller]
fn refused(files: &[(&str, &str)], max_length: Option<usize>, part: &str) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let error = TextTokenizer::from_folder(folder.path(), max_length).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn bad_folders_are_refused_in_one_line() {
    let vocab = ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n");
    refused(
        &[],
        None,
        "looked for tokenizer.json, vocab.txt, vocab.json with merges.txt, and tokenizer.model",
    );
    refused(&[("vocab.json", "{}")], None, "looked for tokenizer.json");
    refused(&[("tokenizer.json", "{\"version\": \"1.0\",")], None, "tokenizer.json': ");
    refused(&[("vocab.txt", "[PAD]\n[CLS]\n[SEP]\na\n")], None, "lacks the unknown token '[UNK]'");
    refused(&[("vocab.json", "{\"a\": 0"), ("merges.txt", "")], None, "vocab.json': ");
    refused(&[vocab, ("tokenizer_config.json", "{\"do_lower_case\": 3}")], None, "tokenizer_config.json': ");
    refused(
        &[vocab],
        Some(3),
        "max_length is 3; this tokenizer adds 3 special tokens to a pair, so give more",
    );
    let error = TextTokenizer::from_folder(&own("absent"), None).unwrap_err().to_string();
    assert!(error.starts_with("no model folder at '"), "{error}");
}

#[test]
fn the_shortest_length_that_is_allowed_holds_one_token() {
    let tokenizer = TextTokenizer::from_folder(&own("bert-plain"), Some(4)).unwrap();
    assert_eq!(tokenizer.encode("the cat sat", Some("on")).unwrap().ids.len(), 4);
    assert_eq!(tokenizer.encode("the cat sat", None).unwrap().ids.len(), 4);
}

/// As transformers 5: `model_input_names` counts, or else the class's own; a bare `tokenizer.json` keeps its template's types.
#[test]
fn token_types_are_zeros_where_the_model_is_given_none() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(shared("bert-cls").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let has_types = |config: Option<&str>| {
        if let Some(config) = config {
            std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        }
        let tokenizer = TextTokenizer::from_folder(folder.path(), None).unwrap();
        let pair = tokenizer.encode("the cat", Some("the mat")).unwrap();
        let options = WindowOptions { max_length: 16, stride: None };
        let windows = tokenizer.encode_windows("the cat", "the mat", options).unwrap();
        assert_eq!(windows[0].encoded, pair);
        assert_eq!(pair.ids.len(), pair.type_ids.len());
        pair.type_ids.contains(&1)
    };
    assert!(has_types(None));
    for (config, expect) in [
        (r#"{"tokenizer_class": "BertTokenizer"}"#, true),
        (
            r#"{"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}"#,
            false,
        ),
        (r#"{"tokenizer_class": "DistilBertTokenizerFast"}"#, false),
        (r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, false),
        (r#"{"model_input_names": ["input_ids", "token_type_ids"]}"#, true),
    ] {
        assert_eq!(has_types(Some(config)), expect, "{config}");
    }
}
