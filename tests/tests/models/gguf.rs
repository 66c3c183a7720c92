//! GGUF files: those that llama.cpp's conversion made of the fixtures give transformers' outputs, and ours are the same.

use std::path::{Path, PathBuf};

use crate::common::{Exact, check_logits, golden};
use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_checkpoint::gguf::{FileType, ModelParts, TokenizerParts, write_model};
use lowrank_checkpoint::{Checkpoint, Dtype, FloatType, HostTensor, write_safetensors};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig, ModelFolder, Parameters};
use lowrank_spec::BlockFormat;
use lowrank_tests::fixture;
use rstest::rstest;
use serde_json::{Map, Value, json};

/// Fixtures with a GGUF file, and whether it says all of their config: llama.cpp has no windows here.
fn cases() -> Vec<(String, bool)> {
    let files = fixture("gguf").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let mut names: Vec<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    // They have a separate test.
    names.retain(|name| !["gemma2", "gemma3"].contains(&name.as_str()));
    assert_eq!(names.len(), 26, "{names:?}");
    names
        .into_iter()
        .map(|name| (name.clone(), !["mistral", "starcoder2"].contains(&name.as_str())))
        .collect()
}

fn converted(name: &str) -> PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

fn load(path: &Path) -> Decoder<Flex> {
    let folder = ModelFolder::open(path).unwrap();
    Decoder::load(folder.path(), folder.decoder_config().unwrap(), WeightType::F32, &Default::default())
        .unwrap()
}

fn config(path: &Path) -> Map<String, Value> {
    ModelFolder::open(path).unwrap().config().clone()
}

fn write(name: &str, out: &Path, kind: FileType) {
    let weights = Checkpoint::open(fixture(name)).unwrap();
    let config = config(&fixture(name));
    let parts = ModelParts {
        name,
        config: &config,
        weights: &weights,
        tokenizer: None,
        kind: Some(kind),
        pooling: None,
    };
    write_model(out, &parts).unwrap();
}

/// Beside transformers, whose inputs of blocks (MXFP4) are not rounded.
fn check_exactly(name: &str, file: &Path) {
    let mut model = load(file);
    model.visit_params(&mut Exact);
    check_logits(name, &model, &AdapterSet::empty(), &golden(name));
}

#[test]
fn files_of_llama_cpp_give_the_outputs_of_transformers() {
    for (name, _) in cases().into_iter().filter(|(_, is_whole)| *is_whole) {
        check_exactly(&name, &converted(&name));
    }
}

#[test]
fn files_of_ours_hold_the_tensors_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    // llama.cpp's conversion also writes biases that its loader then rejects; these models are refused (below).
    let is_loaded = |name: &str| !["qwen3", "arcee", "seed-oss"].contains(&name);
    for (name, is_whole) in cases().into_iter().filter(|(name, _)| is_loaded(name)) {
        let out = folder.path().join(format!("{name}.gguf"));
        write(&name, &out, FloatType::F32.into());
        let (ours, theirs) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(converted(&name)).unwrap());
        assert!(ours.names().eq(theirs.names()), "{name}");
        for tensor in ours.names() {
            assert_eq!(ours.info(tensor), theirs.info(tensor), "{name}: {tensor}");
            // Equal values in MXFP4 may have other scales.
            assert_eq!(ours.read_f32(tensor).unwrap(), theirs.read_f32(tensor).unwrap(), "{name}: {tensor}");
            if theirs.info(tensor).unwrap().dtype != Dtype::Block(BlockFormat::Mxfp4) {
                assert_eq!(ours.bytes(tensor).unwrap(), theirs.bytes(tensor).unwrap(), "{name}: {tensor}");
            }
        }
        if !is_whole {
            continue;
        }
        // What the metadata say of the model is the same too, as far as it counts.
        let [ours, theirs] = [&out, &converted(&name)].map(|path| DecoderConfig::read(path).unwrap());
        let shown = |config: DecoderConfig| {
            format!(
                "{:?}",
                DecoderConfig { raw: Map::new(), bos: None, eos: Vec::new(), padding: None, ..config }
            )
        };
        assert_eq!(shown(ours), shown(theirs), "{name}");
        check_exactly(&name, &out);
    }
}

