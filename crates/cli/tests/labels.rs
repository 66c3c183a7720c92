//! What is labelled and how: words with tags, several labels to a row, classes with weights; as a user types it.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, edit, fails_after_warnings, fixture, json_of, run, s};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A folder of small data files.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        s(&self.0.path().join(name)).to_owned()
    }
}

const CONLL: &str =
    "the DT O\nking NN B-PER\nwalked VB O\nhome NN B-LOC\n\nthe DT O\ncold NN B-LOC\nsea NN I-LOC\n. . O\n";
const STEPS: [&str; 8] = ["--batch-size", "2", "--eval-every", "15", "--lr", "2e-2", "--head-lr", "5e-2"];

fn finetune<'a>(model: &'a str, train: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["finetune", "--model", model, "--train", train, "--dev", train, "-o", out], &STEPS[..], more].concat()
}

/// Overfits a few rows; the adapter is saved in PEFT's format, loaded, evaluated and merged, and the merged folder is loaded.
#[test]
fn words_are_tagged() {
    for base in ["bert-encoder", "roberta-encoder", "small-llama"] {
        let files = Files::new(&[("train.conll", CONLL)]);
        let (model, train, out) = (fixture(base), files.path("train.conll"), files.path("run"));
        let lora = ["--method", "lora", "--rank", "4", "--alpha", "8", "--max-steps", "60"];
        let result = json_of(&finetune(s(&model), &train, &out, &lora));
        assert_eq!((&result["metric_name"], &result["metric"]), (&json!("f1"), &json!(1.0)), "{base}");
        let adapter = format!("{out}/adapter");
        let config = read_json(Path::new(&format!("{adapter}/adapter_config.json")));
        assert_eq!(config["task_type"], "TOKEN_CLS");
        let names = json!(["B-LOC", "B-PER", "I-LOC", "O"]);
        assert_eq!(read_json(Path::new(&format!("{adapter}/labels.json")))["labels"], names);
        let with = ["--model", s(&model), "--adapter", &adapter];
        let jsonl =
            "{\"tokens\":[\"the\",\"cold\",\"sea\",\".\"],\"tags\":[\"O\",\"B-LOC\",\"I-LOC\",\"O\"]}\n";
        fs::write(files.path("dev.jsonl"), jsonl).unwrap();
        let merged = files.path("merged");
        run(&[&["merge", "-o", &merged][..], &with].concat());
        assert!(
            read_json(Path::new(&format!("{merged}/config.json")))["architectures"][0]
                .as_str()
                .unwrap()
                .ends_with("ForTokenClassification")
        );
        let mut seen = Vec::new();
        for model in [&with[..], &["--model", &merged]] {
            let scores = json_of(&[&["evaluate", "--dev", &files.path("dev.jsonl")][..], model].concat());
            assert_eq!([&scores["f1"], &scores["recall"], &scores["accuracy"]], [1.0, 1.0, 1.0], "{base}");
            let text = "the king walked home";
            let predicted = json_of(&[&["predict", "--text", text][..], model].concat());
            let row = &predicted["rows"][0];
            let words: Vec<_> = row["words"].as_array().unwrap().iter().map(|w| w["word"].clone()).collect();
            assert_eq!(words, text.split(' ').map(Value::from).collect::<Vec<_>>());
            if base != "small-llama" {
                let entity = &row["entities"][0];
                assert_eq!([&entity["kind"], &entity["text"]], ["PER", "king"], "{base}");
                assert_eq!([&entity["start"], &entity["end"]], [4, 8]);
            }
            seen.push(row["words"].clone());
        }
        for (a, b) in seen[0].as_array().unwrap().iter().zip(seen[1].as_array().unwrap()) {
            assert_eq!(a["label"], b["label"]);
            assert!((a["score"].as_f64().unwrap() - b["score"].as_f64().unwrap()).abs() < 1e-4);
        }
    }
}

