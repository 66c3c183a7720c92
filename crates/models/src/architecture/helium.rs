//! Helium (Kyutai 2025): Llama with interleaved rotary pairs.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "helium", class: "Helium", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        head_dim: Some(128),
        norm_eps: 1e-8,
        rope: RopeKeys { default_theta: 100_000.0, interleaved: true, ..RopeKeys::DEFAULT },
        max_positions: 4096,
        ..Defaults::DEFAULT
    };
    Ok(DecoderConfig { output_bias: false, ..llama::with(architecture, keys, defaults)? })
}
