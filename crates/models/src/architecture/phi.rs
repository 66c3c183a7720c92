//! Phi-1 and Phi-2 (Gunasekar et al. 2023): layer norms, biases everywhere, parallel attention and feed-forward
//! over one norm, rotary positions over part of the head.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, LayerNorms, NormKind,
    QkNorm, Residual, RopeKeys,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "phi",
    class: "Phi",
    names: NAMES,
    dropouts: DROPOUTS,
    config,
    ..llama::ARCHITECTURE
};

const DROPOUTS: DropoutKeys = DropoutKeys {
    embeddings: Some(("embd_pdrop", 0.0)),
    attention_output: Some(("resid_pdrop", 0.0)),
    mlp_output: Some(("resid_pdrop", 0.0)),
    ..llama::DROPOUTS
};

const NAMES: DecoderNames = DecoderNames {
    norms: LayerNorms { mlp: None, ..llama::NAMES.norms },
    qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
    output: "self_attn.dense",
    gate: None,
    up: "mlp.fc1",
    down: "mlp.fc2",
    norm: "final_layernorm",
    ..llama::NAMES
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        activation: "gelu_new",
        norm_eps_key: "layer_norm_eps",
        norm_eps: 1e-5,
        rope: RopeKeys::partial(0.5),
        ..Defaults::DEFAULT
    };
    let common = DecoderConfig::with(architecture, keys, defaults)?;
    if common.tied {
        return Err(
            "tie_word_embeddings = true is not supported beside the head's bias; expected false".into()
        );
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        qk_norm: keys.flag_or("qk_layernorm", false)?.then_some(QkNorm::Head),
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        head_bias: true,
        residual: Residual::Parallel,
        ..common
    })
}
