//! Qwen2-MoE and Qwen1.5-MoE (Yang et al. 2024): Qwen2 with experts, and a shared expert for all tokens.

use super::{llama, qwen2};
use crate::config::{
    DecoderArchitecture, DecoderConfig, ExpertNames, ExpertsConfig, Keys, MAX_DIM, MlpNames,
    SharedExpertNames,
};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "qwen2_moe", class: "Qwen2Moe", config, ..llama::ARCHITECTURE };

/// Most later architectures use these.
pub(super) const EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    maps: MlpNames { gate: Some("gate_proj"), up: "up_proj", up_has_gate: false, down: "down_proj" },
    is_fused: false,
    shared: None,
};

const WITH_SHARED: ExpertNames = ExpertNames {
    shared: Some(SharedExpertNames { expert: "mlp.shared_expert", gate: "mlp.shared_expert_gate" }),
    ..EXPERTS
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let experts = ExpertsConfig {
        shared_d_ff: Some(keys.size("shared_expert_intermediate_size")?),
        normalizes: keys.flag_or("norm_topk_prob", false)?,
        ..ExpertsConfig::read(keys, &WITH_SHARED, "moe_intermediate_size", &["num_experts"], [60, 4])?
    };
    let bias = keys.flag_or("qkv_bias", true)?;
    let common =
        DecoderConfig { qkv_bias: bias, ..DecoderConfig::with(architecture, keys, qwen2::DEFAULTS)? };
    let full_from = keys.number_or("max_window_layers", 28.0)? as usize;
    // transformers gives windows to the layers of even index only, if no list specifies it.
    let windows =
        common.with_windows(keys, window(keys)?, |layer| layer.is_multiple_of(2) && layer < full_from)?;
    windows.with_sparse_layers(keys, experts)
}

/// The window, if `use_sliding_window` is set.
pub(super) fn window(keys: &Keys<'_>) -> Result<Option<usize>, String> {
    match keys.flag_or("use_sliding_window", false)? {
        true if keys.has("sliding_window") => keys.optional_size("sliding_window", MAX_DIM),
        true => Ok(Some(4096)),
        false => Ok(None),
    }
}
