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

/// A folder with rows, and runs beside them.
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
    bench.run("pairs.jsonl", "pairs-dev.jsonl", "again", &[&extra[..], &["--recompute"]].concat());
    for (a, b) in evals.iter().zip(bench.evals("again")) {
        assert!((margin(a) - margin(&b)).abs() < 1e-4, "{a} {b}");
    }
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
fn rows_may_have_a_column_of_labels() {
    let bench = Bench::new();
    let with_label = |name: &str| {
        let rows = fs::read_to_string(bench.path(name))
            .unwrap()
            .replace("\"prompt\"", "\"label\": \"a\", \"prompt\"");
        fs::write(bench.path("labelled.jsonl"), rows).unwrap();
    };
    let plain = bench.run("train.jsonl", "dev.jsonl", "plain", &["--method", "lora"]);
    with_label("train.jsonl");
    let labelled = bench.run("labelled.jsonl", "dev.jsonl", "labelled", &["--method", "lora"]);
    assert_eq!(labelled["dev_loss"], plain["dev_loss"]);
}

#[test]
fn samples_show_what_is_learnt() {
    let bench = Bench::new();
    let extra = ["--method", "lora", "--max-steps", "1", "--show-samples", "2"];
    let output =
        bench.command("train.jsonl", "dev.jsonl", "run", &extra).assert().success().get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches("of them targets").count(), 2, "{text}");
    assert!(text.contains('⟦'), "{text}");
}

#[test]
fn an_evaluation_writes_answers_and_counts_the_exact_ones() {
    let bench = Bench::new();
    let extra = [
        "--method",
        "full",
        "--max-steps",
        "60",
        "--eval-every",
        "30",
        "--lr",
        "1e-2",
        "--write-samples",
        "2",
    ];
    // Rows that were learnt are answered exactly.
    let output =
        bench.command("train.jsonl", "train.jsonl", "run", &extra).assert().success().get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("24 of its 24 rows are also training rows"), "{error}");
    assert!(error.contains("sample at step 30: the cat 0 ⟦"), "{error}");
    let evals = bench.evals("run");
    assert_eq!(evals[1]["samples"].as_array().unwrap().len(), 2, "{evals:?}");
    let model = bench.path("run");
    let scored = |model: &Path| -> Value {
        let mut command = Command::cargo_bin("lowrank").unwrap();
        command.args(["perplexity", "--model", s(model), "--rows", s(&bench.path("train.jsonl")), "--json"]);
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    let (before, after) = (scored(&fixture("llama-tied")), scored(&model));
    assert!(number(&before, "exact") < 0.2 && number(&after, "exact") > 0.5, "{before} {after}");
    // Greedy decoding gives what `exact` says.
    let right = (0..24).filter(|i| {
        let row: Value = serde_json::from_str(
            fs::read_to_string(bench.path("train.jsonl")).unwrap().lines().nth(*i).unwrap(),
        )
        .unwrap();
        let mut command = Command::cargo_bin("lowrank").unwrap();
        command.args([
            "generate",
            "--model",
            s(&model),
            "--prompt",
            row["prompt"].as_str().unwrap(),
            "--json",
        ]);
        let output = command.args(["--max-new-tokens", "16"]).assert().success().get_output().stdout.clone();
        let written: Value = serde_json::from_slice(&output).unwrap();
        written["text"] == row["completion"]
    });
    assert_eq!(right.count() as f64 / 24.0, number(&after, "exact"));
    let best = evals.iter().map(|eval| number(eval, "loss")).fold(f64::INFINITY, f64::min);
    assert!((number(&after, "loss") - best).abs() < 1e-4, "{after} {best}");
}

