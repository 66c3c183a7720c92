//! `finetune` over language models, as a user types it.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{fixture, s};

/// Rows in a folder of their own, and runs beside them.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, rows: Vec<Value>| {
            let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
            fs::write(dir.path().join(name), lines.join("\n")).unwrap();
        };
        let words = ["cat", "dog", "mat", "hat", "sun", "day"];
        let pair = |i: usize| (words[i % 6], words[(i * 5 + 1) % 6]);
        let completions = |range: std::ops::Range<usize>| {
            range.map(|i| json!({"prompt": format!("the {} {i}", pair(i).0), "completion": format!(" the {}", pair(i).1)}))
        };
        write("train.jsonl", completions(0..24).collect());
        write("dev.jsonl", completions(30..36).collect());
        let preferences = |range: std::ops::Range<usize>| {
            range.map(
                |i| json!({"prompt": format!("{i} the"), "chosen": " cat", "rejected": format!(" dog {i}")}),
            )
        };
        write("pairs.jsonl", preferences(0..16).collect());
        write("pairs-dev.jsonl", preferences(20..26).collect());
        fs::write(dir.path().join("text.txt"), "the cat sat on the mat. ".repeat(60)).unwrap();
        fs::write(dir.path().join("text-dev.txt"), "the dog sat on the mat. ".repeat(9)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, rows: &str, dev: &str, out: &str, extra: &[&str]) -> Command {
        let mut command = Command::cargo_bin("lowrank").unwrap();
        command
            .args(["finetune", "--model", s(&fixture("llama-tied")), "--json"])
            .args(["--train", s(&self.path(rows)), "--dev", s(&self.path(dev)), "-o", s(&self.path(out))])
            .args(extra);
        let defaults = [
            ("--batch-size", "4"),
            ("--eval-every", "5"),
            ("--lr", "5e-3"),
            ("--seed", "1"),
            ("--show-samples", "0"),
        ];
        for (option, value) in defaults.iter().filter(|(option, _)| !extra.contains(option)) {
            command.args([option, value]);
        }
        command
    }

    fn run(&self, rows: &str, dev: &str, out: &str, extra: &[&str]) -> Value {
        let output = self.command(rows, dev, out, extra).assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    }

    fn evals(&self, out: &str) -> Vec<Value> {
        let record = fs::read_to_string(self.path(out).join("run.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        record["train_info"]["evals"].as_array().unwrap().clone()
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

#[rstest]
#[case("lora", &["--targets", "all-linear"], "adapter")]
#[case("lotr", &["--rank", "4"], "adapter")]
#[case("full", &[], "model")]
#[case("head", &[], "model")]
fn the_dev_loss_falls_and_what_is_saved_has_it(
    #[case] method: &str,
    #[case] extra: &[&str],
    #[case] saved: &str,
) {
    let bench = Bench::new();
    let extra = [&["--method", method, "--max-steps", "20"], extra].concat();
    let result =
        bench.run("text.txt", "text-dev.txt", "run", &[&extra[..], &["--max-length", "32"]].concat());
    let evals = bench.evals("run");
    let best = evals.iter().map(|eval| number(eval, "loss")).fold(f64::INFINITY, f64::min);
    assert_eq!(number(&result, "dev_loss"), best);
    assert!(best < number(&evals[0], "loss"), "{evals:?}");
    assert!(bench.path("run").join(saved).is_dir());
    let model = if saved == "model" { bench.path("run") } else { fixture("llama-tied") };
    let mut command = Command::cargo_bin("lowrank").unwrap();
    command.args(["perplexity", "--model", s(&model), "--text", "the dog sat", "--json"]);
    if saved == "adapter" {
        command.args(["--adapter", s(&bench.path("run"))]);
    }
    command.assert().success();
}

#[test]
fn rows_of_tokens_recomputed_layers_and_accumulation_give_one_training() {
    let bench = Bench::new();
    let run = |out: &str, extra: &[&str]| {
        let fixed = ["--method", "lora", "--max-steps", "6", "--eval-every", "2"];
        bench.run("train.jsonl", "dev.jsonl", out, &[&fixed[..], extra].concat());
        bench.evals(out).iter().map(|eval| number(eval, "loss")).collect::<Vec<f64>>()
    };
    let whole = run("whole", &[]);
    for (out, extra) in [
        ("recomputed", &["--recompute"][..]),
        ("accumulated", &["--batch-size", "2", "--grad-accum", "2"][..]),
    ] {
        let other = run(out, extra);
        let off = whole.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4, "{out}: {whole:?} {other:?}");
    }
    run("tokens", &["--batch-tokens", "64"]);
}

#[test]
fn preferences_raise_the_margin() {
    let bench = Bench::new();
    let extra = ["--method", "lora", "--max-steps", "20", "--targets", "all-linear"];
    bench.run("pairs.jsonl", "pairs-dev.jsonl", "run", &extra);
    let evals = bench.evals("run");
    let margin = |eval: &Value| eval["metrics"]["margin"].as_f64().unwrap();
    assert!(margin(&evals[evals.len() - 1]) > margin(&evals[0]), "{evals:?}");
    assert!(margin(&evals[evals.len() - 1]) > 0.0);
}

#[test]
fn a_resumed_training_ends_as_the_uninterrupted_one() {
    let bench = Bench::new();
    let fixed = |steps: &'static str| {
        ["--method", "lora", "--scheduler", "constant", "--warmup-ratio", "0", "--max-steps", steps]
    };
    bench.run("train.jsonl", "dev.jsonl", "whole", &fixed("10"));
    bench.run("train.jsonl", "dev.jsonl", "parts", &fixed("5"));
    bench.run("train.jsonl", "dev.jsonl", "parts", &[&fixed("10")[..], &["--extend"]].concat());
    assert_eq!(bench.evals("whole"), bench.evals("parts"));
    let weights = |out: &str| fs::read(bench.path(out).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("parts"));
}

#[test]
fn samples_show_what_is_learnt() {
    let bench = Bench::new();
    let extra = ["--method", "lora", "--max-steps", "1", "--show-samples", "2"];
    let output =
        bench.command("train.jsonl", "dev.jsonl", "run", &extra).assert().success().get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches("of them learnt").count(), 2, "{text}");
    assert!(text.contains('⟦'), "{text}");
}

#[track_caller]
fn fails(bench: &Bench, rows: &str, dev: &str, extra: &[&str], part: &str) {
    let output = bench.command(rows, dev, "run", extra).assert().code(1).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "one line: {error}");
    assert!(!Path::new(&bench.path("run")).exists());
}

#[test]
fn wrong_options_and_rows_are_one_line() {
    let bench = Bench::new();
    let lora = ["--method", "lora"];
    let with = |extra: &[&'static str]| [&lora[..], extra].concat();
    fails(&bench, "train.jsonl", "pairs.jsonl", &lora, "cannot be mixed");
    fails(&bench, "train.jsonl", "dev.jsonl", &with(&["--beta", "0.2"]), "are for preferences");
    fails(&bench, "pairs.jsonl", "pairs-dev.jsonl", &with(&["--beta", "0"]), "beta = 0 is out of range");
    fails(
        &bench,
        "pairs.jsonl",
        "pairs-dev.jsonl",
        &with(&["--label-smoothing", "0.5"]),
        "label-smoothing = 0.5",
    );
    fails(&bench, "train.jsonl", "dev.jsonl", &with(&["--batch-tokens", "3"]), "raise it, or cut rows");
}
