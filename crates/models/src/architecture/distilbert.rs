//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler.

use super::bert;
use crate::config::{
    Activation, EmbeddingNames, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames, QkvNames,
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
        ("seq_classif_dropout", "classifier_dropout"),
    ],
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
        norm: "vocab_layer_norm",
        bias: "vocab_projector",
        bias_copy: "vocab_projector.bias",
        decoder: "vocab_projector.weight",
    },
    ..bert::ARCHITECTURE
};
