//! `compress` as a user types it, and what the other commands make of its folders.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use common::{fails, fixture, json_of, misused, run, s};

/// Lines to calibrate on, and a GLUE root whose SST-2 a word gives away.
fn texts() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let line =
        |i: usize| format!("the {} sat on the mat {i}", if i.is_multiple_of(2) { "cat" } else { "dog" });
    let lines: Vec<String> = (0..40).map(line).collect();
    fs::write(dir.path().join("lines.txt"), lines.join("\n")).unwrap();
    fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
    let folder = dir.path().join("SST-2");
    fs::create_dir(&folder).unwrap();
    let rows = |n: usize| {
        let rows: Vec<String> = (0..n).map(|i| format!("{}\t{}", line(i), 1 - i % 2)).collect();
        format!("sentence\tlabel\n{}\n", rows.join("\n"))
    };
    fs::write(folder.join("train.tsv"), rows(40)).unwrap();
    fs::write(folder.join("dev.tsv"), rows(10)).unwrap();
    dir
}

/// GTE as it was first published, with tensors under `new.`: every command does with it what it does with the same under `gte.`.
#[test]
fn a_model_under_its_older_prefix_is_compressed_adapted_and_run() {
    let dir = texts();
    let (model, old) = (fixture("gte-cls"), dir.path().join("old"));
    fs::create_dir(&old).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model.join(name), old.join(name)).unwrap();
    }
    let weights = Checkpoint::open(&model).unwrap();
    let tensors = weights.names().map(|name| {
        let shape = weights.info(name).unwrap().shape.clone();
        let old = name.strip_prefix("gte.").map_or(name.to_owned(), |rest| format!("new.{rest}"));
        HostTensor::new(old, shape, weights.read_f32(name).unwrap())
    });
    let (tensors, file) = (tensors.collect(), old.join("model.safetensors"));
    write_safetensors(file, tensors, FloatType::F32, &Default::default()).unwrap();
    let (train, lines) = (dir.path().join("SST-2/train.tsv"), dir.path().join("lines.txt"));
    let rows = fs::read_to_string(&train).unwrap().replacen("sentence", "text", 1);
    let rows_file = dir.path().join("rows.tsv");
    fs::write(&rows_file, rows).unwrap();
    let scores = |folder: &Path| {
        let text = ["--text", "the cat sat on the mat"];
        json_of(&[&["predict", "--model", s(folder)], &text[..]].concat())
    };
    let outputs = |model: &Path, name: &str| {
        let out = |what: &str| dir.path().join(format!("{name}-{what}"));
        let mut all = vec![scores(model)];
        let ways: [&[&str]; 5] = [
            &["--method", "svd", "--ratio", "0.3"],
            &["--method", "shared", "--ratio", "0.3"],
            &["--method", "quant", "--type", "Q4_0"],
            &["--method", "whitened", "--ratio", "0.2", "--calibration", s(&lines)],
            &[
                "--method",
                "whitened",
                "--ratio",
                "0.2",
                "--calibration",
                s(&lines),
                "--recover",
                "distill",
                "--recover-steps",
                "2",
            ],
        ];
        for (i, way) in ways.into_iter().enumerate() {
            let small = out(&i.to_string());
            json_of(&[&["compress", "--model", s(model), "-o", s(&small)], way].concat());
            all.push(scores(&small));
        }
        let (tuned, merged) = (out("tuned"), out("merged"));
        let rows = ["--train", s(&rows_file), "--dev", s(&rows_file), "--max-steps", "3", "--lr", "0.05"];
        let args = ["finetune", "--model", s(model), "--method", "lora", "--rank", "2", "-o", s(&tuned)];
        json_of(&[&args[..], &rows].concat());
        json_of(&["merge", "--model", s(model), "--adapter", s(&tuned), "-o", s(&merged)]);
        all.push(scores(&merged));
        all
    };
    assert_eq!(outputs(&old, "old"), outputs(&model, "own"));
}

