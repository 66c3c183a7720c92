//! What adapters carry besides factors, through every command: tied heads, starts taken out of the base, biases, norms and
//! heads, the type of the weights.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use rstest::rstest;
use serde_json::{Value, json};

use common::{config_of, copy, edit, fixture, json_of, lowrank, run, s};

fn error_of(args: &[&str]) -> String {
    let error = String::from_utf8(lowrank(args).assert().code(1).get_output().stderr.clone()).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn numbers(rows: &Value, key: &str) -> Vec<f64> {
    rows["rows"].as_array().unwrap().iter().map(|row| row[key].as_f64().unwrap()).collect()
}

/// Mean log-likelihoods of two texts.
fn nll(model: &Path, adapter: Option<&Path>) -> Vec<f64> {
    let mut args = vec![
        "perplexity",
        "--model",
        s(model),
        "--text",
        "The cat sat on the red mat.",
        "--text",
        "it was bad",
    ];
    args.extend(adapter.iter().flat_map(|a| ["--adapter", s(a)]));
    numbers(&json_of(&args), "mean_nll")
}

#[track_caller]
fn assert_near(what: &str, got: &[f64], expect: &[f64]) {
    let off = got.iter().zip(expect).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(got.len() == expect.len() && off < 1e-4, "{what}: {got:?}, expected {expect:?}");
}

/// Merged, resized, converted and combined, every adapter answers as it did.
#[rstest]
#[case("small-gpt2", "peft-small-gpt2-lora-embedding", false)]
#[case("small-gpt2", "peft-small-gpt2-lora-head", false)]
#[case("small-llama-tied", "peft-small-llama-tied-lora-embedding", false)]
#[case("small-qwen2", "peft-small-qwen2-lora-both-tied", false)]
#[case("small-qwen2", "peft-small-qwen2-save-embedding", false)]
#[case("small-qwen2", "peft-small-qwen2-save-embedding-tied", true)]
#[case("small-qwen2", "peft-small-qwen2-tokens", true)]
#[case("small-qwen2", "peft-small-qwen2-lora-bias", true)]
#[case("small-qwen2", "peft-small-qwen2-olora-rslora", true)]
#[case("small-llama", "peft-small-llama-pissa", false)]
#[case("small-gpt2", "peft-small-gpt2-pissa", true)]
fn every_command_keeps_what_an_adapter_says(
    #[case] base: &str,
    #[case] adapter: &str,
    #[case] stays_tied: bool,
) {
    let (base, adapter, out) = (fixture(base), fixture(adapter), tempfile::tempdir().unwrap());
    let expect = nll(&base, Some(&adapter));
    let path = |name: &str| out.path().join(name);

    let merged = path("merged");
    run(&["merge", "--model", s(&base), "--adapter", s(&adapter), "-o", s(&merged)]);
    assert_near("merged", &nll(&merged, None), &expect);
    let tied = config_of(&merged, "config.json")["tie_word_embeddings"].as_bool().unwrap_or(true);
    assert_eq!(tied, stays_tied);

    let with_model = ["--adapter", s(&adapter), "--model", s(&base), "-o"];
    let lora = path("lora");
    run(&[&["convert", "--to", "lora"], &with_model[..], &[s(&lora)]].concat());
    assert_near("as a LoRA", &nll(&base, Some(&lora)), &expect);
    let init = &config_of(&lora, "adapter_config.json")["init_lora_weights"];
    assert_eq!(*init, Value::Bool(true), "a tag that no longer holds");

    let resized = path("resized");
    run(&[&["resize", "--energy", "1"], &with_model[..], &[s(&resized)]].concat());
    assert_near("resized", &nll(&base, Some(&resized)), &expect);

    let combined = path("combined");
    let whole = format!("{}=1", s(&adapter));
    run(&["combine", "--adapter", &whole, "--model", s(&base), "--how", "cat", "-o", s(&combined)]);
    assert_near("combined", &nll(&base, Some(&combined)), &expect);
}

#[test]
fn an_initialization_that_changes_the_base_needs_it() {
    let (adapter, out) = (fixture("peft-small-llama-pissa"), tempfile::tempdir().unwrap());
    let to = out.path().join("lora");
    let error = error_of(&["convert", "--adapter", s(&adapter), "--to", "lora", "-o", s(&to)]);
    assert!(error.contains("--model") && error.contains("pissa"), "{error}");
    for (name, part) in
        [("loftq", "'loftq'"), ("corda", "'corda'"), ("adalora", "'ADALORA'"), ("ia3", "'IA3'")]
    {
        let adapter = fixture(&format!("peft-small-llama-{name}"));
        let base = fixture("small-llama");
        let error = error_of(&["perplexity", "--model", s(&base), "--adapter", s(&adapter), "--text", "a"]);
        assert!(error.contains(part), "{error}");
    }
}

/// The combined folder does not depend on which adapter is named first.
#[test]
fn combining_keeps_what_any_of_them_carries() {
    let (base, out) = (fixture("small-qwen2"), tempfile::tempdir().unwrap());
    let (plain, full) = (fixture("peft-small-qwen2-lora-bias"), fixture("peft-small-qwen2-save-both"));
    let combined = |name: &str, first: &Path, second: &Path| {
        let dir = out.path().join(name);
        let [a, b] = [first, second].map(|path| format!("{}=0.5", s(path)));
        let args = ["combine", "--adapter", &a, "--adapter", &b, "--how", "linear", "-o", s(&dir)];
        run(&args);
        nll(&base, Some(&dir))
    };
    let one = combined("one", &plain, &full);
    assert_near("the other way round", &combined("two", &full, &plain), &one);
    let error = error_of(&[
        "combine",
        "--adapter",
        s(&fixture("peft-bert-lora")),
        "--adapter",
        s(&full),
        "--how",
        "cat",
        "-o",
        s(&out.path().join("three")),
    ]);
    assert!(error.contains("task_type"), "{error}");
}

/// PEFT reads one module from one folder either whole or adapted.
#[test]
fn a_module_that_is_saved_in_one_and_adapted_in_another_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let pair = ["peft-small-llama-save-both", "peft-small-llama-lora-head"].map(fixture);
    let args = ["combine", "--adapter", s(&pair[0]), "--adapter", s(&pair[1]), "--how", "cat", "-o"];
    let error = error_of(&[&args[..], &[s(&out.path().join("both"))]].concat());
    assert!(error.contains("'lm_head' is saved in full in") && error.contains("adapted in"), "{error}");
}

