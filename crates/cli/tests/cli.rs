//! The command as a user types it.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use common::{copy, edit, fails, fixture, json_of, lowrank, misused, run, s};

/// A GLUE root with a tiny SST-2 that a word gives away.
fn tiny_data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("SST-2");
    fs::create_dir(&folder).unwrap();
    let rows = |n: usize| {
        let mut text = String::from("sentence\tlabel\n");
        for i in 0..n {
            let (word, label) = if i % 2 == 0 { ("cat", 1) } else { ("dog", 0) };
            text.push_str(&format!("the {word} sat on the mat {i}\t{label}\n"));
        }
        text
    };
    fs::write(folder.join("train.tsv"), rows(40)).unwrap();
    fs::write(folder.join("dev.tsv"), rows(10)).unwrap();
    dir
}

#[test]
fn predict_gives_logits_labels_and_scores_in_order() {
    let model = fixture("bert-cls");
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(model.join("expected.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let mut args = vec!["predict", "--model", s(&model)];
    for case in cases {
        args.extend(["--text", case["text"].as_str().unwrap()]);
        if let Some(pair) = case["text_pair"].as_str() {
            args.extend(["--text-pair", pair]);
        }
    }
    let result = json_of(&args);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), cases.len());
    for (row, case) in rows.iter().zip(cases) {
        let pairs = row["logits"].as_array().unwrap().iter().zip(case["logits"].as_array().unwrap());
        for (got, expect) in pairs {
            let d = (got.as_f64().unwrap() - expect.as_f64().unwrap()).abs();
            assert!(d < 1e-4, "{}: off by {d}", case["name"]);
        }
        assert!(row["label"].is_string());
        assert!((0.0..=1.0).contains(&row["score"].as_f64().unwrap()));
    }
}

#[rstest]
#[case("full", "model")]
#[case("head", "adapter")]
#[case("bitfit", "model")]
#[case("lora", "adapter")]
#[case("lotr", "adapter")]
fn finetune_then_evaluate_gives_the_metric_of_the_run(#[case] method: &str, #[case] kind: &str) {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let (run, model) = (out.path().join("run"), fixture("bert-cls"));
    let result = json_of(&[
        "finetune",
        "--model",
        s(&model),
        "--task",
        "sst2",
        "--data",
        s(data.path()),
        "--method",
        method,
        "--rank",
        "2",
        "--max-steps",
        "6",
        "--eval-every",
        "3",
        "--batch-size",
        "8",
        "--lr",
        "1e-2",
        "-o",
        s(&run),
    ]);
    for key in [
        "metric",
        "best_metric",
        "steps",
        "ms_per_step_median",
        "tokens_per_second",
        "trainable",
        "total",
        "wall_s",
    ] {
        assert!(result[key].is_number(), "{key} in {result}");
    }
    assert_eq!(result["steps"], 6);
    let record: Value = serde_json::from_str(&fs::read_to_string(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["train_info"]["status"], "done");
    assert_eq!(record["train_info"]["evals"].as_array().unwrap().len(), 2);
    assert!(
        fs::read_dir(&run).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("events.out.tfevents"))
    );
    assert!(!run.join("checkpoints").exists(), "a finished run keeps no checkpoints");

    let score = if kind == "model" {
        json_of(&["evaluate", "--model", s(&run), "--task", "sst2", "--data", s(data.path())])
    } else {
        json_of(&[
            "evaluate",
            "--model",
            s(&model),
            "--adapter",
            s(&run),
            "--task",
            "sst2",
            "--data",
            s(data.path()),
        ])
    };
    assert_eq!(score["accuracy"], result["metric"], "what was saved scores what was reported");
}

/// A run of `lora` over the tiny data; its evaluations and its adapter.
struct Runs {
    data: TempDir,
    out: TempDir,
}

impl Runs {
    fn new() -> Self {
        Self { data: tiny_data(), out: tempfile::tempdir().unwrap() }
    }

