//! Qwen3-MoE (Yang et al. 2025): Qwen3 with experts in all layers, or in some.

use super::{llama, olmoe, qwen2, qwen2_moe};
use crate::config::{DecoderArchitecture, DecoderConfig, ExpertsConfig, Keys, QkNorm};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "qwen3_moe", class: "Qwen3Moe", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let experts = ExpertsConfig {
        normalizes: keys.flag_or("norm_topk_prob", false)?,
        ..ExpertsConfig::read(keys, &qwen2_moe::EXPERTS, "moe_intermediate_size", &olmoe::COUNTS, [128, 8])?
    };
    let bias = keys.flag_or("attention_bias", false)?;
    let config = DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Head),
        ..DecoderConfig::with(architecture, keys, qwen2::DEFAULTS)?
    };
    config.with_window(qwen2_moe::window(keys)?).with_sparse_layers(keys, experts)
}