/// A table that stays tied is written under both of its names, as PEFT reads it.
#[test]
fn a_tied_head_is_written_with_its_table() {
    let (base, out) = (fixture("small-qwen2"), tempfile::tempdir().unwrap());
    let adapter = fixture("peft-small-qwen2-save-embedding-tied");
    let made = out.path().join("lora");
    let with_model = ["--adapter", s(&adapter), "--model", s(&base), "-o", s(&made)];
    run(&[&["convert", "--to", "lora"], &with_model[..]].concat());
    let names = |dir: &Path| -> Vec<String> {
        let checkpoint = Checkpoint::open(dir.join("adapter_model.safetensors")).unwrap();
        let tables =
            checkpoint.names().filter(|name| name.contains("embed_tokens") || name.contains("lm_head"));
        tables.map(str::to_owned).collect()
    };
    assert_eq!(names(&made), names(&adapter));
    assert!(names(&made).iter().any(|name| name.contains("lm_head")));
}

/// A folder without a task says by the class of its model what its head labels; the task of the start is not that of the run.
#[test]
fn the_task_is_that_of_the_class_or_of_the_run() {
    let base = fixture("bert-encoder");
    let out = tempfile::tempdir().unwrap();
    let (tags, first) = (out.path().join("tags.conll"), out.path().join("first"));
    fs::write(&tags, "the O\ncat B-X\n\nthe O\ndog B-X\n").unwrap();
    let steps = ["--method", "lora", "--max-steps", "2", "--eval-every", "2"];
    let files = ["--train", s(&tags), "--dev", s(&tags), "-o", s(&first)];
    run(&[&["finetune", "--model", s(&base)], &files[..], &steps].concat());
    let adapter = first.join("adapter");
    let predict = || {
        let args = ["predict", "--model", s(&base), "--adapter", s(&adapter), "--text", "the cat"];
        json_of(&args)["rows"].clone()
    };
    let expect = predict();
    assert!(expect[0]["words"].is_array() || expect[0]["entities"].is_array(), "{expect}");
    let task = |task: Value, class: Value| {
        edit(&adapter.join("adapter_config.json"), |config| {
            config["task_type"] = task;
            config["auto_mapping"] = class;
        });
        edit(&adapter.join("labels.json"), |labels| labels["task_type"] = Value::Null);
    };
    let class = json!({"base_model_class": "BertForTokenClassification", "parent_library": "transformers"});
    task(Value::Null, class);
    assert_eq!(predict(), expect);

    task(json!("FEATURE_EXTRACTION"), Value::Null);
    fs::remove_file(adapter.join("labels.json")).unwrap();
    let (data, second) = (rows(out.path()), out.path().join("second"));
    let files = ["--train", s(&data), "--dev", s(&data), "-o", s(&second), "--init-from", s(&adapter)];
    run(&[&["finetune", "--model", s(&base)], &files[..], &steps].concat());
    assert_eq!(config_of(&second.join("adapter"), "adapter_config.json")["task_type"], "SEQ_CLS");
}