    fn dir(&self, name: &str) -> std::path::PathBuf {
        self.out.path().join(name)
    }

    fn args(&self, name: &str, steps: usize, extra: &[&str]) -> Vec<String> {
        let (model, dir, steps) = (fixture("bert-cls"), self.dir(name), steps.to_string());
        let fixed = [
            "finetune",
            "--model",
            s(&model),
            "--task",
            "sst2",
            "--data",
            s(self.data.path()),
            "--method",
            "lora",
            "--rank",
            "2",
            "--max-steps",
            &steps,
            "--eval-every",
            "2",
            "--save-every",
            "2",
            "--batch-size",
            "8",
            "--scheduler",
            "constant",
            "--warmup-ratio",
            "0",
            "--lr",
            "1e-2",
            "--json",
            "-o",
            s(&dir),
        ];
        fixed.iter().chain(extra).map(|arg| (*arg).to_string()).collect()
    }

    fn run(&self, name: &str, steps: usize, extra: &[&str]) -> (Value, Vec<u8>) {
        let args = self.args(name, steps, extra);
        lowrank(&args.iter().map(String::as_str).collect::<Vec<_>>()).assert().success();
        self.result(name)
    }

    fn result(&self, name: &str) -> (Value, Vec<u8>) {
        let record = fs::read_to_string(self.dir(name).join("run.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        let adapter = fs::read(self.dir(name).join("adapter/adapter_model.safetensors")).unwrap();
        (record["train_info"]["evals"].clone(), adapter)
    }

    /// Runs and must fail with a message.
    fn fails(&self, name: &str, steps: usize, extra: &[&str], part: &str) {
        let args = self.args(name, steps, extra);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    }

    /// Makes of a run that has ended one of `planned` steps that was killed.
    fn interrupt(&self, name: &str, planned: usize) {
        self.undo(name, planned, "running");
    }

    /// The same, with another status.
    fn undo(&self, name: &str, planned: usize, status: &str) {
        let dir = self.dir(name);
        fs::remove_dir_all(dir.join("adapter")).unwrap();
        fs::rename(dir.join("state"), dir.join("checkpoints")).unwrap();
        let step = fs::read_dir(dir.join("checkpoints")).unwrap().next().unwrap().unwrap().path();
        for (file, of, key, value) in [
            (step.join("state.json"), "", "planned", Value::from(planned)),
            (dir.join("run.json"), "train_info", "status", status.into()),
        ] {
            let mut record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            let part = if of.is_empty() { &mut record } else { &mut record[of] };
            part[key] = value;
            fs::write(&file, record.to_string()).unwrap();
        }
    }
}

#[test]
fn a_seed_repeats_a_run_bit_for_bit() {
    let runs = Runs::new();
    let (first, second) = (runs.run("a", 4, &[]), runs.run("b", 4, &[]));
    assert_eq!(first, second);
    assert_ne!(first.0, runs.run("c", 4, &["--seed", "1"]).0, "another seed is another run");
}

#[test]
fn a_resumed_run_ends_as_the_uninterrupted_one_and_makes_the_missing_steps_only() {
    let runs = Runs::new();
    let whole = runs.run("a", 8, &[]);
    runs.run("b", 6, &[]);
    runs.interrupt("b", 8);
    let args = runs.args("b", 8, &["--resume"]);
    let output = lowrank(&args.iter().map(String::as_str).collect::<Vec<_>>()).assert().success();
    assert_eq!(runs.result("b"), whole);
    let shown = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(shown.contains("step 7/8") && !shown.contains("step 1/8"), "{shown}");
}

/// The process that died had logged steps after its last checkpoint: readers take those of the one that repeated them.
#[test]
fn the_log_of_a_resumed_run_has_every_step_once() {
    let runs = Runs::new();
    runs.run("a", 8, &[]);
    runs.run("b", 6, &[]);
    runs.interrupt("b", 8);
    let log = |name: &str| {
        let mut files = fs::read_dir(runs.dir(name)).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.to_str().unwrap().contains("tfevents")).unwrap()
    };
    fs::copy(log("a"), log("b")).unwrap();
    let args = runs.args("b", 8, &["--resume"]);
    lowrank(&args.iter().map(String::as_str).collect::<Vec<_>>()).assert().success();
    let table = runs.dir("table.csv");
    let tree = runs.dir("tree");
    fs::create_dir(&tree).unwrap();
    fs::rename(runs.dir("b"), tree.join("b")).unwrap();
    json_of(&["logs", s(&tree), s(&table), "--names", "run", "--tags", "train/loss"]);
    assert_eq!(fs::read_to_string(&table).unwrap().lines().count(), 1 + 8);
}

#[test]
fn broken_rows_of_an_official_file_are_counted() {
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("QQP")).unwrap();
    let row = "1\t1\t2\ta\tb\t1\n";
    let text =
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", &row.repeat(1_000), "7\t1\t2\tx\n"].concat();
    fs::write(data.path().join("QQP/dev.tsv"), text).unwrap();
    let (model, data) = (fixture("roberta-cls"), data.path());
    let args = ["evaluate", "--model", s(&model), "--task", "qqp", "--data", s(data)];
    let (_, error) = run(&args);
    assert!(error.contains("1 broken rows are skipped"), "{error}");
}

