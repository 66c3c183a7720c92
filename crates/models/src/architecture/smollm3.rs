//! SmolLM3 (Hugging Face 2025): Llama in which every fourth layer has no positions.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, MAX_DIM, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "smollm3", class: "SmolLM3", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults {
        tied: true,
        rope: RopeKeys { default_theta: 2_000_000.0, ..RopeKeys::DEFAULT },
        max_positions: 32_768,
        ..Defaults::DEFAULT
    };
    let mut config = llama::with(architecture, keys, defaults)?;
    let interval = keys.size_or("no_rope_layer_interval", 4)?;
    let has_rope = match keys.numbers("no_rope_layers")? {
        Some(list) if list.len() >= config.n_layers => list.iter().map(|&x| x != 0.0).collect(),
        Some(list) => {
            return Err(format!("no_rope_layers has {} entries for {} layers", list.len(), config.n_layers));
        }
        None => (1..=config.n_layers).map(|n| !n.is_multiple_of(interval)).collect::<Vec<_>>(),
    };
    for (layer, &has_rope) in config.layers.iter_mut().zip(&has_rope) {
        layer.rope = layer.rope.filter(|_| has_rope);
    }
    // The flag counts where the layers are not listed.
    let has_windows = keys.flag_or("use_sliding_window", false)? || keys.get("layer_types").is_some();
    let window = keys.optional_size("sliding_window", MAX_DIM)?.filter(|_| has_windows);
    config.with_windows(keys, window, |layer| !has_rope[layer])
}
