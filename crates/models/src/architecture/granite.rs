//! Granite 3 (IBM 2024): Llama with multipliers on embeddings, scores, residuals and logits.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Keys};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "granite", class: "Granite", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let mut common = llama::config(architecture, keys)?;
    let scale = keys.number_or("attention_multiplier", 1.0)?;
    common.layers.iter_mut().for_each(|layer| layer.scale = scale as f32);
    let divisor = keys.number_or("logits_scaling", 1.0)?;
    if divisor == 0.0 {
        return Err("logits_scaling = 0 is out of range; expected another number".into());
    }
    Ok(DecoderConfig {
        embedding_scale: keys.number_or("embedding_multiplier", 1.0)?,
        residual_scale: keys.number_or("residual_multiplier", 1.0)?,
        logit_scale: 1.0 / divisor,
        ..common
    })
}
