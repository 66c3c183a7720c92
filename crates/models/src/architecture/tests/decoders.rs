//! Reading configs of decoders.

use super::*;

#[rstest]
#[case("llama4", "the nearest is llama")]
#[case("deepseek_v3", "latent attention")]
#[case("bert", "is an encoder")]
fn unknown_decoders_are_placed(#[case] model_type: &str, #[case] part: &str) {
    let error = decoder(model_type).unwrap_err();
    assert!(error.contains(part), "{error}");
}

#[test]
fn a_mistral_without_the_key_has_a_window() {
    let raw = |window: &str| {
        let text = format!(
            r#"{{"model_type":"mistral","vocab_size":9,"hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
                "intermediate_size":8{window}}}"#
        );
        DecoderConfig::parse(serde_json::from_str(&text).unwrap()).unwrap().layers[0].window
    };
    assert_eq!(raw(""), Some(4096));
    assert_eq!(raw(r#","sliding_window":null"#), None);
    assert_eq!(raw(r#","sliding_window":7"#), Some(7));
}

#[test]
fn every_buffer_of_an_architecture_is_known_as_one() {
    let of_decoders = DECODERS.iter().flat_map(|a| a.names.buffers);
    for end in ENCODER_BUFFERS.iter().chain(of_decoders) {
        assert!(is_buffer(&format!("model.{}", end.trim_start_matches('.'))), "{end}");
    }
}

#[rstest]
#[case("falcon", r#"{"new_decoder_architecture":true,"parallel_attn":false}"#, "parallel_attn = false")]
#[case("falcon", r#"{"num_ln_in_parallel_attn":2}"#, "num_ln_in_parallel_attn = 2")]
#[case("bloom", r#"{"apply_residual_connection_post_layernorm":true}"#, "apply_residual_connection")]
#[case("mpt", r#"{"attn_config":{"alibi":false}}"#, "attn_config: alibi = false is not supported")]
#[case("mpt", r#"{"attn_config":{"attn_type":"multiquery_attention"}}"#, "'multiquery_attention'")]
#[case("mpt", r#"{"attn_config":{"alibi_bias_max":16}}"#, "attn_config: alibi_bias_max = 16")]
#[case("mpt", r#"{"expansion_ratio":2}"#, "expansion_ratio = 2")]
#[case("mpt", r#"{"no_bias":false}"#, "no_bias = false")]
#[case("mpt", r#"{"logit_scale":"inv_sqrt_d_model"}"#, "logit_scale")]
#[case("gptj", r#"{"tie_word_embeddings":true}"#, "tie_word_embeddings = true")]
#[case("gptj", r#"{"rotary_dim":10}"#, "rotary_dim = 10")]
#[case("gptj", r#"{"rotary_dim":null}"#, "rotary_dim = null")]
#[case("llama", r#"{"partial_rotary_factor":0.5}"#, "partial_rotary_factor = 0.5")]
#[case("qwen2", r#"{"rope_parameters":{"partial_rotary_factor":0.5}}"#, "partial_rotary_factor = 0.5")]
#[case(
    "mixtral",
    r#"{"num_hidden_layers":4096,"num_local_experts":1024,"num_experts_per_tok":2}"#,
    "4194304 experts in all layers"
)]
#[case("gptj", r#"{"hidden_size":null,"n_embd":"wide"}"#, "n_embd = \"wide\"")]
#[case(
    "gpt_neo",
    r#"{"attention_types":[[["global","local"],3]]}"#,
    "attention_types has 6 entries for 4 layers"
)]
#[case("gpt_neo", r#"{"attention_types":[[["near"],4]]}"#, "expected lists of 'global' and 'local'")]
#[case("gpt_neo", r#"{"attention_types":[3]}"#, "expected lists of 'global' and 'local'")]
#[case("gpt_bigcode", r#"{"add_cross_attention":true}"#, "add_cross_attention")]
#[case("ministral3", "{}", "rope_parameters is missing")]
#[case("ministral3", r#"{"rope_parameters":{"rope_theta":1e4}}"#, "llama_4_scaling_beta is missing")]
#[case("cwm", "{}", "rope_parameters is missing")]
#[case("olmo", r#"{"clip_qkv":-1}"#, "clip_qkv = -1")]
#[case("gemma2", r#"{"attn_logit_softcapping":0}"#, "attn_logit_softcapping = 0")]
#[case("gemma2", r#"{"use_bidirectional_attention":true}"#, "use_bidirectional_attention")]
#[case("exaone4", r#"{"sliding_window_pattern":"LLLG"}"#, "sliding_window_pattern")]
#[case("llama", r#"{"is_causal":false}"#, "is_causal = false")]
#[case("mistral", r#"{"per_layer_config":{"1":{"sliding_window":4}}}"#, "per_layer_config")]
#[case("gpt2", r#"{"is_causal":null}"#, "is_causal = false or null")]
#[case("gemma3_text", r#"{"is_causal":false}"#, "is_causal = false")]
#[case("bloom", r#"{"slow_but_exact":true,"pretraining_tp":4}"#, "pretraining_tp = 4")]
#[case("phi", r#"{"tie_word_embeddings":true}"#, "tie_word_embeddings = true")]
#[case("gpt_neo", r#"{"attention_layers":["local"]}"#, "attention_layers = [\"local\"]")]
#[case("gemma3_text", r#"{"rope_scaling":{"type":"linear","factor":2}}"#, "type 'linear' without rope_type")]
#[case("olmo3", r#"{"rope_scaling":{"type":"yarn","factor":2}}"#, "type 'yarn' without rope_type")]
#[case(
    "qwen3",
    r#"{"layer_types":["sliding_attention","full_attention","full_attention","full_attention"],"use_sliding_window":false}"#,
    "set sliding_window and use_sliding_window"
)]
#[case(
    "mistral",
    r#"{"layer_types":["sliding_attention","full_attention","full_attention","full_attention"],"sliding_window":null}"#,
    "layer_types has sliding_attention"
)]
fn options_of_decoders_that_cannot_be_run_are_refused(
    #[case] model_type: &str,
    #[case] changes: &str,
    #[case] message: &str,
) {
    let error = decoder_config(model_type, changes).unwrap_err();
    assert!(error.contains(message) && !error.contains('\n'), "{error}");
}

