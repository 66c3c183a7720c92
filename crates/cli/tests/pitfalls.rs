//! What would pass unseen and give wrong answers: it is refused, or said.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, edit, fails_after_warnings, fixture, json_of, misused, run, s};

fn folder(parent: &TempDir, name: &str) -> String {
    s(&parent.path().join(name)).to_owned()
}

/// A GLUE root with a tiny SST-2.
fn sst2() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("SST-2");
    fs::create_dir(&folder).unwrap();
    let rows = (0..16).map(|i| format!("the {} sat on mat {i}\t{}\n", ["cat", "dog"][i % 2], i % 2));
    let text = format!("sentence\tlabel\n{}", rows.collect::<String>());
    for name in ["train.tsv", "dev.tsv"] {
        fs::write(folder.join(name), &text).unwrap();
    }
    dir
}

const STEPS: [&str; 6] = ["--max-steps", "2", "--batch-size", "4", "--eval-every", "2"];

/// `finetune` on the tiny SST-2 into `out`.
fn finetune<'a>(data: &'a str, method: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let begin = ["finetune", "--task", "sst2", "--data", data, "--method", method, "-o", out];
    [&begin[..], &STEPS, more].concat()
}

#[test]
fn a_model_without_a_trained_head_answers_nothing() {
    let model = fixture("bert-encoder");
    fails_after_warnings(&["predict", "--model", s(&model), "--text", "a"], "no trained head");
}

#[test]
fn an_adapter_without_a_head_merges_into_a_model_without_one() {
    let (model, adapter, out) =
        (fixture("bert-encoder"), copy("peft-bert-lora"), tempfile::tempdir().unwrap());
    edit(&adapter.path().join("adapter_config.json"), |config| config["modules_to_save"] = Value::Null);
    let file = adapter.path().join("adapter_model.safetensors");
    let checkpoint = Checkpoint::open(&file).unwrap();
    let kept = checkpoint.names().filter(|name| name.contains("lora_"));
    let tensors: Vec<HostTensor> = kept
        .map(|name| HostTensor {
            name: name.to_owned(),
            shape: checkpoint.info(name).unwrap().shape.clone(),
            data: checkpoint.read_f32(name).unwrap().into(),
        })
        .collect();
    drop(checkpoint);
    write_safetensors(&file, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    let merged = folder(&out, "merged");
    run(&["merge", "--model", s(&model), "--adapter", s(adapter.path()), "-o", &merged]);
    let names: Vec<String> = Checkpoint::open(&merged).unwrap().names().map(str::to_owned).collect();
    assert!(names.iter().any(|name| name.contains("query")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("classifier")), "a head of chance was saved: {names:?}");
    fails_after_warnings(&["predict", "--model", &merged, "--text", "a"], "no trained head");
}

#[test]
fn classes_are_matched_by_name() {
    let data = tempfile::tempdir().unwrap();
    let mnli = data.path().join("MNLI");
    fs::create_dir(&mnli).unwrap();
    let texts = ["the cat sat", "a red mat", "it was bad", "the dog sat", "red", "was it"];
    let row = |i: usize, gold: &str| format!("{i}\t{}\t{}\t{gold}\n", texts[i], texts[5 - i]);
    let model = fixture("bert-cls");
    // The model's own answers, by name: then every row is right.
    let own = |i: usize| {
        let rows =
            json_of(&["predict", "--model", s(&model), "--text", texts[i], "--text-pair", texts[5 - i]]);
        rows["rows"][0]["label"].as_str().unwrap().to_lowercase()
    };
    let rows: String = (0..6).map(|i| row(i, &own(i))).collect();
    let is_moved = |row: &str| row.ends_with("entailment") || row.ends_with("contradiction");
    assert!(rows.lines().any(is_moved), "an order by places would not be noticed: {rows}");
    let text = format!("index\tsentence1\tsentence2\tgold_label\n{rows}");
    for file in ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"] {
        fs::write(mnli.join(file), &text).unwrap();
    }
    let scored = json_of(&["evaluate", "--model", s(&model), "--task", "mnli", "--data", s(data.path())]);
    assert_eq!(scored["metric"], 1.0, "{scored}");
    let renamed = copy("bert-cls");
    edit(&renamed.path().join("config.json"), |config| {
        config["id2label"] = json!({"0": "yes", "1": "no", "2": "perhaps"});
        config["label2id"] = json!({"yes": 0, "no": 1, "perhaps": 2});
    });
    let model = s(renamed.path());
    fails_after_warnings(
        &["evaluate", "--model", model, "--task", "mnli", "--data", s(data.path())],
        "the model's labels (yes, no, perhaps) are not those of mnli",
    );
}