#[test]
fn checkpoints_of_a_failed_run_are_not_mixed_with_those_of_a_new_one() {
    let runs = Runs::new();
    runs.run("a", 4, &[]);
    runs.undo("a", 8, "failed");
    runs.fails("a", 8, &[], "contains checkpoints of a run that failed; continue it with --resume");
    fs::remove_dir_all(runs.dir("a").join("checkpoints")).unwrap();
    runs.run("a", 8, &[]);
}

#[test]
fn an_extension_that_was_cut_off_is_extended_again() {
    let runs = Runs::new();
    let whole = runs.run("a", 8, &[]);
    runs.run("b", 4, &[]);
    // Before its first checkpoint.
    edit(&runs.dir("b").join("run.json"), |record| record["train_info"]["status"] = "running".into());
    runs.fails("b", 8, &["--resume"], "belongs to a run of 4 steps, not 8; --extend trains past");
    assert_eq!(runs.run("b", 8, &["--extend"]), whole);
    // Between its last checkpoint and its result.
    runs.interrupt("b", 8);
    assert_eq!(runs.run("b", 8, &["--extend"]).1, whole.1);
    runs.fails("b", 8, &["--extend"], "is at step 8; give a larger");
}

#[test]
fn a_run_cut_off_before_its_first_record_is_begun() {
    let runs = Runs::new();
    fs::create_dir(runs.dir("a")).unwrap();
    fs::write(runs.dir("a").join(".run.json.tmp-0123456789abcdef"), "{").unwrap();
    runs.run("a", 2, &["--resume"]);
    let names = fs::read_dir(runs.dir("a")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with('.')));
    fs::create_dir(runs.dir("b")).unwrap();
    fs::write(runs.dir("b").join("notes.txt"), "mine").unwrap();
    runs.fails("b", 2, &["--resume"], "is not empty; give a new folder");
}

#[test]
fn a_finished_run_can_be_extended() {
    let runs = Runs::new();
    let whole = runs.run("a", 8, &[]);
    runs.run("b", 4, &[]);
    let fails_with = |steps, extra: &[&str], part: &str| runs.fails("b", steps, extra, part);
    fails_with(8, &["--resume"], "--extend trains it past its planned steps");
    fails_with(4, &["--extend"], "is at step 4; give a larger");
    fails_with(8, &["--extend", "--seed", "3"], "other settings");
    assert_eq!(runs.run("b", 8, &["--extend"]), whole, "a constant rate knows no end");
}

