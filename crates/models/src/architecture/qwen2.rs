//! Qwen2 (Yang et al. 2024): Llama with biases on queries, keys and values, and windows in some layers.

use super::{DecoderArchitecture, llama};
use crate::config::MAX_DIM;
use crate::decoder::{DecoderConfig, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "qwen2", names: llama::NAMES, config };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let common = DecoderConfig::common(architecture, keys)?;
    let mut windows = vec![None; common.n_layers];
    if keys.flag_or("use_sliding_window", false)? {
        let window = keys.optional_size("sliding_window", MAX_DIM)?;
        match keys.get("layer_types").and_then(|types| types.as_array()) {
            Some(types) if types.len() == windows.len() => {
                for (slot, kind) in windows.iter_mut().zip(types) {
                    *slot = if kind == "sliding_attention" { window } else { None };
                }
            }
            Some(types) => {
                return Err(format!("layer_types has {} entries for {} layers", types.len(), windows.len()));
            }
            None => {
                let full = keys.number_or("max_window_layers", 28.0)? as usize;
                windows.iter_mut().skip(full).for_each(|slot| *slot = window);
            }
        }
    }
    Ok(DecoderConfig { qkv_bias: true, windows, ..common })
}