#[test]
fn a_start_is_what_the_adapter_says_it_is() {
    let (data, out) = (sst2(), tempfile::tempdir().unwrap());
    let (data, model) = (s(data.path()), fixture("bert-encoder"));
    let [full, lora, over, other] = ["full", "lora", "over", "other"].map(|name| folder(&out, name));
    run(&finetune(data, "full", &full, &["--model", s(&model)]));
    run(&finetune(data, "lora", &lora, &["--model", s(&model), "--rank", "4"]));
    // Over a tuned model the adapter names that as its base, and any other gives a warning.
    run(&finetune(data, "lora", &over, &["--model", s(&model), "--init-from", &full]));
    let config = fs::read(Path::new(&over).join("adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], full.as_str());
    let evaluate = |base: &str| {
        run(&["evaluate", "--model", base, "--adapter", &over, "--task", "sst2", "--data", data]).1
    };
    assert!(evaluate(s(&model)).contains("trained on a base other than"));
    assert!(!evaluate(&full).contains("trained on a base other than"));
    let start = ["--model", s(&model), "--init-from", &lora];
    fails_after_warnings(
        &finetune(data, "lotr", &other, &[&start[..], &["--rank", "4"]].concat()),
        "not --method",
    );
    fails_after_warnings(&finetune(data, "lora", &other, &start), "has rank 4 and alpha 16");
    run(&finetune(data, "lora", &other, &[&start[..], &["--rank", "4"]].concat()));
}

#[test]
fn a_folder_keeps_one_run() {
    let (data, out) = (sst2(), tempfile::tempdir().unwrap());
    let (data, model) = (s(data.path()), fixture("bert-encoder"));
    let run_folder = folder(&out, "run");
    run(&finetune(data, "lora", &run_folder, &["--model", s(&model)]));
    fails_after_warnings(
        &finetune(data, "full", &run_folder, &["--model", s(&model)]),
        "already contains a run",
    );
    fails_after_warnings(
        &finetune(data, "lora", &run_folder, &["--model", s(&model), "--resume"]),
        "this run is finished",
    );
}

#[test]
fn an_adapter_without_labels_keeps_those_of_its_base() {
    let (model, adapter) = (fixture("bert-cls"), fixture("peft-bert-lora"));
    let label = |more: &[&str]| {
        let rows = json_of(&[&["predict", "--model", s(&model), "--text", "a"], more].concat());
        rows["rows"][0]["label"].as_str().unwrap().to_owned()
    };
    assert!(!label(&[]).starts_with("LABEL_"));
    assert!(!label(&["--adapter", s(&adapter)]).starts_with("LABEL_"));
}

#[test]
#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
fn the_precision_of_gpus_is_refused_on_a_cpu() {
    let model = fixture("bert-cls");
    let predict = |precision| ["predict", "--model", s(&model), "--text", "a", "--precision", precision];
    common::fails(
        &predict("bf16"),
        "--precision bf16 is for GPUs, and this build computes on the CPU in f32; leave it out",
    );
    run(&predict("f32"));
}

#[test]
fn alphas_that_make_no_sense_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let adapter = fixture("peft-bert-lora");
    let convert = |alpha: &str| {
        let args =
            ["convert", "--adapter", s(&adapter), "--to", "lora", "-o", &folder(&out, "x"), "--alpha", alpha];
        args.map(str::to_owned)
    };
    for (alpha, part) in [("nan", "out of range"), ("0", "out of range"), ("3", "its own alpha")] {
        let args = convert(alpha);
        fails_after_warnings(&args.each_ref().map(String::as_str), part);
    }
}

#[test]
fn a_count_is_the_same_everywhere() {
    let (model, out) = (fixture("gpt2"), tempfile::tempdir().unwrap());
    let inspected = json_of(&["inspect", s(&model)])["parameters"].as_u64().unwrap();
    let compressed = json_of(&["compress", "--model", s(&model), "--ratio", "0.3", "-o", &folder(&out, "x")]);
    assert_eq!(compressed["model"]["before"].as_u64().unwrap(), inspected);
    let checkpoint = Checkpoint::open(&model).unwrap();
    let biases = checkpoint.names().filter(|name| name.ends_with("c_attn.bias"));
    assert!(biases.count() > 0, "the fixture has what was once taken for buffers");
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let (model, dir) = (fixture("llama"), tempfile::tempdir().unwrap());
    let perplexity = |name: &str, text: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        json_of(&["perplexity", "--model", s(&model), "--file", s(&file)])["perplexity"].as_f64().unwrap()
    };
    let text = b"the cat sat on the mat";
    assert_eq!(perplexity("plain", text), perplexity("marked", &[b"\xef\xbb\xbf", &text[..]].concat()));
}

