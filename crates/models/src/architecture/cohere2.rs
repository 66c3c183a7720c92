//! Cohere's Command R7B and Command A (2024): Cohere with three layers that have a window and rotary positions to one
//! that has neither.

use super::cohere;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys, MAX_DIM};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "cohere2", class: "Cohere2", config, ..cohere::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    let pattern = keys.size_or("sliding_window_pattern", 4)?;
    let config = cohere::common(architecture, keys, 10_000.0)?;
    let mut config = config.with_windows(keys, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    for layer in &mut config.layers {
        layer.rope = layer.window.map(|_| 0);
    }
    Ok(config)
}
