//! StableLM (Stability AI 2023): Llama with layer norms and rotary positions over part of the head.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys, NormKind, Residual, RopeConfig, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "stablelm", class: "StableLm", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if keys.flag_or("qk_layernorm", false)? {
        return Err("qk_layernorm = true is not supported; expected false".into());
    }
    let mut common = DecoderConfig::common(architecture, keys)?;
    let parallel = keys.flag_or("use_parallel_residual", false)?;
    if parallel {
        common.layers.iter_mut().for_each(|layer| layer.norms.mlp = None);
    }
    let rope = RopeKeys { default_partial: 0.25, ..RopeKeys::DEFAULT };
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_eps", 1e-5)?,
        ropes: vec![RopeConfig::read_with(keys, common.head_dim, rope)?],
        qkv_bias: keys.flag_or("use_qkv_bias", false)?,
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        ..common
    })
}
