//! The commands over adapters as a user types them.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::assert::Assert;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, fixture, json_of, lowrank, s};

fn run(args: &[&str]) -> Assert {
    lowrank(args).assert()
}

const TEXTS: [&str; 4] = ["--text", "The cat sat on the red mat.", "--text", "it was bad"];

/// Logits of two texts.
fn predict(model: &Path, adapter: Option<&Path>) -> Vec<f64> {
    let mut args = vec!["predict", "--model", s(model)];
    args.extend(adapter.iter().flat_map(|a| ["--adapter", s(a)]));
    args.extend(TEXTS);
    let rows = json_of(&args)["rows"].as_array().unwrap().clone();
    rows.iter()
        .flat_map(|row| row["logits"].as_array().unwrap().clone())
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// f32 sums taken in another order, on logits of size 1 to 10.
const ROUNDING: f64 = 1e-4;

fn shape(model_type: &str) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512,
        "type_vocab_size": 2
    });
    if model_type == "roberta" {
        config["vocab_size"] = json!(50265);
        config["max_position_embeddings"] = json!(514);
        config["type_vocab_size"] = json!(1);
    }
    config
}

/// The counts of the papers' models, built without weights.
#[rstest]
#[case("bert", &[], "parameters", 109_483_778)]
#[case("bert", &["--method", "lora", "--rank", "1", "--targets", "all-linear,classifier"], "trainable", 168_194)]
#[case("bert", &["--factored", "1"], "factored_parameters", 24_125_956)]
#[case("bert", &["--factored", "128"], "factored_parameters", 45_389_574)]
#[case("roberta", &["--method", "head"], "trainable", 592_130)]
#[case("roberta", &["--method", "lotr", "--rank", "2"], "trainable", 595_298)]
#[case("roberta", &["--method", "lotr", "--rank", "2"], "total", 124_650_338)]
#[case("roberta", &["--method", "lotr", "--rank", "32"], "adapter_parameters", 2 * 768 * 32 + 24 * 32 * 32)]
#[case("roberta", &["--method", "lora", "--rank", "4"], "adapter_parameters", 24 * 2 * 768 * 4)]
#[case("roberta", &["--method", "vera", "--rank", "64"], "adapter_parameters", 24 * (64 + 768))]
fn counts_are_exact(#[case] model: &str, #[case] options: &[&str], #[case] key: &str, #[case] count: u64) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), shape(model).to_string()).unwrap();
    let object = json_of(&[&["inspect", s(dir.path())], options].concat());
    assert_eq!(object[key], count, "{object}");
}

/// What is counted is what finetune trains.
#[rstest]
#[case("lora", &["--bias", "all"])]
#[case("lora", &["--bias", "lora-only", "--targets", "query,output.dense"])]
#[case("bitfit", &[])]
#[case("vera", &["--bias", "lora-only"])]
fn the_count_is_that_of_a_run(#[case] method: &str, #[case] options: &[&str]) {
    let (model, data) = (fixture("bert-cls"), tiny_data());
    let out = data.path().join("run");
    let files = ["--task", "sst2", "--data", s(data.path()), "-o", s(&out)];
    let steps = ["--max-steps", "1", "--eval-every", "1"];
    let options = [&["--method", method], options].concat();
    let result = json_of(&[&["finetune", "--model", s(&model)], &files[..], &steps, &options].concat());
    let counted = json_of(&[&["inspect", s(&model), "--labels", "2"], &options[..]].concat());
    assert_eq!((&counted["trainable"], &counted["total"]), (&result["trainable"], &result["total"]));
}

/// An option that a method does not have is reported once; the run goes on.
#[rstest]
#[case(&["--method", "vera", "--alpha", "3"], "--alpha has no effect under vera")]
#[case(&["--method", "lora-xs", "--lora-plus", "3"], "--lora-plus has no effect under lora-xs")]
#[case(&["--method", "lora", "--by-kind"], "--by-kind has no effect under lora")]
#[case(&["--method", "lowrank", "--alpha-pattern", "query=3"], "--alpha-pattern has no effect under lowrank")]
#[case(&["--method", "full", "--tt-rank", "3"], "--tt-rank requires an adapter method")]
fn options_without_effect_are_said(#[case] options: &[&str], #[case] part: &str) {
    let (model, data) = (fixture("bert-cls"), tiny_data());
    let out = data.path().join("run");
    let files = ["--task", "sst2", "--data", s(data.path()), "-o", s(&out)];
    let steps = ["--max-steps", "1", "--eval-every", "1"];
    let (_, shown) =
        common::run(&[&["finetune", "--model", s(&model)], &files[..], &steps, options].concat());
    assert_eq!(shown.matches(part).count(), 1, "{shown}");
}

