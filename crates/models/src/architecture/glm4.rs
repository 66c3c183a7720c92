//! GLM-4-0414 (Zhipu AI 2025): GLM with norms after each sublayer too.

use super::{glm, llama};
use crate::config::{DecoderArchitecture, DecoderNames, LayerNorms};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "glm4",
    class: "Glm4",
    names: DecoderNames {
        norms: LayerNorms {
            attention_output: Some("post_self_attn_layernorm"),
            mlp_output: Some("post_mlp_layernorm"),
            ..llama::NAMES.norms
        },
        ..glm::NAMES
    },
    ..glm::ARCHITECTURE
};
