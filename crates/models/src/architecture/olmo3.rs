//! OLMo 3 (OLMo Team 2025): OLMo 2 with a window in three of four layers; scaled rotary positions only in the others.

use super::olmo2;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys, MAX_DIM, RopeConfig, RopeKeys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "olmo3", class: "Olmo3", config, ..olmo2::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let common = olmo2::config(architecture, keys)?;
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    let global = RopeKeys { default_theta: 500_000.0, ..RopeKeys::DEFAULT };
    // An older config's `rope_theta` is that of the layers without a window, in transformers too.
    let local = RopeKeys { theta: "", ..global };
    let ropes = vec![
        RopeConfig::read_kind(keys, "full_attention", common.head_dim, global)?,
        RopeConfig::read_kind(keys, "sliding_attention", common.head_dim, local)?,
    ];
    let config = DecoderConfig { ropes, ..common };
    let mut config = config.with_windows(keys, window, |layer| !(layer + 1).is_multiple_of(4))?;
    let types = keys.layer_types(config.n_layers)?;
    for (index, layer) in config.layers.iter_mut().enumerate() {
        let slides = match &types {
            Some(types) => types[index] == "sliding_attention",
            None => !(index + 1).is_multiple_of(4),
        };
        layer.rope = Some(usize::from(slides));
    }
    Ok(config)
}
