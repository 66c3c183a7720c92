//! `embed`: the modules and prompts of sentence-transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{config_of, copy, edit, fails, fixture, json_of, s};

#[test]
fn embeddings_are_pooled_as_the_folder_says() {
    for (name, mode) in [("bert-encoder", "pooling_mode_cls_token"), ("llama3", "pooling_mode_lasttoken")] {
        let folder = copy(name);
        let embed = |model: &Path| {
            let rows = json_of(&["embed", "--model", s(model), "--text", "the cat sat"]);
            serde_json::from_value::<Vec<f64>>(rows["rows"][0]["embedding"].clone()).unwrap()
        };
        let mean = embed(folder.path());
        let modules = json!([
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("modules.json"), modules.to_string()).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), json!({mode: true}).to_string()).unwrap();
        let pooled = embed(folder.path());
        let norm = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A norm of f32 numbers.
        assert!((norm - 1.0).abs() < 1e-5, "{name}: {norm}");
        assert_eq!(mean.len(), pooled.len());
        let distance = |a: &[f64]| a.iter().zip(&pooled).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(distance(&mean) > 1e-3, "{name}");
        // A compressed model is pooled like its original.
        let output = tempfile::tempdir().unwrap();
        let made = output.path().join("made");
        let svd = ["--method", "svd", "--energy", "0.9999999", "--always-factor"];
        json_of(&[&["compress", "--model", s(folder.path())], &svd[..], &["-o", s(&made)]].concat());
        assert!(distance(&embed(&made)) < 1e-3, "{name}");
    }
}