#[test]
fn other_labels_are_other_data() {
    let runs = Runs::new();
    runs.run("a", 2, &[]);
    runs.interrupt("a", 4);
    let train = runs.data.path().join("SST-2/train.tsv");
    let text = fs::read_to_string(&train).unwrap();
    let flipped: Vec<String> = text
        .lines()
        .map(|line| match line.rsplit_once('\t') {
            Some((text, "0")) => format!("{text}\t1"),
            Some((text, "1")) => format!("{text}\t0"),
            _ => line.to_string(),
        })
        .collect();
    fs::write(&train, flipped.join("\n") + "\n").unwrap();
    let args = runs.args("a", 4, &["--resume"]);
    fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), "settings or data");
}

#[test]
fn epochs_are_epochs_whatever_is_accumulated() {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let model = fixture("bert-cls");
    let rows = fs::read_to_string(data.path().join("SST-2/train.tsv")).unwrap().lines().count() - 1;
    let steps = |name: &str, batch: usize, accum: usize| {
        let dir = out.path().join(name);
        let result = json_of(&[
            "finetune",
            "--model",
            s(&model),
            "--task",
            "sst2",
            "--data",
            s(data.path()),
            "--method",
            "head",
            "--epochs",
            "2",
            "--batch-size",
            &batch.to_string(),
            "--grad-accum",
            &accum.to_string(),
            "-o",
            s(&dir),
        ]);
        result["steps"].as_u64().unwrap() as usize
    };
    assert_eq!(steps("a", rows, 4), 2);
    assert_eq!(steps("b", 3, 2), 2 * rows.div_ceil(3).div_ceil(2));
}

#[test]
fn a_regression_task_from_files_of_ones_own() {
    let out = tempfile::tempdir().unwrap();
    let rows = |n: usize| {
        let mut text = String::from("text\ttext_pair\tlabel\n");
        for i in 0..n {
            text.push_str(&format!("the cat {i}\tthe dog\t{}.5\n", i % 4));
        }
        text
    };
    let (train, dev) = (out.path().join("train.tsv"), out.path().join("dev.tsv"));
    fs::write(&train, rows(24)).unwrap();
    fs::write(&dev, rows(8)).unwrap();
    let (run, model) = (out.path().join("run"), fixture("roberta-cls"));
    let result = json_of(&[
        "finetune",
        "--model",
        s(&model),
        "--train",
        s(&train),
        "--dev",
        s(&dev),
        "--method",
        "lora",
        "--max-steps",
        "2",
        "--eval-every",
        "2",
        "--batch-size",
        "8",
        "-o",
        s(&run),
    ]);
    assert_eq!(result["metric_name"], "pearson");
    let row =
        &json_of(&["predict", "--model", s(&model), "--adapter", s(&run), "--text", "the cat"])["rows"][0];
    assert_eq!(row["logits"].as_array().unwrap().len(), 1);
    assert_eq!(row["score"], row["logits"][0]);
}

#[test]
fn a_regression_of_several_numbers_is_predicted_and_not_evaluated() {
    let model = copy("bert-cls");
    edit(&model.path().join("config.json"), |config| config["problem_type"] = "regression".into());
    let row = &json_of(&["predict", "--model", s(model.path()), "--text", "the cat"])["rows"][0];
    let logits: Vec<f64> =
        row["logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap()).collect();
    assert_eq!(row["score"], logits.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let rows = model.path().join("dev.tsv");
    fs::write(&rows, "text\tlabel\nthe cat\t0.5\na dog\t1.5\n").unwrap();
    fails(
        &["evaluate", "--model", s(model.path()), "--dev", s(&rows)],
        "the model predicts 3 numbers for a text, and rows have one",
    );
}

#[test]
fn merging_keeps_the_predictions() {
    let (model, adapter) = (fixture("bert-cls"), fixture("peft-bert-lora"));
    let out = tempfile::tempdir().unwrap();
    let merged = out.path().join("merged");
    lowrank(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&merged)]).assert().success();
    let text = ["--text", "The cat sat on the red mat."];
    let with = json_of(&[&["predict", "--model", s(&model), "--adapter", s(&adapter)], &text[..]].concat());
    let without = json_of(&[&["predict", "--model", s(&merged)], &text[..]].concat());
    for i in 0..3 {
        let logit = |v: &Value| v["rows"][0]["logits"][i].as_f64().unwrap();
        assert!((logit(&with) - logit(&without)).abs() < 1e-5);
    }
    fails(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&model)], "is the input");
    let dotted = merged.parent().unwrap().join(".").join("merged");
    fails(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&dotted)], "is not empty");
    fails(&["merge", "--model", s(&merged), "--adapter", s(&adapter), "-o", s(&dotted)], "is the input");
}

