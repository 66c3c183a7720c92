//! StarCoder2 (Lozhkov et al. 2024): layer norms, biases, an ungated feed-forward layer, an optional window.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, MAX_DIM, NormKind,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "starcoder2",
    class: "Starcoder2",
    names: NAMES,
    dropouts: DropoutKeys {
        embeddings: Some(("embedding_dropout", 0.0)),
        attention_output: Some(("residual_dropout", 0.0)),
        mlp_output: Some(("residual_dropout", 0.0)),
        ..llama::DROPOUTS
    },
    config,
    ..llama::ARCHITECTURE
};

const NAMES: DecoderNames = DecoderNames { gate: None, up: "mlp.c_fc", down: "mlp.c_proj", ..llama::NAMES };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        activation: "gelu_pytorch_tanh",
        norm_eps_key: "norm_epsilon",
        norm_eps: 1e-5,
        tied: true,
        max_positions: 4096,
        ..Defaults::DEFAULT
    };
    let bias = keys.flag_or("use_bias", true)?;
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    let config = DecoderConfig {
        norm: NormKind::Layer,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        ..DecoderConfig::with(architecture, keys, defaults)?
    };
    Ok(config.with_window(window))
}
