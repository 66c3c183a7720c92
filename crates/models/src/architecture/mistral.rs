//! Mistral (Jiang et al. 2023): Llama with a sliding window and a separate head width.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, MAX_DIM};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "mistral", class: "Mistral", config, ..llama::ARCHITECTURE };

pub(super) fn config(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
) -> Result<DecoderConfig, String> {
    // Without the key a window of 4096; only null switches it off.
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    let defaults = Defaults { max_positions: 131_072, ..Defaults::DEFAULT };
    // With a list of layers transformers reads a Mistral as a Ministral.
    DecoderConfig::with(architecture, keys, defaults)?.with_windows(keys, window, |_| true)
}
