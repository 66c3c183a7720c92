//! Gemma 2 (Gemma Team 2024): soft caps on scores and logits, norms around each sublayer, a window in every
//! other layer.

use super::{gemma, gemma3};
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Keys, MAX_DIM};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gemma2",
    class: "Gemma2",
    names: DecoderNames { norms: gemma3::NORMS, ..gemma::ARCHITECTURE.names },
    config,
    ..gemma::ARCHITECTURE
};

pub(super) fn config(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
) -> Result<DecoderConfig, String> {
    let common = gemma::common(architecture, keys, gemma::DEFAULTS)?;
    let scale = gemma::score_scale(keys)?;
    let window = match keys.has("sliding_window") {
        true => keys.optional_size("sliding_window", MAX_DIM)?,
        false => Some(4096),
    };
    // Null switches a cap off, and without the key there is one.
    let cap = |key: &str, default: f64| match keys.has(key) {
        true => keys.positive(key),
        false => Ok(Some(default)),
    };
    let config = DecoderConfig {
        attention_softcap: cap("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32),
        logit_softcap: cap("final_logit_softcapping", 30.0)?,
        ..common
    };
    let mut config = config.with_windows(keys, window, |layer| layer.is_multiple_of(2))?;
    config.layers.iter_mut().for_each(|layer| layer.scale = scale);
    Ok(config)
}
