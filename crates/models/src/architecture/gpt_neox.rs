//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): one map for query, key and value, head by head.

use super::{gpt_neo, llama};
use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, NormKind,
    QkvNames, Residual, RopeKeys, lookup,
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
    dropouts: DropoutKeys {
        embeddings: Some(("hidden_dropout", 0.0)),
        attention_output: Some(("hidden_dropout", 0.0)),
        mlp_output: Some(("hidden_dropout", 0.0)),
        ..llama::DROPOUTS
    },
    token_head: gpt_neo::TOKEN_HEAD,
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let bias = keys.flag_or("attention_bias", true)?;
    let parallel = keys.flag_or("use_parallel_residual", true)?;
    let rope = RopeKeys {
        theta: "rotary_emb_base",
        partial: Some("rotary_pct"),
        default_partial: 0.25,
        ..RopeKeys::DEFAULT
    };
    let common = DecoderConfig::with(architecture, keys, Defaults { rope, ..Defaults::DEFAULT })?;
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_eps", 1e-5)?,
        activation: lookup("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"), &Activation::NAMES)?,
        n_kv_heads: common.n_heads,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: true,
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        ..common
    })
}
