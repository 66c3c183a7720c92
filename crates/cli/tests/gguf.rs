//! GGUF files as a user reads and writes them.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use lowrank_checkpoint::{Checkpoint, Dtype, StreamOptions, StreamWriter, TensorPlan};
use lowrank_spec::BlockFormat;
use serde_json::{Value, json};

use common::{copy, edit, fails, fixture, json_of, lowrank, s};

fn text_of(model: &str) -> Value {
    let args =
        ["generate", "--model", model, "--prompt", "the cat sat", "--max-new-tokens", "12", "--ignore-eos"];
    json_of(&args)["ids"].clone()
}

#[test]
fn a_model_goes_to_gguf_and_runs_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    for name in ["llama3", "qwen2", "gpt2"] {
        let model = fixture(name);
        let written = json_of(&["convert", "--model", s(&model), "--to", "gguf", "-o", s(&file)]);
        assert_eq!(written["type"], "F32");
        assert_eq!(written["bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
        assert_eq!(text_of(s(&file)), text_of(s(&model)), "{name}");
        let inspected = json_of(&["inspect", s(&file)]);
        assert_eq!(inspected["kind"], "model");
    }
    // What is written from the file is the file again.
    let again = dir.path().join("again.gguf");
    json_of(&["convert", "--model", s(&file), "--to", "gguf", "-o", s(&again)]);
    assert!(text_of(s(&again)) == text_of(s(&file)));
    // A narrow model: rows of 32 elements do not fill blocks of 256, and it says so.
    let output =
        lowrank(&["convert", "--model", s(&file), "--to", "gguf", "--type", "q4_k_m", "-o", s(&again)])
            .assert()
            .success()
            .get_output()
            .clone();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.contains("Q4_K_M"), "{out}");
    assert!(error.contains("instead of Q4_K"), "{error}");
    // Blocks stay as they are without a type.
    let third = dir.path().join("third.gguf");
    let written = json_of(&["convert", "--model", s(&again), "--to", "gguf", "-o", s(&third)]);
    assert_eq!(written["type"], "as stored");
    assert_eq!(text_of(s(&third)), text_of(s(&again)));
    assert_eq!(std::fs::metadata(&third).unwrap().len(), std::fs::metadata(&again).unwrap().len());
    fails(&["convert", "--model", s(&file), "--to", "gguf", "-o", s(&file)], "the output is the input");
    fails(&["convert", "--model", s(&file), "--to", "gguf", "-o", s(dir.path())], "-o must be a file");
    fails(
        &["convert", "--model", s(&fixture("bert-cls")), "--to", "gguf", "-o", s(&again)],
        "only language models",
    );
}

/// Weights that `compress` quantized are written byte for byte, in the order of llama.cpp's rows.
#[test]
fn quantized_folders_go_to_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let (small, file) = (dir.path().join("small"), dir.path().join("small.gguf"));
    for (name, format) in
        [("llama3", "Q4_0"), ("qwen2", "Q8_0"), ("gpt2", "Q4_1"), ("quantised-mxfp4", "IQ4_NL")]
    {
        let model = fixture(name);
        json_of(&["compress", "--model", s(&model), "--type", format, "-o", s(&small)]);
        let written = json_of(&["convert", "--model", s(&small), "--to", "gguf", "-o", s(&file)]);
        assert_eq!(written["type"], "as stored");
        assert_eq!(text_of(s(&file)), text_of(s(&small)), "{name}");
        let stored = Checkpoint::open(&file).unwrap();
        let has = |dtype: Dtype| stored.names().any(|n| stored.info(n).is_some_and(|i| i.dtype == dtype));
        // GPT-2's maps are read as floats: their blocks run along the columns.
        assert!(name == "gpt2" || has(Dtype::Block(BlockFormat::from_name(format).unwrap())), "{name}");
        std::fs::remove_dir_all(&small).unwrap();
    }
    let model = fixture("llama3");
    let convert = ["convert", "--model", s(&small), "--to", "gguf", "-o", s(&file)];
    json_of(&["compress", "--model", s(&model), "--type", "NF4", "-o", s(&small)]);
    fails(&convert, "which GGUF files do not have; choose a type");
    json_of(&[&convert[..], &["--type", "F16"]].concat());
    std::fs::remove_dir_all(&small).unwrap();
    json_of(&["compress", "--model", s(&model), "--ratio", "0.3", "--method", "svd", "-o", s(&small)]);
    fails(&convert, "it is compressed (svd), which llama.cpp cannot run");
}

/// The embeddings from a sentence embedder's file are those from its folder.
#[test]
fn the_pooling_goes_to_gguf() {
    let embed = |model: &str| {
        let rows = json_of(&["embed", "--model", model, "--text", "the cat sat on the mat"]);
        serde_json::from_value::<Vec<f64>>(rows["rows"][0]["embedding"].clone()).unwrap()
    };
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for mode in ["pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken"] {
        let folder = copy("llama3");
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(folder.path().join("1_Pooling/config.json"), json!({mode: true}).to_string()).unwrap();
        let file = folder.path().join("model.gguf");
        json_of(&["convert", "--model", s(folder.path()), "--to", "gguf", "-o", s(&file)]);
        let (expected, got) = (embed(s(folder.path())), embed(s(&file)));
        assert!(expected.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-5), "{mode}");
        assert!(!seen.contains(&got), "{mode}");
        seen.push(got);
    }
}