/// The rows of transformers' own alignment of words and tokens, and the labels of its head.
#[test]
fn a_trained_head_over_words_is_read_by_name() {
    let model = fixture("bert-token-cls");
    let files = Files::new(&[("dev.conll", "home B-LOC\nking O\n"), ("other.conll", "home B-ORG\nking O\n")]);
    let scores = json_of(&["evaluate", "--model", s(&model), "--dev", &files.path("dev.conll")]);
    assert_eq!(scores["rows"], 1);
    fails_after_warnings(
        &["evaluate", "--model", s(&model), "--dev", &files.path("other.conll")],
        "other.conll:1: unknown label 'B-ORG'; expected a label of the model: O, B-PER",
    );
    // Fine-tuning keeps the head and its labels where they hold every tag.
    let (train, out) = (files.path("dev.conll"), files.path("run"));
    let error = run(&finetune(s(&model), &train, &out, &["--method", "head", "--max-steps", "1"])).1;
    assert!(!error.contains("newly"), "{error}");
    let labels = read_json(Path::new(&format!("{out}/adapter/labels.json")));
    assert_eq!(labels["labels"], json!(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]));
}

/// The same adapter with its labels in another order, continued: its head is kept, and `--zero-head` resets it.
#[test]
fn the_head_of_an_adapter_to_start_from_is_read_by_name() {
    let base = fixture("bert-encoder");
    let rows = "text\tlabel\nthe cat sat\tyes\nthe dog ran\tno\nthe cat ran\tyes\nthe dog sat\tno\n";
    let files = Files::new(&[("t.tsv", rows)]);
    let (tsv, first) = (files.path("t.tsv"), files.path("first"));
    let lora = ["--method", "lora", "--rank", "4", "--alpha", "8"];
    let trained = json_of(&finetune(s(&base), &tsv, &first, &[&lora[..], &["--max-steps", "60"]].concat()));
    assert_eq!(trained["metric"], 1.0);
    let adapter = Path::new(&first).join("adapter");
    edit(&adapter.join("labels.json"), |labels| labels["labels"].as_array_mut().unwrap().reverse());
    let file = adapter.join("adapter_model.safetensors");
    let checkpoint = Checkpoint::open_adapter(&file).unwrap();
    let tensors = checkpoint.names().map(|name| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        let mut values = checkpoint.read_f32(name).unwrap();
        if name.ends_with("classifier.weight") || name.ends_with("classifier.bias") {
            let half = values.len() / 2;
            values.rotate_left(half);
        }
        HostTensor::new(name, shape, values)
    });
    let tensors: Vec<HostTensor<'_>> = tensors.collect();
    write_safetensors(&file, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    let still = [&lora[..], &["--max-steps", "1", "--lr", "1e-9", "--head-lr", "1e-9"]].concat();
    let again = |name: &str, more: &[&str]| {
        let out = files.path(name);
        let start = ["--init-from", &first];
        let head = ["finetune", "--model", s(&base), "--train", &tsv, "--dev", &tsv, "-o", &out];
        json_of(&[&head[..], &still, &start, more].concat())
    };
    assert_eq!(again("again", &[])["metric"], 1.0);
    let zero = again("zero", &["--zero-head"]);
    let loss = zero["dev_loss"].as_f64().unwrap();
    assert!((loss - 2f64.ln()).abs() < 1e-3, "{loss}: {zero}");
}

/// A batch in which every word has weight 0 does not end the run.
#[test]
fn a_class_may_count_for_nothing() {
    let rows = "a O\nb O\n\nking B-PER\nran O\n\nc O\nd O\n";
    let files = Files::new(&[("t.conll", rows)]);
    let (train, out) = (files.path("t.conll"), files.path("run"));
    let more = ["--method", "head", "--max-steps", "4", "--class-weights", "O=0", "--batch-size", "1"];
    let base = fixture("bert-encoder");
    let head = ["finetune", "--model", s(&base), "--train", &train, "--dev", &train, "-o", &out];
    let report = json_of(&[&head[..], &more].concat());
    assert!(report["steps"] == 4 && report["metric"].is_f64(), "{report}");
}