fn tiny_data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("SST-2");
    fs::create_dir(&folder).unwrap();
    let mut text = String::from("sentence\tlabel\n");
    for i in 0..24 {
        let (word, label) = if i % 2 == 0 { ("cat", 1) } else { ("dog", 0) };
        text.push_str(&format!("the {word} sat on the mat {i}\t{label}\n"));
    }
    fs::write(folder.join("train.tsv"), &text).unwrap();
    fs::write(folder.join("dev.tsv"), &text).unwrap();
    dir
}

/// Trains a few steps; the folder of the run.
fn finetune(data: &TempDir, out: &Path, options: &[&str]) -> PathBuf {
    let dir = out.join("run");
    let model = fixture("bert-cls");
    let base = ["finetune", "--model", s(&model), "--task", "sst2", "--data", s(data.path())];
    let steps = ["--rank", "2", "--max-steps", "4", "--eval-every", "4", "--batch-size", "8", "--lr", "2e-2"];
    run(&[&base[..], &steps, options, &["-o", s(&dir)]].concat()).success();
    dir.join("adapter")
}

#[rstest]
#[case("lora", &["--init", "pissa"], "LORA")]
#[case("lora", &["--lora-plus", "4", "--rank-pattern", "value=3", "--rslora"], "LORA")]
#[case("lora", &["--bias", "all", "--targets", "word_embeddings,query"], "LORA")]
#[case("lora", &["--bias", "lora-only", "--dropout", "0.1"], "LORA")]
#[case("dora", &[], "LORA")]
#[case("lora-fa", &[], "LORA")]
#[case("lotr", &["--targets", "all-linear", "--by-kind"], "LOTR")]
#[case("lotr", &["--init", "svd"], "LOTR")]
#[case("vera", &["--targets", "query,intermediate.dense"], "VERA")]
#[case("loretta", &[], "LORETTA")]
#[case("tt-lora", &[], "TT_LORA")]
#[case("lorta", &["--targets", "query,value,output.dense"], "LORTA")]
#[case("lora-xs", &["--targets", "query,output.dense"], "LORA_XS")]
#[case("meta-tt", &["--targets", "query,value,output.dense"], "META_TT")]
#[case("lowrank", &[], "LORA")]
#[case("lowrank", &["--stack"], "LORA")]
fn every_method_trains_is_saved_and_becomes_a_lora(
    #[case] method: &str,
    #[case] options: &[&str],
    #[case] peft_type: &str,
) {
    let (data, out, model) = (tiny_data(), tempfile::tempdir().unwrap(), fixture("bert-cls"));
    let adapter = finetune(&data, out.path(), &[&["--method", method], options].concat());
    let config: Value =
        serde_json::from_str(&fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["peft_type"], peft_type);
    let adapted = predict(&model, Some(&adapter));
    let lora = out.path().join("lora");
    run(&["convert", "--adapter", s(&adapter), "--to", "lora", "--model", s(&model), "-o", s(&lora)])
        .success();
    assert!(distance(&predict(&model, Some(&lora)), &adapted) < ROUNDING);
    let merged = out.path().join("merged");
    let result = json_of(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&merged)]);
    assert!(result["max_difference"].as_f64().unwrap() < ROUNDING, "{result}");
    assert!(distance(&predict(&merged, None), &adapted) < ROUNDING);
}

