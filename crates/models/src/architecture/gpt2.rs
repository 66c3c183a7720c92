//! GPT-2 (Radford et al. 2019): a learned position table, `Conv1D` maps, the head tied to the embedding.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, LayerNorms, NormKind,
    QkvNames, TokenHead,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gpt2",
    class: "GPT2",
    config_keys: KEYS,
    names: NAMES,
    dropouts: dropouts(0.1),
    token_head: TOKEN_HEAD,
    config,
};

/// OpenAI's dropouts with a default.
pub(super) const fn dropouts(default: f64) -> DropoutKeys {
    DropoutKeys {
        embeddings: Some(("embd_pdrop", default)),
        attention: Some(("attn_pdrop", default)),
        attention_output: Some(("resid_pdrop", default)),
        mlp_output: Some(("resid_pdrop", default)),
    }
}

/// Llama's with another name.
pub(super) const TOKEN_HEAD: TokenHead = TokenHead { path: "classifier", ..llama::TOKEN_HEAD };

/// OpenAI's key names and their counterparts in Llama's configs.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
];

pub(super) const NAMES: DecoderNames = DecoderNames {
    prefix: "transformer.",
    embedding: "wte",
    positions: Some("wpe"),
    layers: "h",
    norms: LayerNorms::before("ln_1", "ln_2"),
    qkv: QkvNames::Fused { name: "attn.c_attn", by_head: false },
    output: "attn.c_proj",
    gate: None,
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    norm: "ln_f",
    conv1d: true,
    buffers: &["attn.bias", "attn.masked_bias"],
    ..llama::NAMES
};

/// The common config of this family.
pub(super) const DEFAULTS: Defaults = Defaults {
    activation_key: "activation_function",
    activation: "gelu_new",
    norm_eps_key: "layer_norm_epsilon",
    norm_eps: 1e-5,
    tied: true,
    max_positions: 1024,
    widening: Some(4),
    ..Defaults::DEFAULT
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let mut common = common(architecture, keys, DEFAULTS)?;
    if keys.flag_or("scale_attn_by_inverse_layer_idx", false)? {
        for (index, layer) in common.layers.iter_mut().enumerate() {
            layer.scale /= (index + 1) as f32;
        }
    }
    Ok(common)
}

/// Layer norms, biases everywhere, a learned position table, optionally unscaled scores.
pub(super) fn common(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
    defaults: Defaults,
) -> Result<DecoderConfig, String> {
    if keys.flag_or("add_cross_attention", false)? {
        return Err("add_cross_attention = true is not supported; expected false".into());
    }
    let mut config = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    if !keys.flag_or("scale_attn_weights", true)? {
        config.layers.iter_mut().for_each(|layer| layer.scale = 1.0);
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        n_kv_heads: config.n_heads,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        ..config
    })
}