#[test]
fn broken_weights_are_not_called_missing() {
    let dir = copy("llama");
    let file = dir.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    fails_after_warnings(&["inspect", s(dir.path())], "model.safetensors");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let (adapter, model) = (fixture("peft-bert-lora"), fixture("llama"));
    let to = folder(&out, "x");
    let adapter = s(&adapter);
    let combine = ["combine", "--adapter", adapter, "--adapter", adapter, "--how", "linear", "--rank", "3"];
    misused(&[&combine[..], &["-o", &to]].concat(), "linear and cat keep every rank");
    fails_after_warnings(&["inspect", adapter, "--method", "lora"], "are for models");
    let perplexity = ["perplexity", "--model", s(&model)];
    let rows = ["--rows", "rows.jsonl", "--stride", "8"];
    misused(&[&perplexity[..], &rows].concat(), "--stride requires --file");
    let loss = ["--text", "a", "--loss-on", "all"];
    misused(&[&perplexity[..], &loss].concat(), "--loss-on requires --rows");
    let compress = ["compress", "--model", s(&model), "-o", &to];
    misused(&[&compress[..], &["--ranks", "q_proj=4,q_proj=5"]].concat(), "given two ranks");
    fails_after_warnings(
        &[&compress[..], &["--ratio", "0.3", "--layers", "7"]].concat(),
        "layer 7 does not exist",
    );
    let text = out.path().join("text");
    fs::write(&text, "the cat\n").unwrap();
    let calibrated = [&compress[..], &["--ratio", "0.3", "--calibration", s(&text)]].concat();
    let recover = ["--recover", "distill", "--recover-lr", "0"];
    for (more, part) in [
        (&["--recover", "distill", "--recover-rank", "4"][..], "--recover-rank requires --recover lora"),
        (&["--recover-steps", "3"], "--recover-steps requires --recover"),
        (&["--sides", "one"], "--sides requires --method shared"),
        (&["--tt-order", "3"], "--tt-order requires --method tt or auto"),
    ] {
        misused(&[&calibrated[..], more].concat(), part);
    }
    for (more, part) in [
        (&["--energy", "0.9", "--allocation", "uniform"][..], "--allocation requires --ratio"),
        (&["--error", "0.1", "--of", "file"], "--of requires --ratio"),
        (&["--bits", "4", "--always-factor"], "--always-factor applies to methods that factor"),
    ] {
        misused(&[&compress[..], more].concat(), part);
    }
    misused(&[&calibrated[..], &recover].concat(), "a learning rate above 0");
    let (_, warning) = run(&calibrated);
    assert!(warning.contains("tokens of calibration text"), "{warning}");
}

/// Options that another method would use are named, and the command runs.
#[test]
fn options_that_the_method_ignores_are_named() {
    let out = tempfile::tempdir().unwrap();
    let (adapter, model, data) = (fixture("peft-bert-lora"), fixture("llama"), sst2());
    let (adapter, model, data) = (s(&adapter), s(&model), s(data.path()));
    let bert = fixture("bert-encoder");
    let adapters = ["--adapter", adapter, "--adapter", adapter];
    let combine = [&["combine", "--how", "linear", "--density", "0.5"], &adapters[..]].concat();
    let compress = ["compress", "--model", model, "--ratio", "0.3", "--method", "svd"];
    let finetune = ["finetune", "--model", s(&bert), "--task", "sst2", "--data", data, "--method", "head"];
    for (i, (command, more, part)) in [
        (&combine[..], &["--seed", "5"][..], "--seed applies to dare"),
        (&combine, &[], "--density applies to ties and dare"),
        (&["convert", "--adapter", adapter, "--to", "lora"], &["--by-kind"], "--by-kind applies to lotr"),
        (&compress, &["--samples", "4"], "--samples requires calibration data"),
        (&compress, &["--sequential"], "--sequential requires calibration data"),
        (&finetune, &["--max-steps", "1", "--rank", "4"], "--rank requires an adapter method"),
    ]
    .into_iter()
    .enumerate()
    {
        let to = folder(&out, &i.to_string());
        let (_, warning) = run(&[command, more, &["-o", &to]].concat());
        assert!(warning.contains(&format!("warning: {part}")), "{warning}");
    }
    let (_, warning) = run(&["inspect", model, "--rank", "4"]);
    assert!(warning.contains("warning: --rank requires --method"), "{warning}");
    let generate = ["generate", "--model", model, "--prompt", "a", "--max-new-tokens", "1"];
    let (_, warning) = run(&[&generate[..], &["--temperature", "0", "--top-k", "5"]].concat());
    assert!(warning.contains("warning: --top-k requires a temperature above 0"), "{warning}");
}