#[test]
fn resizing_to_the_same_rank_changes_nothing_and_to_less_a_little() {
    let (model, adapter, out) =
        (fixture("bert-cls"), fixture("peft-bert-lora"), tempfile::tempdir().unwrap());
    let before = predict(&model, Some(&adapter));
    let to = |name: &str, options: &[&str]| {
        let dir = out.path().join(name);
        let result = json_of(&[&["resize", "--adapter", s(&adapter), "-o", s(&dir)], options].concat());
        (distance(&predict(&model, Some(&dir)), &before), result)
    };
    assert!(to("same", &["--rank", "4"]).0 < ROUNDING);
    assert!(to("all", &["--energy", "1.0"]).0 < ROUNDING);
    let (off, result) = to("less", &["--rank", "1"]);
    assert!(off > ROUNDING);
    for module in result["modules"].as_array().unwrap() {
        assert_eq!(module["to"], 1);
        assert!(module["relative_error"].as_f64().unwrap() > 0.0);
    }
    run(&["resize", "--adapter", s(&adapter), "-o", s(&out.path().join("none"))]).code(2);
}

#[test]
fn combining_is_a_weighted_sum_of_updates() {
    let (model, out) = (fixture("bert-cls"), tempfile::tempdir().unwrap());
    let adapter = fixture("peft-bert-lora");
    let before = predict(&model, Some(&adapter));
    for how in ["linear", "cat", "svd", "ties"] {
        let dir = out.path().join(how);
        // TIES averages the weighted updates that agree; the others add them up.
        let half = format!("{}={}", s(&adapter), if how == "ties" { 1.0 } else { 0.5 });
        let density = ["--density", "1"];
        let args = ["combine", "--adapter", &half, "--adapter", &half, "--how", how, "-o", s(&dir)];
        run(&[&args[..], &density].concat()).success();
        assert!(distance(&predict(&model, Some(&dir)), &before) < ROUNDING, "{how}");
        let rank = json_of(&["inspect", s(&dir)])["rank"].as_u64().unwrap();
        assert_eq!(rank, if how == "cat" { 8 } else { 4 }, "{how}");
    }
}

#[test]
fn extracting_gives_back_what_was_merged() {
    let (model, adapter, out) =
        (fixture("bert-cls"), fixture("peft-bert-lora"), tempfile::tempdir().unwrap());
    let (merged, dir) = (out.path().join("merged"), out.path().join("extracted"));
    run(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&merged)]).success();
    let result =
        json_of(&["extract", "--base", s(&model), "--tuned", s(&merged), "--rank", "4", "-o", s(&dir)]);
    let modules = result["modules"].as_array().unwrap();
    let query = modules.iter().find(|m| m["module"].as_str().unwrap().ends_with("query")).unwrap();
    assert!(query["relative_error"].as_f64().unwrap() < 1e-4, "{query}");
    assert!(distance(&predict(&model, Some(&dir)), &predict(&merged, None)) < ROUNDING);
    assert!(dir.join("labels.json").is_file());
    let refused = |tuned: &Path, part: &str| {
        let other = out.path().join("other");
        let result =
            run(&["extract", "--base", s(&model), "--tuned", s(tuned), "--rank", "4", "-o", s(&other)]);
        let error = String::from_utf8_lossy(&result.code(1).get_output().stderr).into_owned();
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        assert!(!other.exists());
    };
    refused(&model, "nothing to extract");
    refused(&fixture("roberta-cls"), "has no counterpart in");
}

#[test]
fn a_lora_becomes_a_lotr_and_a_lora_again() {
    let (model, adapter, out) =
        (fixture("bert-cls"), fixture("peft-bert-lora"), tempfile::tempdir().unwrap());
    let (lotr, lora) = (out.path().join("lotr"), out.path().join("lora"));
    // Four pairs of rank 4: sixteen columns hold them all.
    let result =
        json_of(&["convert", "--adapter", s(&adapter), "--to", "lotr", "--rank", "16", "-o", s(&lotr)]);
    assert!(result["relative_error"].as_f64().unwrap() < 1e-5, "{result}");
    let exact = json_of(&["convert", "--adapter", s(&lotr), "--to", "lora", "-o", s(&lora)]);
    assert_eq!(exact["relative_error"], 0.0);
    let before = predict(&model, Some(&adapter));
    assert!(distance(&predict(&model, Some(&lotr)), &before) < ROUNDING);
    assert!(distance(&predict(&model, Some(&lora)), &before) < ROUNDING);
}

