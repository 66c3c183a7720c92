//! `finetune` over encoder-decoders, as a user types it.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, edit, fails, fixture, json_of, lowrank, run, s};

/// A folder with rows, and runs beside them.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let words = ["cat", "dog", "mat", "hat", "sun", "day"];
        let pairs = |article: &str, n: usize| {
            let row = |i: usize| json!({"prompt": format!("{article} {}", words[i % 6]), "completion": words[(i + 1) % 6]});
            (0..n).map(row).collect::<Vec<Value>>()
        };
        bench.write("train.jsonl", &[pairs("the", 12), pairs("my", 12)].concat());
        bench.write("dev.jsonl", &pairs("a", 6));
        bench
    }

    fn write(&self, name: &str, rows: &[Value]) {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        fs::write(self.path(name), lines.join("\n")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The arguments of a training on the rows, of a fixture or the model in a folder.
    fn args(&self, model: &str, out: &str, extra: &[&str]) -> Vec<String> {
        let model = fixture(model);
        let mut args: Vec<String> = ["finetune", "--model", s(&model)].map(str::to_string).into();
        let given = [("--train", "train.jsonl"), ("--dev", "dev.jsonl"), ("--output", out)];
        for (option, name) in given {
            args.extend([option.to_string(), s(&self.path(name)).to_string()]);
        }
        args.extend(extra.iter().map(|text| (*text).to_string()));
        let defaults =
            [("--batch-size", "4"), ("--eval-every", "5"), ("--lr", "1e-2"), ("--show-samples", "0")];
        for (option, value) in defaults.iter().filter(|(option, _)| !extra.contains(option)) {
            args.extend([option.to_string(), value.to_string()]);
        }
        args
    }

    #[track_caller]
    fn run(&self, model: &str, out: &str, extra: &[&str]) -> Value {
        let args = self.args(model, out, extra);
        json_of(&args.iter().map(String::as_str).collect::<Vec<&str>>())
    }

    #[track_caller]
    fn fails(&self, model: &str, extra: &[&str], part: &str) {
        let args = self.args(model, "refused", extra);
        fails(&args.iter().map(String::as_str).collect::<Vec<&str>>(), part);
        assert!(!self.path("refused").exists());
    }

    fn record(&self, out: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(out).join("run.json")).unwrap()).unwrap()
    }

    fn losses(&self, out: &str) -> Vec<f64> {
        let record = self.record(out);
        let evals = record["train_info"]["evals"].as_array().unwrap();
        evals.iter().map(|eval| eval["loss"].as_f64().unwrap()).collect()
    }
}

const PROMPT: [&str; 4] = ["--prompt", "the cat", "--max-new-tokens", "8"];

