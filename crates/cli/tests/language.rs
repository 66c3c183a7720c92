//! The commands over language models, as a user types them.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, FloatType, write_safetensors};
use lowrank_spec::HostTensor;
use serde_json::{Value, json};

use common::{fails, fixture, json_of, lowrank, misused, s};

fn golden(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn close(got: &Value, expect: &Value) {
    let (got, expect) = (got.as_f64().unwrap(), expect.as_f64().unwrap());
    assert!((got / expect - 1.0).abs() < 1e-4, "{got} for {expect}");
}

#[test]
fn generate_continues_as_transformers_does() {
    for name in ["llama3", "gpt-neox"] {
        let model = fixture(name);
        for case in golden(name)["cases"].as_array().unwrap() {
            let prompt = case["text"].as_str().unwrap();
            let args = [
                "generate",
                "--model",
                s(&model),
                "--prompt",
                prompt,
                "--max-new-tokens",
                "16",
                "--ignore-eos",
            ];
            let got = json_of(&args);
            assert_eq!(got["ids"], case["greedy"], "{name}: {prompt}");
            assert!(got["tokens_per_second"].as_f64().unwrap() > 0.0);
            assert!(got["text"].is_string());
        }
    }
}

#[test]
fn several_prompts_give_what_each_gives() {
    let model = fixture("qwen2");
    let common =
        ["generate", "--model", s(&model), "--max-new-tokens", "8", "--temperature", "0.8", "--seed", "4"];
    let one = json_of(&[&common[..], &["--prompt", "the cat sat"]].concat());
    let two =
        json_of(&[&common[..], &["--prompt", "the cat sat", "--prompt", "A dog, on the mat."]].concat());
    assert_eq!(two["rows"][0]["ids"], one["ids"]);
    assert_eq!(two["rows"].as_array().unwrap().len(), 2);
    let other = json_of(&[&common[..8], &["5", "--prompt", "the cat sat"]].concat());
    assert_ne!(other["ids"], one["ids"], "another seed, another draw");
}

#[test]
fn a_stop_ends_the_text_before_it() {
    let model = fixture("gpt2");
    let common =
        ["generate", "--model", s(&model), "--prompt", "the cat", "--max-new-tokens", "12", "--ignore-eos"];
    let whole = json_of(&common)["text"].as_str().unwrap().to_string();
    let at = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[at..].chars().take(2).collect();
    let got = json_of(&[&common[..], &["--stop", &stop]].concat());
    let end = whole.find(&stop).unwrap();
    assert_eq!((got["text"].as_str().unwrap(), &got["finish"]), (&whole[..end], &Value::from("stop")));
    // For people: prompt and text, and the speed apart from them.
    let output = lowrank(&common).assert().success().get_output().clone();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("the cat{whole}\n"));
}

/// Texts omit special tokens, and such a stop ends them all the same.
#[test]
fn a_special_token_can_be_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("gpt2").join(file), folder.path().join(file)).unwrap();
    }
    let args = ["generate", "--model", s(folder.path()), "--prompt", "the cat", "--max-new-tokens", "12"];
    let args = [&args[..], &["--ignore-eos"]].concat();
    let whole = json_of(&args)["ids"].as_array().unwrap().clone();
    let id = &whole[6];
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let (token, _) =
        tokenizer["model"]["vocab"].as_object().unwrap().iter().find(|(_, own)| *own == id).unwrap();
    let token = token.clone();
    let added = json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let got = json_of(&[&args[..], &["--stop", &token]].concat());
    let end = whole.iter().position(|own| own == id).unwrap();
    assert_eq!(
        (got["ids"].as_array().unwrap(), &got["finish"]),
        (&whole[..=end].to_vec(), &Value::from("stop"))
    );
}

#[test]
fn perplexity_equals_transformers() {
    for name in ["gpt2", "llama-tied", "mistral"] {
        let (model, golden) = (fixture(name), golden(name));
        let cases = golden["cases"].as_array().unwrap();
        let mut args = vec!["perplexity", "--model", s(&model)];
        for case in cases {
            args.extend(["--text", case["text"].as_str().unwrap()]);
        }
        let got = json_of(&args);
        for (case, row) in cases.iter().zip(got["rows"].as_array().unwrap()) {
            assert_eq!(row["tokens"].as_u64().unwrap() as usize, case["input_ids"].as_array().unwrap().len());
            close(&row["mean_nll"], &case["mean_nll"]);
        }
        close(&got["perplexity"], &golden["perplexity"]);
    }
}