fn finetune<'a>(model: &'a str, data: &'a str, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut args =
        vec!["finetune", "--model", model, "--task", "sst2", "--data", data, "--method", "lora", "-o", out];
    args.extend(extra);
    args
}

#[rstest]
#[case(&["--targets", "qurey"], "no layer matches 'qurey'; nearest: 'query' (2 layers)")]
#[case(&["--targets", "(query"], "not a valid regular expression")]
#[case(&["--rank", "0"], "rank 0 is out of range")]
#[case(&["--rank", "4000"], "rank 4000 is out of range")]
#[case(&["--alpha", "-1"], "alpha = -1 is out of range")]
#[case(&["--dropout", "1.5"], "dropout = 1.5 is out of range")]
#[case(&["--max-length", "9999"], "exceeds the model's limit")]
#[case(&["--layers", "99"], "layer 99 does not exist: the model has 2")]
#[case(&["--exclude", "query,value"], "is left; check the exclusion")]
#[case(&["--rank-pattern", "nope=4"], "no adapted layer ends in 'nope'")]
fn bad_options_are_one_line_and_leave_nothing_behind(#[case] extra: &[&str], #[case] part: &str) {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    let model = fixture("bert-cls");
    fails(&finetune(s(&model), s(data.path()), s(&run), extra), part);
    assert!(!run.exists(), "nothing half-written stays behind");
}

#[rstest]
#[case(&["--lr", "NaN"], "lr = NaN is out of range")]
#[case(&["--batch-size", "0"], "batch-size = 0 is out of range")]
#[case(&["--epochs", "0"], "epochs = 0 is out of range")]
#[case(&["--layers", "first"], "expected numbers")]
#[case(&["--layers", "0-999999999999"], "expected a range")]
fn options_out_of_range_are_wrong_usage(#[case] extra: &[&str], #[case] part: &str) {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    misused(&finetune(s(&fixture("bert-cls")), s(data.path()), s(&run), extra), part);
    assert!(!run.exists(), "nothing half-written stays behind");
}

