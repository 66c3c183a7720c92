//! Seed-OSS (ByteDance Seed 2025): Llama with biases on queries, keys and values and a separate head width.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, DropoutKeys, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "seed_oss",
    class: "SeedOss",
    dropouts: DropoutKeys {
        attention: Some(("attention_dropout", 0.1)),
        attention_output: Some(("residual_dropout", 0.1)),
        mlp_output: Some(("residual_dropout", 0.1)),
        ..llama::DROPOUTS
    },
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { head_dim: Some(128), max_positions: 524_288, ..Defaults::DEFAULT };
    Ok(DecoderConfig {
        qkv_bias: keys.flag_or("attention_bias", true)?,
        output_bias: keys.flag_or("attention_out_bias", false)?,
        ..llama::with(architecture, keys, defaults)?
    })
}
