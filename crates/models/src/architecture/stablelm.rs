//! StableLM (Stability AI 2023): Llama with layer norms and rotary positions over part of the head.

use super::{falcon, llama};
use crate::config::{
    DecoderArchitecture, DecoderConfig, Defaults, DropoutKeys, Keys, NormKind, Residual, RopeKeys, TokenHead,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "stablelm",
    class: "StableLm",
    dropouts: DropoutKeys { mlp_output: Some(("hidden_dropout", 0.0)), ..llama::DROPOUTS },
    token_head: TokenHead { path: "score", ..falcon::TOKEN_HEAD },
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if keys.flag_or("qk_layernorm", false)? {
        return Err("qk_layernorm = true is not supported; expected false".into());
    }
    let defaults = Defaults { rope: RopeKeys::partial(0.25), max_positions: 4096, ..Defaults::DEFAULT };
    let mut common = DecoderConfig::with(architecture, keys, defaults)?;
    let parallel = keys.flag_or("use_parallel_residual", false)?;
    if parallel {
        common.layers.iter_mut().for_each(|layer| layer.norms.mlp = None);
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_eps", 1e-5)?,
        qkv_bias: keys.flag_or("use_qkv_bias", false)?,
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        ..common
    })
}