/// Decoders whose attention, norms or embeddings have what Llama's have not, calibrated, written and read back.
#[rstest]
#[case("gemma2")]
#[case("bloom")]
#[case("falcon-groups")]
#[case("falcon-alibi")]
#[case("cohere")]
#[case("glm4")]
#[case("olmo")]
#[case("opt")]
#[case("gpt-bigcode")]
#[case("mpt")]
fn every_kind_of_decoder_is_compressed_and_run(#[case] name: &str) {
    let (texts, model) = (texts(), fixture(name));
    let (out, lines) = (texts.path().join("small"), texts.path().join("lines.txt"));
    let compress = ["compress", "--model", s(&model), "--calibration", s(&lines), "-o", s(&out)];
    let nll = |model: &Path| {
        let text = ["--text", "the cat sat on the mat"];
        let report = json_of(&[&["perplexity", "--model", s(model)], &text[..]].concat());
        report["rows"][0]["mean_nll"].as_f64().unwrap()
    };
    // A twentieth of the parameters leaves the model's predictions nearly as they were; a wrong layer does not.
    let report = json_of(&[&compress[..], &["--ratio", "0.05"]].concat());
    assert!(report["layers"]["ratio"].as_f64().unwrap() >= 0.05, "{report}");
    let (before, after) = (nll(&model), nll(&out));
    assert!(after != before && (after - before).abs() < 0.1, "{name}: {before} became {after}");
}

/// Factors with pivots through the commands that read a model.
#[rstest]
#[case("llama")]
#[case("gpt2")]
fn factors_with_pivots_are_used_everywhere(#[case] name: &str) {
    let (texts, model) = (texts(), fixture(name));
    let lines = texts.path().join("lines.txt");
    let make = |to: &str, more: &[&str]| {
        let out = texts.path().join(to);
        let compress =
            ["compress", "--model", s(&model), "--calibration", s(&lines), "--ratio", "0.2", "-o", s(&out)];
        (json_of(&[&compress[..], more].concat()), out)
    };
    let nll = |model: &Path| {
        let text = ["--text", "the cat sat on the mat"];
        json_of(&[&["perplexity", "--model", s(model)], &text[..]].concat())["rows"][0]["mean_nll"]
            .as_f64()
            .unwrap()
    };
    let (report, out) = make("pivots", &["--pivots"]);
    assert!(report["layers"]["ratio"].as_f64().unwrap() >= 0.2);
    assert_eq!(json_of(&["inspect", s(&out)])["parameters"], report["model"]["after"]);
    let (plain, _) = make("plain", &[]);
    let ranks = |report: &Value| -> u64 {
        let modules = report["modules"].as_array().unwrap();
        modules.iter().flat_map(|m| m["ranks"].as_array().unwrap().clone()).map(|r| r.as_u64().unwrap()).sum()
    };
    assert!(ranks(&report) > ranks(&plain), "{report} {plain}");
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["lowrank"]["version"], 3);
    let before = nll(&out);
    assert!((before - nll(&model)).abs() < 0.5);
    // Recovered, it has them too.
    let recover = ["--pivots", "--recover", "distill", "--recover-steps", "3"];
    let (_, recovered) = make("recovered", &recover);
    assert!(nll(&recovered).is_finite());
    let sizes =
        [&out, &recovered].map(|folder| fs::metadata(folder.join("model.safetensors")).unwrap().len());
    assert!(sizes[0].abs_diff(sizes[1]) < 1000, "{sizes:?}");
    let tuned = texts.path().join("tuned");
    let finetune =
        ["finetune", "--model", s(&out), "--train", s(&lines), "--dev", s(&lines), "-o", s(&tuned)];
    json_of(&[&finetune[..], &["--method", "full", "--max-steps", "1", "--lr", "1e-9"]].concat());
    assert!((nll(&tuned.join("model")) - before).abs() < 1e-4);
    // What was trained or merged is written without them.
    let adapter = texts.path().join("lora");
    let finetune =
        ["finetune", "--model", s(&out), "--train", s(&lines), "--dev", s(&lines), "-o", s(&adapter)];
    json_of(&[&finetune[..], &["--method", "lora", "--max-steps", "1", "--rank", "2"]].concat());
    let merged = texts.path().join("merged");
    run(&["merge", "--model", s(&out), "--adapter", s(&adapter), "-o", s(&merged)]);
    for folder in [tuned.join("model"), merged] {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["lowrank"]["version"], 1, "{}", folder.display());
        assert!((nll(&folder) - before).abs() < 0.1);
    }
    let sequential = make("sequential", &["--pivots", "--sequential"]).1;
    assert!((nll(&sequential) - before).abs() < 0.5);
}

