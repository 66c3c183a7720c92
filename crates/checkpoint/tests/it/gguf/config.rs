//! What the metadata of a file mean for the config.

use lowrank_checkpoint::read_file;
use rstest::rstest;

use super::{File, floats, whole_model};
use crate::check_error;

/// Rotary positions are scaled as llama.cpp scales them, and by the `attention_factor` of the config that was converted.
#[test]
fn rope_metadata_mean_what_they_mean_to_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let number = |file: File, key: &str, value: f32| file.raw(key, 6, &value.to_le_bytes());
    let plain = || {
        let mut file = whole_model();
        file.tensors.retain(|(name, ..)| name != "rope_freqs.weight");
        file
    };
    let factor = |file: File, value: f32| number(file, "llama.rope.scaling.factor", value);
    let kind = |kind: &str| plain().text("llama.rope.scaling.type", kind);
    let config = |file: File| -> Result<serde_json::Value, String> {
        std::fs::write(&path, file.bytes()).unwrap();
        let config = read_file(path.join("config.json")).map_err(|e| e.to_string())?;
        Ok(serde_json::from_slice::<serde_json::Value>(&config).unwrap()["rope_scaling"].clone())
    };
    assert_eq!(config(factor(plain(), 4.0)).unwrap()["rope_type"], "linear");
    assert!(config(factor(kind("none"), 4.0)).unwrap().is_null());
    assert!(
        config(factor(kind("linear"), 0.0)).unwrap().is_null() && config(kind("linear")).unwrap().is_null()
    );
    let yarn = || factor(kind("yarn"), 4.0);
    let usual = 0.1 * 4f64.ln() + 1.0;
    let (own, converter) = ("llama.rope.scaling.attn_factor", "llama.rope.scaling.yarn_attn_factor");
    for (file, expected) in [
        (yarn(), usual),
        (number(yarn(), own, 0.5), 0.5 * usual),
        (number(yarn(), converter, 0.5), 0.5),
        // As llama.cpp's model saver writes them, and as we do.
        (number(number(yarn(), own, 1.0), converter, 1.0), usual),
        (number(number(yarn(), own, 0.5), converter, (0.5 * usual) as f32), 0.5 * usual),
    ] {
        let scaling = config(file).unwrap();
        assert!((scaling["attention_factor"].as_f64().unwrap() - expected).abs() < 1e-9, "{scaling}");
    }
    let refused: [(File, &str); 5] = [
        (number(yarn(), "llama.rope.scaling.yarn_beta_fast", 16.0), "yarn_beta_fast = 16"),
        (number(plain(), "llama.rope.scaling.attn_factor", 0.5), "without yarn is not supported"),
        (factor(whole_model(), 4.0), "beside rope_freqs.weight"),
        (plain().raw("llama.attention.causal", 7, &[0]), "attention.causal = false"),
        (factor(kind("dynamic"), 4.0), "'dynamic' with the factor 4"),
    ];
    for (file, reason) in refused {
        let error = config(file).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

fn config_of(file: &File) -> Result<serde_json::Value, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let config = read_file(path.join("config.json")).map_err(|e| e.to_string())?;
    Ok(serde_json::from_slice(&config).unwrap())
}

/// A Gemma 2 or 3 of width 32 in two heads with this number of layers.
fn gemma(name: &str, layers: u32) -> File {
    let zeros = |n: usize| floats(vec![0.0; n]);
    let mut file = File::new()
        .text("general.architecture", name)
        .count(&format!("{name}.block_count"), layers)
        .count(&format!("{name}.context_length"), 64)
        .count(&format!("{name}.embedding_length"), 32)
        .count(&format!("{name}.attention.head_count"), 2)
        .count(&format!("{name}.attention.head_count_kv"), 2)
        .count(&format!("{name}.attention.key_length"), 8)
        .raw(&format!("{name}.attention.layer_norm_rms_epsilon"), 6, &1e-6f32.to_le_bytes())
        .tensor("token_embd.weight", &[32, 4], 0, &zeros(128))
        .tensor("output_norm.weight", &[32], 0, &zeros(32));
    for layer in 0..layers {
        for stem in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            file = file.tensor(&format!("blk.{layer}.{stem}.weight"), &[32, 32], 0, &zeros(1024));
        }
        for stem in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
            file = file.tensor(&format!("blk.{layer}.{stem}.weight"), &[32], 0, &zeros(32));
        }
        for stem in ["attn_q_norm", "attn_k_norm"].into_iter().filter(|_| name == "gemma3") {
            file = file.tensor(&format!("blk.{layer}.{stem}.weight"), &[16], 0, &zeros(16));
        }
    }
    file
}