#[test]
fn spectra_of_an_adapter_end_at_its_rank() {
    let adapter = fixture("peft-bert-lora");
    let rank = json_of(&["inspect", s(&adapter)])["rank"].as_u64().unwrap() as usize;
    let object = json_of(&["inspect", s(&adapter), "--spectrum"]);
    let modules = object["modules"].as_array().unwrap();
    assert!(!modules.is_empty());
    for module in modules {
        let values: Vec<f64> =
            module["singular_values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(values[rank - 1] > 0.0 && values[rank..].iter().all(|v| *v == 0.0), "{module}");
    }
}

#[test]
fn a_comparison_shows_what_a_merge_changed() {
    let (model, adapter, out) =
        (fixture("bert-cls"), fixture("peft-bert-lora"), tempfile::tempdir().unwrap());
    let merged = folder(&out, "merged");
    run(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", &merged]);
    let largest = |path: &str| {
        let object = json_of(&["inspect", path, "--against", s(&model)]);
        let tensors = object["tensors"].as_array().unwrap().clone();
        let difference = |part: &str| {
            let of_part = tensors.iter().filter(|t| t["name"].as_str().unwrap().contains(part));
            of_part.map(|t| t["max_difference"].as_f64().unwrap()).fold(0.0, f64::max)
        };
        ["query", "LayerNorm", "embeddings"].map(difference)
    };
    assert_eq!(largest(s(&model)), [0.0; 3]);
    let [query, norms, embeddings] = largest(&merged);
    assert!(query > 1e-3 && norms == 0.0 && embeddings == 0.0, "{query} {norms} {embeddings}");
}

#[test]
fn a_dashboard_needs_a_terminal() {
    let (data, out) = (sst2(), tempfile::tempdir().unwrap());
    let model = fixture("bert-encoder");
    let to = folder(&out, "run");
    fails_after_warnings(
        &finetune(s(data.path()), "head", &to, &["--model", s(&model), "--tui"]),
        "needs a terminal",
    );
}

#[test]
fn a_head_of_zeros_is_learnt_by_its_adapter() {
    let (data, out) = (sst2(), tempfile::tempdir().unwrap());
    let (data, model) = (s(data.path()), fixture("bert-encoder"));
    let to = folder(&out, "run");
    let zero = ["--model", s(&model), "--zero-head", "--rank", "1", "--targets", "all-linear,classifier"];
    let trained = json_of(&finetune(data, "lora", &to, &zero));
    let scored =
        json_of(&["evaluate", "--model", s(&model), "--adapter", &to, "--task", "sst2", "--data", data]);
    assert_eq!(scored["metric"], trained["metric"]);
    let merged = folder(&out, "merged");
    run(&["merge", "--model", s(&model), "--adapter", &to, "-o", &merged]);
    let again = json_of(&["evaluate", "--model", &merged, "--task", "sst2", "--data", data]);
    assert_eq!(again["metric"], trained["metric"]);
}

#[test]
fn a_misspelt_exclusion_is_said() {
    let (data, out) = (sst2(), tempfile::tempdir().unwrap());
    let model = fixture("bert-encoder");
    let to = folder(&out, "run");
    let (_, warnings) =
        run(&finetune(s(data.path()), "lora", &to, &["--model", s(&model), "--exclude", "valeu"]));
    assert!(warnings.contains("excluded: no layer matches 'valeu'; nearest: 'value'"), "{warnings}");
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let model = fixture("bert-cls");
    let zero = Path::new("/dev/zero");
    for endless in [&pipe, zero] {
        for command in ["predict", "embed"] {
            let args = [command, "--model", s(&model), "--file", s(endless)];
            let output = Command::cargo_bin("lowrank")
                .unwrap()
                .args(args)
                .timeout(std::time::Duration::from_secs(20))
                .assert()
                .code(1)
                .get_output()
                .clone();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(error.contains(s(endless)) && error.contains("not a regular file"), "{error}");
        }
    }
    // Each file of a model folder and of an adapter folder in turn.
    for name in ["config.json", "model.safetensors"] {
        let broken = copy("bert-cls");
        fs::remove_file(broken.path().join(name)).unwrap();
        std::os::unix::fs::symlink(zero, broken.path().join(name)).unwrap();
        let args = ["predict", "--model", s(broken.path()), "--text", "a"];
        let output = Command::cargo_bin("lowrank")
            .unwrap()
            .args(args)
            .timeout(std::time::Duration::from_secs(20))
            .assert()
            .code(1)
            .get_output()
            .clone();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("not a regular file") && error.contains(name), "{error}");
    }
}