#[rstest]
#[case("llama")]
#[case("gpt2")]
fn a_compressed_decoder_generates(#[case] name: &str) {
    let (texts, model) = (texts(), fixture(name));
    let out = texts.path().join("small");
    let lines = texts.path().join("lines.txt");
    let report = json_of(&[
        "compress",
        "--model",
        s(&model),
        "--calibration",
        s(&lines),
        "--ratio",
        "0.3",
        "-o",
        s(&out),
    ]);
    assert_eq!(report["method"], "whitened");
    assert!(report["layers"]["ratio"].as_f64().unwrap() >= 0.3);
    for key in ["layers", "model", "file"] {
        assert!(report[key]["before"].as_u64() > report[key]["after"].as_u64(), "{key} in {report}");
    }
    let text = ["--text", "the cat sat on the mat"];
    let nll = |model: &Path| {
        json_of(&[&["perplexity", "--model", s(model)], &text[..]].concat())["rows"][0]["mean_nll"]
            .as_f64()
            .unwrap()
    };
    assert!(nll(&out).is_finite() && nll(&out) != nll(&model));
    let generated = json_of(&[
        "generate",
        "--model",
        s(&out),
        "--prompt",
        "the cat",
        "--max-new-tokens",
        "4",
        "--ignore-eos",
    ]);
    assert_eq!(generated["ids"].as_array().unwrap().len(), 4);
}

/// At an energy of nearly everything the compressed model is the dense one.
#[rstest]
#[case("llama", "svd")]
#[case("llama", "tt")]
#[case("gpt-neox", "svd")]
#[case("qwen2", "shared")]
#[case("stablelm", "auto")]
fn what_loses_nothing_changes_nothing(#[case] name: &str, #[case] method: &str) {
    let (texts, model) = (texts(), fixture(name));
    let out = texts.path().join("same");
    let args = ["--method", method, "--energy", "0.99999999", "--always-factor", "-o", s(&out)];
    let report = json_of(&[&["compress", "--model", s(&model)], &args[..]].concat());
    assert_eq!(report["dense"], 0);
    let text = ["--text", "the cat sat on the mat"];
    let nll = |model: &Path| {
        json_of(&[&["perplexity", "--model", s(model)], &text[..]].concat())["rows"][0]["mean_nll"]
            .as_f64()
            .unwrap()
    };
    assert!((nll(&out) - nll(&model)).abs() < 2e-3, "{} {}", nll(&out), nll(&model));
}

#[test]
fn a_compressed_encoder_is_evaluated_fine_tuned_and_merged() {
    let (texts, model) = (texts(), fixture("bert-cls"));
    let data = s(texts.path());
    let (out, run, merged) =
        (texts.path().join("small"), texts.path().join("run"), texts.path().join("merged"));
    let task = ["--task", "sst2", "--data", data];
    let compress =
        ["compress", "--model", s(&model), "--method", "whitened", "--ratio", "0.3", "-o", s(&out)];
    let report = json_of(&[&compress[..], &task].concat());
    assert!(report["modules"].as_array().unwrap().iter().all(|m| m["error"].as_f64().unwrap() < 1.0));

    let tune = [
        "finetune",
        "--model",
        s(&out),
        "--method",
        "lora",
        "--rank",
        "2",
        "--max-steps",
        "4",
        "--lr",
        "1e-2",
    ];
    json_of(&[&tune[..], &task, &["--eval-every", "2", "--batch-size", "8", "-o", s(&run)]].concat());
    let with = json_of(&[&["evaluate", "--model", s(&out), "--adapter", s(&run)], &task[..]].concat());
    json_of(&["merge", "--model", s(&out), "--adapter", s(&run), "-o", s(&merged)]);
    let config = |folder: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(config(&merged)["lowrank"]["modules"], config(&out)["lowrank"]["modules"], "the ranks stay");
    let after = json_of(&[&["evaluate", "--model", s(&merged)], &task[..]].concat());
    assert!(with["accuracy"].is_number() && after["accuracy"].is_number());
}