/// Gemma 2 and 3 as llama.cpp can run them: with the usual scale and the usual layers.
#[rstest]
#[case("gemma2", json!({"query_pre_attn_scalar": 8}))]
#[case("gemma3", json!({"query_pre_attn_scalar": 10, "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]}))]
fn gemma_goes_there_and_back(#[case] name: &str, #[case] changes: Value) {
    let mut keys = config(&fixture(name));
    keys.extend(changes.as_object().unwrap().clone());
    let weights = Checkpoint::open(fixture(name)).unwrap();
    let kind = FloatType::F32.into();
    let parts = ModelParts {
        name,
        config: &keys,
        weights: &weights,
        tokenizer: None,
        kind: Some(kind),
        pooling: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    write_model(&out, &parts).unwrap();
    let expected = DecoderConfig::parse(keys.clone()).unwrap();
    let expected =
        Decoder::<Flex>::load(&fixture(name), expected, WeightType::F32, &Default::default()).unwrap();
    let ids = &golden(name).cases[0].input_ids;
    let logits = |model: &Decoder<Flex>| {
        crate::common::forward(model, ids, &[ids.len()], lowrank_models::Rows::All, &AdapterSet::empty())
    };
    for file in [out, converted(name)] {
        let (got, expected) = (logits(&load(&file)), logits(&expected));
        let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < crate::common::TOLERANCE, "{}: {off}", file.display());
    }
}

/// The config that is read from a GGUF file of a fixture with this config.
fn there_and_back(name: &str, config: &Map<String, Value>) -> DecoderConfig {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    let weights = Checkpoint::open(fixture(name)).unwrap();
    let kind = FloatType::F32.into();
    write_model(
        &out,
        &ModelParts { name, config, weights: &weights, tokenizer: None, kind: Some(kind), pooling: None },
    )
    .unwrap();
    ModelFolder::open(&out).unwrap().decoder_config().unwrap()
}

#[rstest]
#[case(json!({"sliding_window": null}), "sliding_window = null")]
#[case(json!({"layer_types": ["full_attention"]}), "layer_types has 1 entries for 4 layers")]
#[case(
    json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
    "rope_theta = 500000 in layers with a window and 500 in the others"
)]
#[case(
    json!({"rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    }}),
    "'linear' of layers with a window"
)]
fn an_olmo3_that_llama_cpp_would_run_otherwise_is_refused(#[case] changes: Value, #[case] reason: &str) {
    let (folder, mut config) = (tempfile::tempdir().unwrap(), config(&fixture("olmo3")));
    config.extend(changes.as_object().unwrap().clone());
    let (out, weights) = (folder.path().join("model.gguf"), Checkpoint::open(fixture("olmo3")).unwrap());
    let kind = FloatType::F32.into();
    let parts = ModelParts {
        name: "olmo3",
        config: &config,
        weights: &weights,
        tokenizer: None,
        kind: Some(kind),
        pooling: None,
    };
    let error = write_model(&out, &parts).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

#[test]
fn an_olmo3_goes_there_and_back() {
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
    for changes in [
        json!({}),
        json!({"layer_types": null, "rope_parameters": null, "rope_scaling": yarn, "rope_theta": 5e5}),
    ] {
        let mut config = config(&fixture("olmo3"));
        config.extend(changes.as_object().unwrap().clone());
        let (back, own) = (there_and_back("olmo3", &config), DecoderConfig::parse(config).unwrap());
        assert_eq!((back.ropes, back.layers), (own.ropes, own.layers));
    }
}

/// A length outside of the rotary parameters takes precedence, as in transformers.
#[test]
fn the_original_length_goes_there_and_back() {
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
    for outer in [json!(48), json!(1), json!(null)] {
        let mut config = config(&fixture("llama"));
        config.remove("rope_parameters");
        config.insert("rope_scaling".into(), yarn.clone());
        config.insert("original_max_position_embeddings".into(), outer.clone());
        let back = there_and_back("llama", &config);
        assert_eq!(back.ropes, DecoderConfig::parse(config).unwrap().ropes, "{outer}");
    }
    // A null is not the default: StableLM's heads are rotated whole.
    let mut config = config(&fixture("stablelm"));
    config.remove("rope_parameters");
    config.insert("partial_rotary_factor".into(), json!(null));
    let back = there_and_back("stablelm", &config);
    let rotated =
        |config: &DecoderConfig| config.ropes.iter().map(|rope| rope.rotary_dim).collect::<Vec<_>>();
    let expected = DecoderConfig::parse(config).unwrap();
    assert_eq!(expected.ropes[0].rotary_dim, expected.head_dim);
    assert_eq!(rotated(&back), rotated(&expected));
}

/// Windows in layers of the list's choice, and positions without scaling.
#[test]
fn a_gpt_oss_goes_there_and_back() {
    for changes in [
        json!({"layer_types": ["full_attention", "sliding_attention"]}),
        json!({"layer_types": ["sliding_attention", "sliding_attention"], "sliding_window": 5}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "layer_types": null}),
    ] {
        let mut config = config(&fixture("quantised-mxfp4"));
        config.extend(changes.as_object().unwrap().clone());
        let back = there_and_back("quantised-mxfp4", &config);
        let own = DecoderConfig::parse(config).unwrap();
        assert_eq!((back.ropes, back.layers), (own.ropes, own.layers), "{changes}");
    }
}

