//! The tokenizer, the chat template and the pooling in an adapter's folder: they hold over the model's, and stay with the adapter.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, edit, fixture, json_of, run, s};

const BASE: &str = "small-llama";
const TEXTS: [&str; 4] = ["--text", "A e a.", "--text", "eating a"];

/// A copy of an adapter with the tokenizer of its base, in which two letters are exchanged, and a template.
fn adapter() -> TempDir {
    let dir = copy("peft-small-llama-lora-head");
    exchanged(&fixture(BASE), dir.path());
    fs::write(dir.path().join("chat_template.jinja"), "{% for m in messages %}<{{ m.content }}>{% endfor %}")
        .unwrap();
    dir
}

fn exchanged(source: &Path, dir: &Path) {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(file), dir.join(file)).unwrap();
    }
    edit(&dir.join("tokenizer.json"), |json| {
        let vocab = &mut json["model"]["vocab"];
        let [a, e] = ["a", "e"].map(|letter| vocab[letter].clone());
        (vocab["a"], vocab["e"]) = (e, a);
    });
}

fn nll(model: &Path, adapter: Option<&Path>) -> Value {
    let mut args = vec!["perplexity", "--model", s(model)];
    args.extend(adapter.iter().flat_map(|a| ["--adapter", s(a)]));
    let object = json_of(&[&args[..], &TEXTS].concat());
    object["rows"].clone()
}

fn rendered(model: &Path, adapter: Option<&Path>) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    fs::write(&file, json!([{"role": "user", "content": "hi"}]).to_string()).unwrap();
    let mut args = vec!["generate", "--model", s(model), "--messages", s(&file), "--render"];
    args.extend(adapter.iter().flat_map(|a| ["--adapter", s(a)]));
    json_of(&args)["prompt"].clone()
}

fn same(a: &Path, b: &Path, file: &str) -> bool {
    fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap()
}

#[test]
fn they_hold_over_the_models_and_stay_with_the_adapter() {
    let (base, adapter, out) = (fixture(BASE), adapter(), tempfile::tempdir().unwrap());
    let (adapter, bare) = (adapter.path(), fixture("peft-small-llama-lora-head"));
    let path = |name: &str| -> PathBuf { out.path().join(name) };
    // The same tokenizer as the model's own.
    let other = copy(BASE);
    exchanged(&base, other.path());
    let expect = nll(other.path(), Some(&bare));
    assert_eq!(nll(&base, Some(adapter)), expect);
    assert_ne!(nll(&base, Some(&bare)), expect);
    assert_eq!(rendered(&base, Some(adapter)), "<hi>");

    let merged = path("merged");
    run(&["merge", "--model", s(&base), "--adapter", s(adapter), "-o", s(&merged)]);
    assert_eq!(rendered(&merged, None), "<hi>");
    assert!(same(&merged, adapter, "tokenizer.json"));
    let gguf = path("merged.gguf");
    let files = ["--model", s(&base), "--adapter", s(adapter), "-o", s(&gguf)];
    run(&[&["convert", "--to", "gguf", "--merge"], &files[..]].concat());
    assert_eq!(rendered(&gguf, None), "<hi>");

    let resized = path("resized");
    run(&["resize", "--rank", "1", "--adapter", s(adapter), "--model", s(&base), "-o", s(&resized)]);
    let combined = path("combined");
    let [one, two] = [adapter, &bare].map(|dir| format!("{}=0.5", s(dir)));
    let both = ["--adapter", &two, "--adapter", &one, "--model", s(&base)];
    run(&[&["combine", "--how", "cat", "-o", s(&combined)], &both[..]].concat());
    for folder in [&resized, &combined] {
        assert!(same(folder, adapter, "tokenizer.json") && same(folder, adapter, "chat_template.jinja"));
    }
}

/// Training goes on with the tokens that the adapter was trained on.
#[test]
fn training_goes_on_with_them() {
    let (base, adapter, out) = (fixture(BASE), adapter(), tempfile::tempdir().unwrap());
    let (rows, tuned) = (out.path().join("rows.txt"), out.path().join("run"));
    fs::write(&rows, "eating a\n").unwrap();
    let loss = |model: &Path, start: &Path, out: &Path| {
        let args = ["finetune", "--model", s(model), "--train", s(&rows), "--dev", s(&rows), "-o", s(out)];
        let steps = ["--method", "lora", "--max-steps", "1", "--eval-every", "1", "--lr", "1e-12"];
        let start = ["--init-from", s(start), "--rank", "3", "--alpha", "6"];
        json_of(&[&args[..], &steps, &start].concat())["dev_loss"].clone()
    };
    let other = copy(BASE);
    exchanged(&base, other.path());
    let bare = fixture("peft-small-llama-lora-head");
    let expect = loss(other.path(), &bare, &out.path().join("other"));
    assert_eq!(loss(&base, adapter.path(), &tuned), expect);
    let saved = tuned.join("adapter");
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert!(same(&saved, adapter.path(), file), "{file}");
    }
}

#[test]
fn an_embedders_pooling_may_come_with_its_adapter() {
    let base = fixture("bert-encoder");
    let out = tempfile::tempdir().unwrap();
    let (rows, tuned) = (out.path().join("rows.tsv"), out.path().join("run"));
    fs::write(&rows, "text\tlabel\nthe cat\t0\nthe dog\t1\n").unwrap();
    let files = ["--train", s(&rows), "--dev", s(&rows), "-o", s(&tuned)];
    let steps = ["--method", "lora", "--max-steps", "2", "--eval-every", "2"];
    run(&[&["finetune", "--model", s(&base)], &files[..], &steps].concat());
    let adapter = tuned.join("adapter");
    let embed = |model: &Path| {
        json_of(&["embed", "--model", s(model), "--adapter", s(&adapter), "--text", "the cat"])["rows"]
            .clone()
    };
    let mean = embed(&base);
    fs::create_dir(adapter.join("1_Pooling")).unwrap();
    let pooling = json!({"pooling_mode_cls_token": true}).to_string();
    fs::write(adapter.join("1_Pooling/config.json"), &pooling).unwrap();
    let first = embed(&base);
    assert_ne!(first, mean);
    let pooled = copy("bert-encoder");
    fs::create_dir(pooled.path().join("1_Pooling")).unwrap();
    fs::write(pooled.path().join("1_Pooling/config.json"), &pooling).unwrap();
    fs::remove_dir_all(adapter.join("1_Pooling")).unwrap();
    assert_eq!(embed(pooled.path()), first);
}
