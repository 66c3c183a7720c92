//! OLMo 1 (Groeneveld et al. 2024): Llama with layer norms that have no parameters; optionally clipped
//! queries, keys and values.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys, NormKind};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "olmo", class: "Olmo", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    Ok(DecoderConfig {
        norm: NormKind::LayerPlain,
        norm_eps: 1e-5,
        mlp_bias: false,
        clip_qkv: keys.positive("clip_qkv")?,
        ..llama::config(architecture, keys)?
    })
}