/// As in llama.cpp's conversion, the tokenizer names the tokens that have a role, and the config the others.
#[test]
fn tokens_have_the_roles_of_the_tokenizer() {
    let folder = copy("llama3");
    edit(&folder.path().join("config.json"), |config| {
        (config["bos_token_id"], config["eos_token_id"]) = (5.into(), 7.into());
    });
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    let file = folder.path().join("model.gguf");
    json_of(&["convert", "--model", s(folder.path()), "--to", "gguf", "-o", s(&file)]);
    let read = |name: &str| -> Value {
        serde_json::from_slice(&lowrank_checkpoint::read_file(file.join(name)).unwrap()).unwrap()
    };
    let (tokenizer, config) = (read("tokenizer_config.json"), read("config.json"));
    assert_eq!(
        (&tokenizer["bos_token"], &tokenizer["eos_token"]),
        (&json!("<|begin_of_text|>"), &json!("<|end_of_text|>"))
    );
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(316), &json!([317, 7])));
}

/// No type of 16 bits is taken for a checkpoint of doubles.
#[test]
fn doubles_go_to_gguf_in_f32() {
    let (dir, model) = (tempfile::tempdir().unwrap(), fixture("llama3"));
    let source = Checkpoint::open(&model).unwrap();
    let plan = |name: &str| TensorPlan::new(name, source.info(name).unwrap().shape.clone(), Dtype::F64);
    let plan = source.names().map(plan).collect();
    let mut writer = StreamWriter::create(dir.path(), plan, StreamOptions::default()).unwrap();
    for name in source.names() {
        let values = source.read_f64(name).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_bytes(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(model.join(name), dir.path().join(name)).unwrap();
    }
    let file = dir.path().join("model.gguf");
    let written = json_of(&["convert", "--model", s(dir.path()), "--to", "gguf", "-o", s(&file)]);
    assert_eq!(written["type"], "F32");
    assert_eq!(text_of(s(&file)), text_of(s(&model)));
}

#[test]
fn an_adapter_goes_to_gguf_alone_or_merged() {
    let dir = tempfile::tempdir().unwrap();
    let (file, merged) = (dir.path().join("adapter.gguf"), dir.path().join("merged.gguf"));
    let (model, adapter) = (fixture("small-llama"), fixture("peft-small-llama-patterns"));
    let args = ["convert", "--model", s(&model), "--adapter", s(&adapter), "--to", "gguf"];
    let written = json_of(&[&args[..], &["-o", s(&file)]].concat());
    let tensors = Checkpoint::open(&file).unwrap();
    assert_eq!(tensors.len() as u64, 2 * written["modules"].as_u64().unwrap());
    assert!(tensors.names().all(|name| name.ends_with(".lora_a") || name.ends_with(".lora_b")));
    assert_eq!(tensors.metadata()["general.type"], "adapter");
    fails(&["generate", "--model", s(&file), "--prompt", "x"], "of the kind 'adapter'; expected a model");
    json_of(&[&args[..], &["--merge", "-o", s(&merged)]].concat());
    let text = |args: &[&str]| {
        let prompt = ["--prompt", "the cat sat", "--max-new-tokens", "12", "--ignore-eos"];
        json_of(&[&["generate"], args, &prompt].concat())["ids"].clone()
    };
    let expected = text(&["--model", s(&model), "--adapter", s(&adapter)]);
    assert_eq!(text(&["--model", s(&merged)]), expected);
    let saved = fixture("peft-small-llama-save-embedding");
    let args = ["convert", "--model", s(&model), "--adapter", s(&saved), "--to", "gguf", "-o", s(&file)];
    fails(&args, "in full, which a llama.cpp LoRA cannot");
}

/// llama.cpp takes a tied head for the embedding and fails on the factors, which are those of a lookup.
#[test]
fn a_table_that_is_the_head_too_is_not_adapted_in_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("adapter.gguf");
    let convert = |model: &str, adapter: &str| {
        let (model, adapter) = (fixture(model), fixture(adapter));
        let args =
            ["convert", "--model", s(&model), "--adapter", s(&adapter), "--to", "gguf", "-o", s(&file)];
        args.map(str::to_owned)
    };
    let tied = convert("small-llama-tied", "peft-small-llama-tied-lora-embedding");
    fails(&tied.each_ref().map(String::as_str), "cannot adapt one of them alone; merge the adapter");
    // PEFT saves the table as well: the base's, unchanged.
    json_of(&convert("small-llama", "peft-small-llama-lora-embedding").each_ref().map(String::as_str));
    let other = convert("small-llama-tied", "peft-small-llama-lora-embedding");
    fails(&other.each_ref().map(String::as_str), "in full, which a llama.cpp LoRA cannot");
}
