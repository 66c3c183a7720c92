//! GLM-4 9B and GLM-Edge (GLM Team 2024): Llama with biases on queries, keys and values, interleaved rotary
//! pairs over half of the head, one map for gate and up.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "glm", class: "Glm", names: NAMES, config, ..llama::ARCHITECTURE };

pub(super) const NAMES: DecoderNames =
    DecoderNames { gate: None, up: "mlp.gate_up_proj", up_has_gate: true, ..llama::NAMES };

pub(super) fn config(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        head_dim: Some(128),
        norm_eps: 1.562_5e-7,
        rope: RopeKeys { interleaved: true, ..RopeKeys::partial(0.5) },
        max_positions: 131_072,
        ..Defaults::DEFAULT
    };
    Ok(DecoderConfig {
        n_kv_heads: keys.size_or("num_key_value_heads", 2)?,
        qkv_bias: keys.flag_or("attention_bias", true)?,
        ..DecoderConfig::with(architecture, keys, defaults)?
    })
}