fn rows(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("rows.tsv");
    let row = |i: usize| format!("the cat sat on mat {i}\tLABEL_{}\n", i % 2);
    fs::write(&path, format!("text\tlabel\n{}", (0..12).map(row).collect::<String>())).unwrap();
    path
}

fn logits(model: &Path, adapter: &Path) -> Vec<f64> {
    let args = ["predict", "--model", s(model), "--adapter", s(adapter), "--text", "it was bad"];
    let result = json_of(&args);
    result["rows"][0]["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Biases of every layer, trained with an adapter, go on with it though no option names them.
#[test]
fn what_an_adapter_carries_goes_on_with_it() {
    let (base, adapter) = (fixture("roberta-cls"), fixture("peft-roberta-bias-all"));
    let (out, config) = (tempfile::tempdir().unwrap(), config_of(&adapter, "adapter_config.json"));
    let (data, run_dir) = (rows(out.path()), out.path().join("run"));
    let targets = config["target_modules"].as_array().unwrap();
    let targets: Vec<&str> = targets.iter().map(|t| t.as_str().unwrap()).collect();
    run(&[
        "finetune",
        "--model",
        s(&base),
        "--train",
        s(&data),
        "--dev",
        s(&data),
        "--method",
        "lora",
        "--rank",
        &config["r"].to_string(),
        "--alpha",
        &config["lora_alpha"].to_string(),
        "--targets",
        &targets.join(","),
        "--init-from",
        s(&adapter),
        "--max-steps",
        "1",
        "--lr",
        "1e-12",
        "-o",
        s(&run_dir),
    ]);
    let written = run_dir.join("adapter");
    assert_eq!(config_of(&written, "adapter_config.json")["bias"], "all");
    assert_near("gone on with", &logits(&base, &written), &logits(&base, &adapter));
}

/// The written type is the base's, or the one that is asked for, and the config says it.
#[test]
fn a_merged_model_keeps_its_type() {
    let (base, out) = (copy("small-llama"), tempfile::tempdir().unwrap());
    let adapter = fixture("peft-small-llama-lora-both");
    let expect = nll(base.path(), Some(&adapter));
    for (dtype, name, tolerance) in
        [("f32", "float32", 1e-4), ("bf16", "bfloat16", 0.3), ("f16", "float16", 0.05)]
    {
        let dir = out.path().join(dtype);
        let args =
            ["merge", "--model", s(base.path()), "--adapter", s(&adapter), "--dtype", dtype, "-o", s(&dir)];
        let result = json_of(&args);
        assert_eq!(result["dtype"], dtype);
        let config = config_of(&dir, "config.json");
        assert!(config["dtype"] == name || config["torch_dtype"] == name, "{config}");
        let off = nll(&dir, None).iter().zip(&expect).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < tolerance, "{dtype}: {off}");
        // Without the option, the type of the base is kept.
        let again = out.path().join(format!("{dtype}-again"));
        let head = fixture("peft-small-llama-nulls");
        let result = json_of(&["merge", "--model", s(&dir), "--adapter", s(&head), "-o", s(&again)]);
        assert_eq!(result["dtype"], dtype);
    }
}

/// An adapter of another task has a head that reads other states.
#[test]
fn an_adapter_of_another_task_is_refused() {
    let dir = copy("peft-bert-lora");
    let path = dir.path().join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"SEQ_CLS\"", "\"TOKEN_CLS\"");
    fs::write(&path, text).unwrap();
    let base = fixture("bert-cls");
    let error = error_of(&["predict", "--model", s(&base), "--adapter", s(dir.path()), "--text", "a"]);
    assert!(error.contains("TOKEN_CLS") && error.contains("SEQ_CLS"), "{error}");
}