/// Experts stored in MXFP4 keep their values in files of type F16, BF16 and MXFP4_MOE.
#[test]
fn experts_are_written_in_mxfp4() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    let weights = Checkpoint::open(fixture("quantised-mxfp4")).unwrap();
    for kind in ["F16", "BF16", "MXFP4_MOE"] {
        write("quantised-mxfp4", &out, kind.parse().unwrap());
        let written = Checkpoint::open(&out).unwrap();
        assert_eq!(written.metadata()["general.file_type"], "38", "{kind}");
        let experts = written.names().filter(|name| name.contains(".experts.") && name.ends_with("weight"));
        for name in experts {
            assert_eq!(written.info(name).unwrap().dtype.name(), "MXFP4", "{kind}: {name}");
            assert_eq!(written.read_f32(name).unwrap(), weights.read_f32(name).unwrap(), "{kind}: {name}");
        }
    }
}

#[test]
fn every_type_is_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    let golden = golden("llama");
    let expected = &golden.cases[0].last_logits;
    for kind in [
        "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K_M",
        "Q4_K_M", "Q6_K",
    ] {
        write("llama", &out, kind.parse().unwrap());
        let model = load(&out);
        let ids = &golden.cases[0].input_ids;
        let rows = lowrank_models::Rows::Last;
        let got = crate::common::forward(&model, ids, &[ids.len()], rows, &AdapterSet::empty());
        let size = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        let off = got.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        // Rows of 32 elements: blocks of 256 give way to smaller ones.
        let limit = match kind {
            "F16" | "BF16" | "Q8_0" | "Q6_K" => 0.03,
            _ => 0.35,
        };
        assert!(off < limit * size, "{kind}: {off} of {size}");
    }
}

/// Text becomes the same tokens, and tokens the same text.
#[test]
fn tokenizers_survive_the_way_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    for name in ["llama3", "qwen2", "gpt2", "stablelm", "llama", "small-llama"] {
        let own = TextTokenizer::from_folder(&fixture(name), None).unwrap();
        let json: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("tokenizer.json")).unwrap()).unwrap();
        let special = own.special_ids();
        let roles: Vec<_> = [("bos", special.bos), ("eos", special.eos), ("unknown", special.unk)]
            .into_iter()
            .filter_map(|(role, id)| Some((role, id?)))
            .collect();
        let templates = [("default".to_owned(), "{{ messages[0].content }}".to_owned())];
        let tokenizer = TokenizerParts { json: &json, roles: &roles, templates: &templates };
        let weights = Checkpoint::open(fixture(name)).unwrap();
        let config = config(&fixture(name));
        let kind = FloatType::F32.into();
        let parts = ModelParts {
            name,
            config: &config,
            weights: &weights,
            tokenizer: Some(tokenizer),
            kind: Some(kind),
            pooling: None,
        };
        write_model(&out, &parts).unwrap();
        let back = ModelFolder::open(&out).unwrap();
        let tokenizer = back.tokenizer(None).unwrap();
        for text in [
            "the cat sat",
            "  Two  spaces\n\nand 1234 digits, don't they?",
            "<|endoftext|>x",
            "ünïcode 🦙",
            "",
        ] {
            // llama.cpp puts a space before every text of SentencePiece; transformers 5 does not before a space for a
            // LlamaTokenizer, which only this fixture names.
            let spaced = format!(" {text}");
            let own_text = if name == "llama" && text.starts_with(' ') { &spaced } else { text };
            let expected = own.encode(own_text, None).unwrap();
            assert_eq!(tokenizer.encode(text, None).unwrap(), expected, "{name}: {text:?}");
            let ids = &expected.ids;
            assert_eq!(
                tokenizer.decode(ids, true).unwrap(),
                own.decode(ids, true).unwrap(),
                "{name}: {text:?}"
            );
        }
        assert_eq!(tokenizer.special_ids().eos, special.eos, "{name}");
        assert!(back.chat_template().unwrap().is_some());
    }
}

