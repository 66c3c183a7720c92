//! BERT (Devlin et al. 2018).

use crate::config::{
    Activation, EmbeddingNames, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames, QkvNames,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("bert", "Bert")],
    config_keys: &[],
    positions_after_padding: false,
    defaults: Vec::new,
    options: |config, _| Ok(config),
    extras: &[],
    words_copies: &[],
    has_heads: true,
    names: NAMES,
    head: HeadNames {
        dense: "bert.pooler.dense",
        norm: None,
        output: "classifier",
        spans: "qa_outputs",
        saved_as: None,
        dense_is_head: false,
        is_bare: false,
        for_tokens: false,
        activation: Activation::Tanh,
        drops_input: false,
    },
    masked_lm: MaskedLmNames {
        transform: "cls.predictions.transform.dense",
        activation: None,
        norm: "cls.predictions.transform.LayerNorm",
        bias: "cls.predictions",
        bias_copy: "cls.predictions.decoder.bias",
        decoder: "cls.predictions.decoder.weight",
    },
};

/// RoBERTa has the same but for its prefix.
pub(super) const NAMES: EncoderNames = EncoderNames {
    prefix: "bert.",
    embeddings: EMBEDDINGS,
    patches: None,
    layers: "encoder.layer",
    qkv: QkvNames::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
    output: "attention.output.dense",
    norms_before: false,
    attention_norm: "attention.output.LayerNorm",
    gate: None,
    feed_forward: ["intermediate.dense", "output.dense"],
    up_has_gate: false,
    gate_is_last: false,
    feed_forward_norm: "output.LayerNorm",
    final_norm: None,
    embedding_projection: None,
    projects_equal_widths: false,
    relative: None,
    convolution: None,
    shared_layers: None,
    drops_feed_forward: true,
    drops_attention_output: true,
};

pub(super) const EMBEDDINGS: EmbeddingNames = EmbeddingNames {
    words: "embeddings.word_embeddings",
    positions: Some("embeddings.position_embeddings"),
    types: Some("embeddings.token_type_embeddings"),
    tasks: None,
    norm: Some("embeddings.LayerNorm"),
};
