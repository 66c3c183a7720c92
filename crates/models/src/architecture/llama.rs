//! Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024).

use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, LayerNorms, QkvNames,
    TokenHead,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "llama",
    class: "Llama",
    config_keys: &[],
    names: NAMES,
    dropouts: DROPOUTS,
    token_head: TOKEN_HEAD,
    config,
};

/// Most later decoders have only this one.
pub(super) const DROPOUTS: DropoutKeys = DropoutKeys {
    embeddings: None,
    attention: Some(("attention_dropout", 0.0)),
    attention_output: None,
    mlp_output: None,
};

/// Most later decoders have this one.
pub(super) const TOKEN_HEAD: TokenHead =
    TokenHead { path: "score", dropout: &[("classifier_dropout", None), ("hidden_dropout", None)] };

/// Most later decoders use all or most of these.
pub(super) const NAMES: DecoderNames = DecoderNames {
    prefix: "model.",
    embedding: "embed_tokens",
    embedding_norm: None,
    embedding_projections: ["", ""],
    positions: None,
    relative: None,
    layers: "layers",
    norms: LayerNorms::before("input_layernorm", "post_attention_layernorm"),
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    cross: None,
    gate: Some("mlp.gate_proj"),
    up: "mlp.up_proj",
    up_has_gate: false,
    down: "mlp.down_proj",
    norm: "norm",
    head: "lm_head",
    conv1d: false,
    buffers: &["rotary_emb.inv_freq"],
};

pub(super) fn config(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
) -> Result<DecoderConfig, String> {
    with(architecture, keys, Defaults::DEFAULT)
}

/// The same with other defaults.
pub(super) fn with(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
    defaults: Defaults,
) -> Result<DecoderConfig, String> {
    let bias = keys.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: keys.flag_or("mlp_bias", false)?,
        ..DecoderConfig::with(architecture, keys, defaults)?
    })
}