/// The layout of sentence-transformers' first versions: the model in a folder below that of the modules.
#[test]
fn the_transformer_may_be_in_a_folder_below() {
    let model = copy("bert-encoder");
    let old = tempfile::tempdir().unwrap();
    let below = old.path().join("0_Transformer");
    fs::create_dir(&below).unwrap();
    for entry in fs::read_dir(model.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, below.join(path.file_name().unwrap())).unwrap();
    }
    let modules = |place: &str| {
        json!([
            {"path": place, "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ])
        .to_string()
    };
    for (folder, place) in [(model.path(), ""), (old.path(), "0_Transformer")] {
        fs::create_dir(folder.join("1_Pooling")).unwrap();
        fs::write(folder.join("modules.json"), modules(place)).unwrap();
        fs::write(folder.join("1_Pooling/config.json"), json!({"pooling_mode_cls_token": true}).to_string())
            .unwrap();
    }
    let limit = json!({"max_seq_length": 5}).to_string();
    for folder in [model.path(), &below] {
        fs::write(folder.join("sentence_bert_config.json"), &limit).unwrap();
    }
    let embed = |model: &Path| {
        json_of(&["embed", "--model", s(model), "--text", "the cat sat on the red mat"])["rows"].clone()
    };
    assert_eq!(embed(old.path()), embed(model.path()));
    // Other commands would lose the modules.
    let out = old.path().join("out");
    fails(&["compress", "--model", s(old.path()), "--bits", "8", "-o", s(&out)], "no config.json");
    fs::write(old.path().join("modules.json"), modules("../0_Transformer")).unwrap();
    fails(&["embed", "--model", s(old.path()), "--text", "a"], "no config.json");
}

/// An adapter of all linear maps holds one of a pooler that embeddings do not read.
#[test]
fn the_adapter_of_a_pooler_without_use_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let factor = |module: &str, seed: usize| {
        let values =
            |n: usize| (0..n).map(|i| ((i * 31 + seed) % 17) as f32 / 17.0 - 0.5).collect::<Vec<_>>();
        [("lora_A", [2, 40]), ("lora_B", [40, 2])].map(|(name, shape)| {
            HostTensor::new(format!("base_model.model.{module}.{name}.weight"), shape, values(80))
        })
    };
    let adapter = |name: &str, modules: &[&str]| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": modules});
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let tensors = modules.iter().flat_map(|module| factor(module, module.len())).collect();
        let file = folder.join("adapter_model.safetensors");
        write_safetensors(file, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
        folder
    };
    let query = "encoder.layer.0.attention.self.query";
    let (alone, both) = (adapter("alone", &[query]), adapter("both", &[query, "pooler.dense"]));
    let embed = |model: &Path, adapter: &Path| {
        common::run(&["embed", "--model", s(model), "--adapter", s(adapter), "--text", "the cat"])
    };
    let roberta = fixture("roberta-encoder");
    let (expected, (got, warning)) = (embed(&roberta, &alone).0, embed(&roberta, &both));
    assert_eq!(got, expected);
    assert!(warning.contains("'pooler.dense.lora_A.weight' and another tensor"), "{warning}");
}

/// As in sentence-transformers, `max_seq_length` replaces the tokenizer's length.
#[test]
fn the_length_is_that_of_the_embedder() {
    let embed = |tokenizer: Value, sentence: Value| {
        let folder = copy("bert-encoder");
        edit(&folder.path().join("tokenizer_config.json"), |config| config["model_max_length"] = tokenizer);
        let sentence = json!({"max_seq_length": sentence}).to_string();
        fs::write(folder.path().join("sentence_roberta_config.json"), sentence).unwrap();
        let text = ["--text", "the cat sat on the red mat and the dog ran"];
        json_of(&[&["embed", "--model", s(folder.path())], &text[..]].concat())["rows"][0]["embedding"]
            .clone()
    };
    let whole = embed(json!(30), json!(null));
    assert_eq!(embed(json!(5), json!(30)), whole);
    let cut = embed(json!(30), json!(5));
    assert_ne!(cut, whole);
    assert_eq!(embed(json!(5), json!(null)), cut);
}

/// `bert-encoder` with the files of a case.
fn embedder(case: &str) -> TempDir {
    let folder = copy("bert-encoder");
    let mut open = vec![(fixture(case), folder.path().to_path_buf())];
    while let Some((from, to)) = open.pop() {
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                open.push((entry.path(), to));
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    folder
}

fn distance(got: &Value, expected: &Value) -> f64 {
    let [got, expected] = [&got["rows"], expected].map(|rows| rows.as_array().unwrap());
    assert_eq!(got.len(), expected.len());
    let rows = got.iter().zip(expected).flat_map(|(got, expected)| {
        let [got, expected] = [&got["embedding"], expected].map(|row| row.as_array().unwrap());
        assert_eq!(got.len(), expected.len());
        got.iter().zip(expected).map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs())
    });
    rows.fold(0.0, f64::max)
}

/// The files are those of `fixtures/make_embedders.py`.
#[rstest]
#[case("embedder-dense")]
#[case("embedder-prompts")]
fn embeddings_equal_sentence_transformers(#[case] case: &str) {
    let folder = embedder(case);
    let expected = config_of(&fixture(case), "expected.json");
    let texts =
        expected["texts"].as_array().unwrap().iter().flat_map(|text| ["--text", text.as_str().unwrap()]);
    let texts: Vec<&str> = texts.collect();
    let embed = |model: &Path, prompt: &[&str]| {
        json_of(&[&["embed", "--model", s(model)], &texts[..], prompt].concat())
    };
    for (name, expected) in expected["embeddings"].as_object().unwrap() {
        let prompt = if name.is_empty() { vec![] } else { vec!["--prompt-name", name.as_str()] };
        let off = distance(&embed(folder.path(), &prompt), expected);
        assert!(off < 1e-5, "{case} '{name}': off by {off}");
    }
    // The modules go with every model that is written.
    let output = tempfile::tempdir().unwrap();
    let made = output.path().join("made");
    let svd = ["--method", "svd", "--energy", "0.9999999", "--always-factor"];
    json_of(&[&["compress", "--model", s(folder.path())], &svd[..], &["-o", s(&made)]].concat());
    let off = distance(&embed(&made, &[]), &expected["embeddings"][""]);
    assert!(off < 2e-3, "{case} compressed: off by {off}");
}

/// A base model is its language model without the head.
#[test]
fn a_decoder_without_a_head_embeds() {
    let folder = copy("llama3");
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let pooling = json!({"pooling_mode_lasttoken": true});
    fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    let embed = || json_of(&["embed", "--model", s(folder.path()), "--text", "the cat sat"])["rows"].clone();
    let expected = embed();
    let file = folder.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert!(checkpoint.contains("lm_head.weight"));
    let base = checkpoint.names().filter_map(|name| Some((name, name.strip_prefix("model.")?)));
    let tensors = base.map(|(name, short)| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        HostTensor::new(short.to_owned(), shape, checkpoint.read_f32(name).unwrap())
    });
    write_safetensors(&file, tensors.collect(), FloatType::F32, &BTreeMap::new()).unwrap();
    edit(&folder.path().join("config.json"), |config| config["architectures"] = json!(["LlamaModel"]));
    assert_eq!(embed(), expected);
}

