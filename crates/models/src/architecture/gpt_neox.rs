//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): one map for query, key and value, head by head.

use super::llama;
use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, DecoderNames, Keys, NormKind, QkvNames, Residual,
    RopeConfig, RopeKeys, lookup,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gpt_neox",
    class: "GPTNeoX",
    names: DecoderNames {
        prefix: "gpt_neox.",
        embedding: "embed_in",
        qkv: QkvNames::Fused { name: "attention.query_key_value", by_head: true },
        output: "attention.dense",
        gate: None,
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        norm: "final_layer_norm",
        head: "embed_out",
        buffers: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
        ..llama::NAMES
    },
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let common = DecoderConfig::common(architecture, keys)?;
    let bias = keys.flag_or("attention_bias", true)?;
    let parallel = keys.flag_or("use_parallel_residual", true)?;
    let rope = RopeKeys {
        theta: "rotary_emb_base",
        partial: "rotary_pct",
        default_partial: 0.25,
        ..RopeKeys::DEFAULT
    };
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_eps", 1e-5)?,
        ropes: vec![RopeConfig::read_with(keys, common.head_dim, rope)?],
        activation: lookup("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"), &Activation::NAMES)?,
        n_kv_heads: common.n_heads,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: true,
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        ..common
    })
}