#[rstest]
#[case("llama", 2048)]
#[case("qwen2", 32_768)]
#[case("qwen3", 32_768)]
#[case("mistral", 131_072)]
#[case("stablelm", 4096)]
#[case("arcee", 4096)]
fn an_absent_length_is_the_architecture_s(#[case] model_type: &str, #[case] length: usize) {
    let changes = r#"{"rope_parameters":{"rope_type":"dynamic","factor":2.0}}"#;
    let config = decoder_config(model_type, changes).unwrap();
    assert_eq!(config.max_positions, length);
    let scaling = RopeScaling::Dynamic { factor: 2.0, max_positions: length as f64 };
    assert_eq!(config.ropes[0].scaling, scaling);
}

/// Its original length stands beside the rotary parameters, with a default, and overrides theirs.
#[test]
fn the_original_length_of_phi3_is_4096_by_default() {
    let original = |changes: Value| {
        let mut all = json!({"max_position_embeddings": 16384, "rope_parameters": {"rope_type": "longrope",
            "original_max_position_embeddings": 7, "short_factor": [1, 1, 1, 1], "long_factor": [1, 1, 1, 1]}});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        match &decoder_config("phi3", &all.to_string()).unwrap().ropes[0].scaling {
            RopeScaling::LongRope { original_length, .. } => *original_length,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(original(json!({})), 4096);
    assert_eq!(original(json!({"original_max_position_embeddings": 64})), 64);
}

#[rstest]
#[case("mistral", [true, false, true, false])]
#[case("smollm3", [true, false, true, false])]
#[case("mixtral", [true; 4])]
#[case("phi3", [true; 4])]
#[case("starcoder2", [true; 4])]
#[case("qwen3_moe", [true; 4])]
#[case("ministral", [true, false, true, false])]
#[case("qwen3", [true, false, true, false])]
fn lists_of_layers_are_read_where_transformers_reads_them(
    #[case] model_type: &str,
    #[case] expected: [bool; 4],
) {
    let config = decoder_config(
        model_type,
        r#"{"sliding_window":7,"use_sliding_window":true,"num_experts":2,"num_experts_per_tok":1,
            "moe_intermediate_size":8,
            "layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"]}"#,
    )
    .unwrap();
    let has_window: Vec<bool> = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(has_window, expected);
}