#[test]
fn what_llama_cpp_cannot_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.gguf");
    let refusal = |name: &str, change: &dyn Fn(&mut Map<String, Value>)| {
        let weights = Checkpoint::open(fixture(name)).unwrap();
        let mut config = config(&fixture(name));
        change(&mut config);
        let kind = FloatType::F32.into();
        let parts = ModelParts {
            name,
            config: &config,
            weights: &weights,
            tokenizer: None,
            kind: Some(kind),
            pooling: None,
        };
        let error = write_model(&out, &parts).unwrap_err().to_string();
        assert!(!out.exists() && !error.contains('\n'), "{error}");
        error
    };
    let set = |key: &'static str, value: Value| {
        move |config: &mut Map<String, Value>| drop(config.insert(key.into(), value.clone()))
    };
    for (name, key, value, part) in [
        ("llama", "hidden_act", json!("relu"), "hidden_act 'relu'"),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "dynamic", "factor": 2.0}),
            "'dynamic' is not supported",
        ),
        ("llama", "model_type", json!("bloom"), "model_type 'bloom' cannot be written"),
        ("llama", "model_type", json!("phi3"), "has no such tensor"),
        ("gemma2", "query_pre_attn_scalar", json!(10), "query_pre_attn_scalar = 10"),
        ("gemma3", "query_pre_attn_scalar", json!(3), "query_pre_attn_scalar = 3"),
        ("smollm3", "no_rope_layer_interval", json!(2), "every fourth layer"),
        ("phi-norms", "vocab_size", json!(82), "phi2"),
        ("qwen3", "vocab_size", json!(82), "llama.cpp's qwen3 has no such bias"),
        ("arcee", "vocab_size", json!(82), "llama.cpp's arcee has no such bias"),
        ("seed-oss", "vocab_size", json!(82), "llama.cpp's seed_oss has no such bias"),
        (
            "qwen2",
            "rope_scaling",
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }),
            "rope scaling 'llama3' is not supported by llama.cpp's qwen2",
        ),
        ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5"),
        ("qwen2", "head_dim", json!(16), "qwen2 has heads of 32 elements together, not 4 of 16"),
        ("gpt2", "scale_attn_weights", json!(false), "scale_attn_weights = false"),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0}),
            "beta_fast = 4: llama.cpp uses 32",
        ),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0, "truncate": false}),
            "truncate = false is not supported",
        ),
        ("gpt-oss", "swiglu_limit", json!(0.9), "swiglu_limit = 0.9: llama.cpp's gpt-oss computes with 7"),
        ("gpt-oss-plain", "swiglu_alpha", json!(1.2), "swiglu_alpha = 1.2: llama.cpp's gpt-oss"),
        (
            "quantised-mxfp4",
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 2.0}),
            "truncate = true is not supported by llama.cpp's gpt-oss",
        ),
        ("quantised-mxfp4", "sliding_window", json!(null), "sliding_window = null"),
        (
            "quantised-mxfp4",
            "layer_types",
            json!(["full_attention"]),
            "layer_types has 1 entries for 2 layers",
        ),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0, "truncate": null}),
            "truncate = null is not supported",
        ),
    ] {
        let error = refusal(name, &set(key, value));
        assert!(error.contains(part), "{error}");
    }
}

