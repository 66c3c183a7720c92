//! Ministral 8B (Mistral AI 2024): Mistral with windows by layer.

use super::mistral;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "ministral", class: "Ministral", config, ..mistral::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let config = mistral::config(architecture, keys)?;
    let window = config.layers[0].window;
    config.with_windows(keys, window, |_| true)
}