/// A classifier's adapter with a table of three tokens more than the base has, as PEFT saves it after
/// `resize_token_embeddings`.
#[test]
fn a_resized_vocabulary_of_an_encoder() {
    let (base, adapter) = (fixture("bert-cls"), copy("peft-bert-lora"));
    let file = adapter.path().join("adapter_model.safetensors");
    let read = |checkpoint: &Checkpoint, name: &str| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        HostTensor::new(name.to_string(), shape, checkpoint.read_f32(name).unwrap())
    };
    let stored = Checkpoint::open(&file).unwrap();
    let mut tensors: Vec<HostTensor<'static>> = stored.names().map(|name| read(&stored, name)).collect();
    let mut table = read(&Checkpoint::open(&base).unwrap(), "bert.embeddings.word_embeddings.weight");
    let rows = table.shape[0];
    table.name = format!("base_model.model.{}", table.name);
    table.data.to_mut().extend(vec![0.25; 3 * table.shape[1]]);
    table.shape[0] += 3;
    tensors.push(table);
    drop(stored);
    write_safetensors(&file, tensors, FloatType::F32, &[("format".to_string(), "pt".to_string())].into())
        .unwrap();
    let logits = |model: &Path, more: &[&str]| {
        let args = ["predict", "--model", s(model), "--text", "The cat sat on the red mat."];
        let row = json_of(&[&args[..], more].concat())["rows"][0]["logits"].clone();
        serde_json::from_value::<Vec<f64>>(row).unwrap()
    };
    let expect = logits(&base, &["--adapter", s(&fixture("peft-bert-lora"))]);
    assert_near("adapted", &logits(&base, &["--adapter", s(adapter.path())]), &expect);
    let merged = adapter.path().join("merged");
    run(&["merge", "--model", s(&base), "--adapter", s(adapter.path()), "-o", s(&merged)]);
    assert_eq!(config_of(&merged, "config.json")["vocab_size"], rows + 3);
    assert_near("merged", &logits(&merged, &[]), &expect);
}