#[test]
fn perplexity_of_an_adapted_model() {
    let (model, adapter, golden) = (fixture("llama"), fixture("peft-llama-lora"), golden("peft-llama-lora"));
    let case = &golden["cases"][0];
    let text = case["text"].as_str().unwrap();
    let got = json_of(&["perplexity", "--model", s(&model), "--adapter", s(&adapter), "--text", text]);
    close(&got["rows"][0]["mean_nll"], &case["mean_nll"]);
}

#[test]
fn files_are_read_by_lines_or_as_one_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.txt");
    fs::write(&file, "The cat sat.\n\nOn the mat, a dog barked at the red ball.\n").unwrap();
    let model = fixture("llama3");
    let lines = json_of(&["perplexity", "--model", s(&model), "--file", s(&file)]);
    let rows = lines["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows[1]["mean_nll"].is_null(), "a first token alone predicts nothing");
    let long = |extra: &[&str]| {
        json_of(&[&["perplexity", "--model", s(&model), "--file", s(&file)], extra].concat())
    };
    let whole = long(&["--stride", "64"]);
    assert_eq!(whole["rows"].as_array().unwrap().len(), 1);
    let crlf = folder.path().join("crlf.txt");
    fs::write(&crlf, fs::read_to_string(&file).unwrap().replace('\n', "\r\n")).unwrap();
    let by_bytes = json_of(&["perplexity", "--model", s(&model), "--file", s(&crlf), "--stride", "64"]);
    let text = fs::read_to_string(&crlf).unwrap();
    let given = json_of(&["perplexity", "--model", s(&model), "--text", &text]);
    assert_eq!(by_bytes["rows"], given["rows"], "carriage returns count as text");
    assert_ne!(by_bytes["rows"], whole["rows"]);
    let windowed = long(&["--stride", "4", "--max-length", "8"]);
    assert_eq!(windowed["rows"][0]["tokens"], whole["rows"][0]["tokens"]);
    assert_ne!(windowed["perplexity"], whole["perplexity"], "less context, other likelihoods");
}

#[test]
fn weights_can_be_kept_in_half_precision() {
    let model = fixture("llama");
    let run = |dtype| {
        let got = json_of(&[
            "perplexity",
            "--model",
            s(&model),
            "--text",
            "The cat sat on the red mat.",
            "--dtype",
            dtype,
        ]);
        got["perplexity"].as_f64().unwrap()
    };
    let (full, half, bf16) = (run("f32"), run("f16"), run("bf16"));
    assert!(full != half && full != bf16);
    assert!((half / full - 1.0).abs() < 0.01 && (bf16 / full - 1.0).abs() < 0.1, "{full} {half} {bf16}");
}

#[test]
fn mistakes_are_told_in_one_line() {
    let model = fixture("gpt2");
    let m = s(&model);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bytes.txt");
    fs::write(&file, [0xff, 0xfe, 0x41]).unwrap();
    misused(&["generate", "--model", m, "--prompt", "a", "--top-p", "0"], "top-p 0 is out of range");
    misused(&["generate", "--model", m, "--prompt", "a", "--temperature=-1"], "temperature -1");
    fails(&["generate", "--model", m, "--prompt", &"word ".repeat(200)], "the model takes 1..=128");
    fails(&["generate", "--model", s(&fixture("bert-cls")), "--prompt", "a"], "is an encoder; a decoder");
    fails(&["generate", "--model", "no/such-model", "--prompt", "a"], "no such folder");
    misused(&["perplexity", "--model", m], "nothing to do");
    fails(&["perplexity", "--model", m, "--text", "a", "--max-length", "1"], "leaves nothing to predict");
    fails(&["perplexity", "--model", m, "--text", ""], "at least one predicted token");
    fails(&["perplexity", "--model", m, "--file", s(&file)], "line 1 is not UTF-8 text");
    fails(&["perplexity", "--model", m, "--file", s(&file.with_extension("no"))], "bytes.no");
    fails(&["predict", "--model", m, "--text", "a"], "no trained head");
}

