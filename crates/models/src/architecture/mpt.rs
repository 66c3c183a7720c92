//! MPT (MosaicML 2023): ALiBi instead of positions, layer norms without offsets, no biases.

use super::{gpt2, llama};
use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, DecoderDropouts, DecoderNames, Defaults, DropoutKeys,
    Keys, LayerNorms, NormKind, QkvNames,
};
use lowrank_kernels::{Alibi, Gelu};
use serde_json::Map;

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "mpt",
    class: "Mpt",
    config_keys: &[
        ("d_model", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("max_seq_len", "max_position_embeddings"),
    ],
    names: DecoderNames {
        prefix: "transformer.",
        embedding: "wte",
        layers: "blocks",
        norms: LayerNorms::before("norm_1", "norm_2"),
        qkv: QkvNames::Fused { name: "attn.Wqkv", by_head: false },
        output: "attn.out_proj",
        gate: None,
        up: "ffn.up_proj",
        down: "ffn.down_proj",
        norm: "norm_f",
        ..llama::NAMES
    },
    // In `attn_config`.
    dropouts: DropoutKeys { attention: None, ..llama::DROPOUTS },
    token_head: gpt2::TOKEN_HEAD,
    config,
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { activation_key: "", max_positions: 2048, ..gpt2::DEFAULTS };
    let mut common = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    let none = Map::new();
    let attention = keys.object("attn_config")?.unwrap_or(Keys::new(&none));
    refuse_options(keys, &attention)?;
    let scale = attention.positive("softmax_scale").map_err(|reason| format!("attn_config: {reason}"))?;
    if let Some(scale) = scale {
        common.layers.iter_mut().for_each(|layer| layer.scale = scale as f32);
    }
    let dropout = attention.dropout("attn_pdrop").map_err(|reason| format!("attn_config: {reason}"))?;
    let dropout = dropout.unwrap_or(0.0);
    Ok(DecoderConfig {
        dropouts: DecoderDropouts {
            attention: dropout,
            attention_output: dropout,
            mlp_output: dropout,
            ..common.dropouts
        },
        d_ff: 4 * common.d_model,
        norm: NormKind::LayerGain,
        activation: Activation::Gelu(Gelu::Erf),
        n_kv_heads: common.n_heads,
        clip_qkv: attention.positive("clip_qkv").map_err(|reason| format!("attn_config: {reason}"))?,
        alibi: Some(Alibi { slopes: slopes(common.n_heads).into(), rounded: None }),
        ..common
    })
}

/// What MosaicML's own code can do and transformers' cannot.
fn refuse_options(keys: &Keys<'_>, attention: &Keys<'_>) -> Result<(), String> {
    for (key, only) in [("alibi", true), ("qk_ln", false), ("prefix_lm", false)] {
        if attention.flag_or(key, only)? != only {
            return Err(format!("attn_config: {key} = {} is not supported; expected {only}", !only));
        }
    }
    if let Some(kind) = attention.text("attn_type")?.filter(|&kind| kind != "multihead_attention") {
        return Err(format!(
            "attn_config: attn_type '{kind}' is not supported; expected 'multihead_attention'"
        ));
    }
    for (keys, at, key, only) in
        [(attention, "attn_config: ", "alibi_bias_max", 8.0), (keys, "", "expansion_ratio", 4.0)]
    {
        let value = keys.number_or(key, only)?;
        if value != only {
            return Err(format!("{at}{key} = {value} is not supported; expected {only}"));
        }
    }
    if !keys.flag_or("no_bias", true)? {
        return Err("no_bias = false is not supported; expected true".into());
    }
    match keys.get("logit_scale") {
        Some(scale) => Err(format!("logit_scale = {scale} is not supported; expected null")),
        None => Ok(()),
    }
}

/// Slopes of the next power of two of heads; of another number, every other one first.
fn slopes(n_heads: usize) -> Vec<f32> {
    let power = n_heads.next_power_of_two();
    let of = |i: usize| (-8.0 * i as f64 / power as f64).exp2() as f32;
    if power == n_heads {
        return (1..=power).map(of).collect();
    }
    let halves = (1..=power / 2).map(|i| 2 * i).chain((0..power / 2).map(|i| 2 * i + 1));
    halves.take(n_heads).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_slope_comes_first() {
        assert_eq!(slopes(2), [0.0625, 0.00390625]);
        assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
    }
}