#[rstest]
#[case("seq2seq-t5", "lora", &["--targets", "all-linear"])]
#[case("seq2seq-bart", "lora", &[])]
#[case("seq2seq-mbart", "dora", &[])]
#[case("seq2seq-mt5", "lotr", &["--rank", "4", "--targets", "all-linear"])]
#[case("seq2seq-t5-head", "lora", &["--base-bits", "8", "--targets", "all-linear"])]
fn an_adapter_learns_is_loaded_and_is_merged(
    #[case] model: &str,
    #[case] method: &str,
    #[case] extra: &[&str],
) {
    let bench = Bench::new();
    let extra = [&["--method", method, "--max-steps", "20"], extra].concat();
    let result = bench.run(model, "run", &extra);
    let losses = bench.losses("run");
    assert_eq!(result["dev_loss"].as_f64().unwrap(), losses.iter().copied().fold(f64::INFINITY, f64::min));
    assert!(losses.last() < losses.first(), "{losses:?}");
    let (base, adapter) = (fixture(model), bench.path("run"));
    let dev = bench.path("dev.jsonl");
    let scored = ["perplexity", "--model", s(&base), "--adapter", s(&adapter), "--rows", s(&dev)];
    if !extra.contains(&"--base-bits") {
        let off = json_of(&scored)["loss"].as_f64().unwrap() - result["dev_loss"].as_f64().unwrap();
        assert!(off.abs() < 1e-5, "{off}");
    }
    if method != "lotr" {
        let config = fs::read_to_string(adapter.join("adapter/adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["task_type"], "SEQ_2_SEQ_LM");
    }
    let merged = bench.path("merged");
    run(&["merge", "--model", s(&base), "--adapter", s(&adapter), "-o", s(&merged)]);
    let text = |args: &[&str]| run(&[&["generate", "--model"], args, &PROMPT].concat()).0;
    let of_adapter = text(&[s(&base), "--adapter", s(&adapter)]);
    assert_eq!(text(&[s(&merged)]), of_adapter);
}

#[rstest]
#[case("full", "seq2seq-mbart", 300)]
#[case("head", "seq2seq-t5-head", 20)]
#[case("head", "seq2seq-bart", 20)]
#[case("bitfit", "seq2seq-bart", 20)]
fn a_models_own_weights_are_saved_as_a_model(
    #[case] method: &str,
    #[case] model: &str,
    #[case] steps: usize,
) {
    let bench = Bench::new();
    let steps = steps.to_string();
    let sizes = ["--max-steps", &steps, "--batch-size", "8", "--eval-every", "10"];
    bench.run(model, "run", &[&["--method", method][..], &sizes].concat());
    let losses = bench.losses("run");
    assert!(losses.last() < losses.first(), "{losses:?}");
    let tuned = bench.path("run");
    let args = ["generate", "--model", s(&tuned), "--no-generation-config"];
    let answer = run(&[&args[..], &PROMPT].concat()).0;
    if method == "full" {
        assert_eq!(answer.trim(), "dog");
        let record = bench.record("run");
        let last = record["train_info"]["evals"].as_array().unwrap().last().unwrap();
        assert!(last["metrics"]["exact"].as_f64().unwrap() > 0.5, "{last}");
    }
}

/// A trained model: at the same size, factors fitted to its rows keep more of what it has learnt.
#[rstest]
#[case("seq2seq-t5")]
#[case("seq2seq-bart")]
fn compressed_on_its_rows_a_model_loses_less(#[case] model: &str) {
    let bench = Bench::new();
    let sizes = ["--method", "full", "--max-steps", "150", "--batch-size", "8", "--eval-every", "50"];
    bench.run(model, "tuned", &sizes);
    let (tuned, rows) = (bench.path("tuned"), bench.path("train.jsonl"));
    let loss = |folder: &Path| {
        json_of(&["perplexity", "--model", s(folder), "--rows", s(&rows)])["loss"].as_f64().unwrap()
    };
    let compressed = |method: &str| {
        let out = bench.path(method);
        let mut args =
            vec!["compress", "--model", s(&tuned), "--method", method, "--ratio", "0.3", "-o", s(&out)];
        if method != "svd" {
            args.extend(["--calibration", s(&rows)]);
        }
        let report = json_of(&args);
        assert!(report["layers"]["ratio"].as_f64().unwrap() >= 0.3, "{report}");
        assert_eq!(report["method"], method);
        run(&[&["generate", "--model", s(&out)][..], &PROMPT].concat());
        loss(&out)
    };
    let (dense, plain) = (loss(&tuned), compressed("svd"));
    assert!(dense < plain, "{dense} {plain}");
    for method in ["whitened", "two-sided"] {
        let weighted = compressed(method);
        assert!(weighted < plain, "{model}: {method} {weighted}, svd {plain}, dense {dense}");
    }
    for method in ["asvd", "fwsvd"] {
        assert!(compressed(method).is_finite());
    }
}

/// Copies of the table of words, and a table under the name of a half.
#[rstest]
#[case("seq2seq-t5", "shared", &["encoder.embed_tokens", "decoder.embed_tokens"])]
#[case("seq2seq-bart", "model.shared", &["model.encoder.embed_tokens", "model.decoder.embed_tokens"])]
fn a_table_with_copies_is_compressed_once(
    #[case] model: &str,
    #[case] words: &str,
    #[case] halves: &[&str],
    #[values(true, false)] has_words: bool,
) {
    let bench = Bench::new();
    let folder = copy(model);
    let file = folder.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(&file).unwrap();
    let mut tensors: Vec<HostTensor<'static>> = Vec::new();
    for name in checkpoint.names() {
        let (shape, values) =
            (checkpoint.info(name).unwrap().shape.clone(), checkpoint.read_f32(name).unwrap());
        let is_words = name == format!("{words}.weight");
        let halves = halves.iter().take(if has_words { 2 } else { 1 }).filter(|_| is_words);
        let names = halves.map(|half| format!("{half}.weight"));
        let own = (!is_words || has_words).then(|| name.to_owned());
        tensors.extend(
            own.into_iter().chain(names).map(|name| HostTensor::new(name, shape.clone(), values.clone())),
        );
    }
    drop(checkpoint);
    write_safetensors(&file, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    let loss = |folder: &Path| {
        json_of(&["perplexity", "--model", s(folder), "--rows", s(&bench.path("dev.jsonl"))])["loss"].clone()
    };
    assert!(loss(folder.path()).as_f64().unwrap().is_finite());
    let out = bench.path("made");
    let mut args = vec!["compress", "--model", s(folder.path()), "--method", "svd", "-o", s(&out)];
    args.extend(["--energy", "0.9999999", "--always-factor"]);
    if has_words {
        args.extend(["--targets", words]);
    }
    json_of(&args);
    let [before, after] = [folder.path(), &out].map(|folder| loss(folder).as_f64().unwrap());
    assert!((before - after).abs() < 1e-3, "{before}, {after}");
    let made = Checkpoint::open(&out).unwrap();
    let kept = halves.iter().filter(|half| made.contains(&format!("{half}.weight"))).count();
    assert_eq!(kept, usize::from(!has_words), "copies are left out, a table stays");
}

#[test]
fn parts_accumulation_and_tokens_give_one_training() {
    let bench = Bench::new();
    let folder = copy("seq2seq-t5");
    edit(&folder.path().join("config.json"), |config| config["dropout_rate"] = 0.0.into());
    let model = s(folder.path());
    let fixed = |steps: &'static str| {
        ["--method", "lora", "--scheduler", "constant", "--warmup-ratio", "0", "--max-steps", steps]
    };
    bench.run(model, "whole", &fixed("10"));
    bench.run(model, "parts", &fixed("5"));
    bench.run(model, "parts", &[&fixed("10")[..], &["--extend"]].concat());
    assert_eq!(bench.losses("whole"), bench.losses("parts"));
    let weights = |out: &str| fs::read(bench.path(out).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("parts"));
    bench.run(model, "small", &[&fixed("10")[..], &["--batch-size", "2", "--grad-accum", "2"]].concat());
    for (whole, small) in bench.losses("whole").into_iter().zip(bench.losses("small")) {
        assert!((whole - small).abs() < 1e-4, "{whole} {small}");
    }
    bench.run(model, "tokens", &[&fixed("10")[..], &["--batch-tokens", "64"]].concat());
    assert!(bench.losses("tokens").last() < bench.losses("tokens").first());
    // What one run has learnt is where another begins.
    let start = bench.path("whole");
    bench.run(model, "further", &[&fixed("5")[..], &["--init-from", s(&start)]].concat());
    assert!(bench.losses("further").first() < bench.losses("whole").first());
}

#[test]
fn recomputed_layers_give_the_same_training_in_less_memory() {
    let bench = Bench::new();
    for (model, method) in [("seq2seq-t5", "lora"), ("seq2seq-bart", "full")] {
        let run = |out: &str, extra: &[&str]| {
            bench.run(model, out, &[&["--method", method, "--max-steps", "10"], extra].concat());
            bench.losses(out)
        };
        let [whole, parts] = [("whole", &[][..]), ("parts", &["--recompute"])]
            .map(|(out, extra)| run(&format!("{model}-{out}"), extra));
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).abs() < 1e-4, "{model}: {whole:?} {parts:?}");
        }
    }
    // Long rows through many layers: what is stored for the backward pass is most of the memory.
    let folder = copy("seq2seq-t5");
    edit(&folder.path().join("config.json"), |config| {
        config["num_layers"] = 8.into();
        config["num_decoder_layers"] = 8.into();
    });
    let words = |i: usize| ["cat ", "dog ", "mat ", "sun "][i % 4].repeat(60);
    let rows: Vec<Value> = (0..64).map(|i| json!({"prompt": words(i), "completion": words(i + 1)})).collect();
    bench.write("train.jsonl", &rows);
    let fixed = ["--method", "full", "--random-init", "--max-steps", "1", "--batch-size", "64"];
    let [whole, parts] = [("whole", &[][..]), ("parts", &["--recompute"])].map(|(out, extra)| {
        bench.run(s(folder.path()), out, &[&fixed[..], extra].concat());
        bench.record(out)["train_info"]["peak_rss_mb"].as_f64().unwrap()
    });
    assert!(parts < 0.6 * whole, "{whole} MB, recomputed {parts} MB");
}

