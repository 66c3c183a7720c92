//! Qwen3 (Yang et al. 2025): Qwen2 with norms on the heads of queries and keys, and a separate head width.

use super::{llama, qwen2};
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, QkNorm};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "qwen3", class: "Qwen3", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };
    let bias = keys.flag_or("attention_bias", false)?;
    let config = DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Head),
        ..DecoderConfig::with(architecture, keys, defaults)?
    };
    qwen2::windows(config, keys)
}
