//! `finetune` of an encoder on plain text, as a user types it.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use common::{fixture, s};

fn embedded() -> std::path::PathBuf {
    fixture("../../datasets/models/mini-bert")
}

/// Sentences of mini-GLUE as a text to train on and one to evaluate with.
fn texts() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rows = fs::read_to_string(fixture("../../datasets/mini-glue/SST-2/train.tsv")).unwrap();
    let sentences: Vec<&str> = rows.lines().skip(1).filter_map(|line| line.split('\t').next()).collect();
    fs::write(dir.path().join("train.txt"), sentences[..400].join("\n")).unwrap();
    fs::write(dir.path().join("dev.txt"), sentences[400..500].join("\n")).unwrap();
    let row = |text: &&str| serde_json::json!({ "text": text }).to_string();
    fs::write(
        dir.path().join("dev.jsonl"),
        sentences[400..500].iter().map(row).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    dir
}

fn finetune(model: &Path, dir: &Path, dev: &str, out: &str, extra: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lowrank").unwrap();
    command.args([
        "finetune",
        "--model",
        s(model),
        "--train",
        s(&dir.join("train.txt")),
        "--dev",
        s(&dir.join(dev)),
    ]);
    command.args(["--batch-size", "16", "--eval-every", "10", "--json", "-o"]);
    command.arg(dir.join(out)).args(extra);
    command
}

#[rstest]
#[case("full", "1e-4", "model")]
#[case("lora", "2e-3", "adapter")]
#[case("head", "1e-3", "model")]
fn words_are_learnt_and_what_is_saved_is_taken_up(
    #[case] method: &str,
    #[case] lr: &str,
    #[case] saved: &str,
) {
    let dir = texts();
    let extra = ["--method", method, "--lr", lr, "--max-steps", "30"];
    let output =
        finetune(&embedded(), dir.path(), "dev.jsonl", "run", &extra).assert().success().get_output().clone();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["metric_name"], "loss");
    let record = fs::read_to_string(dir.path().join("run/run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let evals = record["train_info"]["evals"].as_array().unwrap();
    let loss = |at: usize| evals[at]["loss"].as_f64().unwrap();
    assert!(evals.len() == 3 && loss(2) < loss(0), "{evals:?}");
    let accuracy = evals[2]["metrics"]["accuracy"].as_f64().unwrap();
    assert!((0.1..1.0).contains(&accuracy), "{evals:?}");
    assert!(dir.path().join("run").join(saved).is_dir());
    // A classifier starts from it.
    if saved == "model" {
        let mut command = Command::cargo_bin("lowrank").unwrap();
        command.args([
            "finetune",
            "--model",
            s(&dir.path().join("run/model")),
            "--method",
            "head",
            "--task",
            "sst2",
        ]);
        command.args(["--data", s(&fixture("../../datasets/mini-glue")), "--max-steps", "2", "-o"]);
        command.arg(dir.path().join("task")).assert().success();
    }
}

#[test]
fn what_is_hidden_of_the_dev_rows_is_the_same_in_every_run() {
    let dir = texts();
    let loss = |dev: &str, seed: &str, out: &str| {
        let extra = ["--method", "lora", "--lr", "1e-9", "--max-steps", "1", "--seed", seed];
        let output =
            finetune(&embedded(), dir.path(), dev, out, &extra).assert().success().get_output().clone();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["dev_loss"].as_f64().unwrap()
    };
    assert!((loss("dev.txt", "1", "a") - loss("dev.txt", "2", "b")).abs() < 1e-5);
}

#[test]
fn an_encoder_without_the_head_or_a_file_without_text_is_one_line() {
    let dir = texts();
    let fails = |model: &Path, extra: &[&str], part: &str| {
        let output =
            finetune(model, dir.path(), "dev.txt", "run", extra).assert().code(1).get_output().clone();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(part) && error.trim_end().lines().count() == 1, "{error}");
        assert!(!dir.path().join("run").exists(), "{error}");
    };
    fails(&fixture("bert-cls"), &["--method", "lora"], "no masked language modelling head");
    fails(
        &embedded(),
        &["--method", "lora", "--loss-on", "all"],
        "--loss-on applies to language models only",
    );
    fails(&embedded(), &["--method", "lora", "--zero-head"], "--zero-head applies to classifiers");
    // Rows with a label are classified, also where the first lacks it.
    let rows = "{\"text\": \"a film\"}\n{\"text\": \"a plot\", \"label\": \"good\"}\n";
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let rows = dir.path().join("rows.jsonl");
    let mut command = Command::cargo_bin("lowrank").unwrap();
    command.args([
        "finetune",
        "--model",
        s(&embedded()),
        "--train",
        s(&rows),
        "--dev",
        s(&rows),
        "--method",
        "lora",
        "-o",
    ]);
    let output = command.arg(dir.path().join("run")).assert().code(1).get_output().clone();
    assert!(String::from_utf8(output.stderr).unwrap().contains("rows.jsonl:1"));
    fs::write(dir.path().join("train.txt"), " ").unwrap();
    fails(&embedded(), &["--method", "lora"], "train.txt");
}
