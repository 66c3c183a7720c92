//! GTE (Zhang et al. 2024): BERT with rotary positions and a gated feed-forward sublayer.

use super::{bert, nomic, roberta};
use crate::config::{
    EmbeddingNames, EncoderArchitecture, EncoderBiases, EncoderConfig, EncoderDropouts, EncoderNames,
    HeadNames, Keys, MaskedLmNames, QkvNames,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("gte", "Gte")],
    defaults: || {
        vec![
            ("attention_probs_dropout_prob", 0.0.into()),
            ("max_position_embeddings", 8192.into()),
            ("type_vocab_size", 1.into()),
        ]
    },
    options,
    names: EncoderNames {
        prefix: "gte.",
        embeddings: EmbeddingNames { positions: None, ..bert::EMBEDDINGS },
        qkv: QkvNames::Fused { name: "attention.qkv_proj", by_head: false },
        output: "attention.o_proj",
        attention_norm: "attn_ln",
        feed_forward: ["mlp.up_gate_proj", "mlp.down_proj"],
        up_has_gate: true,
        gate_is_last: true,
        feed_forward_norm: "mlp_ln",
        ..bert::NAMES
    },
    head: HeadNames { dense: "gte.pooler.dense", ..bert::ARCHITECTURE.head },
    masked_lm: MaskedLmNames {
        norm: "lm_head.norm",
        bias: "lm_head.decoder",
        bias_copy: "lm_head.bias",
        ..roberta::ARCHITECTURE.masked_lm
    },
    ..bert::ARCHITECTURE
};

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let biases = EncoderBiases { up: false, ..config.biases };
    let dropouts = EncoderDropouts { inner: config.dropouts.embeddings, ..config.dropouts };
    nomic::rotary(EncoderConfig { biases, dropouts, ..config }, keys, 160_000.0)
}
