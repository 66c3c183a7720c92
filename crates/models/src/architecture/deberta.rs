//! DeBERTa v2 and v3 (He et al. 2021, 2023): disentangled attention to contents and relative positions; v2 has a
//! convolution beside its first layer.

use super::bert;
use crate::config::{
    Activation, ConvolutionOptions, DistanceBuckets, EncoderArchitecture, EncoderConfig, EncoderDropouts,
    EncoderNames, HeadNames, HeadOptions, Keys, QkvNames, RelativeKind, RelativeNames, RelativePositions,
    lookup,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("deberta-v2", "DebertaV2")],
    config_keys: &[],
    defaults: || vec![("layer_norm_eps", 1e-7.into()), ("type_vocab_size", 0.into())],
    options,
    // Published checkpoints hold the heads of their pre-training, and a table of positions that is not used.
    extras: &[
        "embeddings.position_embeddings.",
        "encoder.LayerNorm.",
        "lm_predictions.",
        "mask_predictions.",
    ],
    names: EncoderNames {
        prefix: "deberta.",
        qkv: QkvNames::Separate([
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
        ]),
        relative: Some(RelativeNames {
            table: "encoder.rel_embeddings",
            norm: "encoder.LayerNorm",
            key: "attention.self.pos_key_proj",
            query: "attention.self.pos_query_proj",
        }),
        convolution: Some(["encoder.conv.conv", "encoder.conv.LayerNorm"]),
        ..bert::NAMES
    },
    head: HeadNames { dense: "pooler.dense", ..bert::ARCHITECTURE.head },
    ..bert::ARCHITECTURE
};

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let d = config.d_model;
    let head_dim = d / config.n_heads;
    for (key, expected) in
        [("embedding_size", d), ("pooler_hidden_size", d), ("attention_head_size", head_dim)]
    {
        let size = keys.size_or(key, expected)?;
        if size != expected {
            return Err(format!("{key} = {size} is not supported for deberta-v2; expected {expected}"));
        }
    }
    let terms = terms(keys)?;
    let n_products = 1 + terms.iter().filter(|&&is_there| is_there).count();
    let relative = match keys.flag_or("relative_attention", false)? {
        true => Some(relative(keys, terms, config.max_positions)?),
        false => None,
    };
    let activation = |key: &str, default| {
        lookup(key, keys.text(key).map(|name| name.unwrap_or(default))?, &Activation::NAMES)
    };
    let hidden_dropout = config.dropouts.embeddings;
    Ok(EncoderConfig {
        classifier_dropout: keys.dropout("cls_dropout")?.unwrap_or(hidden_dropout),
        token_dropout: hidden_dropout,
        has_positions: keys.flag_or("position_biased_input", true)?,
        score_scale: 1.0 / ((head_dim * n_products) as f32).sqrt(),
        relative,
        convolution: convolution(keys, activation("conv_act", "tanh")?)?,
        dropouts: EncoderDropouts { relative: hidden_dropout, ..config.dropouts },
        head: HeadOptions {
            input_dropout: keys.dropout("pooler_dropout")?.unwrap_or(0.0),
            activation: activation("pooler_hidden_act", "gelu")?,
            ..config.head
        },
        ..config
    })
}

/// Which of the terms content-to-position and position-to-content are used.
fn terms(keys: &Keys<'_>) -> Result<[bool; 2], String> {
    let names: Vec<String> = match keys.get("pos_att_type") {
        None => Vec::new(),
        // Older configs have one string.
        Some(serde_json::Value::String(names)) => {
            names.split('|').map(|name| name.trim().to_lowercase()).filter(|name| !name.is_empty()).collect()
        }
        Some(value) => {
            let name = |name: &serde_json::Value| name.as_str().map(str::to_string);
            let names = value.as_array().and_then(|names| names.iter().map(name).collect::<Option<Vec<_>>>());
            names.ok_or_else(|| format!("pos_att_type = {value}; expected a list of c2p and p2c"))?
        }
    };
    match names.iter().find(|name| !["c2p", "p2c"].contains(&name.as_str())) {
        Some(name) => Err(format!("pos_att_type: '{name}' is not supported; expected c2p and p2c")),
        None => Ok(["c2p", "p2c"].map(|term| names.iter().any(|name| name == term))),
    }
}

fn relative(keys: &Keys<'_>, terms: [bool; 2], max_positions: usize) -> Result<RelativePositions, String> {
    // Numbers below 1 stand for none.
    let positive = |key: &str| -> Result<Option<usize>, String> {
        match keys.number(key)? {
            Some(n) if n >= 1.0 => keys.size(key).map(Some),
            _ => Ok(None),
        }
    };
    let max = positive("max_relative_positions")?.unwrap_or(max_positions);
    let buckets = positive("position_buckets")?;
    if let Some(span) = buckets.filter(|&span| span < 2 || max <= span / 2 + 1) {
        return Err(format!(
            "position_buckets = {span} for max_relative_positions = {max}; expected at least 2, and half of it to be less"
        ));
    }
    let norms = keys.text("norm_rel_ebd")?.unwrap_or("none").to_lowercase();
    let norms: Vec<&str> = norms.split('|').map(str::trim).collect();
    if let Some(other) = norms.iter().find(|name| !["none", "layer_norm"].contains(name)) {
        return Err(format!("norm_rel_ebd '{other}' is not supported; expected none or layer_norm"));
    }
    let [content_to_position, position_to_content] = terms;
    Ok(RelativePositions {
        buckets: DistanceBuckets::Centred { span: buckets.unwrap_or(max), logarithmic: buckets.map(|_| max) },
        kind: RelativeKind::Disentangled {
            content_to_position,
            position_to_content,
            shares_maps: keys.flag_or("share_att_key", false)?,
            norm: norms.contains(&"layer_norm"),
        },
    })
}

fn convolution(keys: &Keys<'_>, activation: Activation) -> Result<Option<ConvolutionOptions>, String> {
    let kernel = match keys.number("conv_kernel_size")? {
        Some(n) if n != 0.0 => keys.size("conv_kernel_size")?,
        _ => return Ok(None),
    };
    if kernel.is_multiple_of(2) {
        return Err(format!("conv_kernel_size = {kernel} is not supported; expected an odd number"));
    }
    match keys.size_or("conv_groups", 1)? {
        1 => Ok(Some(ConvolutionOptions { kernel, activation })),
        groups => Err(format!("conv_groups = {groups} is not supported; expected 1")),
    }
}
