//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024).

use super::{DecoderArchitecture, DecoderNames, QkvNames};
use crate::decoder::{DecoderConfig, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "llama", names: NAMES, config };

/// Mistral, Qwen2 and StableLM have the same.
pub(super) const NAMES: DecoderNames = DecoderNames {
    prefix: "model.",
    embedding: "embed_tokens",
    positions: None,
    layers: "layers",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    output: "self_attn.o_proj",
    gate: Some("mlp.gate_proj"),
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    norm: "norm",
    head: "lm_head",
    conv1d: false,
    buffers: &["rotary_emb.inv_freq"],
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let bias = keys.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: keys.flag_or("mlp_bias", false)?,
        ..DecoderConfig::common(architecture, keys)?
    })
}
