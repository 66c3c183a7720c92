//! BERT (Devlin et al. 2018).

use crate::config::{Activation, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("bert", "Bert")],
    config_keys: &[],
    positions_after_padding: false,
    names: NAMES,
    head: HeadNames {
        dense: "bert.pooler.dense",
        output: "classifier",
        saved_as: None,
        dense_is_head: false,
        activation: Activation::Tanh,
        drops_input: false,
    },
    masked_lm: MaskedLmNames {
        transform: "cls.predictions.transform.dense",
        norm: "cls.predictions.transform.LayerNorm",
        bias: "cls.predictions",
        bias_copy: "cls.predictions.decoder.bias",
        decoder: "cls.predictions.decoder.weight",
    },
};

/// RoBERTa has the same but for its prefix.
pub(super) const NAMES: EncoderNames = EncoderNames {
    prefix: "bert.",
    layers: "encoder.layer",
    attention: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ],
    attention_norm: "attention.output.LayerNorm",
    feed_forward: ["intermediate.dense", "output.dense"],
    feed_forward_norm: "output.LayerNorm",
    has_types: true,
    embedding_projection: None,
    projects_equal_widths: false,
    shared_layers: None,
    drops_feed_forward: true,
    drops_attention_output: true,
};
