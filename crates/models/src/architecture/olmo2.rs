//! OLMo 2 (OLMo Team 2024): norms after each sublayer, not before, and over all queries and all keys.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, LayerNorms, QkNorm};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "olmo2", class: "Olmo2", names: NAMES, config, ..llama::ARCHITECTURE };

const NAMES: DecoderNames = DecoderNames {
    norms: LayerNorms {
        attention: None,
        attention_output: Some("post_attention_layernorm"),
        mlp: None,
        mlp_output: Some("post_feedforward_layernorm"),
    },
    ..llama::NAMES
};

pub(super) fn config(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
) -> Result<DecoderConfig, String> {
    let defaults = Defaults { norm_eps: 1e-5, ..Defaults::DEFAULT };
    Ok(DecoderConfig { qk_norm: Some(QkNorm::All), ..llama::with(architecture, keys, defaults)? })
}
