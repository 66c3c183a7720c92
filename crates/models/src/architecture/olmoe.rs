//! OLMoE (Muennighoff et al. 2024): many small experts, norms over all queries and all keys.

use super::{llama, qwen2_moe};
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, ExpertsConfig, Keys, QkNorm};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "olmoe", class: "Olmoe", config, ..llama::ARCHITECTURE };

/// The first is a second name in transformers, and holds where a file has both.
pub(super) const COUNTS: [&str; 2] = ["num_local_experts", "num_experts"];

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if let Some(clip) = keys.number("clip_qkv")? {
        return Err(format!("clip_qkv = {clip} is not supported; expected null"));
    }
    let experts = ExpertsConfig {
        normalizes: keys.flag_or("norm_topk_prob", false)?,
        ..ExpertsConfig::read(keys, &qwen2_moe::EXPERTS, "intermediate_size", &COUNTS, [64, 8])?
    };
    let defaults = Defaults { norm_eps: 1e-5, max_positions: 4096, ..Defaults::DEFAULT };
    let config = DecoderConfig { qk_norm: Some(QkNorm::All), ..llama::with(architecture, keys, defaults)? };
    Ok(config.with_experts(experts))
}
