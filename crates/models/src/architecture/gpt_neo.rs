//! GPT-Neo (Black et al. 2021): GPT-2 with unscaled scores and a window in every other layer.

use serde_json::Value;

use super::gpt2;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, DropoutKeys, Keys, NormKind, QkvNames, TokenHead,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gpt_neo",
    class: "GPTNeo",
    config_keys: &[("num_layers", "num_hidden_layers"), ("num_heads", "num_attention_heads")],
    names: DecoderNames {
        qkv: QkvNames::Separate(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
        output: "attn.attention.out_proj",
        conv1d: false,
        buffers: &["attention.bias", "attention.masked_bias"],
        ..gpt2::NAMES
    },
    dropouts: DropoutKeys {
        embeddings: Some(("embed_dropout", 0.0)),
        attention: Some(("attention_dropout", 0.0)),
        attention_output: Some(("resid_dropout", 0.0)),
        mlp_output: Some(("resid_dropout", 0.0)),
    },
    token_head: TOKEN_HEAD,
    config,
};

/// The default of the dropout is its own.
pub(super) const TOKEN_HEAD: TokenHead =
    TokenHead { path: "classifier", dropout: &[("classifier_dropout", Some(0.1))] };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = crate::config::Defaults { max_positions: 2048, ..gpt2::DEFAULTS };
    let window = keys.size_or("window_size", 256)?;
    let mut config = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    let is_local = local_layers(keys, config.n_layers)?;
    for (layer, is_local) in config.layers.iter_mut().zip(is_local) {
        layer.scale = 1.0;
        layer.window = is_local.then_some(window);
    }
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        n_kv_heads: config.n_heads,
        output_bias: true,
        mlp_bias: true,
        ..config
    })
}

/// Which layers have a window: by `attention_layers`, a kind for each, or by `attention_types`, lists of kinds, each with how
/// often it comes.
fn local_layers(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<bool>, String> {
    if let Some(list) = keys.get("attention_layers") {
        let kinds = list.as_array().and_then(|list| list.iter().map(is_local).collect::<Option<Vec<_>>>());
        return kinds.filter(|kinds| kinds.len() == n_layers).ok_or_else(|| {
            format!("attention_layers = {list}; expected 'global' or 'local' for each of {n_layers} layers")
        });
    }
    let mut kinds = Vec::new();
    match keys.get("attention_types") {
        None => kinds.extend((0..n_layers).map(|layer| !layer.is_multiple_of(2))),
        Some(types) => {
            let wrong = || {
                format!(
                    "attention_types = {types}; expected lists of 'global' and 'local' with their numbers"
                )
            };
            for item in types.as_array().ok_or_else(wrong)? {
                let (Some(names), Some(times)) = (item[0].as_array(), item[1].as_u64()) else {
                    return Err(wrong());
                };
                for _ in 0..times.min(n_layers as u64 + 1) {
                    for name in names {
                        kinds.push(is_local(name).ok_or_else(wrong)?);
                    }
                }
            }
        }
    }
    if kinds.len() != n_layers {
        return Err(format!("attention_types has {} entries for {n_layers} layers", kinds.len()));
    }
    Ok(kinds)
}

fn is_local(name: &Value) -> Option<bool> {
    match name.as_str() {
        Some("global") => Some(false),
        Some("local") => Some(true),
        _ => None,
    }
}
