//! Mistral (Jiang et al. 2023): Llama with a sliding window and a separate head width.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys, MAX_DIM};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "mistral", class: "Mistral", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    // Without the key a window of 4096; only null switches it off.
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    DecoderConfig::common(architecture, keys)?.with_windows(keys, window, |_| true)
}
