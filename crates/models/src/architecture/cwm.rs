//! CWM (FAIR CodeGen team 2025): Llama 3 with a window in three of four layers.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "cwm", class: "Cwm", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if keys.get("rope_parameters").is_none() && keys.get("rope_scaling").is_none() {
        return Err("rope_parameters is missing".into());
    }
    let defaults = Defaults {
        head_dim: Some(128),
        norm_eps: 1e-5,
        rope: RopeKeys { default_theta: 1_000_000.0, ..RopeKeys::DEFAULT },
        max_positions: 131_072,
        ..Defaults::DEFAULT
    };
    let window = keys.size_or("sliding_window", 8192)?;
    let config =
        DecoderConfig { qkv_bias: false, output_bias: false, ..llama::with(architecture, keys, defaults)? };
    config.with_windows(keys, Some(window), |layer| !layer.is_multiple_of(4))
}
