//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler.

use super::bert;
use crate::config::{
    Activation, EmbeddingNames, EncoderArchitecture, EncoderConfig, EncoderNames, HeadNames, MaskedLmNames,
    QkvNames,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("distilbert", "DistilBert")],
    config_keys: &[
        ("dim", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("hidden_dim", "intermediate_size"),
        ("activation", "hidden_act"),
        ("dropout", "hidden_dropout_prob"),
        ("attention_dropout", "attention_probs_dropout_prob"),
    ],
    options: |config, keys| {
        Ok(EncoderConfig {
            // transformers has this number in the code.
            norm_eps: 1e-12,
            classifier_dropout: keys.dropout("seq_classif_dropout")?.unwrap_or(0.2),
            token_dropout: config.dropouts.embeddings,
            span_dropout: keys.dropout("qa_dropout")?.unwrap_or(0.1),
            ..config
        })
    },
    names: EncoderNames {
        prefix: "distilbert.",
        embeddings: EmbeddingNames { types: None, ..bert::EMBEDDINGS },
        layers: "transformer.layer",
        qkv: QkvNames::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        feed_forward: ["ffn.lin1", "ffn.lin2"],
        feed_forward_norm: "output_layer_norm",
        drops_attention_output: false,
        ..bert::NAMES
    },
    head: HeadNames {
        dense: "pre_classifier",
        dense_is_head: true,
        activation: Activation::Relu,
        ..bert::ARCHITECTURE.head
    },
    masked_lm: MaskedLmNames {
        transform: "vocab_transform",
        activation: None,
        norm: "vocab_layer_norm",
        bias: "vocab_projector",
        bias_copy: "vocab_projector.bias",
        decoder: "vocab_projector.weight",
    },
    ..bert::ARCHITECTURE
};
