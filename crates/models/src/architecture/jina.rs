//! Jina Embeddings v3 (Sturua et al. 2024): XLM-R with rotary positions.

use super::{nomic, roberta};
use crate::config::{EncoderArchitecture, EncoderNames, QkvNames};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("jina_embeddings_v3", "JinaEmbeddingsV3")],
    positions_after_padding: false,
    defaults: || {
        vec![
            ("layer_norm_eps", 1e-5.into()),
            ("max_position_embeddings", 8194.into()),
            ("type_vocab_size", 1.into()),
        ]
    },
    options: |config, keys| nomic::rotary(config, keys, 20_000.0),
    names: EncoderNames {
        prefix: "roberta.",
        qkv: QkvNames::Fused { name: "mixer.Wqkv", by_head: false },
        output: "mixer.out_proj",
        gate: None,
        feed_forward: ["mlp.fc1", "mlp.fc2"],
        ..nomic::NAMES
    },
    ..roberta::ARCHITECTURE
};