#[test]
fn heads_of_words_and_of_texts_are_not_mixed() {
    let files = Files::new(&[("t.conll", CONLL), ("t.tsv", "text\tlabel\na\tno\nb\tyes\n")]);
    let (conll, tsv) = (files.path("t.conll"), files.path("t.tsv"));
    let (words, texts) = (fixture("bert-token-cls"), fixture("bert-cls"));
    fails_after_warnings(
        &["evaluate", "--model", s(&texts), "--dev", &conll],
        "t.conll: holds words with tags",
    );
    fails_after_warnings(&["evaluate", "--model", s(&words), "--dev", &tsv], "t.tsv");
    fails_after_warnings(
        &["predict", "--model", s(&words), "--text", "a", "--text-pair", "b"],
        "single texts, not pairs",
    );
    // An adapter of one task on a model with the head of another, and as the start of another training.
    let (a, b) = (files.path("words"), files.path("texts"));
    let steps = ["--method", "lora", "--max-steps", "1", "--rank", "2", "--alpha", "2"];
    let base = fixture("bert-encoder");
    run(&finetune(s(&base), &conll, &a, &steps));
    run(&finetune(s(&base), &tsv, &b, &steps));
    let refused = |model: &Path, adapter: &str, part: &str| {
        fails_after_warnings(
            &["predict", "--model", s(model), "--adapter", &format!("{adapter}/adapter"), "--text", "a"],
            part,
        );
    };
    refused(&texts, &a, "task_type is TOKEN_CLS, and this model is for SEQ_CLS");
    refused(&words, &b, "task_type is SEQ_CLS, and this model is for TOKEN_CLS");
    let out = files.path("again");
    let start = [&steps[..], &["--init-from", &a]].concat();
    fails_after_warnings(
        &finetune(s(&base), &tsv, &out, &start),
        "task_type is TOKEN_CLS, and this model is for SEQ_CLS",
    );
    let start = [&steps[..], &["--init-from", &b]].concat();
    fails_after_warnings(
        &finetune(s(&base), &conll, &out, &start),
        "task_type is SEQ_CLS, and this model is for TOKEN_CLS",
    );
    // A head of the same shape at another level is not taken over.
    let tags = Files::new(&[("t.conll", "a x\nb y\nc z\n")]);
    run(&finetune(s(&texts), &tags.path("t.conll"), &out, &["--method", "full", "--max-steps", "1"]));
    let config = read_json(Path::new(&format!("{out}/model/config.json")));
    assert_eq!(config["architectures"][0], "BertForTokenClassification");
}

#[test]
fn rows_have_several_labels() {
    let rows = "{\"text\":\"the cold sea\",\"labels\":[\"sea\",\"cold\"]}\n{\"text\":\"the king\",\"labels\":[]}\n\
                {\"text\":\"the red sea\",\"labels\":[\"sea\"]}\n{\"text\":\"a cold mat\",\"labels\":[\"cold\"]}\n";
    let files =
        Files::new(&[("t.jsonl", rows), ("d.tsv", "text\tlabels\nthe cold sea\tcold,sea\nthe king\t\n")]);
    for method in ["lora", "full"] {
        let (model, train, out) = (fixture("bert-encoder"), files.path("t.jsonl"), files.path(method));
        let result = json_of(&finetune(s(&model), &train, &out, &["--method", method, "--max-steps", "90"]));
        assert_eq!(
            (&result["metric_name"], &result["metric"]),
            (&json!("f1_micro"), &json!(1.0)),
            "{method}"
        );
        let tuned = match method {
            "full" => vec!["--model".to_owned(), out.clone()],
            _ => vec!["--model".into(), s(&model).to_owned(), "--adapter".into(), out.clone()],
        };
        let tuned: Vec<&str> = tuned.iter().map(String::as_str).collect();
        let scores = json_of(&[&["evaluate", "--dev", &files.path("d.tsv")][..], &tuned].concat());
        assert_eq!([&scores["f1_micro"], &scores["f1_macro"], &scores["accuracy"]], [1.0, 1.0, 1.0]);
        let row = &json_of(&[&["predict", "--text", "the cold sea"][..], &tuned].concat())["rows"][0];
        assert_eq!(row["labels"], json!(["cold", "sea"]));
        if method == "full" {
            let config = read_json(Path::new(&format!("{out}/model/config.json")));
            assert_eq!(config["problem_type"], "multi_label_classification");
        }
    }
    let glue = Files::new(&[]);
    fails_after_warnings(
        &["evaluate", "--model", &files.path("full"), "--task", "sst2", "--data", &glue.path("")],
        "multi_label_classification",
    );
}