/// llama.cpp requires `output.weight` for some architectures and rejects it for others.
#[test]
fn heads_are_written_where_llama_cpp_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("model.safetensors"), folder.path().join("model.gguf"));
    for (name, has_head) in [("stablelm", true), ("llama", false), ("olmo2", true)] {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let kept = checkpoint.names().filter(|tensor| !tensor.starts_with("lm_head"));
        let tensors = kept.map(|tensor| {
            let shape = checkpoint.info(tensor).unwrap().shape.clone();
            HostTensor::new(tensor, shape, checkpoint.read_f32(tensor).unwrap())
        });
        write_safetensors(&source, tensors.collect(), FloatType::F32, &Default::default()).unwrap();
        let weights = Checkpoint::open(&source).unwrap();
        let mut config = config(&fixture(name));
        config.insert("tie_word_embeddings".into(), true.into());
        let kind = FloatType::F32.into();
        write_model(
            &out,
            &ModelParts {
                name,
                config: &config,
                weights: &weights,
                tokenizer: None,
                kind: Some(kind),
                pooling: None,
            },
        )
        .unwrap();
        let written = Checkpoint::open(&out).unwrap();
        assert_eq!(written.contains("lm_head.weight"), has_head, "{name}");
        if has_head {
            let table = written.bytes("model.embed_tokens.weight").unwrap();
            assert_eq!(written.bytes("lm_head.weight").unwrap(), table);
        }
    }
}

/// The head of these is the token embedding: a copy of it is left out, and a trained head is refused.
#[test]
fn a_trained_head_is_refused_where_llama_cpp_ties_it() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("model.safetensors"), folder.path().join("model.gguf"));
    let checkpoint = Checkpoint::open(fixture("gemma")).unwrap();
    let config = config(&fixture("gemma"));
    for scale in [1.0, 2.0] {
        let read = |tensor: &str| {
            (checkpoint.info(tensor).unwrap().shape.clone(), checkpoint.read_f32(tensor).unwrap())
        };
        let mut tensors: Vec<HostTensor<'_>> = checkpoint
            .names()
            .filter(|tensor| !tensor.starts_with("lm_head"))
            .map(|tensor| {
                let (shape, values) = read(tensor);
                HostTensor::new(tensor, shape, values)
            })
            .collect();
        let (shape, table) = read("model.embed_tokens.weight");
        let head: Vec<f32> = table.into_iter().map(|x| scale * x).collect();
        tensors.push(HostTensor::new("lm_head.weight", shape, head));
        write_safetensors(&source, tensors, FloatType::F32, &Default::default()).unwrap();
        let weights = Checkpoint::open(&source).unwrap();
        let kind = FloatType::F32.into();
        let parts = ModelParts {
            name: "gemma",
            config: &config,
            weights: &weights,
            tokenizer: None,
            kind: Some(kind),
            pooling: None,
        };
        match write_model(&out, &parts) {
            Ok(_) => assert_eq!(scale, 1.0),
            Err(error) => assert!(scale == 2.0 && error.to_string().contains("'lm_head.weight'"), "{error}"),
        }
    }
}

/// llama.cpp caps Gemma 2's scores and logits even if a file does not say so.
#[test]
fn gemma2_without_caps_has_those_of_llama_cpp() {
    let mut bytes = std::fs::read(converted("gemma2")).unwrap();
    for key in ["gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"] {
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
        // Another key of the same length.
        bytes[at] = b'x';
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let config = config(&path);
    let caps = ["attn_logit_softcapping", "final_logit_softcapping"].map(|key| config[key].as_f64());
    assert_eq!(caps, [Some(50.0), Some(30.0)]);
}

#[test]
fn a_file_that_is_no_model_of_ours_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes = std::fs::read(converted("llama")).unwrap();
    let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"qwenx");
    std::fs::write(&path, &other).unwrap();
    let error = ModelFolder::open(&path).unwrap_err().to_string();
    assert!(error.contains("'qwenx' is not supported; expected one of llama"), "{error}");
    std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    let error = ModelFolder::open(&path).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
    std::fs::write(&path, b"nothing").unwrap();
    let error = ModelFolder::open(&path).unwrap_err().to_string();
    assert!(error.contains("is a file and no GGUF file"), "{error}");
}
