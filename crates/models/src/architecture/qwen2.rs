//! Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values, and windows in some layers.

use super::{llama, qwen2_moe};
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "qwen2", class: "Qwen2", config, ..llama::ARCHITECTURE };

/// Later ones have the same.
pub(super) const DEFAULTS: Defaults = Defaults { max_positions: 32_768, ..Defaults::DEFAULT };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let common = DecoderConfig { qkv_bias: true, ..DecoderConfig::with(architecture, keys, DEFAULTS)? };
    windows(common, keys)
}

/// Windows in the layers from `max_window_layers` on, if `use_sliding_window` is set.
pub(super) fn windows(config: DecoderConfig, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let full = keys.number_or("max_window_layers", 28.0)? as usize;
    config.with_windows(keys, qwen2_moe::window(keys)?, |layer| layer >= full)
}