#[test]
fn a_hub_name_is_found_in_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--someone--tiny");
    let snapshot = repo.join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "abc").unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(fixture("gpt2").join(file), snapshot.join(file)).unwrap();
    }
    let run = |name: &str| {
        let mut command = lowrank(&["perplexity", "--model", name, "--text", "the cat", "--json"]);
        command.env("HF_HOME", home.path()).assert()
    };
    run("someone/tiny").success();
    let error = String::from_utf8(run("someone/other").code(1).get_output().stderr.clone()).unwrap();
    assert!(error.contains("is not in the hub's cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn encoder_decoder_models_write_as_transformers_does() {
    let fixtures =
        fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = fixtures.filter(|name| name.starts_with("seq2seq-")).collect();
    assert!(names.len() > 6, "{names:?}");
    for name in &names {
        let (model, golden) = (fixture(name), golden(name));
        let mut args = vec!["generate", "--model", s(&model)];
        let cases = golden["cases"].as_array().unwrap();
        cases.iter().for_each(|case| args.extend(["--prompt", case["source"].as_str().unwrap()]));
        // The others' own settings bound the length.
        if !["seq2seq-bart", "seq2seq-mbart-bos"].contains(&name.as_str()) {
            args.extend(["--max-new-tokens", "9"]);
        }
        let got = json_of(&args);
        let rows = got["rows"].as_array().unwrap();
        assert_eq!(rows.len(), cases.len(), "{name}");
        for (got, case) in rows.iter().zip(cases) {
            assert_eq!(got["ids"], case["generated"], "{name}");
            assert!(got["text"].is_string() && got["finish"].is_string());
        }
    }
}

#[test]
fn an_encoder_decoder_model_is_inspected_merged_and_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapter) = (fixture("seq2seq-bart"), fixture("peft-seq2seq-bart-lora"));
    let [merged, full, factored] = ["merged", "full", "factored"].map(|name| folder.path().join(name));
    let object = json_of(&["inspect", s(&model), "--method", "lora", "--rank", "2"]);
    // Queries and values of two encoder layers and of two attentions in two decoder layers, each 24 wide.
    assert_eq!(object["adapter_parameters"], 12 * 2 * 48);
    assert_eq!(object["trained_in_full"], 0);
    // An untied head is trained by its own method alone.
    let trained = |method: &str| {
        let object = json_of(&["inspect", s(&fixture("llama")), "--method", method]);
        (object["adapter_parameters"].as_u64().unwrap(), object["trained_in_full"].as_u64().unwrap())
    };
    assert!(matches!(trained("lora"), (1.., 0)));
    assert!(matches!(trained("head"), (0, 1..)));
    let prompt = ["--prompt", "The cat sat on the red mat.", "--max-new-tokens", "8"];
    let ids = |args: &[&str]| json_of(&[&["generate"], args, &prompt].concat())["ids"].clone();
    let adapted = ids(&["--model", s(&model), "--adapter", s(&adapter)]);
    json_of(&["merge", "--model", s(&model), "--adapter", s(&adapter), "-o", s(&merged)]);
    assert_eq!(ids(&["--model", s(&merged)]), adapted);
    let compress = |options: &[&str], output: &Path| {
        let args = ["compress", "--model", s(&merged), "--method", "svd", "-o", s(output)];
        let report = json_of(&[&args, options].concat());
        assert_eq!(report["output"], s(output));
        let layers = json_of(&["inspect", s(output)])["layers"].clone();
        let is_factored = |layer: &&Value| layer["kind"] == "low_rank";
        layers.as_array().unwrap().iter().filter(is_factored).count()
    };
    // Six maps of each encoder layer, ten of each of the decoder, and the table of words.
    let all = ["--energy", "0.9999999", "--always-factor", "--targets", "all-linear,shared"];
    assert_eq!(compress(&all, &full), 2 * 6 + 2 * 10 + 1);
    assert_eq!(ids(&["--model", s(&full)]), adapted);
    assert!(compress(&["--ratio", "0.5"], &factored) > 0);
    assert_ne!(ids(&["--model", s(&factored)]), adapted);
}

/// The head of T5 is used beside a factored table of words.
#[test]
fn a_head_beside_a_compressed_table_is_used() {
    let (folder, name) = (tempfile::tempdir().unwrap(), "seq2seq-t5-head");
    let (model, output, golden) = (fixture(name), folder.path().join("out"), golden(name));
    let options = ["--energy", "0.9999999", "--always-factor", "--targets", "shared"];
    let args = ["compress", "--model", s(&model), "--method", "svd", "-o", s(&output)];
    json_of(&[&args[..], &options].concat());
    for case in golden["cases"].as_array().unwrap() {
        let prompt = ["--prompt", case["source"].as_str().unwrap(), "--max-new-tokens", "9"];
        let got = json_of(&[&["generate", "--model", s(&output)][..], &prompt].concat());
        assert_eq!(got["ids"], case["generated"]);
    }
}

