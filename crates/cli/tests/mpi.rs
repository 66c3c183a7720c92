//! Fine-tuning in several processes under `mpirun`.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use lowrank_checkpoint::Checkpoint;
use rstest::rstest;
use serde_json::Value;

use common::{copy, edit, fixture, s};

fn mpirun(n: usize, args: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &n.to_string()]);
    command.arg(cargo_bin("lowrank")).args(args).env("RAYON_NUM_THREADS", "1");
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("mpirun has to be installed")
}

fn tensors(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let checkpoint = Checkpoint::open_adapter(folder.join("adapter/adapter_model.safetensors")).unwrap();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), checkpoint.read_f32(&name).unwrap())).collect()
}

#[track_caller]
fn assert_near(got: &Path, expect: &Path) {
    let (got, expect) = (tensors(got), tensors(expect));
    assert_eq!(got.len(), expect.len());
    for ((name, got), (_, expect)) in got.iter().zip(&expect) {
        let off = got.iter().zip(expect).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 2e-5, "{name}: {off}");
    }
}

/// Rows of different lengths, seven of them, in batches of three: the last batch has one.
fn rows(dir: &Path) -> [String; 4] {
    let texts =
        ["the cat sat", "a dog ran over the mat", "the sea", "the old king was here and there", "a mat"];
    let texts = texts.iter().chain(&["the dog", "a cat on the red mat of the king"]);
    let tsv = texts.clone().enumerate().map(|(i, text)| format!("{text}\t{}\n", i % 2));
    let pairs = texts.clone().map(|text| {
        let last = text.rsplit(' ').next().unwrap();
        format!("{{\"prompt\": \"{text}\", \"completion\": \"{last}\"}}\n")
    });
    let files = [
        ("text.jsonl", texts.clone().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect::<String>()),
        ("classes.tsv", format!("text\tlabel\n{}", tsv.collect::<String>())),
        ("plain.txt", texts.map(|text| format!("{text}\n")).collect()),
        ("pairs.jsonl", pairs.collect()),
    ];
    files.map(|(name, text)| {
        fs::write(dir.join(name), text).unwrap();
        s(&dir.join(name)).to_owned()
    })
}

const LORA: [&str; 10] =
    ["--method", "lora", "--rank", "2", "--batch-size", "3", "--lr", "1e-2", "--dropout", "0"];

/// Next tokens, classes, masked tokens, and sequence-to-sequence; the last process has no row of the last batch.
#[rstest]
#[case::next_token("llama", 0)]
#[case::classes("bert-encoder", 1)]
#[case::masked("bert-mlm", 2)]
#[case::seq2seq("seq2seq-t5", 3)]
fn several_processes_train_as_one(#[case] model: &str, #[case] file: usize, #[values(2, 4)] n: usize) {
    let dir = tempfile::tempdir().unwrap();
    let file = &rows(dir.path())[file];
    let (model, whole, divided) = (copy(model), dir.path().join("one"), dir.path().join("many"));
    // Each process draws different dropout masks.
    edit(&model.path().join("config.json"), |config| {
        for key in
            ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout_rate"]
        {
            if config.get(key).is_some() {
                config[key] = 0.0.into();
            }
        }
    });
    let args = |out| {
        let head =
            ["finetune", "--model", s(model.path()), "--train", file, "--dev", file, "--max-steps", "5"];
        let rest = ["--grad-accum", "2", "--eval-every", "2", "--json", "-o", out];
        [&head[..], &LORA, &rest].concat()
    };
    let one: Value = serde_json::from_str(&common::run(&args(s(&whole))).0).unwrap();
    let many = output(&mut mpirun(n, &args(s(&divided))));
    assert!(many.status.success(), "{}", String::from_utf8_lossy(&many.stderr));
    let many: Value = serde_json::from_slice(&many.stdout).unwrap();
    let loss = |report: &Value| report["dev_loss"].as_f64().unwrap();
    assert!((loss(&one) - loss(&many)).abs() < 1e-4, "{one} {many}");
    assert_eq!(one["steps"], many["steps"]);
    assert_near(&divided, &whole);
    let events = fs::read_dir(&divided)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 1, "process 0 writes the log");
}

/// An error of all processes is one line of ours, and the job ends.
#[test]
fn an_error_ends_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama");
    let missing = s(&dir.path().join("missing.jsonl")).to_owned();
    let out = dir.path().join("run");
    let args = [
        "finetune",
        "--model",
        s(&model),
        "--train",
        &missing,
        "--dev",
        &missing,
        "-o",
        s(&out),
        "--method",
        "lora",
    ];
    let failed = output(&mut mpirun(3, &args));
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success());
    assert_eq!(error.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{error}");
    let failed = output(&mut mpirun(2, &["evaluate", "--model", s(&model), "--dev", &missing]));
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(error.contains("only finetune is divided among processes"), "{error}");
}

/// A lost process ends the job; its run goes on with another number of processes.
#[test]
fn a_lost_process_ends_the_job_and_the_run_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let file = &rows(dir.path())[0];
    let (model, out, whole) = (fixture("llama"), dir.path().join("run"), dir.path().join("whole"));
    let steps = ["--max-steps", "2000", "--save-every", "50", "--eval-every", "50"];
    let head = ["finetune", "--model", s(&model), "--train", file, "--dev", file];
    let args = [&head[..], &LORA, &steps, &["-o", s(&out)]].concat();
    let mut job = mpirun(3, &args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let is_saved = || out.join("checkpoints").read_dir().is_ok_and(|mut entries| entries.next().is_some());
    while !is_saved() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = children(job.id()).into_iter().max().unwrap();
    assert!(Command::new("kill").args(["-9", &last.to_string()]).status().unwrap().success());
    assert!(!job.wait().unwrap().success());
    // Finished under another number of processes, up to the same step.
    let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_ne!(run["train_info"]["status"], "done", "{run}");
    let resumed = [&args[..], &["--resume", "--json"]].concat();
    let resumed = output(&mut mpirun(2, &resumed));
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let report: Value = serde_json::from_slice(&resumed.stdout).unwrap();
    assert_eq!(report["steps"], 2000);
    let alone = [&head[..], &LORA, &steps, &["-o", s(&whole), "--json"]].concat();
    let expect = common::run(&alone).0;
    let expect: Value = serde_json::from_str(&expect).unwrap();
    let loss = |report: &Value| report["dev_loss"].as_f64().unwrap();
    assert!((loss(&report) - loss(&expect)).abs() < 0.05 * loss(&expect).abs() + 0.05, "{report} {expect}");
}

/// The processes that a process started.
fn children(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}