/// Renames the tensors of an adapter as loralib has them, beside no config.
#[test]
fn loralib_tensors_are_an_adapter_and_convert_to_peft() {
    let (model, adapter) = (fixture("bert-cls"), fixture("peft-bert-lora"));
    let out = tempfile::tempdir().unwrap();
    let file = lowrank_checkpoint::Checkpoint::open(&adapter).unwrap();
    let tensors = file.names().map(|name| lowrank_checkpoint::HostTensor {
        name: name
            .replace("base_model.model.", "")
            .replace("lora_A.weight", "lora_A")
            .replace("lora_B.weight", "lora_B"),
        shape: file.info(name).unwrap().shape.clone(),
        data: file.read_f32(name).unwrap().into(),
    });
    let path = out.path().join("mnli_lora.safetensors");
    let f32 = lowrank_checkpoint::FloatType::F32;
    lowrank_checkpoint::write_safetensors(&path, tensors.collect(), f32, &Default::default()).unwrap();
    let peft = out.path().join("peft");
    run(&["convert", "--adapter", s(&path), "--alpha", "8", "--to", "lora", "-o", s(&peft)]).success();
    let expect = predict(&model, Some(&adapter));
    assert!(distance(&predict(&model, Some(&peft)), &expect) < ROUNDING);
    // Without an alpha, loralib's default is used, with a warning.
    let assert = run(&["predict", "--model", s(&model), "--adapter", s(&path), "--text", "a"]).success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("has no alpha; using 16"), "{stderr}");
}

/// Rewrites the tensors of an adapter, each as `change` has it.
fn rewrite(dir: &Path, change: impl Fn(&str, Vec<f32>) -> Option<(String, Vec<f32>)>) {
    let file = lowrank_checkpoint::Checkpoint::open(dir).unwrap();
    let tensors = file.names().filter_map(|name| {
        let (new, data) = change(name, file.read_f32(name).unwrap())?;
        let shape = file.info(name).unwrap().shape.clone();
        Some(lowrank_checkpoint::HostTensor { name: new, shape, data: data.into() })
    });
    let tensors: Vec<_> = tensors.collect();
    let path = dir.join("adapter_model.safetensors");
    let f32 = lowrank_checkpoint::FloatType::F32;
    lowrank_checkpoint::write_safetensors(path, tensors, f32, &Default::default()).unwrap();
}

fn load_error(dir: &Path) -> String {
    let model = fixture("bert-cls");
    let args = ["predict", "--model", s(&model), "--adapter", s(dir), "--text", "a"];
    let output = run(&args).code(1).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn loading_is_strict() {
    let dir = copy("peft-bert-lora");
    rewrite(dir.path(), |name, data| (!name.contains("layer.1.")).then(|| (name.into(), data)));
    let error = load_error(dir.path());
    assert!(
        error.contains("missing factors of") && error.contains("layer.1.attention.self.query"),
        "{error}"
    );

    let dir = copy("peft-bert-lora");
    rewrite(dir.path(), |name, data| {
        (!name.contains("layer.1.attention.self.query.lora_B")).then(|| (name.into(), data))
    });
    let error = load_error(dir.path());
    assert!(error.contains("missing") && error.contains("query.lora_B.weight"), "{error}");

    let dir = copy("peft-bert-lora");
    rewrite(dir.path(), |name, data| Some((name.replace("classifier.bias", "classifier.offset"), data)));
    let error = load_error(dir.path());
    assert!(error.contains("classifier.offset") || error.contains("missing 'classifier.bias'"), "{error}");

    let dir = copy("peft-bert-lora");
    rewrite(dir.path(), |name, data| Some((name.replace("layer.1.", "layer.7."), data)));
    let error = load_error(dir.path());
    assert!(
        error.contains("layer.7.attention.self.query") && error.contains("is not a layer of this model"),
        "{error}"
    );
}

#[test]
fn an_adapter_whose_b_is_zero_is_reported() {
    let dir = copy("peft-bert-lora");
    rewrite(dir.path(), |name, data| {
        let zero = name.contains("lora_B");
        Some((name.into(), if zero { vec![0.0; data.len()] } else { data }))
    });
    let model = fixture("bert-cls");
    let args = ["predict", "--model", s(&model), "--adapter", s(dir.path()), "--text", "a"];
    let output = run(&args).success().get_output().clone();
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("zero in every layer"), "{warning}");
    assert_eq!(json_of(&["inspect", s(dir.path())])["zero"].as_array().unwrap().len(), 4);
}
