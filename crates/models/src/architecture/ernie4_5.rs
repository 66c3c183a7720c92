//! ERNIE 4.5, the dense models (Baidu 2025): Llama with interleaved rotary pairs, optional biases, a tied
//! head.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, DropoutKeys, Keys, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "ernie4_5",
    class: "Ernie4_5",
    dropouts: DropoutKeys { attention: None, ..llama::DROPOUTS },
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        head_dim: Some(128),
        norm_eps: 1e-5,
        rope: RopeKeys { default_theta: 500_000.0, interleaved: true, ..RopeKeys::DEFAULT },
        tied: true,
        max_positions: 131_072,
        ..Defaults::DEFAULT
    };
    let bias = keys.flag_or("use_bias", false)?;
    Ok(DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        ..DecoderConfig::with(architecture, keys, defaults)?
    })
}