#[test]
fn the_first_rows_and_answers_are_shown() {
    let bench = Bench::new();
    let extra = ["--method", "lora", "--max-steps", "1", "--show-samples", "2", "--write-samples", "3"];
    let args = bench.args("seq2seq-bart", "run", &extra);
    let output = lowrank(&args.iter().map(String::as_str).collect::<Vec<&str>>()).assert().success();
    let text = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert_eq!(text.matches("target tokens\n").count(), 2, "{text}");
    assert!(text.contains("the cat") && text.contains("⟦"), "{text}");
    let samples = bench.record("run")["train_info"]["evals"][0]["samples"].as_array().unwrap().len();
    assert_eq!(samples, 3);
}

/// mBART's tokenizer ends sources and targets with the language of sources; targets are in that of `decoder_start_token_id`.
#[test]
fn targets_of_mbart_end_with_their_own_language() {
    let bench = Bench::new();
    let folder = copy("seq2seq-mbart");
    edit(&folder.path().join("tokenizer.json"), |tokenizer| {
        let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let post = &mut tokenizer["post_processor"];
        post["single"] = json!([{"Sequence": {"id": "A", "type_id": 0}}, piece("</s>"), piece(".")]);
        post["special_tokens"]["."] = json!({"id": ".", "ids": [7], "tokens": ["."]});
    });
    let extra = ["--method", "lora", "--max-steps", "1", "--show-samples", "1"];
    let args = bench.args(s(folder.path()), "run", &extra);
    let output = lowrank(&args.iter().map(String::as_str).collect::<Vec<&str>>()).assert().success();
    let text = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    // The fixture's first token is 9, the digit 1.
    assert!(text.contains("the cat</s>. ⟦dog</s>1⟧"), "{text}");
}

