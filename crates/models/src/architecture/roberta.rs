//! RoBERTa, and what shares its shape: XLM-R, CamemBERT (Liu et al. 2019; Conneau et al. 2020).

use lowrank_kernels::Gelu;

use super::bert;
use crate::config::{Activation, EncoderArchitecture, EncoderNames, HeadNames, MaskedLmNames};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("roberta", "Roberta"), ("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert")],
    positions_after_padding: true,
    names: EncoderNames { prefix: "roberta.", ..bert::NAMES },
    head: HEAD,
    masked_lm: MaskedLmNames {
        transform: "lm_head.dense",
        activation: Some(Activation::Gelu(Gelu::Erf)),
        norm: "lm_head.layer_norm",
        bias: "lm_head",
        bias_copy: "lm_head.decoder.bias",
        decoder: "lm_head.decoder.weight",
    },
    ..bert::ARCHITECTURE
};

/// ELECTRA has the same but for its activation.
pub(super) const HEAD: HeadNames = HeadNames {
    dense: "classifier.dense",
    norm: None,
    output: "classifier.out_proj",
    spans: "qa_outputs",
    saved_as: Some("classifier"),
    dense_is_head: true,
    is_bare: false,
    for_tokens: false,
    activation: Activation::Tanh,
    drops_input: true,
};
