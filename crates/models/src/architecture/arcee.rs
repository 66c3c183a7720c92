//! AFM (Arcee AI 2025): Llama with an ungated feed-forward layer with squared ReLU.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "arcee", class: "Arcee", names: NAMES, config, ..llama::ARCHITECTURE };

/// Llama's without a gate.
pub(super) const NAMES: DecoderNames = DecoderNames { gate: None, ..llama::NAMES };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { activation: "relu2", norm_eps: 1e-5, max_positions: 4096, ..Defaults::DEFAULT };
    llama::with(architecture, keys, defaults)
}
