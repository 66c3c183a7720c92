//! Mixtral (Jiang et al. 2024): Mistral with experts, two of which are used per token.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, Defaults, ExpertNames, ExpertsConfig, Keys, MAX_DIM, MlpNames,
    RopeKeys,
};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "mixtral", class: "Mixtral", config, ..llama::ARCHITECTURE };

const EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    maps: MlpNames { gate: Some("w1"), up: "w3", up_has_gate: false, down: "w2" },
    is_fused: false,
    shared: None,
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let rope = RopeKeys { default_theta: 1e6, ..RopeKeys::DEFAULT };
    let defaults = Defaults { norm_eps: 1e-5, rope, max_positions: 131_072, ..Defaults::DEFAULT };
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    let counts = ["num_experts", "num_local_experts"];
    let experts = ExpertsConfig::read(keys, &EXPERTS, "intermediate_size", &counts, [8, 2])?;
    Ok(DecoderConfig::with(architecture, keys, defaults)?.with_window(window).with_experts(experts))
}
