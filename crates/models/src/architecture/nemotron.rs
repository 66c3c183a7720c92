//! Nemotron-4 and Minitron (NVIDIA 2024): layer norms with weights stored as their difference from 1, an
//! ungated feed-forward layer with squared ReLU, rotary positions over half of the head.

use super::{arcee, llama};
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, NormKind, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "nemotron", class: "Nemotron", config, ..arcee::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        activation: "relu2",
        norm_eps_key: "norm_eps",
        norm_eps: 1e-5,
        rope: RopeKeys::partial(0.5),
        max_positions: 4096,
        ..Defaults::DEFAULT
    };
    Ok(DecoderConfig { norm: NormKind::LayerPlusOne, ..llama::with(architecture, keys, defaults)? })
}
