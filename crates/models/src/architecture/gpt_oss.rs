//! gpt-oss (OpenAI 2025): experts with biases and a clamped gate, sinks in the softmax of every head, windows in every other
//! layer. Files store the experts of a layer in one tensor per map, in floats or in MXFP4.

use serde_json::{Map, Value, json};

use super::{llama, qwen2_moe};
use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, Defaults, ExpertNames, ExpertsConfig, Keys, MAX_DIM,
    RopeKeys,
};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "gpt_oss", class: "GptOss", config, ..llama::ARCHITECTURE };

const EXPERTS: ExpertNames = ExpertNames { router: "mlp.router", is_fused: true, ..qwen2_moe::EXPERTS };

/// The first is a second name in transformers, and holds where a file has both.
const COUNTS: [&str; 2] = ["num_experts", "num_local_experts"];

/// Of a config that gives none.
fn default_rope() -> Value {
    json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096,
    })
}

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let is_empty = |key: &str| keys.object(key).map(|object| object.is_none_or(|object| object.is_empty()));
    if is_empty("rope_parameters")? && is_empty("rope_scaling")? {
        let mut with_default: Map<String, Value> =
            keys.entries().map(|(k, v)| (k.clone(), v.clone())).collect();
        with_default.insert("rope_parameters".into(), default_rope());
        return config(architecture, &Keys::new(&with_default));
    }
    let defaults = Defaults {
        head_dim: Some(64),
        norm_eps: 1e-5,
        rope: RopeKeys { default_theta: 150_000.0, ..RopeKeys::DEFAULT },
        max_positions: 131_072,
        ..Defaults::DEFAULT
    };
    let activation = Activation::ClampedSilu {
        slope: keys.number_or("swiglu_alpha", 1.702)? as f32,
        limit: keys.positive("swiglu_limit")?.unwrap_or(7.0) as f32,
    };
    // The weights are a softmax over the scores of the chosen experts alone.
    let experts = ExpertsConfig {
        normalizes: true,
        router_bias: true,
        ..ExpertsConfig::read(keys, &EXPERTS, "intermediate_size", &COUNTS, [128, 4])?
    };
    let bias = keys.flag_or("attention_bias", true)?;
    let config = DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: true,
        n_kv_heads: keys.size_or("num_key_value_heads", 8)?,
        sinks: Some("self_attn.sinks"),
        activation,
        ..DecoderConfig::with(architecture, keys, defaults)?
    };
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(128),
    };
    Ok(config.with_windows(keys, window, |layer| layer.is_multiple_of(2))?.with_experts(experts))
}
