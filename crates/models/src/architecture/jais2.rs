//! Jais 2 (Inception 2025): Llama with layer norms, biases and an ungated feed-forward layer with squared
//! ReLU.

use super::arcee;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, NormKind};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "jais2", class: "Jais2", config, ..arcee::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        activation: "relu2",
        norm_eps_key: "layer_norm_eps",
        norm_eps: 1e-5,
        max_positions: 8192,
        ..Defaults::DEFAULT
    };
    let bias = keys.flag_or("attention_bias", true)?;
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: keys.flag_or("mlp_bias", true)?,
        ..DecoderConfig::with(architecture, keys, defaults)?
    })
}
