//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler.

use crate::config::{Activation, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames};

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
    positions_after_padding: false,
    names: EncoderNames {
        prefix: "distilbert.",
        layers: "transformer.layer",
        attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
        attention_norm: "sa_layer_norm",
        feed_forward: ["ffn.lin1", "ffn.lin2"],
        feed_forward_norm: "output_layer_norm",
        has_types: false,
        embedding_projection: None,
        projects_equal_widths: false,
        shared_layers: None,
        drops_feed_forward: true,
        drops_attention_output: false,
    },
    head: HeadNames {
        dense: "pre_classifier",
        output: "classifier",
        saved_as: None,
        dense_is_head: true,
        activation: Activation::Relu,
        drops_input: false,
    },
    masked_lm: MaskedLmNames {
        transform: "vocab_transform",
        norm: "vocab_layer_norm",
        bias: "vocab_projector",
        bias_copy: "vocab_projector.bias",
        decoder: "vocab_projector.weight",
    },
};
