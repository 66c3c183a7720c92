//! EXAONE 4 (LG AI Research 2025): norms after each sublayer and on the heads of queries and keys; if some
//! layers have a window, the others have no positions.

use super::olmo2;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, MAX_DIM, QkNorm};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "exaone4", class: "Exaone4", config, ..olmo2::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { norm_eps: 1e-5, ..Defaults::DEFAULT };
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    // The pattern may be a word (`LLLG`), and counts where the layers are not listed.
    let pattern = match keys.get("layer_types") {
        Some(_) => 4,
        None => keys.size_or("sliding_window_pattern", 4)?,
    };
    let common = DecoderConfig::with(architecture, keys, defaults)?;
    let config = DecoderConfig { qk_norm: Some(QkNorm::Head), ..common };
    let mut config = config.with_windows(keys, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    if window.is_some() {
        config.layers.iter_mut().for_each(|layer| layer.rope = layer.window.map(|_| 0));
    }
    Ok(config)
}
