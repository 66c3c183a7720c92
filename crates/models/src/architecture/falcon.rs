//! Falcon (Almazrouei et al. 2023): one map for query, key and value in the order of its key heads, parallel parts over
//! one norm or two, rotary positions or ALiBi.

use super::{bloom, gpt2, llama};
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, LayerNorms, NormKind,
    QkvNames, Residual, TokenHead,
};
use lowrank_kernels::Alibi;

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "falcon",
    class: "Falcon",
    config_keys: &[
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("ffn_hidden_size", "intermediate_size"),
    ],
    names: DecoderNames {
        prefix: "transformer.",
        embedding: "word_embeddings",
        layers: "h",
        qkv: QkvNames::Fused { name: "self_attention.query_key_value", by_head: true },
        output: "self_attention.dense",
        gate: None,
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        norm: "ln_f",
        ..llama::NAMES
    },
    dropouts: DropoutKeys {
        // In layers whose parts are sequential; those of parallel parts are set below.
        attention_output: Some(("attention_dropout", 0.0)),
        mlp_output: Some(("hidden_dropout", 0.0)),
        ..llama::DROPOUTS
    },
    token_head: TOKEN_HEAD,
    config,
};

/// The dropout has the default of the hidden states'.
pub(super) const TOKEN_HEAD: TokenHead =
    TokenHead { path: "classifier", dropout: &[("classifier_dropout", None), ("hidden_dropout", Some(0.0))] };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults =
        Defaults { activation_key: "activation", activation: "gelu", max_positions: 2048, ..gpt2::DEFAULTS };
    let common = DecoderConfig::with(architecture, keys, defaults)?;
    let is_new = keys.flag_or("new_decoder_architecture", false)?;
    let is_parallel = keys.flag_or("parallel_attn", true)?;
    if is_new && !is_parallel {
        return Err(
            "parallel_attn = false with new_decoder_architecture = true is not supported; expected true"
                .into(),
        );
    }
    let n_kv_heads = match (is_new, keys.flag_or("multi_query", true)?) {
        (true, _) => keys.size_or("num_kv_heads", common.n_heads)?,
        (false, true) => 1,
        (false, false) => common.n_heads,
    };
    let norms = norms(keys, is_new, is_parallel)?;
    let mut config = DecoderConfig {
        norm: NormKind::Layer,
        n_kv_heads,
        residual: if is_parallel { Residual::Parallel } else { Residual::Sequential },
        ..common
    };
    config.layers.iter_mut().for_each(|layer| layer.norms = norms);
    if is_parallel {
        // On the sum of both parts.
        config.dropouts.attention_output = config.dropouts.mlp_output;
        config.dropouts.shares_mask = true;
    }
    let bias = keys.flag_or("bias", false)?;
    (config.qkv_bias, config.output_bias, config.mlp_bias) = (bias, bias, bias);
    if keys.flag_or("alibi", false)? {
        let rounded = Some(1.0 / (config.head_dim as f32).sqrt());
        let slopes = bloom::slopes(config.n_heads).into();
        config = DecoderConfig { alibi: Some(Alibi { slopes, rounded }), ..config.without_ropes() };
    }
    Ok(config)
}

/// The norms of a layer.
fn norms(keys: &Keys<'_>, is_new: bool, is_parallel: bool) -> Result<LayerNorms, String> {
    let count = keys.size_or("num_ln_in_parallel_attn", if is_new { 2 } else { 1 })?;
    match (is_new, is_parallel, count) {
        (true, _, 2) => Ok(LayerNorms::before("ln_attn", "ln_mlp")),
        (_, true, 1) => Ok(LayerNorms { mlp: None, ..llama::NAMES.norms }),
        (_, false, _) => Ok(llama::NAMES.norms),
        (_, true, count) => Err(format!(
            "num_ln_in_parallel_attn = {count} is not supported with new_decoder_architecture = {is_new}; expected 1{}",
            if is_new { " or 2" } else { "" }
        )),
    }
}
