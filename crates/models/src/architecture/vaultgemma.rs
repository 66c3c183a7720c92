//! VaultGemma (Sinha et al. 2025): Gemma 2 without the norms after each sublayer.

use super::{gemma, gemma2};
use crate::config::{DecoderArchitecture, DecoderNames, LayerNorms};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "vaultgemma",
    class: "VaultGemma",
    names: DecoderNames {
        norms: LayerNorms::before("input_layernorm", "pre_feedforward_layernorm"),
        ..gemma::ARCHITECTURE.names
    },
    config: gemma2::config,
    ..gemma::ARCHITECTURE
};