#[test]
fn bad_files_are_named() {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    let attempt = |model: &Path, data: &Path, part: &str| {
        fails(&finetune(s(model), s(data), s(&run), &[]), part);
        assert!(!run.exists(), "nothing half-written stays behind");
    };
    let good = fixture("bert-cls");
    attempt(Path::new("no/such/folder"), data.path(), "no such folder");
    attempt(&good, Path::new("no/such/data"), "no/such/data");

    let spoilt = copy("bert-cls");
    let config = fs::read_to_string(spoilt.path().join("config.json")).unwrap();
    let with = |from: &str, to: &str| {
        fs::write(spoilt.path().join("config.json"), config.replace(from, to)).unwrap()
    };
    with("\"model_type\": \"bert\"", "\"model_type\": \"bart\"");
    attempt(spoilt.path(), data.path(), "model_type 'bart' is not supported");
    with("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"");
    attempt(spoilt.path(), data.path(), "hidden_act 'mish' is not supported");
    with("\"intermediate_size\": ", "\"intermediate_size\": 1");
    attempt(spoilt.path(), data.path(), "has shape");
    with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    attempt(spoilt.path(), data.path(), "missing 'bert.encoder.layer.2.");
    with("", "");
    let weights = fs::read(spoilt.path().join("model.safetensors")).unwrap();
    fs::write(spoilt.path().join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    attempt(spoilt.path(), data.path(), "model.safetensors");
    fs::remove_file(spoilt.path().join("model.safetensors")).unwrap();
    attempt(spoilt.path(), data.path(), "model.safetensors");

    let train = data.path().join("SST-2/train.tsv");
    fs::write(&train, "sentence\tlabel\nfine\t1\nbroken\n").unwrap();
    attempt(&good, data.path(), "train.tsv:3");
    fs::write(&train, "sentence\tlabel\nfine\tmaybe\n").unwrap();
    attempt(&good, data.path(), "maybe");
}

#[test]
fn usage_errors_exit_with_2() {
    lowrank(&["finetune", "--model", "m"]).assert().code(2);
    lowrank(&["fly"]).assert().code(2);
}

/// What no model could make right is wrong usage, in one line.
#[rstest]
#[case(&["merge", "-o", "out"], "nothing to merge: give --adapter")]
#[case(&["merge", "--adapter", "a", "--max-length", "9", "-o", "out"], "--max-length applies to texts")]
#[case(&["perplexity"], "nothing to do: give --text, --file or --rows")]
#[case(&["perplexity", "--text", "a", "--loss-on", "all"], "--loss-on requires --rows")]
#[case(&["embed"], "nothing to do: give --text or --file")]
#[case(&["embed", "--text-pair", "a"], "does not follow a --text")]
#[case(&["generate", "--prompt", "a", "--render"], "--render requires --messages")]
#[case(&["generate", "--prompt", "a", "--temperature=-1"], "temperature -1")]
#[case(&["compress", "--method", "svd", "--ratio", "2", "-o", "out"], "ratio = 2 is out of range")]
#[case(&["compress", "--method", "whitened", "--ratio", "0.5", "-o", "out"], "whitened needs activations")]
#[case(&["compress", "--bits", "7", "-o", "out"], "--bits 7 is not supported")]
#[case(&["convert", "--to", "lora", "-o", "out"], "give --adapter")]
fn wrong_usage_is_named_in_one_line(#[case] args: &[&str], #[case] part: &str) {
    let model = fixture("small-llama");
    misused(&[&args[..1], &["--model", s(&model)], &args[1..]].concat(), part);
}

#[rstest]
#[case(&["inspect", "m", "--spectrum", "--rank", "3"], "--rank does not apply to --spectrum")]
#[case(&["inspect", "m", "--against", "n", "--labels", "3"], "--labels does not apply to --against")]
#[case(&["resize", "--adapter", "a", "-o", "out"], "give --rank or --energy")]
#[case(&["resize", "--adapter", "a", "--rank", "0", "-o", "out"], "--rank 0 is out of range")]
#[case(&["combine", "--adapter", "a=x", "--how", "cat", "-o", "out"], "expected a folder and a weight")]
fn wrong_usage_needs_no_files(#[case] args: &[&str], #[case] part: &str) {
    misused(args, part);
}

/// A launcher's processes would write to one output.
#[test]
fn several_processes_need_a_command_and_a_build_that_divide_the_work() {
    let model = fixture("llama");
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let mut command = lowrank(&["inspect", s(&model)]);
        let output = command.env(variable, "4").assert().code(1).get_output().stderr.clone();
        let error = String::from_utf8(output).unwrap();
        assert!(error.starts_with("error: the launcher started 4 processes"), "{error}");
        assert_eq!(error.lines().count(), 1);
        lowrank(&["inspect", s(&model)]).env(variable, "1").assert().success();
    }
    if !cfg!(feature = "mpi") {
        let rows = ["--train", "a.txt", "--dev", "a.txt", "-o", "run"];
        let finetune = [&["finetune", "--model", s(&model), "--method", "lora"][..], &rows].concat();
        let mut command = lowrank(&finetune);
        let output = command.env("PMI_SIZE", "2").assert().code(1).get_output().stderr.clone();
        let error = String::from_utf8(output).unwrap();
        assert!(error.contains("build with --features mpi"), "{error}");
    }
}

#[test]
fn inspect_counts_parameters() {
    let adapter = json_of(&["inspect", s(&fixture("peft-bert-lora"))]);
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(fixture("peft-bert-lora").join("expected.json")).unwrap())
            .unwrap();
    assert_eq!(adapter["parameters"], golden["adapter_parameters"]);
    assert_eq!(adapter["rank"], 4);
    assert_eq!(json_of(&["inspect", s(&fixture("bert-cls"))])["kind"], "model");
}

