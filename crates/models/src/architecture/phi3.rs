//! Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024): Llama with one map for query, key and value and one for gate and
//! up.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, MAX_DIM, QkvNames,
    RopeKeys, RopeScaling,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "phi3",
    class: "Phi3",
    names: NAMES,
    dropouts: DROPOUTS,
    config,
    ..llama::ARCHITECTURE
};

// `embd_pdrop` is in the config and not in the model.
const DROPOUTS: DropoutKeys = DropoutKeys {
    attention_output: Some(("resid_pdrop", 0.0)),
    mlp_output: Some(("resid_pdrop", 0.0)),
    ..llama::DROPOUTS
};

const NAMES: DecoderNames = DecoderNames {
    qkv: QkvNames::Fused { name: "self_attn.qkv_proj", by_head: false },
    gate: None,
    up: "mlp.gate_up_proj",
    up_has_gate: true,
    ..llama::NAMES
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let rope = RopeKeys { original_length: Some(4096), ..RopeKeys::partial(1.0) };
    let defaults = Defaults { norm_eps: 1e-5, max_positions: 4096, rope, ..Defaults::DEFAULT };
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    let config = DecoderConfig::with(architecture, keys, defaults)?.with_window(window);
    let restart_length = config.ropes.iter().find_map(|rope| match rope.scaling {
        RopeScaling::LongRope { original_length, .. } => Some(original_length),
        _ => None,
    });
    Ok(DecoderConfig { restart_length, ..config })
}
