//! XLM-RoBERTa XL (Goyal et al. 2021): RoBERTa with norms before the parts of a layer, and none over the embeddings.

use super::{bert, roberta};
use crate::config::{EmbeddingNames, EncoderArchitecture, EncoderNames};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("xlm-roberta-xl", "XLMRobertaXL")],
    defaults: || vec![("layer_norm_eps", 1e-5.into()), ("type_vocab_size", 1.into())],
    names: EncoderNames {
        embeddings: EmbeddingNames { norm: None, ..bert::EMBEDDINGS },
        norms_before: true,
        attention_norm: "attention.self_attn_layer_norm",
        feed_forward_norm: "LayerNorm",
        final_norm: Some("encoder.LayerNorm"),
        drops_feed_forward: false,
        ..roberta::ARCHITECTURE.names
    },
    ..roberta::ARCHITECTURE
};
