//! OPT (Zhang et al. 2022): a learned position table that begins at its third row, norms before or after each
//! sublayer, optionally embeddings with their own width.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, LayerNorms, NormKind,
    Residual,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "opt",
    class: "OPT",
    config_keys: &[("ffn_dim", "intermediate_size"), ("activation_function", "hidden_act")],
    names: DecoderNames {
        prefix: "model.decoder.",
        embedding_projections: ["project_in", "project_out"],
        positions: Some("embed_positions"),
        norms: LayerNorms::before("self_attn_layer_norm", "final_layer_norm"),
        output: "self_attn.out_proj",
        gate: None,
        up: "fc1",
        down: "fc2",
        norm: "final_layer_norm",
        ..llama::NAMES
    },
    dropouts: DropoutKeys {
        attention_output: Some(("dropout", 0.1)),
        mlp_output: Some(("dropout", 0.1)),
        ..llama::DROPOUTS
    },
    token_head: llama::TOKEN_HEAD,
    config,
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { activation: "relu", tied: true, ..Defaults::DEFAULT };
    let bias = keys.flag_or("enable_bias", true)?;
    let norms_first = keys.flag_or("do_layer_norm_before", true)?;
    let has_gains = keys.flag_or("layer_norm_elementwise_affine", true)?;
    let common = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    Ok(DecoderConfig {
        embedding_width: keys.size_or("word_embed_proj_dim", common.d_model)?,
        position_offset: 2,
        norm: if has_gains { NormKind::Layer } else { NormKind::LayerPlain },
        norm_eps: 1e-5,
        n_kv_heads: common.n_heads,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        residual: if norms_first { Residual::Sequential } else { Residual::PostNorm },
        final_norm: norms_first && !keys.flag_or("_remove_final_layer_norm", false)?,
        ..common
    })
}
