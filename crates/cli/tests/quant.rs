//! Weights in blocks of few bits, as a user types it: compressed, run, tuned and merged.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, edit, fails, fixture, json_of, lowrank, misused, run, s};

/// A model in blocks, and rows beside it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(fixture_name: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let row =
            |i: usize| json!({"prompt": format!("the cat {i}"), "completion": " sat on the mat"}).to_string();
        for (name, range) in [("rows.jsonl", 0..12), ("dev.jsonl", 20..26)] {
            fs::write(dir.path().join(name), range.map(row).collect::<Vec<_>>().join("\n")).unwrap();
        }
        fs::write(dir.path().join("text.txt"), "the cat sat on the mat.\nthe dog sat on the hat.\n").unwrap();
        let bench = Self { dir };
        let mut args = vec!["compress", "--model"];
        let (source, out) = (fixture(fixture_name), bench.path("small"));
        args.extend([s(&source), "-o", s(&out)]);
        args.extend(options);
        json_of(&args);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tune(&self, model: &Path, out: &str, extra: &[&str]) -> Vec<String> {
        let (rows, dev) = (self.path("rows.jsonl"), self.path("dev.jsonl"));
        let mut args = vec!["finetune", "--model", s(model), "--train", s(&rows), "--dev", s(&dev)];
        let out = self.path(out);
        args.extend(["-o", s(&out), "--max-steps", "4", "--eval-every", "2", "--batch-size", "4"]);
        args.extend(["--show-samples", "0"]);
        args.extend(extra);
        args.into_iter().map(String::from).collect()
    }
}

fn perplexity(model: &Path, adapter: Option<&Path>) -> f64 {
    let mut args = vec!["perplexity", "--model", s(model), "--text", "the cat sat on the mat. the dog sat"];
    if let Some(adapter) = adapter {
        args.extend(["--adapter", s(adapter)]);
    }
    json_of(&args)["perplexity"].as_f64().unwrap()
}

#[test]
fn a_decoder_in_blocks_runs_as_any_other() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let (dense, small) = (fixture("llama-tied"), bench.path("small"));
    let (before, after) = (perplexity(&dense, None), perplexity(&small, None));
    assert!((after / before - 1.0).abs() < 0.02, "{after} for {before}");
    let text = json_of(&["generate", "--model", s(&small), "--prompt", "the cat", "--max-new-tokens", "4"]);
    assert!(text["ids"].as_array().is_some_and(|ids| !ids.is_empty()));
    let described = json_of(&["inspect", s(&small)]);
    assert_eq!(described["method"], "quant");
    assert_eq!(described["parameters"], json_of(&["inspect", s(&dense)])["parameters"]);
    let layers = described["layers"].as_array().unwrap();
    let layer = layers.iter().find(|l| l["name"] == "model.layers.0.self_attn.q_proj").unwrap();
    assert_eq!((&layer["kind"], &layer["formats"]["weight"]), (&json!("dense"), &json!("Q8_0")));
    let tensors = described["tensors"].as_array().unwrap();
    let tensor = tensors.iter().find(|t| t["name"] == "model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((&tensor["dtype"], &tensor["shape"]), (&json!("Q8_0"), &json!([32, 32])));
}

#[test]
fn gpt2s_transposed_maps_are_rounded_too() {
    let bench = Bench::new("gpt2", &["--type", "q8_0"]);
    let (before, after) = (perplexity(&fixture("gpt2"), None), perplexity(&bench.path("small"), None));
    assert!((after / before - 1.0).abs() < 0.02, "{after} for {before}");
}