#[test]
fn classes_have_weights() {
    let rows = "text\tlabel\nthe sea\tyes\nthe king\tno\nthe mat\tno\nthe cat\tno\n";
    let files =
        Files::new(&[("t.tsv", rows), ("s.tsv", "text\tlabel\na\t0.5\nb\t1.5\n"), ("w.conll", CONLL)]);
    let (model, train) = (fixture("bert-encoder"), files.path("t.tsv"));
    let weighted = |name: &str, weights: &str, train: &str| {
        let out = files.path(name);
        let more = ["--method", "head", "--max-steps", "2", "--class-weights", weights];
        let args = finetune(s(&model), train, &out, &more).into_iter().map(str::to_owned).collect();
        (out, args)
    };
    let recorded = |(out, args): (String, Vec<String>)| {
        run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        read_json(Path::new(&format!("{out}/run.json")))["run_info"]["config"]["class_weights"].clone()
    };
    let balanced = recorded(weighted("balanced", "balanced", &train));
    assert!((balanced["yes"].as_f64().unwrap() - 2.0).abs() < 1e-6);
    assert!((balanced["no"].as_f64().unwrap() - 4.0 / 6.0).abs() < 1e-6);
    assert_eq!(recorded(weighted("named", "yes=3", &train)), json!({"no": 1.0, "yes": 3.0}));
    assert!(recorded(weighted("words", "balanced", &files.path("w.conll"))).is_object());
    let refused = |(_, args): (String, Vec<String>), part: &str| {
        fails_after_warnings(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    refused(weighted("a", "maybe=3", &train), "unknown class 'maybe'; choose no, yes");
    refused(weighted("b", "balanced", &files.path("s.tsv")), "these have scores or several labels");
    let text = Files::new(&[("t.txt", "the sea\n")]);
    let (llama, out, train) = (fixture("small-llama"), text.path("run"), text.path("t.txt"));
    fails_after_warnings(
        &finetune(s(&llama), &train, &out, &["--method", "lora", "--class-weights", "balanced"]),
        "texts of a language model",
    );
}

#[test]
fn own_rows_are_evaluated_by_the_names_of_the_labels() {
    let folder = copy("bert-cls");
    edit(&folder.path().join("config.json"), |config| {
        config["id2label"] = json!({"0": "YES", "1": "no", "2": "per haps"});
        config["label2id"] = json!({"YES": 0, "no": 1, "per haps": 2});
    });
    let files = Files::new(&[
        ("d.tsv", "text\tlabel\nthe sea\tyes\na\tper_haps\n"),
        ("e.tsv", "text\tlabel\na\tmay\n"),
    ]);
    let model = s(folder.path());
    assert_eq!(json_of(&["evaluate", "--model", model, "--dev", &files.path("d.tsv")])["rows"], 2);
    fails_after_warnings(
        &["evaluate", "--model", model, "--dev", &files.path("e.tsv")],
        "e.tsv:2: unknown label 'may'",
    );
}

/// Encoders of further architectures are trained, merged and compressed like any other.
#[test]
fn encoders_of_other_shapes_are_trained_and_merged() {
    let rows = "text\tlabel\nthe sea\tyes\nthe king\tno\nthe mat\tyes\nthe cat\tno\n";
    let files = Files::new(&[("t.tsv", rows)]);
    let (train, text) = (files.path("t.tsv"), ["--text", "the cold sea"]);
    for (name, targets) in [
        ("electra-cls", "query,value,embeddings_project"),
        ("albert-cls", "query,ffn"),
        ("albert-groups", "value"),
    ] {
        let (model, out) = (fixture(name), files.path(name));
        let lora =
            ["--method", "lora", "--targets", targets, "--rank", "2", "--alpha", "4", "--max-steps", "6"];
        run(&finetune(s(&model), &train, &out, &lora));
        let logits = |model: &[&str]| {
            let row = &json_of(&[&["predict"], &text[..], model].concat())["rows"][0];
            serde_json::from_value::<Vec<f64>>(row["logits"].clone()).unwrap()
        };
        let (merged, adapter) = (format!("{out}-merged"), format!("{out}/adapter"));
        run(&["merge", "--model", s(&model), "--adapter", &adapter, "-o", &merged]);
        let adapted = logits(&["--model", s(&model), "--adapter", &adapter]);
        let same = logits(&["--model", &merged]);
        assert!(adapted.iter().zip(&same).all(|(a, b)| (a - b).abs() < 1e-4), "{name}: {adapted:?} {same:?}");
        let compress = |method: &str, out: &str| {
            let args = ["compress", "--model", s(&model), "--method", method, "--ratio", "0.1", "-o", out];
            args.map(str::to_owned).to_vec()
        };
        let factored = format!("{out}-svd");
        run(&compress("svd", &factored).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(logits(&["--model", &factored]).len(), 3);
        if name.starts_with("albert") {
            let mut args = compress("whitened", &format!("{out}-whitened"));
            args.extend(["--calibration".to_owned(), train.clone()]);
            fails_after_warnings(
                &args.iter().map(String::as_str).collect::<Vec<_>>(),
                "its layers share their weights",
            );
        }
    }
}

#[test]
fn a_head_of_more_rows_than_labels_says_so() {
    let folder = copy("bert-cls");
    edit(&folder.path().join("config.json"), |config| {
        config["id2label"] = json!({"0": "no", "1": "yes"});
        config["label2id"] = json!({"no": 0, "yes": 1});
    });
    let (model, part) = (s(folder.path()), "has 3 rows, but config.json (or the adapter) names 2 labels");
    fails_after_warnings(&["predict", "--model", model, "--text", "a"], part);
    let files = Files::new(&[("t.tsv", "text\tlabel\na\tno\nb\tyes\n")]);
    fails_after_warnings(&["evaluate", "--model", model, "--dev", &files.path("t.tsv")], part);
    let (train, out) = (files.path("t.tsv"), files.path("run"));
    let error = run(&finetune(model, &train, &out, &["--method", "head", "--max-steps", "1"])).1;
    assert!(
        error.contains("its head has 3 rows, the task has 2 labels; the head is newly initialized"),
        "{error}"
    );
}

/// A label anywhere in the file makes its rows rows with labels: they are never learnt as texts.
#[test]
fn lines_of_labelled_rows_may_have_other_names() {
    let rows = "{\"text\": \"the cat\", \"label\": 0}\n{\"text\": \"the dog\", \"label\": 1}\n".repeat(4);
    let files = Files::new(&[("t.json", &rows), ("t.ndjson", &rows)]);
    let model = fixture("llama");
    for name in ["t.json", "t.ndjson"] {
        let (train, out) = (files.path(name), files.path(&format!("{name}-run")));
        json_of(&finetune(s(&model), &train, &out, &["--method", "lora", "--max-steps", "1"]));
        let record = read_json(&Path::new(&out).join("run.json"));
        assert!(record["train_info"]["evals"][0]["metrics"]["accuracy"].is_number(), "{name}: {record}");
    }
}

#[test]
fn a_label_in_a_later_row_counts() {
    let plain = "{\"text\": \"the cat\"}\n";
    let labelled = "{\"text\": \"the dog\", \"label\": 1}\n";
    let list = "[{\"text\": \"the cat\"}, {\"text\": \"the dog\", \"label\": 1}]";
    let files =
        Files::new(&[("t.jsonl", &format!("{plain}{labelled}")), ("t.json", list), ("d.jsonl", labelled)]);
    let (model, out, dev) = (fixture("llama"), files.path("run"), files.path("d.jsonl"));
    for (name, part) in [("t.jsonl", "t.jsonl:1: no 'label'"), ("t.json", "give them as .jsonl or .tsv")] {
        let train = files.path(name);
        let run = ["finetune", "--model", s(&model), "--train", &train, "--dev", &dev, "-o", &out];
        fails_after_warnings(&[&run[..], &["--method", "lora", "--max-steps", "1"]].concat(), part);
    }
}