#[test]
fn inspect_names_the_layers() {
    let model = json_of(&["inspect", s(&fixture("llama"))]);
    assert_eq!(model["model_type"], "llama");
    let layers = model["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["name"] == "model.layers.0.self_attn.q_proj").unwrap();
    assert_eq!((&layer["kind"], &layer["parameters"]), (&Value::from("dense"), &Value::from(32 * 32)));
    let file = json_of(&["inspect", s(&fixture("llama").join("model.safetensors"))]);
    assert_eq!(file["parameters"], model["parameters"]);
    assert!(file["layers"].is_null());
    // Two layers hold rotary frequencies, which are not parameters.
    let sizes = model["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>());
    assert_eq!(sizes.sum::<u64>(), model["parameters"].as_u64().unwrap() + 2 * 4);
}

#[test]
fn runs_that_differ_in_alpha_alone_are_two_runs_in_the_table() {
    let (data, out) = (tiny_data(), tempfile::tempdir().unwrap());
    let (logs, table, model) = (out.path().join("logs"), out.path().join("table.csv"), fixture("bert-cls"));
    for (run, alpha) in [("a", "2"), ("b", "8")] {
        let run = out.path().join(run);
        let mut args = vec!["finetune", "--model", s(&model), "--task", "sst2", "--data", s(data.path())];
        args.extend([
            "--method",
            "lora",
            "--rank",
            "2",
            "--alpha",
            alpha,
            "--max-steps",
            "2",
            "--batch-size",
            "8",
        ]);
        args.extend(["-o", s(&run), "--log-dir", s(&logs), "--model-name", "tiny"]);
        lowrank(&args).assert().success();
    }
    let result = json_of(&["logs", s(&logs), s(&table)]);
    assert_eq!(result["runs"], 2);
    let text = fs::read_to_string(&table).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("model,method,task,lr,rank,seed,alpha,tag,step,value"));
    for alpha in [2, 8] {
        let begin = format!("tiny,lora,sst2,5e-4,2,0,{alpha},train/loss,");
        assert!(text.lines().any(|line| line.starts_with(&begin)), "{text}");
    }
    let record: Value = serde_json::from_slice(&fs::read(out.path().join("a/run.json")).unwrap()).unwrap();
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap();
    let burn = record["meta_info"]["versions"]["burn"].as_str().unwrap();
    assert!(lock.contains(&format!("\nname = \"burn\"\nversion = \"{burn}\"\n")), "{burn}");
    // All settings on request, and the time.
    json_of(&["logs", s(&logs), s(&table), "--hparams", "--wall-time"]);
    let header = fs::read_to_string(&table).unwrap().lines().next().unwrap().to_owned();
    assert!(header.contains(",batch_size,") && header.ends_with(",tag,step,value,wall_time"), "{header}");
    json_of(&["logs", s(&logs), s(&table), "--hparams=dropout"]);
    let header = fs::read_to_string(&table).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(header, "model,method,task,lr,rank,seed,dropout,alpha,tag,step,value");
    fails(&["logs", s(&logs), s(&table), "--hparams=dropuot"], "no run has the hyper-parameter \"dropuot\"");
}
