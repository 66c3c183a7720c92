//! Corrupt and hostile model folders: an error in one line, no panic, no large allocation. The fuzz bodies on a few
//! thousand seeded mutations of the fixtures: a short run of what cargo-fuzz does for hours.

use std::fs;
use std::path::Path;

use burn_flex::Flex;
use lowrank_checkpoint::fuzz::{Random, mutate};
use lowrank_data::tokenize::{TextTokenizer, fuzz_tokenizer};
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig, EncoderConfig, Stack, Tokens, fuzz};
use lowrank_tests::fixture;
use rstest::rstest;
use serde_json::{Value, json};

const MODELS: [&str; 8] =
    ["bert-cls", "roberta-cls", "distilbert-cls", "gpt2", "llama3", "mistral", "stablelm", "gpt-neox"];

/// A copy of a fixture's model files.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Numbers and values that parsers get wrong, put in the place of one value of an object.
fn tamper(config: &Value, random: &mut Random) -> Value {
    let values = [
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(1u64 << 60),
        json!(1u64 << 24),
        json!(1e308),
        json!(0.5),
        json!(null),
        json!(""),
        json!([]),
        json!({}),
        json!(true),
        json!("x"),
        json!([1, 2]),
    ];
    let mut tampered = config.clone();
    let object = tampered.as_object_mut().unwrap();
    for _ in 0..=random.below(2) {
        let key = object.keys().nth(random.below(object.len())).unwrap().clone();
        object.insert(key, values[random.below(values.len())].clone());
    }
    tampered
}

#[test]
fn configs() {
    for (seed, name) in (0..).zip(MODELS) {
        let bytes = fs::read(fixture(name).join("config.json")).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let mut random = Random::new(seed);
        fuzz::config::<Flex>(&bytes);
        for _ in 0..400 {
            fuzz::config::<Flex>(&mutate(&bytes, &mut random));
            fuzz::config::<Flex>(&serde_json::to_vec(&tamper(&value, &mut random)).unwrap());
        }
    }
}

#[test]
fn tokenizers() {
    for (seed, name) in (0..).zip(["bert-cls", "roberta-cls", "llama", "qwen2", "xlm-roberta-cls"]) {
        let bytes = fs::read(fixture(name).join("tokenizer.json")).unwrap();
        let mut random = Random::new(seed);
        fuzz_tokenizer(&bytes);
        for _ in 0..100 {
            fuzz_tokenizer(&mutate(&bytes, &mut random));
        }
    }
}

#[test]
fn folders() {
    for (seed, name) in (0..).zip(MODELS) {
        let folder = copy(name);
        let mut random = Random::new(seed);
        fuzz::folder::<Flex>(folder.path());
        for file in ["config.json", "model.safetensors"] {
            let bytes = fs::read(folder.path().join(file)).unwrap();
            // Of the weights, the header: what lies behind are numbers.
            let header = if file == "config.json" { bytes.len() } else { 2000.min(bytes.len()) };
            for _ in 0..40 {
                let mut mutated = mutate(&bytes[..header], &mut random);
                mutated.extend_from_slice(&bytes[header..]);
                fs::write(folder.path().join(file), mutated).unwrap();
                fuzz::folder::<Flex>(folder.path());
            }
            fs::write(folder.path().join(file), bytes).unwrap();
        }
    }
}

/// Changes a config and expects a refusal that says `part`.
#[track_caller]
fn refused(name: &str, changes: Value, part: &str) {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fs::write(&path, config.to_string()).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

fn load(folder: &Path) -> Result<(), String> {
    let config = DecoderConfig::read(folder).map_err(|e| e.to_string())?;
    Decoder::<Flex>::load(folder, config, WeightType::F32, &Default::default())
        .map(drop)
        .map_err(|e| e.to_string())
}

#[rstest]
#[case("llama", json!({"hidden_size": 1u64 << 40}), "hidden_size = 1099511627776 is out of range")]
#[case("llama", json!({"num_hidden_layers": 1u64 << 60}), "num_hidden_layers")]
#[case("llama", json!({"num_hidden_layers": 4000}), "missing")]
#[case("llama", json!({"vocab_size": 1 << 24}), "has shape [363, 32], expected [16777216, 32]")]
#[case("llama", json!({"num_attention_heads": 3}), "heads")]
#[case("llama", json!({"num_attention_heads": 1 << 24, "num_key_value_heads": 1, "head_dim": 1 << 24}), "wide")]
#[case("llama", json!({"model_type": "llama9"}), "'llama9' is not supported")]
#[case("llama", json!({"model_type": null}), "model_type is missing")]
#[case("llama", json!({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}), "'spiral' is not supported")]
#[case("llama", json!({"rms_norm_eps": "small"}), "expected a finite number")]
#[case("llama", json!({"tie_word_embeddings": "yes"}), "expected true or false")]
#[case("gpt2", json!({"n_embd": 31}), "not a multiple of n_head")]
#[case("gpt2", json!({"n_positions": 1 << 23}), "expected [8388608, 32]")]
#[case("stablelm", json!({"qk_layernorm": true}), "qk_layernorm = true is not supported")]
#[case("mistral", json!({"sliding_window": 0}), "sliding_window = 0 is out of range")]
#[case("gpt-neox", json!({"rotary_pct": 7}), "out of range")]
#[case("llama", json!({"lowrank": {"version": 1, "modules": {"lm_head": {"kind": "tensor_train", "cores": [[1, 1 << 23, 1 << 23, 1]]}}}}), "rows")]
fn absurd_configs_are_refused(#[case] name: &str, #[case] changes: Value, #[case] part: &str) {
    refused(name, changes, part);
}

#[test]
fn weights_of_absurd_sizes_are_refused_before_they_are_read() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    fs::write(&path, huge).unwrap();
    assert!(load(folder.path()).unwrap_err().contains("model.safetensors"));
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    assert!(load(folder.path()).unwrap_err().contains("model.safetensors"));
    fs::remove_file(&path).unwrap();
    let index = r#"{"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(error.contains("elsewhere"), "{error}");
}

#[test]
fn a_tokenizer_of_another_model_is_told_by_its_ids() {
    let folder = copy("gpt2");
    fs::copy(fixture("llama").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let tokenizer = TextTokenizer::from_folder(folder.path(), None).unwrap();
    let ids = tokenizer.encode("The cat sat on the red mat.", None).unwrap().ids;
    let config = DecoderConfig::read(folder.path()).unwrap();
    let device = Default::default();
    let model = Decoder::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
    let error = model.batch(Tokens::new(&ids, &[ids.len()]), &device).unwrap_err().to_string();
    assert!(error.contains("tokenizer and model do not belong together"), "{error}");
}

#[test]
fn an_encoder_is_not_a_decoder_and_says_so() {
    let error = DecoderConfig::read(&fixture("bert-cls")).unwrap_err().to_string();
    assert!(error.contains("model_type 'bert' is an encoder"), "{error}");
    let error = EncoderConfig::read(&fixture("llama")).unwrap_err().to_string();
    assert!(error.contains("model_type 'llama' is a decoder"), "{error}");
}