#[rstest]
#[case("llama", "distill", 0.9)]
#[case("llama", "lora", 0.99)]
#[case("bert-cls", "distill", 0.9)]
fn recovery_brings_the_layers_nearer(#[case] name: &str, #[case] how: &str, #[case] at_most: f64) {
    let (texts, model) = (texts(), fixture(name));
    let out = texts.path().join("recovered");
    let lines = texts.path().join("lines.txt");
    let args = [
        "--method",
        "svd",
        "--ratio",
        "0.5",
        "--recover",
        how,
        "--recover-steps",
        "30",
        "--recover-lr",
        "1e-2",
    ];
    let base = ["compress", "--model", s(&model), "--calibration", s(&lines), "-o", s(&out)];
    let report = json_of(&[&base[..], &args].concat());
    let layers = report["recovery"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let first = &layers[0];
    assert!(first["after"].as_f64().unwrap() < at_most * first["before"].as_f64().unwrap(), "{first}");
    assert!(out.join("tokenizer.json").is_file());
    let entries = fs::read_dir(texts.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(entries.into_iter().all(|name| !name.starts_with('.')), "nothing hidden stays behind");
}

#[test]
fn a_spectrum_is_shown_before_anything_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llama");
    let object = json_of(&["inspect", s(&model), "--spectrum", "-o", s(dir.path())]);
    let modules = object["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 14);
    let first = &modules[0];
    assert_eq!(first["singular_values"].as_array().unwrap().len(), 32);
    assert!(first["energy_ranks"]["0.5"].as_u64() < first["energy_ranks"]["0.99"].as_u64());
    assert!(first["ratio_errors"]["0.1"].as_f64() < first["ratio_errors"]["0.6"].as_f64());
    let csv = fs::read_to_string(dir.path().join("spectrum.csv")).unwrap();
    assert!(csv.starts_with("module,rank,singular_value,energy,relative_error\n"));
    assert_eq!(
        csv.lines().count(),
        1 + modules.iter().map(|m| m["singular_values"].as_array().unwrap().len()).sum::<usize>()
    );
    let svg = fs::read_to_string(dir.path().join("spectrum.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() == 14);
}

#[test]
fn bad_requests_are_one_line() {
    let (texts, model) = (texts(), fixture("llama"));
    let (out, empty) = (texts.path().join("out"), texts.path().join("empty.txt"));
    let base = ["compress", "--model", s(&model), "-o", s(&out)];
    let with = |extra: &[&'static str]| -> Vec<String> {
        base.iter().chain(extra).map(|part| part.to_string()).collect()
    };
    for (extra, part) in [
        (&["--ratio", "0"][..], "ratio = 0 is out of range"),
        (&["--ratio", "1"], "ratio = 1 is out of range"),
        (&["--ratio", "-0.5"], "ratio = -0.5 is out of range"),
        (&["--ranks", "q_proj"], "is not NAME=RANK"),
        (&["--ratio", "0.2", "--method", "whitened"], "give --calibration"),
        (&["--ratio", "0.2", "--method", "fwsvd"], "give --task"),
        (&["--ratio", "0.2", "--recover", "distill"], "give --calibration"),
    ] {
        let args = with(extra);
        misused(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
        assert!(!out.exists());
    }
    let args = [&base[..], &["--ranks", "q_porj=3"]].concat();
    fails(&args, "no layer matches 'q_porj'; nearest: 'q_proj'");
    let args = [&base[..], &["--ratio", "0.2", "--calibration", s(&empty)]].concat();
    fails(&args, "the calibration text is empty");
    fails(
        &["compress", "--model", s(&model), "-o", s(&model), "--ratio", "0.2"],
        "model folder or inside it",
    );
    let mut usage = Command::cargo_bin("lowrank").unwrap();
    usage.args(base).assert().code(2);
}