#[test]
fn prompts_and_modules_that_do_not_fit_are_named() {
    let prompts = embedder("embedder-prompts");
    let with = |options: &[&'static str]| {
        let own: Vec<String> =
            ["embed", "--model", s(prompts.path()), "--text", "a b c"].map(str::to_owned).to_vec();
        own.into_iter().chain(options.iter().map(|option| (*option).to_owned())).collect::<Vec<_>>()
    };
    let refused = |options: &[&'static str], part: &str| {
        let args = with(options);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), part);
    };
    refused(&["--prompt-name", "passage"], "choose query, document");
    // No special token ends the texts of this decoder.
    let decoder = copy("llama3");
    fs::create_dir(decoder.path().join("1_Pooling")).unwrap();
    let pooling = json!({"pooling_mode_lasttoken": true, "include_prompt": false});
    fs::write(decoder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    let said = json!({"prompts": {"q": "find this text: "}, "default_prompt_name": "q"});
    fs::write(decoder.path().join("config_sentence_transformers.json"), said.to_string()).unwrap();
    let short = ["embed", "--model", s(decoder.path()), "--text", "a b c", "--max-length", "3"];
    fails(&short, "text 1: only its prompt is left of 3 tokens");
    let dense = embedder("embedder-dense");
    let change = |key: &str, value: Value| {
        edit(&dense.path().join("2_Dense/config.json"), |config| config[key] = value);
    };
    let embed = ["embed", "--model", s(dense.path()), "--text", "a"];
    fails(&[&embed[..], &["--prompt-name", "passage"]].concat(), "choose document, query");
    for (key, value, part) in [
        ("activation_function", json!("my.module.Tanh"), "expected a class of torch.nn"),
        ("activation_function", json!("torch.nn.modules.activation.Softmax"), "'Softmax' is not supported"),
        ("module_input_name", json!("token_embeddings"), "expected sentence_embedding"),
        ("bias", json!("yes"), "expected true or false"),
    ] {
        let before = config_of(dense.path(), "2_Dense/config.json")[key].clone();
        change(key, value);
        fails(&embed, part);
        change(key, before);
    }
    json_of(&embed);
    // The second map after the first pooling alone.
    let modules = config_of(dense.path(), "modules.json");
    let without: Vec<&Value> =
        modules.as_array().unwrap().iter().filter(|m| m["path"] != "2_Dense").collect();
    fs::write(dense.path().join("modules.json"), json!(without).to_string()).unwrap();
    fails(&embed, "expects vectors of 6 numbers");
    // A bias of another length than its norm's weight, the vectors' length or 1.
    for lengths in [[32, 1], [1, 32]] {
        let prompts = embedder("embedder-prompts");
        let tensors = ["weight", "bias"].iter().zip(lengths);
        let tensors = tensors.map(|(name, n)| HostTensor::new(format!("norm.{name}"), [n], vec![1.0; n]));
        let path = prompts.path().join("3_LayerNorm/model.safetensors");
        write_safetensors(&path, tensors.collect(), FloatType::F32, &BTreeMap::new()).unwrap();
        let said = format!("norm.weight has {} numbers, norm.bias {}", lengths[0], lengths[1]);
        fails(&["embed", "--model", s(prompts.path()), "--text", "a"], &said);
    }
}
