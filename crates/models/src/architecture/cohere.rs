//! Cohere's Command R (2024): layer norms without offsets, parallel attention and feed-forward over one norm,
//! interleaved rotary pairs, a logit scale, optional norms on the heads of queries and keys.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, LayerNorms, NormKind, QkNorm, Residual,
    RopeKeys,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "cohere",
    class: "Cohere",
    names: NAMES,
    config,
    ..llama::ARCHITECTURE
};

const NAMES: DecoderNames =
    DecoderNames { norms: LayerNorms { mlp: None, ..llama::NAMES.norms }, ..llama::NAMES };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let qk_norm = keys.flag_or("use_qk_norm", false)?.then_some(QkNorm::HeadGains);
    Ok(DecoderConfig { qk_norm, ..common(architecture, keys, 500_000.0)? })
}

/// Their common config.
pub(super) fn common(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
    default_theta: f64,
) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        norm_eps_key: "layer_norm_eps",
        norm_eps: 1e-5,
        rope: RopeKeys { default_theta, interleaved: true, ..RopeKeys::DEFAULT },
        tied: true,
        max_positions: 8192,
        ..Defaults::DEFAULT
    };
    let bias = keys.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        norm: NormKind::LayerGain,
        qkv_bias: bias,
        output_bias: bias,
        residual: Residual::Parallel,
        logit_scale: keys.number_or("logit_scale", 0.0625)?,
        ..DecoderConfig::with(architecture, keys, defaults)?
    })
}
