//! Mistral (Jiang et al. 2023): Llama with a sliding window and a head width of its own.

use super::{DecoderArchitecture, llama};
use crate::config::MAX_DIM;
use crate::decoder::{DecoderConfig, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "mistral", names: llama::NAMES, config };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let common = DecoderConfig::common(architecture, keys)?;
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    Ok(DecoderConfig { windows: vec![window; common.n_layers], ..common })
}