#[test]
fn what_is_not_for_encoder_decoders_is_one_line() {
    let bench = Bench::new();
    let lora = ["--method", "lora"];
    let with = |extra: &[&'static str]| [&lora[..], extra].concat();
    for option in [&["--loss-on", "all"], &["--memory", "8G"], &["--beta", "0.1"]] {
        bench.fails("seq2seq-t5", &with(option), "applies to decoders only");
    }
    bench.fails(
        "seq2seq-t5",
        &with(&["--dry-run"]),
        "--dry-run applies to next-token training of decoders only",
    );
    bench.fails("seq2seq-t5", &with(&["--targets", "shared"]), "would have no effect in PEFT");
    bench.fails("seq2seq-t5", &with(&["--zero-head"]), "applies to classifiers only");
    bench.fails("seq2seq-bart", &with(&["--max-length", "500"]), "exceeds the model's limit of 40 tokens");
    bench.fails("seq2seq-bart", &with(&["--class-weights", "balanced"]), "applies to classification");
    for (row, part) in [
        (json!({"text": "the cat"}), "train.jsonl:1: the row is plain text; an encoder-decoder learns from"),
        (json!({"prompt": "a", "chosen": "b", "rejected": "c"}), "the row is a preference"),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            "a conversation",
        ),
        (
            json!({"text": "the cat", "label": "a"}),
            "the rows have labels; give rows with prompt and completion",
        ),
        (json!({"prompt": "a", "completion": " "}), "'completion' is empty"),
    ] {
        bench.write("train.jsonl", &[row]);
        bench.fails("seq2seq-t5", &lora, part);
    }
}
