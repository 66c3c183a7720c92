//! ELECTRA (Clark et al. 2020): BERT with embeddings of a separate width, and RoBERTa's head with GELU.

use lowrank_kernels::Gelu;

use super::{bert, roberta};
use crate::config::{Activation, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("electra", "Electra")],
    positions_after_padding: false,
    names: EncoderNames {
        prefix: "electra.",
        embedding_projection: Some("embeddings_project"),
        ..bert::NAMES
    },
    head: HeadNames { activation: Activation::Gelu(Gelu::Erf), ..roberta::HEAD },
    masked_lm: MaskedLmNames {
        transform: "generator_predictions.dense",
        activation: Some(Activation::Gelu(Gelu::Erf)),
        norm: "generator_predictions.LayerNorm",
        bias: "generator_lm_head",
        bias_copy: "generator_lm_head.decoder.bias",
        decoder: "generator_lm_head.weight",
    },
    ..bert::ARCHITECTURE
};
