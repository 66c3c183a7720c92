//! StableLM (Stability AI 2023): Llama with layer norms and rotary positions over a part of the head.

use super::{DecoderArchitecture, llama};
use crate::decoder::rope::RopeConfig;
use crate::decoder::{DecoderConfig, Keys, Residual};
use crate::norm::NormKind;

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "stablelm", names: llama::NAMES, config };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if keys.flag_or("qk_layernorm", false)? {
        return Err("qk_layernorm is not supported; expected false".into());
    }
    let common = DecoderConfig::common(architecture, keys)?;
    let parallel = keys.flag_or("use_parallel_residual", false)?;
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_eps", 1e-5)?,
        rope: Some(RopeConfig::read(keys, common.head_dim, "partial_rotary_factor", 0.25)?),
        qkv_bias: keys.flag_or("use_qkv_bias", false)?,
        residual: if parallel { Residual::ParallelOneNorm } else { Residual::Sequential },
        ..common
    })
}