/// transformers calls copies of the table of words, not the table: PEFT's adapter of it has no effect.
#[test]
fn an_adapter_of_the_table_of_words_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = |name: &str, config: &Value, tensors: Vec<HostTensor<'static>>| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
        let file = path.join("adapter_model.safetensors");
        write_safetensors(file, tensors, FloatType::F32, &Default::default()).unwrap();
        path
    };
    let tensor = |name: String, shape: [usize; 2]| {
        HostTensor::new(format!("base_model.model.{name}"), shape.to_vec(), vec![0.1; shape[0] * shape[1]])
    };
    let mut expect = vec![("seq2seq-t5", "shared", "encoder.embed_tokens and decoder.embed_tokens")];
    expect.push(("seq2seq-bart", "model.shared", expect[0].2));
    expect.push(("t5-encoder", "shared", "encoder.embed_tokens"));
    for (name, path, called) in expect {
        let model = fixture(name);
        let command = if name == "t5-encoder" { ["embed", "--text"] } else { ["generate", "--prompt"] };
        let table = Checkpoint::open(&model).unwrap();
        let shape = &table.info(&format!("{path}.weight")).unwrap().shape;
        let [rows, width] = [shape[0], shape[1]];
        let lora = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["shared"]});
        let factors = vec![
            tensor(format!("{path}.lora_embedding_A"), [2, rows]),
            tensor(format!("{path}.lora_embedding_B"), [width, 2]),
        ];
        let saved = json!({"peft_type": "LORA", "r": 2, "target_modules": [], "modules_to_save": ["shared"]});
        let copy = vec![tensor(format!("{path}.weight"), [rows, width])];
        for (kind, config, tensors) in [("lora", lora, factors), ("saved", saved, copy)] {
            let adapter = adapter(&format!("{name}-{kind}"), &config, tensors);
            let args = [command[0], "--model", s(&model), "--adapter", s(&adapter), command[1], "a"];
            fails(&args, &format!("the adapter changes '{path}', which has no effect in transformers"));
            fails(&args, &format!("the model calls {called} in its place"));
        }
        // Rows of a table that is tied to a head do have an effect.
        let rows = json!({
            "peft_type": "LORA", "r": 2, "target_modules": [], "trainable_token_indices": {"shared": [1]}
        });
        let delta = tensor(format!("{path}.token_adapter.trainable_tokens_delta"), [1, width]);
        let adapter = adapter(&format!("{name}-rows"), &rows, vec![delta]);
        let args = [command[0], "--model", s(&model), "--adapter", s(&adapter), command[1], "a"];
        fails(
            &args,
            &format!("the adapter trains rows of '{path}' (trainable_token_indices), which is not supported"),
        );
    }
}

/// Settings that are not supported are named with the file that has them.
#[test]
fn settings_of_an_old_config_are_named_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("seq2seq-bart");
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
    config["num_return_sequences"] = 4.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let run = lowrank(&["generate", "--model", s(folder.path()), "--prompt", "a"]).assert().success();
    let warnings = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(
        warnings.contains("warning: config.json: not supported and ignored: num_return_sequences = 4"),
        "{warnings}"
    );
}

#[test]
fn what_encoder_decoder_models_do_not_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, output) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    for name in ["seq2seq-t5", "seq2seq-bart"] {
        fs::write(&rows, "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
        let model = fixture(name);
        let model = s(&model);
        fails(&["chat", "--model", model], "is an encoder-decoder model, which does not hold conversations");
        fails(&["generate", "--model", model, "--messages", s(&rows)], "does not hold conversations");
        let compress = ["compress", "--model", model, "--ratio", "0.2", "-o", s(&output)];
        let recover = ["--calibration", s(&rows), "--recover", "distill"];
        fails(
            &[&compress[..], &recover].concat(),
            "layers are not recovered one by one; leave out --recover",
        );
        for (name, text, part) in [
            ("rows.txt", "the cat\nthe dog\n", "the row is plain text; an encoder-decoder"),
            ("rows.txt", "\n", "rows.txt"),
            (
                "rows.jsonl",
                "{\"text\": \"the cat\"}\n",
                "rows.jsonl:1: the row is plain text; an encoder-decoder",
            ),
            ("rows.jsonl", "", "rows.jsonl"),
        ] {
            let rows = folder.path().join(name);
            fs::write(&rows, text).unwrap();
            for method in ["whitened", "two-sided", "fwsvd"] {
                let calibration = ["--method", method, "--calibration", s(&rows)];
                fails(&[&compress[..], &calibration].concat(), part);
            }
        }
        let task = ["--method", "two-sided", "--task", "sst2", "--data", s(folder.path())];
        fails(
            &[&compress[..], &task].concat(),
            "give --calibration with rows that have prompt and completion",
        );
        fails(
            &["embed", "--model", model, "--text", "a"],
            "encoder-decoder models are supported by generate",
        );
        fails(&["perplexity", "--model", model, "--text", "a"], "encoder-decoder model");
        assert!(!output.exists());
    }
}