#[test]
fn a_run_that_does_not_fit_into_its_memory_is_refused() {
    let bench = Bench::new();
    let run = |memory: &str, out: &str| {
        let extra = ["--method", "lora", "--max-steps", "1", "--memory", memory];
        let output = bench.command("text.txt", "text-dev.txt", out, &extra).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (fits, text) = run("8G", "roomy");
    assert!(fits && !text.contains("recomputed"), "{text}");
    let (fits, text) = run("1M", "cramped");
    assert!(!fits && text.contains("lower --batch-size"), "{text}");
}

#[track_caller]
fn fails(bench: &Bench, rows: &str, dev: &str, extra: &[&str], part: &str) {
    fails_with(1, bench, [rows, dev], extra, part);
}

#[track_caller]
fn fails_with(code: i32, bench: &Bench, [rows, dev]: [&str; 2], extra: &[&str], part: &str) {
    let output = bench.command(rows, dev, "run", extra).assert().code(code).get_output().clone();
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
    fails(&bench, "train.jsonl", "dev.jsonl", &with(&["--beta", "0.2"]), "require preferences");
    let pairs = ["pairs.jsonl", "pairs-dev.jsonl"];
    fails_with(2, &bench, pairs, &with(&["--beta", "0"]), "beta = 0 is out of range");
    fails_with(2, &bench, pairs, &with(&["--label-smoothing", "0.5"]), "label-smoothing = 0.5");
    fails(&bench, "train.jsonl", "dev.jsonl", &with(&["--batch-tokens", "3"]), "raise it, or cut rows");
    fails(
        &bench,
        "pairs.jsonl",
        "pairs-dev.jsonl",
        &with(&["--write-samples", "1"]),
        "does not apply to preferences",
    );
}

#[rstest]
#[case(
    r#"{"question": "a", "answer": "b"}"#,
    "rows.jsonl:2: a row of unknown format (keys question, answer)"
)]
#[case(r#"{"prompt": "a", "completion": " "}"#, "rows.jsonl:2: 'completion' is empty")]
#[case(r#"{"prompt": "a", "completion": "b"#, "rows.jsonl:2: ")]
#[case(r#"{"messages": [{"role": "wizard", "content": "a"}]}"#, "rows.jsonl:2: unknown role 'wizard'")]
#[case(
    r#"{"messages": [{"role": "user", "content": "a"}]}"#,
    "rows.jsonl:2: the conversation has no assistant message"
)]
#[case(
    r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
    "rows.jsonl:2: 'chosen' and 'rejected' are equal"
)]
#[case(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, "rows.jsonl:2: ")]
fn a_bad_row_is_named_and_nothing_is_written(#[case] row: &str, #[case] part: &str) {
    let bench = Bench::new();
    fs::write(bench.path("rows.jsonl"), format!("{{\"prompt\": \"x\", \"completion\": \" y\"}}\n{row}\n"))
        .unwrap();
    fails(&bench, "rows.jsonl", "dev.jsonl", &["--method", "lora"], part);
    fails(&bench, "train.jsonl", "rows.jsonl", &["--method", "lora"], part);
}

#[test]
fn files_that_are_not_rows_are_named() {
    let bench = Bench::new();
    let check = |name: &str, bytes: &[u8], part: &str| {
        fs::write(bench.path(name), bytes).unwrap();
        fails(&bench, name, "dev.jsonl", &["--method", "lora"], part);
    };
    check("bad.jsonl", b"{\"text\": \"a b\"}\n{\"text\": \"\xff\"}\n", "bad.jsonl:2: not valid UTF-8");
    check("empty.jsonl", b"\n", "empty.jsonl");
    check("empty.txt", b" \n", "empty.txt");
    check("rows.csv", b"a,b\n", "must end in .jsonl, .json or .txt");
    fails(&bench, "absent.jsonl", "dev.jsonl", &["--method", "lora"], "absent.jsonl");
    let short = ["--method", "lora", "--max-length", "3"];
    fails(&bench, "train.jsonl", "dev.jsonl", &short, "raise the maximum length");
    // A conversation needs the model's template.
    let chat = br#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    check("chat.jsonl", chat, "chat.jsonl:1: the model has no chat template");
}

#[rstest]
#[case("{% for m in messages %}{{ m.content }}", "chat_template.jinja")]
#[case("{{ raise_exception('only one turn') }}", "only one turn")]
#[case("{% for i in range(100000000) %}{{ i }}{% endfor %}", "range has too many elements")]
fn a_template_that_fails_is_one_line(#[case] template: &str, #[case] part: &str) {
    let bench = Bench::new();
    let model = common::copy("llama-tied");
    fs::write(model.path().join("chat_template.jinja"), template).unwrap();
    let chat = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    fs::write(bench.path("chat.jsonl"), chat.to_string()).unwrap();
    let rows = bench.path("chat.jsonl");
    let mut command = Command::cargo_bin("lowrank").unwrap();
    command.args(["finetune", "--model", s(model.path()), "--method", "lora", "-o", s(&bench.path("run"))]);
    let output = command.args(["--train", s(&rows), "--dev", s(&rows)]).assert().code(1).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    let last = error.trim_end().lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains(part), "{error}");
    assert!(!bench.path("run").exists());
}