/// A LoRA of one layer of an encoder; factors that the config leaves out are refused.
fn lora_of(dir: &Path, module: &str, [d_input, d_output]: [usize; 2], keys: &str) {
    let config = format!(r#"{{"peft_type": "LORA", "r": 1, "lora_alpha": 2{keys}}}"#);
    fs::write(dir.join("adapter_config.json"), config).unwrap();
    let factor = |name: &str, shape: [usize; 2]| {
        let data = (0..shape[0] * shape[1]).map(|i| 0.1 * (i % 7) as f32 - 0.2).collect::<Vec<f32>>();
        HostTensor::new(format!("base_model.model.{module}.{name}.weight"), shape, data)
    };
    let tensors = vec![factor("lora_A", [1, d_input]), factor("lora_B", [d_output, 1])];
    write_safetensors(dir.join("adapter_model.safetensors"), tensors, FloatType::F32, &Default::default())
        .unwrap();
}

/// A merged masked language model keeps its head; an adapter of one use of the shared table is refused.
#[rstest]
#[case("bert-mlm", "bert.encoder.layer.0.attention.self.query", "bert.embeddings.word_embeddings")]
#[case("modernbert-mlm", "model.layers.0.attn.Wo", "model.embeddings.tok_embeddings")]
fn merging_keeps_the_head_of_a_masked_language_model(
    #[case] base: &str,
    #[case] module: &str,
    #[case] words: &str,
) {
    let (base, out) = (fixture(base), tempfile::tempdir().unwrap());
    let before = Checkpoint::open(&base).unwrap();
    let shape = |key: &str| before.info(&format!("{key}.weight")).unwrap().shape.clone();
    let (adapter, merged) = (out.path().join("adapter"), out.path().join("merged"));
    fs::create_dir(&adapter).unwrap();
    let name = module.rsplit('.').next().unwrap();
    let sides = shape(module);
    lora_of(&adapter, module, [sides[1], sides[0]], &format!(r#", "target_modules": ["{module}"]"#));
    run(&["merge", "--model", s(&base), "--adapter", s(&adapter), "-o", s(&merged)]);
    let after = Checkpoint::open(&merged).unwrap();
    let is_same =
        |key: &str| after.contains(key) && before.read_f32(key).unwrap() == after.read_f32(key).unwrap();
    let is_head = |key: &&str| ["cls.", "head.", "decoder.bias"].iter().any(|part| key.starts_with(part));
    // The decoder's table is that of the words.
    let head: Vec<&str> =
        before.names().filter(is_head).filter(|key| !key.contains("decoder.weight")).collect();
    let copies = |key: &&str| key.ends_with("cls.predictions.decoder.bias");
    assert!(head.len() > 2 && head.iter().filter(|k| !copies(k)).all(|key| is_same(key)), "{head:?}");
    assert!(!is_same(&format!("{module}.weight")), "nothing was merged");
    let classes = |dir: &Path| config_of(dir, "config.json")["architectures"].clone();
    assert_eq!(classes(&base), classes(&merged));

    // The same factors under a config that does not name their layer.
    let refused = ["embed", "--model", s(&base), "--adapter", s(&adapter), "--text", "a"];
    for keys in [
        r#", "target_modules": ["other"]"#.to_string(),
        String::new(),
        format!(r#", "target_modules": ["{name}"], "exclude_modules": ["{module}"]"#),
        format!(r#", "target_modules": ["{name}"], "layers_to_transform": [1]"#),
    ] {
        lora_of(&adapter, module, [sides[1], sides[0]], &keys);
        let error = error_of(&refused);
        assert!(error.contains("target_modules"), "{keys}: {error}");
    }

    let sides = shape(words);
    let tables = out.path().join("tables");
    fs::create_dir(&tables).unwrap();
    lora_of(&tables, words, [sides[0], sides[1]], &format!(r#", "target_modules": ["{words}"]"#));
    let file = tables.join("adapter_model.safetensors");
    let factors = Checkpoint::open(&file).unwrap();
    let renamed = |key: &str| key.replace("lora_", "lora_embedding_").replace(".weight", "");
    let tensor = |key: &str| {
        HostTensor::new(
            renamed(key),
            factors.info(key).unwrap().shape.clone(),
            factors.read_f32(key).unwrap(),
        )
    };
    let tensors: Vec<HostTensor<'static>> = factors.names().map(tensor).collect();
    write_safetensors(&file, tensors, FloatType::F32, &Default::default()).unwrap();
    let to = out.path().join("none");
    let error = error_of(&["merge", "--model", s(&base), "--adapter", s(&tables), "-o", s(&to)]);
    assert!(error.contains("decoder") && !to.exists(), "{error}");
}

/// An adapter of all biases over a bare encoder has none of a head that the encoder lacks.
#[test]
fn biases_of_a_head_that_the_encoder_lacks_are_not_expected() {
    let (base, dir) = (fixture("bert-encoder"), tempfile::tempdir().unwrap());
    let module = "encoder.layer.0.attention.self.query";
    let before = Checkpoint::open(&base).unwrap();
    let find = |end: &str| before.names().find(|name| name.ends_with(end)).unwrap().to_string();
    let sides = before.info(&find(&format!("{module}.weight"))).unwrap().shape.clone();
    lora_of(
        dir.path(),
        module,
        [sides[1], sides[0]],
        r#", "target_modules": ["query"], "layers_to_transform": [0], "bias": "all""#,
    );
    let file = dir.path().join("adapter_model.safetensors");
    let factors = Checkpoint::open(&file).unwrap();
    let copy = |from: &Checkpoint, key: &str, to: String| {
        HostTensor::new(to, from.info(key).unwrap().shape.clone(), from.read_f32(key).unwrap())
    };
    let mut tensors: Vec<HostTensor<'static>> =
        factors.names().map(|key| copy(&factors, key, key.to_string())).collect();
    for key in before.names().filter(|key| key.ends_with(".bias")) {
        let bare = key.strip_prefix("bert.").unwrap_or(key);
        let bare = bare
            .strip_suffix("query.bias")
            .filter(|_| bare.contains("layer.0."))
            .map_or(bare.to_string(), |m| format!("{m}query.base_layer.bias"));
        tensors.push(copy(&before, key, format!("base_model.model.{bare}")));
    }
    write_safetensors(&file, tensors, FloatType::F32, &Default::default()).unwrap();
    run(&["embed", "--model", s(&base), "--adapter", s(dir.path()), "--text", "a"]);
}