#[test]
fn soft_caps_are_there_unless_they_are_null() {
    let caps = |changes| {
        let config = decoder_config("gemma2", changes).unwrap();
        (config.attention_softcap, config.logit_softcap)
    };
    assert_eq!(caps("{}"), (Some(50.0), Some(30.0)));
    assert_eq!(caps(r#"{"attn_logit_softcapping":null,"final_logit_softcapping":7}"#), (None, Some(7.0)));
}

#[test]
fn windows_and_rotations_go_by_layer() {
    let kinds = |model_type, changes| -> Vec<(Option<usize>, Option<usize>)> {
        let config = decoder_config(model_type, changes).unwrap();
        config.layers.iter().map(|layer| (layer.window, layer.rope)).collect()
    };
    let near = (Some(4096), Some(0));
    assert_eq!(kinds("cohere2", "{}"), [near, near, near, (None, None)]);
    assert_eq!(kinds("cohere2", r#"{"sliding_window":null}"#), [(None, None); 4]);
    assert_eq!(kinds("exaone4", r#"{"sliding_window":null}"#), [(None, Some(0)); 4]);
    let own = (Some(4096), Some(1));
    assert_eq!(kinds("olmo3", "{}"), [own, own, own, (None, Some(0))]);
    let (full, window) = ((None, Some(0)), (Some(8192), Some(0)));
    assert_eq!(
        kinds("cwm", r#"{"rope_scaling":{"type":"linear","factor":2}}"#),
        [full, window, window, window]
    );
    assert_eq!(kinds("gemma2", "{}"), [near, (None, Some(0)), near, (None, Some(0))]);
}

/// No key, null and an empty object are the same to transformers.
#[rstest]
#[case(r#"{"num_key_value_heads":2}"#)]
#[case(r#"{"num_key_value_heads":2,"rope_scaling":null}"#)]
#[case(r#"{"num_key_value_heads":2,"rope_parameters":{}}"#)]
fn gpt_oss_scales_its_rotation_by_default(#[case] changes: &str) {
    let config = decoder_config("gpt_oss", changes).unwrap();
    let RopeScaling::Yarn { factor, ramp, .. } = config.ropes[0].scaling else {
        panic!("{:?}", config.ropes)
    };
    assert_eq!((factor, config.ropes[0].theta), (32.0, 150_000.0));
    assert!(ramp[0].fract() > 0.0 && ramp[1].fract() > 0.0, "not rounded: {ramp:?}");
    let other =
        decoder_config("gpt_oss", r#"{"num_attention_heads":8,"rope_scaling":{"rope_type":"default"}}"#)
            .unwrap();
    assert_eq!(other.ropes[0].scaling, RopeScaling::None);
}

#[test]
fn a_list_of_layers_makes_smollm3_s_flag_for_windows_void() {
    let windows = |changes| -> Vec<Option<usize>> {
        decoder_config("smollm3", changes).unwrap().layers.iter().map(|layer| layer.window).collect()
    };
    let list = r#"{"sliding_window":7,"use_sliding_window":false,
        "layer_types":["full_attention","sliding_attention","full_attention","full_attention"]}"#;
    assert_eq!(windows(list), [None, Some(7), None, None]);
    assert_eq!(windows(r#"{"sliding_window":7}"#), [None; 4]);
}

#[test]
fn a_null_window_of_qwen2_is_none() {
    let window = |changes| decoder_config("qwen2", changes).unwrap().layers[3].window;
    assert_eq!(window(r#"{"use_sliding_window":true,"max_window_layers":3,"sliding_window":null}"#), None);
    assert_eq!(window(r#"{"use_sliding_window":true,"max_window_layers":3}"#), Some(4096));
}

/// The values are those of transformers 5.23 for the same files.
#[test]
fn second_names_of_keys_give_way_to_the_common_ones() {
    let heads =
        |model_type, own: &str| decoder_config(model_type, &format!(r#"{{"{own}":2}}"#)).unwrap().n_heads;
    for (model_type, own) in
        [("gpt2", "n_head"), ("gpt_neo", "num_heads"), ("bloom", "n_head"), ("mpt", "n_heads")]
    {
        assert_eq!(heads(model_type, own), 4, "{model_type}");
    }
    // These are separate keys.
    let config = decoder_config("gpt2", r#"{"n_inner":8}"#).unwrap();
    assert_eq!(config.d_ff, 8);
    assert_eq!(decoder_config("opt", r#"{"ffn_dim":8}"#).unwrap().d_ff, 8);
    assert_eq!(decoder_config("bloom", r#"{"n_embed":8}"#).unwrap().d_model, 8);
    assert_eq!(decoder_config("gpt2", r#"{"n_head":2,"num_attention_heads":null}"#).unwrap().n_heads, 2);
    let bart = seq2seq(r#"{"model_type":"bart","num_hidden_layers":3,"num_attention_heads":8}"#).unwrap();
    assert_eq!((bart.encoder.n_layers, bart.decoder.n_layers, bart.decoder.first_layer), (3, 5, 3));
    assert_eq!((bart.encoder.n_heads, bart.decoder.n_heads), (8, 2));
}

#[test]
fn layers_of_gpt_neo_are_those_of_the_longer_list() {
    let windows = |changes| -> Vec<bool> {
        decoder_config("gpt_neo", changes)
            .unwrap()
            .layers
            .iter()
            .map(|layer| layer.window.is_some())
            .collect()
    };
    let both = r#"{"attention_types":[[["global","local"],2]],"attention_layers":["local","local","global","local"]}"#;
    assert_eq!(windows(both), [true, true, false, true]);
    assert_eq!(windows(r#"{"attention_types":[[["global","local"],2]]}"#), [false, true, false, true]);
}

#[rstest]
#[case("mixtral", "{}", [8, 2])]
#[case("mixtral", r#"{"num_local_experts":4,"num_experts":3}"#, [3, 2])]
#[case("olmoe", r#"{"num_local_experts":9,"num_experts":16}"#, [9, 8])]
#[case("qwen3_moe", "{}", [128, 8])]
#[case("qwen2_moe", r#"{"num_local_experts":9}"#, [60, 4])]
fn numbers_of_experts_are_those_of_transformers(
    #[case] model_type: &str,
    #[case] changes: &str,
    #[case] expected: [usize; 2],
) {
    let mut changes: Map<String, Value> = serde_json::from_str(changes).unwrap();
    changes.insert("moe_intermediate_size".into(), 8.into());
    changes.insert("shared_expert_intermediate_size".into(), 8.into());
    let experts = decoder_config(model_type, &Value::from(changes).to_string()).unwrap().experts.unwrap();
    assert_eq!([experts.count, experts.top_k], expected);
}
