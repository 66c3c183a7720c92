//! Gemma 3, text (Gemma Team 2025): norms around each sublayer and on queries and keys, five layers with a
//! window and separate rotary positions to one without.

use super::gemma;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, LayerNorms, MAX_DIM, QkNorm,
    RopeConfig, RopeKeys,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gemma3_text",
    class: "Gemma3Text",
    names: DecoderNames { norms: NORMS, ..gemma::ARCHITECTURE.names },
    config,
    ..gemma::ARCHITECTURE
};

/// Gemma 2 has the same.
pub(super) const NORMS: LayerNorms = LayerNorms {
    attention: Some("input_layernorm"),
    attention_output: Some("post_attention_layernorm"),
    mlp: Some("pre_feedforward_layernorm"),
    mlp_output: Some("post_feedforward_layernorm"),
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    // A key that transformers reads and does not use.
    if keys.number("attn_logit_softcapping")?.is_some() {
        return Err("attn_logit_softcapping is not supported; expected null".into());
    }
    let defaults = Defaults { max_positions: 131_072, ..gemma::DEFAULTS };
    let common = gemma::common(architecture, keys, defaults)?;
    let global = RopeKeys { default_theta: 1_000_000.0, max_positions: 131_072, ..RopeKeys::DEFAULT };
    let local = RopeKeys { theta: "rope_local_base_freq", default_theta: 10_000.0, ..global };
    let ropes = vec![
        RopeConfig::read_kind(keys, "full_attention", common.head_dim, global)?,
        RopeConfig::read_kind(keys, "sliding_attention", common.head_dim, local)?,
    ];
    let scale = gemma::score_scale(keys)?;
    let pattern = keys.size_or("sliding_window_pattern", 6)?;
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    let config = DecoderConfig {
        qk_norm: Some(QkNorm::Head),
        ropes,
        logit_softcap: keys.positive("final_logit_softcapping")?,
        ..common
    };
    let mut config = config.with_windows(keys, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    for layer in &mut config.layers {
        layer.scale = scale;
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(config)
}
