//! Checkpoints as they are stored in the wild: tied tables under one name, heads beside a language model, values beyond f16.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use serde_json::Value;
use tempfile::TempDir;

use common::{copy, fails_after_warnings, fixture, run, s};

fn mean_nll(model: &Path, more: &[&str]) -> f64 {
    let args = ["perplexity", "--model", s(model), "--text", "The cat sat on the red mat.", "--json"];
    let value: Value = serde_json::from_str(&run(&[&args[..], more].concat()).0).unwrap();
    value["rows"][0]["mean_nll"].as_f64().unwrap()
}

/// A copy of a fixture whose tensors are changed.
fn stored(name: &str, metadata: &[(&str, &str)], change: impl Fn(&mut Vec<HostTensor<'static>>)) -> TempDir {
    let dir = copy(name);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut tensors: Vec<HostTensor<'static>> = checkpoint
        .names()
        .map(|name| {
            let shape = checkpoint.info(name).unwrap().shape.clone();
            HostTensor::new(name.to_string(), shape, checkpoint.read_f32(name).unwrap())
        })
        .collect();
    change(&mut tensors);
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(a, b)| ((*a).to_string(), (*b).to_string())).collect();
    write_safetensors(dir.path().join("model.safetensors"), tensors, FloatType::F32, &metadata).unwrap();
    dir
}

/// `save_model` of safetensors keeps one name of a shared tensor and writes the other into the header.
#[test]
fn a_tied_table_under_the_name_of_the_head() {
    let cases = [
        ("small-gpt2", "transformer.wte.weight", "peft-small-gpt2-lora-embedding"),
        ("small-llama-tied", "model.embed_tokens.weight", "peft-small-llama-tied-lora-embedding"),
        ("small-qwen2", "model.embed_tokens.weight", "peft-small-qwen2-lora-embedding"),
    ];
    for (name, table, adapter) in cases {
        let saved = stored(name, &[("format", "pt"), (table, "lm_head.weight")], |tensors| {
            let table = tensors.iter_mut().find(|tensor| tensor.name == table).unwrap();
            table.name = "lm_head.weight".into();
        });
        let (adapter, base) = (fixture(adapter), fixture(name));
        assert_eq!(mean_nll(saved.path(), &[]), mean_nll(&base, &[]), "{name}");
        let with = ["--adapter", s(&adapter)];
        let expect = mean_nll(&base, &with);
        assert_eq!(mean_nll(saved.path(), &with), expect, "{name}");
        let out = tempfile::tempdir().unwrap();
        let merged = out.path().join("merged");
        run(&["merge", "--model", s(saved.path()), "--adapter", s(&adapter), "-o", s(&merged)]);
        assert!((mean_nll(&merged, &[]) - expect).abs() < 1e-4, "{name}");
        let factored = out.path().join("factored");
        run(&[
            "compress",
            "--model",
            s(saved.path()),
            "--method",
            "svd",
            "--ratio",
            "0.2",
            "-o",
            s(&factored),
        ]);
        assert!(mean_nll(&factored, &[]).is_finite());
    }
}

/// What is not needed is named once and left, by every command.
#[test]
fn a_value_head_beside_a_language_model() {
    let valued = stored("small-llama", &[], |tensors| {
        tensors.push(HostTensor::new("v_head.summary.weight", vec![1, 24], vec![0.5; 24]));
        tensors.push(HostTensor::new("v_head.summary.bias", vec![1], vec![0.5]));
    });
    let (model, adapter, out) =
        (s(valued.path()), fixture("peft-small-llama-patterns"), tempfile::tempdir().unwrap());
    let folder = |name: &str| s(&out.path().join(name)).to_owned();
    let named = |args: &[&str]| {
        let error = run(args).1;
        assert_eq!(error.matches("v_head.summary.bias").count(), 1, "{args:?}: {error}");
        assert!(error.contains("and another tensor belong to a head that is not used here"), "{error}");
    };
    named(&["perplexity", "--model", model, "--text", "the cat"]);
    named(&["generate", "--model", model, "--prompt", "the cat", "--max-new-tokens", "1"]);
    let merged = folder("merged");
    named(&["merge", "--model", model, "--adapter", s(&adapter), "-o", &merged]);
    let base = fixture("small-llama");
    assert!((mean_nll(Path::new(&merged), &[]) - mean_nll(&base, &["--adapter", s(&adapter)])).abs() < 1e-4);
    // The tuned model alone has the head.
    let tuned = stored("small-llama", &[], |tensors| {
        tensors.push(HostTensor::new("v_head.summary.bias", vec![1], vec![0.5]));
        tensors.push(HostTensor::new("v_head.summary.weight", vec![1, 24], vec![0.5; 24]));
        let weight = tensors.iter_mut().find(|t| t.name.ends_with("0.self_attn.q_proj.weight")).unwrap();
        weight.data.to_mut()[0] += 0.5;
    });
    named(&[
        "extract",
        "--base",
        s(&base),
        "--tuned",
        s(tuned.path()),
        "--rank",
        "1",
        "-o",
        &folder("extracted"),
    ]);
    // Heads that lowrank knows go without saying.
    for known in ["bert-cls", "bert-qa"] {
        let error = run(&["embed", "--model", s(&fixture(known)), "--text", "the cat"]).1;
        assert!(error.is_empty(), "{known}: {error}");
    }
}

#[test]
fn values_beyond_f16_are_refused_in_f16() {
    let large = stored("small-llama", &[], |tensors| {
        let weight = tensors.iter_mut().find(|t| t.name.ends_with("1.mlp.up_proj.weight")).unwrap();
        weight.data.to_mut()[3] = -70_000.0;
    });
    let model = s(large.path());
    for args in [&["perplexity", "--text", "the cat"][..], &["generate", "--prompt", "the cat"]] {
        let args = [args, &["--model", model]].concat();
        fails_after_warnings(
            &[&args[..], &["--dtype", "f16"]].concat(),
            "has values beyond the range of f16; keep the weights in bf16",
        );
        run(&[&args[..], &["--dtype", "bf16"]].concat());
    }
}

/// LoRA on a tied head moves the head alone, as in PEFT, and is read back so.
#[test]
fn a_tied_head_is_adapted() {
    for name in ["small-gpt2", "small-llama-tied", "small-qwen2"] {
        let (model, out) = (fixture(name), tempfile::tempdir().unwrap());
        let (run_folder, text) = (out.path().join("run"), out.path().join("t.txt"));
        std::fs::write(&text, "The cat sat on the red mat.\n".repeat(4)).unwrap();
        let args = [
            "finetune",
            "--model",
            s(&model),
            "--train",
            s(&text),
            "--dev",
            s(&text),
            "--method",
            "lora",
            "--rank",
            "2",
            "--alpha",
            "4",
            "--targets",
            "lm_head",
            "--max-steps",
            "6",
            "--eval-every",
            "6",
            "--lr",
            "0.05",
            "-o",
        ];
        run(&[&args[..], &[s(&run_folder)]].concat());
        let adapter = run_folder.join("adapter");
        let tuned = mean_nll(&model, &["--adapter", s(&adapter)]);
        assert!(tuned < mean_nll(&model, &[]) - 0.1, "{name}: nothing was learnt");
        let config: Value =
            serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(config["target_modules"].to_string().matches("lm_head").count(), 1, "{config}");
        let merged = out.path().join("merged");
        run(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&merged)]);
        assert!((mean_nll(&merged, &[]) - tuned).abs() < 1e-4, "{name}");
    }
}