#[test]
fn an_encoder_in_blocks_predicts_and_embeds() {
    let bench = Bench::new("bert-cls", &["--bits", "8"]);
    let small = bench.path("small");
    let rows = |command: &str, model: &Path, key: &str| -> Vec<f64> {
        let got = json_of(&[command, "--model", s(model), "--text", "the cat sat"]);
        got["rows"][0][key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for (command, key) in [("predict", "logits"), ("embed", "embedding")] {
        let (before, after) = (rows(command, &fixture("bert-cls"), key), rows(command, &small, key));
        let size = before.iter().fold(1.0_f64, |m, x| m.max(x.abs()));
        let worst = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst > 0.0 && worst < 0.05 * size, "{command}: {worst} of {size}");
    }
}

#[test]
fn formats_that_do_not_fit_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("llama-tied"), dir.path().join("small"));
    let args = ["compress", "--model", s(&model), "--bits", "4", "-o", s(&out)];
    let output = lowrank(&args).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    assert!(
        text.contains("in Q5_0 instead of Q4_K: rows of 32 elements do not fill blocks of 256"),
        "{text}"
    );
    assert!(
        text.contains("in floats instead of Q4_K: rows of 56 elements do not fill blocks of 256"),
        "{text}"
    );
}

#[test]
fn a_base_in_blocks_is_tuned_and_merged() {
    let bench =
        Bench::new("llama-tied", &["--bits", "8", "--method", "quant+lowrank", "--ranks", "all-linear=2"]);
    let small = bench.path("small");
    let tune = |model: &Path, out: &str, extra: &[&str]| {
        let args = bench.tune(model, out, extra);
        json_of(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let lora = ["--method", "lora", "--targets", "all-linear", "--lr", "1e-2"];
    let made = tune(&small, "run", &lora);
    assert!(made["dev_loss"].as_f64().unwrap().is_finite());
    let adapter = bench.path("run/adapter");
    let tuned = perplexity(&small, Some(&adapter));
    assert!((tuned / perplexity(&small, None) - 1.0).abs() > 1e-3, "the adapter learnt something");
    for (out, extra, allowed) in [("floats", &[][..], 1e-3), ("rounded", &["--requantize"], 0.05)] {
        let merged = bench.path(out);
        let mut args = vec!["merge", "--model", s(&small), "--adapter", s(&adapter), "-o", s(&merged)];
        args.extend(["--dtype", "f32"]);
        args.extend(extra);
        let report = json_of(&args);
        let key = if extra.is_empty() { "from_blocks_to_floats" } else { "requantized" };
        assert!(report[key].as_u64().unwrap() > 0, "{report}");
        let got = perplexity(&merged, None);
        assert!((got / tuned - 1.0).abs() < allowed, "{out}: {got} for {tuned}");
    }
    // The dense base rounded as it is read; what was made over it runs over the same.
    let dense = fixture("llama-tied");
    let over = tune(&dense, "qlora", &[&lora[..], &["--base-bits", "8"]].concat());
    assert!(over["dev_loss"].as_f64().unwrap().is_finite());
    let dry = tune(&dense, "dry", &[&lora[..], &["--base-bits", "4", "--dry-run"]].concat());
    assert!(dry["total_mb"].as_u64().unwrap() > dry["base_mb"].as_u64().unwrap(), "{dry}");
    let dry = ["--base-bits", "4", "--dry-run", "--init", "qera"];
    let started = tune(&dense, "dry", &[&lora[..], &dry].concat());
    assert!(started["start_mb"].as_u64().unwrap() > 8, "{started}");
    assert!(!bench.path("dry/run.json").exists());
}

/// Over a base of 4 bits, factors of full rank begin at the dense model. The adapter is one of the dense model: at a rate that
/// changes nothing, its update is zero.
#[rstest]
#[case::text("mini-llama", "q_proj=128,o_proj=128,gate_proj=128,up_proj=128,down_proj=128")]
#[case::classes("mini-bert", "query=128,key=128,value=128,dense=128")]
fn adapters_start_from_the_quantization_residual(#[case] name: &str, #[case] full: &str) {
    let model = fixture(&format!("../../datasets/models/{name}"));
    let data = ["mini-glue", "mini-instruct/train.jsonl", "mini-instruct/dev.jsonl"];
    let [glue, train, dev] = data.map(|data| fixture(&format!("../../datasets/{data}")));
    let dir = tempfile::tempdir().unwrap();
    let rows: &[&str] = match name {
        "mini-bert" => &["--task", "sst2", "--data", s(&glue)],
        _ => &["--train", s(&train), "--dev", s(&dev), "--show-samples", "0", "--write-samples", "0"],
    };
    let loss = |out: &str, extra: &[&str]| {
        let out = dir.path().join(out);
        let mut args = vec!["finetune", "--model", s(&model), "-o", s(&out), "--method", "lora"];
        args.extend([
            "--targets",
            "all-linear",
            "--max-steps",
            "1",
            "--batch-size",
            "2",
            "--eval-every",
            "1",
        ]);
        args.extend(["--lr", "1e-12", "--head-lr", "1e-12", "--rank", "64", "--alpha", "64"]);
        args.extend(["--rank-pattern", full]);
        args.extend(rows);
        args.extend(extra);
        json_of(&args);
        let record = fs::read_to_string(out.join("run.json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        record["train_info"]["evals"][0]["loss"].as_f64().unwrap()
    };
    let dense = loss("dense", &[]);
    let far = (loss("plain", &["--base-bits", "4"]) - dense).abs();
    assert!(far > 1e-5, "{far}");
    for init in ["loftq", "qera"] {
        let got = loss(init, &["--base-bits", "4", "--init", init]);
        assert!((got - dense).abs() < 0.05 * far, "{init}: {got} for {dense}");
        let adapter = dir.path().join(init).join("adapter");
        let config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!((&config["r"], &config["peft_type"]), (&json!(256), &json!("LORA")));
        if name == "mini-llama" {
            let (before, after) = (perplexity(&model, None), perplexity(&model, Some(&adapter)));
            assert!((after / before - 1.0).abs() < 1e-4, "{init}: {after} for {before}");
        }
    }
}

/// Under a head for spans transformers gives a Llama another prefix.
#[test]
fn a_start_is_found_under_the_prefix_of_another_head() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"id": "1", "context": "the cat sat on the mat", "question": "who sat",
        "answers": {"text": ["the cat"], "answer_start": [0]}});
    let (rows, model) = (dir.path().join("rows.jsonl"), fixture("../../datasets/models/mini-llama"));
    fs::write(&rows, format!("{row}\n{row}")).unwrap();
    for init in ["loftq", "qera"] {
        let out = dir.path().join(init);
        let mut args =
            vec!["finetune", "--model", s(&model), "--train", s(&rows), "--dev", s(&rows), "-o", s(&out)];
        args.extend(["--method", "lora", "--base-bits", "4", "--init", init, "--max-steps", "1"]);
        json_of(&args);
        let config = fs::read_to_string(out.join("adapter/adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["r"], json!(16), "{config}");
    }
    // The inputs of the rows are found under that prefix, too, and weigh QERA's factors.
    let factors =
        |init: &str| fs::read(dir.path().join(init).join("adapter/adapter_model.safetensors")).unwrap();
    assert_ne!(factors("loftq"), factors("qera"));
}

/// A resumed run computes its initial factors anew, from the same rows and weights.
#[test]
fn a_run_with_initial_factors_is_extended_exactly() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let dense = fixture("llama-tied");
    let adapter = |out: &str| fs::read(bench.path(out).join("adapter/adapter_model.safetensors")).unwrap();
    let qera = ["--method", "lora", "--targets", "all-linear", "--base-bits", "4", "--init", "qera"];
    let rate = ["--scheduler", "constant", "--warmup-ratio", "0", "--lr", "1e-2"];
    let tune = |out: &str, extra: &[&str]| {
        let mut args = bench.tune(&dense, out, &[&qera[..], &rate].concat());
        let steps = args.iter().position(|arg| arg == "--max-steps").unwrap() + 1;
        args[steps] = extra[0].into();
        args.extend(extra[1..].iter().map(|arg| (*arg).to_owned()));
        json_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    tune("whole", &["4"]);
    tune("parts", &["2"]);
    assert_ne!(adapter("parts"), adapter("whole"));
    tune("parts", &["4", "--extend"]);
    assert_eq!(adapter("parts"), adapter("whole"));
}

#[test]
fn starts_without_a_loss_are_refused() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let (small, dense) = (bench.path("small"), fixture("llama-tied"));
    let refused = |model: &Path, extra: &[&str], part: &str| {
        let args = bench.tune(model, "run", &[&["--method", "lora"], extra].concat());
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    refused(&dense, &["--init", "loftq"], "give --base-bits 4 or 8");
    refused(
        &small,
        &["--init", "qera", "--base-bits", "4"],
        "compressed already (quant); start from the dense model",
    );
    let args = bench.tune(&dense, "first", &["--method", "lora"]);
    json_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let first = bench.path("first/adapter");
    let again = ["--init-from", s(&first), "--init", "loftq", "--base-bits", "4"];
    refused(&dense, &again, "gives the first factors, and so does --init");
}

/// Folders of GPTQ, AWQ, bitsandbytes and MXFP4 are bases as any other; what is written of them is not quantized
/// their way.
#[rstest]
fn bases_of_other_quantizers_are_used(
    #[values("gptq-act-order", "gptq-v2", "awq", "nf4", "fp4", "int8", "mxfp4")] kind: &str,
) {
    let name = format!("quantised-{kind}");
    let bench = Bench::new(&name, &["--bits", "8"]);
    let base = fixture(&name);
    let run = bench.path("run");
    let args = bench.tune(&base, "run", &["--method", "lora", "--targets", "all-linear"]);
    json_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let (adapter, merged) = (run.join("adapter"), bench.path("merged"));
    let mut merge = vec!["merge", "--model", s(&base), "--adapter", s(&adapter), "-o", s(&merged)];
    if kind == "mxfp4" {
        // Its weights count as bf16, whose rounding sends tokens to other experts.
        merge.extend(["--dtype", "f32"]);
    }
    json_of(&merge);
    let close = |folder: &Path, expect: f64, tolerance: f64| {
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
        let got = perplexity(folder, None);
        assert!((got / expect - 1.0).abs() < tolerance, "{}: {got}, {expect}", folder.display());
    };
    close(&merged, perplexity(&base, Some(&adapter)), 1e-3);
    close(&bench.path("small"), perplexity(&base, None), 0.05);
}

/// The note on quantized weights would contradict the error, which is the only line.
#[rstest]
#[case("quant_method", "fp8", "quantized with FP8")]
#[case("version", "gemv", "layout 'gemv'")]
fn a_method_that_cannot_be_read_has_an_error_and_no_note(
    #[case] key: &str,
    #[case] value: &str,
    #[case] part: &str,
) {
    let folder = copy("quantised-awq");
    edit(&folder.path().join("config.json"), |config| config["quantization_config"][key] = value.into());
    fails(&["perplexity", "--model", s(folder.path()), "--text", "a cat"], part);
}

/// The choices of `auto` include factors in place of a matrix: fewer bytes than the smallest formats take.
#[test]
fn a_budget_below_the_smallest_formats_is_met_by_factors() {
    let (model, dir) = (fixture("llama-tied"), tempfile::tempdir().unwrap());
    let text = dir.path().join("text.txt");
    fs::write(&text, "the cat sat on the mat.\nthe dog sat on the hat.\n").unwrap();
    let compress = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let args = ["compress", "--model", s(&model), "--calibration", s(&text), "-o", s(&out), "--json"];
        lowrank(&[&args[..], extra].concat()).output().unwrap()
    };
    let refused = compress("none", &["--bytes", "1K", "--method", "quant+lowrank"]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    let least = refused.split("at least ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    let below = (least.parse::<u64>().unwrap() - 600).to_string();
    let made = compress("small", &["--bytes", &below]);
    let report: Value = serde_json::from_slice(&made.stdout).unwrap();
    let modules = report["modules"].as_array().unwrap();
    assert!(modules.iter().any(|module| module["kind"] == "low_rank"), "{report}");
    let small = dir.path().join("small");
    let bytes = fs::metadata(small.join("model.safetensors")).unwrap().len();
    assert!(bytes <= below.parse().unwrap() && report["file"]["after"] == bytes);
    assert!(perplexity(&small, None).is_finite());
}

/// A copy of a tied table is not written, whatever the type of the other tensors.
#[test]
fn a_budget_does_not_count_a_copy_of_the_table() {
    let (dir, copied) = (tempfile::tempdir().unwrap(), copy("llama-tied"));
    let model = copied.path();
    let dense = Checkpoint::open(fixture("llama-tied")).unwrap();
    let tensor = |name: &str, stored: &str| {
        HostTensor::new(name, dense.info(stored).unwrap().shape.clone(), dense.read_f32(stored).unwrap())
    };
    let table = "model.embed_tokens.weight";
    let tensors = dense.names().map(|name| tensor(name, name)).chain([tensor("lm_head.weight", table)]);
    let file = model.join("model.safetensors");
    write_safetensors(&file, tensors.collect(), FloatType::F32, &Default::default()).unwrap();
    let compress = |bytes: &str| {
        let out = dir.path().join("small");
        let args = ["compress", "--model", s(model), "--method", "quant", "--dtype", "f16", "--bytes", bytes];
        let output = lowrank(&[&args[..], &["-o", s(&out)]].concat()).output().unwrap();
        (String::from_utf8(output.stderr).unwrap(), out.join("model.safetensors"))
    };
    let (refused, _) = compress("1K");
    let least = refused.split("at least ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    let (said, written) = compress(least);
    let bytes = fs::metadata(written).unwrap().len();
    assert!(bytes <= least.parse().unwrap(), "{bytes} for {least}: {said}");
}

/// A head is trained in f32 beside a base in blocks, whatever the type of the file.
#[test]
fn a_head_is_trained_beside_blocks_of_a_half_precision_model() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let half = bench.path("half");
    let dense = fixture("llama-tied");
    json_of(&[
        "compress",
        "--model",
        s(&dense),
        "--method",
        "svd",
        "--ranks",
        "q_proj=1",
        "--dtype",
        "bf16",
        "-o",
        s(&half),
    ]);
    let args = bench.tune(&half, "run", &["--method", "head", "--base-bits", "8"]);
    let result = json_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(result["dev_loss"].as_f64().is_some_and(f64::is_finite), "{result}");
}

#[test]
fn matrices_that_are_in_blocks_already_are_said() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let args = bench.tune(&bench.path("small"), "run", &["--method", "lora", "--base-bits", "4"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_, shown) = run(&args);
    assert!(shown.contains("matrices are quantized already and keep their formats"), "{shown}");
}

#[test]
fn what_would_train_blocks_is_refused() {
    let bench = Bench::new("llama-tied", &["--bits", "8"]);
    let (small, dense) = (bench.path("small"), fixture("llama-tied"));
    let refused = |model: &Path, extra: &[&str], part: &str| {
        let args = bench.tune(model, "run", extra);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    refused(
        &small,
        &["--method", "full"],
        "--method full trains 'model.embed_tokens.weight', which is quantized",
    );
    refused(
        &small,
        &["--method", "head"],
        "--method head trains 'model.embed_tokens.weight', which is quantized",
    );
    for (extra, part) in [
        (["--method", "full", "--base-bits", "4"], "--base-bits freezes the base"),
        (["--method", "lora", "--base-bits", "5"], "choose 4 or 8"),
    ] {
        let args = bench.tune(&dense, "run", &extra);
        misused(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    }
    let out = bench.path("again");
    let compress = |extra: &[&str], part: &str| {
        misused(&[&["compress", "--model", s(&dense), "-o", s(&out)][..], extra].concat(), part);
    };
    compress(&["--bits", "7"], "--bits 7 is not supported");
    compress(&["--method", "svd", "--bits", "8"], "--bits alone requires quant");
    compress(&["--method", "svd", "--bytes", "1M"], "--bytes requires quant, quant+lowrank or auto");
    let ratio = ["--method", "quant", "--ratio", "0.2", "--bits", "8"];
    fails(&[&["compress", "--model", s(&dense), "-o", s(&out)], &ratio[..]].concat(), "not --ratio");
    fails(&["compress", "--model", s(&small), "-o", s(&out), "--bits", "8"], "compressed already (quant)");
}
