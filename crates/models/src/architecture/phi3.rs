//! Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024): Llama with one map for query, key and value and one for gate and
//! up.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, MAX_DIM, QkvNames};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "phi3", class: "Phi3", names: NAMES, config, ..llama::ARCHITECTURE };

const NAMES: DecoderNames = DecoderNames {
    qkv: QkvNames::Fused { name: "self_attn.qkv_proj", by_head: false },
    gate: None,
    up: "mlp.gate_up_proj",
    up_has_gate: true,
    ..llama::NAMES
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { norm_eps: 1e-5, max_positions: 4096, ..Defaults::DEFAULT };
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    DecoderConfig::with(architecture, keys, defaults)?.with_windows(keys, window, |_| true)
}
