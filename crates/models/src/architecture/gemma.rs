//! Gemma (Gemma Team 2024): Llama with scaled embeddings, norm weights stored as their difference from 1, and
//! a tied head.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, NormKind};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "gemma", class: "Gemma", config, ..llama::ARCHITECTURE };

/// The common config of all Gemmas.
pub(super) const DEFAULTS: Defaults = Defaults {
    head_dim: Some(256),
    activation_key: "hidden_activation",
    activation: "gelu_pytorch_tanh",
    tied: true,
    max_positions: 8192,
    ..Defaults::DEFAULT
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    // The first releases say `gelu` and mean its approximation by tanh.
    let activation_key = match keys.text("hidden_act")? {
        Some("gelu") => "",
        _ => "hidden_act",
    };
    common(architecture, keys, Defaults { activation_key, ..DEFAULTS })
}

/// A config by the keys that all Gemmas share.
pub(super) fn common(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
    defaults: Defaults,
) -> Result<DecoderConfig, String> {
    if keys.flag_or("use_bidirectional_attention", false)? {
        return Err("use_bidirectional_attention = true is not supported for decoders; expected false".into());
    }
    let bias = keys.flag_or("attention_bias", false)?;
    let common = DecoderConfig::with(architecture, keys, defaults)?;
    Ok(DecoderConfig {
        norm: NormKind::RmsPlusOne,
        embedding_scale: (common.d_model as f64).sqrt(),
        qkv_bias: bias,
        output_bias: bias,
        ..common
    })
}

/// The factor on attention scores of Gemma 2 and 3.
pub(super) fn score_scale(keys: &Keys<'_>) -> Result<f32, String> {
    Ok(keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32)
}
