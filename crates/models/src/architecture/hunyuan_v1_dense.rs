//! Hunyuan, the dense models (Tencent 2025): Llama with norms on the heads of queries and keys after the rotation.

use super::llama;
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, QkNorm, RopeConfig, RopeScaling,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "hunyuan_v1_dense",
    class: "HunYuanDenseV1",
    names: DecoderNames {
        qk_norms: ["self_attn.query_layernorm", "self_attn.key_layernorm"],
        ..llama::NAMES
    },
    config,
    ..llama::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { norm_eps: 1e-5, ..Defaults::DEFAULT };
    let mut config = llama::with(architecture, keys, defaults)?;
    let old = keys.object("rope_scaling")?.filter(|keys| !keys.is_empty());
    let chosen = match old {
        Some(old) => Some(old),
        None => keys.object("rope_parameters")?,
    };
    // A scaling called `dynamic` that is not: `alpha` sets the base once and for all.
    let alpha = chosen.map_or(Ok(None), |chosen| chosen.number("alpha"))?.filter(|&alpha| alpha != 0.0);
    if let Some(alpha) = alpha {
        config.ropes.iter_mut().for_each(|rope| with_alpha(rope, alpha));
    }
    Ok(DecoderConfig { qk_norm: Some(QkNorm::HeadAfterRotation), mlp_bias: false, ..config })
}

fn with_alpha(rope: &mut RopeConfig, alpha: f64) {
    if let RopeScaling::Dynamic { .. } = rope.scaling {
        let dim = rope.rotary_dim as f64;
        rope.theta *= alpha.powf(dim / (dim - 2.0));
        rope.scaling = RopeScaling::None;
    }
}