#[rstest]
#[case("gemma2")]
#[case("gemma3")]
fn windows_follow_the_pattern(#[case] name: &str) {
    let key = format!("{name}.attention.sliding_window_pattern");
    let file = || gemma(name, 4).count(&format!("{name}.attention.sliding_window"), 8);
    let types = |file: &File| {
        let config = config_of(file).unwrap();
        let types = config["layer_types"].as_array()?.clone();
        Some(types.iter().map(|kind| kind == "sliding_attention").collect::<Vec<_>>())
    };
    let list = [true, false, false, true];
    let flags = [&7u32.to_le_bytes()[..], &4u64.to_le_bytes(), &list.map(u8::from)].concat();
    assert_eq!(types(&file().raw(&key, 9, &flags)).unwrap(), list);
    let numbers = list.map(|flag| u32::from(flag).to_le_bytes());
    assert_eq!(types(&file().numbers(&key, 4, &numbers)).unwrap(), list);
    assert_eq!(types(&file().count(&key, 3)).unwrap(), [true, true, false, true]);
    assert_eq!(types(&file().count(&key, 1)).unwrap(), [false; 4]);
    assert_eq!(types(&file().count(&key, 0)).unwrap(), [true; 4]);
    assert_eq!(types(&file()), None);
    if name == "gemma3" {
        assert_eq!(types(&gemma(name, 4).count(&key, 0)), None, "without a window");
    }
    for wrong in [file().numbers(&key, 4, &numbers[..3]), file().numbers(&key, 6, &numbers)] {
        let error = config_of(&wrong).unwrap_err();
        assert!(error.contains(&format!("{key} is not a list of 4 flags, one for each layer")), "{error}");
    }
    let error = config_of(&file().text(&key, "6")).unwrap_err();
    assert!(error.contains(&format!("{key} is not a count")), "{error}");
}

/// llama.cpp's model saver writes the scale that it computes with, or 0 where it takes the usual one.
#[test]
fn the_implied_scale_of_scores_is_taken() {
    let of = |file: File, name: &str, scale: f32| {
        config_of(&file.raw(&format!("{name}.attention.scale"), 6, &scale.to_le_bytes()))
    };
    for (file, name, implied) in [
        (whole_model as fn() -> File, "llama", 0.25f32),
        (|| gemma("gemma2", 46), "gemma2", 0.25),
        (|| gemma("gemma3", 2), "gemma3", 0.353_553_4),
    ] {
        for scale in [0.0, implied] {
            assert_eq!(of(file(), name, scale), config_of(&file()));
        }
        let error = of(file(), name, 0.3).unwrap_err();
        assert!(error.contains("attention.scale = 0.3 is not supported; expected 0."), "{error}");
    }
}

