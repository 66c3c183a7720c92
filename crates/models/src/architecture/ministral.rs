//! Ministral 8B (Mistral AI 2024): Mistral with windows by layer.

use super::mistral;
use crate::config::DecoderArchitecture;

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "ministral", class: "Ministral", ..mistral::ARCHITECTURE };
