//! ALBERT (Lan et al. 2020): layers that share their weights, embeddings with their own width.

use super::bert;
use crate::config::{
    Activation, EncoderArchitecture, EncoderConfig, EncoderNames, HeadNames, MaskedLmNames, QkvNames,
    SharedLayers,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("albert", "Albert")],
    defaults: || {
        vec![
            ("hidden_act", "gelu_new".into()),
            ("hidden_dropout_prob", 0.0.into()),
            ("attention_probs_dropout_prob", 0.0.into()),
            ("classifier_dropout_prob", 0.1.into()),
        ]
    },
    options: |config, keys| {
        let dropout = keys.dropout("classifier_dropout_prob")?.unwrap_or(config.dropouts.embeddings);
        Ok(EncoderConfig { classifier_dropout: dropout, token_dropout: dropout, ..config })
    },
    names: EncoderNames {
        prefix: "albert.",
        layers: "encoder.albert_layer_groups",
        qkv: QkvNames::Separate(["attention.query", "attention.key", "attention.value"]),
        output: "attention.dense",
        attention_norm: "attention.LayerNorm",
        feed_forward: ["ffn", "ffn_output"],
        feed_forward_norm: "full_layer_layer_norm",
        embedding_projection: Some("encoder.embedding_hidden_mapping_in"),
        projects_equal_widths: true,
        shared_layers: Some(SharedLayers { inner: "albert_layers" }),
        drops_feed_forward: false,
        ..bert::NAMES
    },
    head: HeadNames { dense: "albert.pooler", activation: Activation::Tanh, ..bert::ARCHITECTURE.head },
    masked_lm: MaskedLmNames {
        transform: "predictions.dense",
        activation: None,
        norm: "predictions.LayerNorm",
        bias: "predictions",
        bias_copy: "predictions.decoder.bias",
        decoder: "predictions.decoder.weight",
    },
    ..bert::ARCHITECTURE
};
