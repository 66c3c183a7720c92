//! Ministral 3 (Mistral AI 2025): Llama with queries scaled by position.

use super::llama;
use crate::config::{DecoderArchitecture, DecoderConfig, Defaults, Keys, MAX_DIM, QueryGrowth};

pub(super) const ARCHITECTURE: DecoderArchitecture =
    DecoderArchitecture { model_type: "ministral3", class: "Ministral3", config, ..llama::ARCHITECTURE };

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults =
        Defaults { head_dim: Some(128), norm_eps: 1e-5, max_positions: 262_144, ..Defaults::DEFAULT };
    let positions = keys.object("rope_parameters")?.ok_or("rope_parameters is missing")?;
    let at = |reason: String| format!("rope_parameters: {reason}");
    let beta = positions.number("llama_4_scaling_beta").map_err(at)?;
    let growth = QueryGrowth {
        beta: beta.ok_or("rope_parameters: llama_4_scaling_beta is missing")?,
        length: positions.size("original_max_position_embeddings").map_err(at)?,
    };
    let window = keys.optional_size("sliding_window", MAX_DIM)?;
    let mut config = DecoderConfig::with(architecture, keys, defaults)?;
    config.ropes.iter_mut().for_each(|rope| rope.query_growth = Some(growth));
    // transformers reads no `layer_types` here.
    Ok(config.with_window(window))
}