/// A gpt-oss without layers.
fn gpt_oss() -> File {
    let zeros = |n: usize| floats(vec![0.0; n]);
    File::new()
        .text("general.architecture", "gpt-oss")
        .count("gpt-oss.context_length", 64)
        .count("gpt-oss.block_count", 0)
        .count("gpt-oss.embedding_length", 32)
        .count("gpt-oss.feed_forward_length", 32)
        .count("gpt-oss.expert_count", 4)
        .count("gpt-oss.expert_used_count", 2)
        .count("gpt-oss.attention.head_count", 2)
        .raw("gpt-oss.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
        .tensor("token_embd.weight", &[32, 4], 0, &zeros(128))
        .tensor("output.weight", &[32, 4], 0, &zeros(128))
        .tensor("output_norm.weight", &[32], 0, &zeros(32))
}

/// `<|end|>` ends a message of gpt-oss, whose turn goes on; other models end with it.
#[test]
fn the_end_of_a_message_is_not_that_of_a_turn() {
    let ends = |tokens: &[&str]| {
        let file = gpt_oss().text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", tokens);
        config_of(&file.count("tokenizer.ggml.eos_token_id", 2)).unwrap()["eos_token_id"].clone()
    };
    assert_eq!(ends(&["a", "<|end|>", "<|return|>", "<|call|>"]), serde_json::json!([2, 3]));
    assert_eq!(ends(&["a", "<|end|>", "<|return|>", "b"]), serde_json::json!([2, 1]));
}

#[test]
fn positions_of_other_kinds_are_refused() {
    let of = |name: &str| {
        File::new()
            .text("general.architecture", name)
            .count(&format!("{name}.context_length"), 64)
            .count(&format!("{name}.block_count"), 0)
            .count(&format!("{name}.embedding_length"), 32)
            .count(&format!("{name}.feed_forward_length"), 32)
            .count(&format!("{name}.attention.head_count"), 2)
            .count(&format!("{name}.attention.head_count_kv"), 2)
            .raw(&format!("{name}.attention.layer_norm_rms_epsilon"), 6, &1e-6f32.to_le_bytes())
            .tensor("token_embd.weight", &[32, 4], 0, &floats(vec![0.0; 128]))
            .tensor("output_norm.weight", &[32], 0, &floats(vec![0.0; 32]))
    };
    let sections = |numbers: [u32; 4]| {
        of("glm4").numbers("glm4.rope.dimension_sections", 5, &numbers.map(u32::to_le_bytes))
    };
    assert!(config_of(&sections([0; 4])).is_ok());
    let error = config_of(&sections([8, 12, 12, 0])).unwrap_err();
    assert!(error.contains("glm4.rope.dimension_sections") && error.contains("is not supported"), "{error}");
    let bases = |local: f32| {
        let base = |file: File, key: &str, value: f32| file.raw(key, 6, &value.to_le_bytes());
        let file = base(gpt_oss(), "gpt-oss.rope.freq_base", 1.5e5);
        config_of(&base(file, "gpt-oss.rope.freq_base_swa", local))
    };
    assert_eq!(bases(1.5e5).unwrap()["rope_theta"], 1.5e5);
    let error = bases(1e4).unwrap_err();
    assert!(error.contains("gpt-oss.rope.freq_base_swa = 10000, another base"), "{error}");
    let finetuned = |flag: u8| of("granite").raw("granite.rope.scaling.finetuned", 7, &[flag]);
    assert!(config_of(&finetuned(1)).is_ok());
    assert!(config_of(&finetuned(0)).unwrap_err().contains("without rotary positions"));
}

/// llama.cpp's converter fuses queries, keys and values on request.
#[test]
fn biases_of_fused_maps_are_biases() {
    let fused = |has_bias: bool| {
        let mut file = whole_model();
        file.tensors
            .retain(|(name, ..)| !["attn_q.", "attn_k.", "attn_v."].iter().any(|map| name.contains(map)));
        let file = file.tensor("blk.0.attn_qkv.weight", &[32, 64], 0, &floats(vec![0.0; 2048]));
        match has_bias {
            true => file.tensor("blk.0.attn_qkv.bias", &[64], 0, &floats(vec![0.0; 64])),
            false => file,
        }
    };
    for has_bias in [true, false] {
        assert_eq!(config_of(&fused(has_bias)).unwrap()["attention_bias"], has_bias);
    }
}

#[test]
fn a_config_is_derived_from_complete_files_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let error = |file: File| {
        std::fs::write(&path, file.bytes()).unwrap();
        read_file(path.join("config.json")).unwrap_err().to_string()
    };
    for (name, hub) in [
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ] {
        let mut file = whole_model();
        file.tensors.retain(|(own, ..)| own != name);
        let error = error(file);
        assert!(error.contains(&format!("lacks the tensor '{name}' ({hub})")), "{error}");
    }
    let more = whole_model().tensor("blk.1.ffn_up.weight", &[32, 8], 0, &floats(vec![0.0; 256]));
    assert!(error(more).contains("has the tensor 'blk.1.ffn_up.weight', and its config 1 layers"));
    let experts = File::new()
        .text("general.architecture", "qwen3moe")
        .count("qwen3moe.expert_count", 3)
        .tensor("blk.0.ffn_up_exps.weight", &[4, 4, 2], 0, &floats(vec![0.0; 32]));
    check_error(
        experts.open(),
        &["'blk.0.ffn_up_exps.weight'", "holds 2 experts, and qwen3moe.expert_count is 3"],
    );
}
