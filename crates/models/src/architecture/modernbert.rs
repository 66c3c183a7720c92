//! ModernBERT (Warner et al. 2024): norms before the parts, rotary positions, windows in most layers, a gated feed-forward
//! part.

use super::bert;
use crate::config::{
    Activation, EmbeddingNames, EncoderArchitecture, EncoderBiases, EncoderConfig, EncoderDropouts,
    EncoderLayerKind, EncoderNames, HeadInput, HeadNames, HeadOptions, Keys, MaskedLmNames, MaskedLmOptions,
    QkvNames, RopeConfig, RopeKeys, lookup,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("modernbert", "ModernBert")],
    config_keys: &[("hidden_activation", "hidden_act"), ("norm_eps", "layer_norm_eps")],
    positions_after_padding: false,
    defaults: || vec![("layer_norm_eps", 1e-5.into()), ("max_position_embeddings", 8192.into())],
    options,
    extras: &[],
    words_copies: &[],
    has_heads: true,
    names: EncoderNames {
        prefix: "model.",
        embeddings: EmbeddingNames {
            words: "embeddings.tok_embeddings",
            positions: None,
            types: None,
            tasks: None,
            norm: Some("embeddings.norm"),
        },
        layers: "layers",
        qkv: QkvNames::Fused { name: "attn.Wqkv", by_head: false },
        output: "attn.Wo",
        norms_before: true,
        attention_norm: "attn_norm",
        feed_forward: ["mlp.Wi", "mlp.Wo"],
        up_has_gate: true,
        feed_forward_norm: "mlp_norm",
        final_norm: Some("final_norm"),
        ..bert::NAMES
    },
    head: HeadNames {
        dense: "head.dense",
        norm: Some("head.norm"),
        spans: "classifier",
        for_tokens: true,
        activation: Activation::Gelu(lowrank_kernels::Gelu::Erf),
        ..bert::ARCHITECTURE.head
    },
    masked_lm: MaskedLmNames {
        transform: "head.dense",
        activation: None,
        norm: "head.norm",
        bias: "decoder",
        bias_copy: "decoder.bias",
        decoder: "decoder.weight",
    },
};

/// Keys that BERT does not have, or that have other defaults.
fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let n = config.n_layers;
    let every = keys.size_or("global_attn_every_n_layers", 3)?;
    let is_local: Vec<bool> = match keys.layer_types(n)? {
        Some(types) => types.iter().map(|&name| name == "sliding_attention").collect(),
        None => (0..n).map(|index| index % every != 0).collect(),
    };
    // Half of it on either side, and the token itself.
    let window = keys.size_or("local_attention", 128)? / 2 + 1;
    let rope = |kind: &str, theta, default_theta| {
        let max_positions = config.max_positions;
        let names = RopeKeys { theta, default_theta, max_positions, ..RopeKeys::DEFAULT };
        RopeConfig::read_kind(keys, kind, config.d_model / config.n_heads, names)
    };
    let global = rope("full_attention", "global_rope_theta", 160_000.0)?;
    // An older config has null where the layers with a window rotate as the others do.
    let has_none = keys.has("local_rope_theta") && keys.get("local_rope_theta").is_none();
    let local = if has_none { global.theta } else { 10_000.0 };
    let ropes = vec![global, rope("sliding_attention", "local_rope_theta", local)?];
    let layer = |(index, is_local): (usize, bool)| EncoderLayerKind {
        window: is_local.then_some(window),
        rope: Some(usize::from(is_local)),
        // The embeddings' norm comes right before the first layer.
        attention_norm: index > 0,
    };
    let flag = |key: &str, default: bool| keys.flag_or(key, default);
    let [attention, mlp, head] =
        [flag("attention_bias", false)?, flag("mlp_bias", false)?, flag("classifier_bias", false)?];
    let dropout = |key: &str| keys.dropout(key).map(|p| p.unwrap_or(0.0));
    let attention_dropout = dropout("attention_dropout")?;
    let activation = keys.text("classifier_activation")?.unwrap_or("gelu");
    let activation = lookup("classifier_activation", activation, &Activation::NAMES)?;
    if keys.object("rope_scaling")?.is_some_and(|scaling| !scaling.is_empty()) {
        return Err("rope_scaling is not supported for modernbert; expected rope_parameters".into());
    }
    Ok(EncoderConfig {
        layers: is_local.into_iter().enumerate().map(layer).collect(),
        ropes,
        biases: EncoderBiases {
            qkv: attention,
            output: attention,
            up: mlp,
            down: mlp,
            norms: flag("norm_bias", false)?,
        },
        dropouts: EncoderDropouts {
            embeddings: dropout("embedding_dropout")?,
            attention: attention_dropout,
            attention_output: attention_dropout,
            inner: dropout("mlp_dropout")?,
            output: 0.0,
            relative: 0.0,
            last: 0.0,
        },
        classifier_dropout: dropout("classifier_dropout")?,
        token_dropout: dropout("classifier_dropout")?,
        span_dropout: dropout("classifier_dropout")?,
        head: HeadOptions {
            input: match keys.text("classifier_pooling")?.unwrap_or("cls") {
                "cls" => HeadInput::First,
                "mean" => HeadInput::Mean,
                other => {
                    return Err(format!(
                        "classifier_pooling '{other}' is not supported; expected cls or mean"
                    ));
                }
            },
            input_dropout: 0.0,
            bias: head,
            activation,
        },
        masked_lm: MaskedLmOptions { transform_bias: head, activation, bias: flag("decoder_bias", true)? },
        ..config
    })
}
