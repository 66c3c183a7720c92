//! Nomic BERT (Nussbaum et al. 2024): BERT with rotary positions and a gated feed-forward sublayer.

use super::bert;
use crate::config::{
    EmbeddingNames, EncoderArchitecture, EncoderBiases, EncoderConfig, EncoderNames, HeadNames, Keys,
    MaskedLmNames, QkvNames, RopeConfig, RopeKeys,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("nomic_bert", "NomicBert")],
    // Those of the model's own code, under which it is published.
    config_keys: &[
        ("n_embd", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("n_inner", "intermediate_size"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("rotary_emb_base", "rope_theta"),
    ],
    defaults: || {
        vec![
            ("hidden_act", "silu".into()),
            ("hidden_dropout_prob", 0.0.into()),
            ("attention_probs_dropout_prob", 0.0.into()),
            ("max_position_embeddings", 2048.into()),
        ]
    },
    options,
    names: NAMES,
    head: HeadNames { dense: "nomic_bert.pooler.dense", ..bert::ARCHITECTURE.head },
    masked_lm: MaskedLmNames { norm: "cls.predictions.transform.layer_norm", ..bert::ARCHITECTURE.masked_lm },
    ..bert::ARCHITECTURE
};

/// Jina Embeddings has nearly the same.
pub(super) const NAMES: EncoderNames = EncoderNames {
    prefix: "nomic_bert.",
    embeddings: EmbeddingNames { positions: None, norm: Some("emb_ln"), ..bert::EMBEDDINGS },
    layers: "encoder.layers",
    qkv: QkvNames::Fused { name: "attn.Wqkv", by_head: false },
    output: "attn.out_proj",
    attention_norm: "norm1",
    gate: Some("mlp.fc12"),
    feed_forward: ["mlp.fc11", "mlp.fc2"],
    feed_forward_norm: "norm2",
    ..bert::NAMES
};

/// The config with rotary positions in every layer.
pub(super) fn rotary(
    config: EncoderConfig,
    keys: &Keys<'_>,
    default_theta: f64,
) -> Result<EncoderConfig, String> {
    let names = RopeKeys { default_theta, max_positions: config.max_positions, ..RopeKeys::DEFAULT };
    let rope = RopeConfig::read_with(keys, config.d_model / config.n_heads, names)?;
    let mut layers = config.layers;
    layers.iter_mut().for_each(|layer| layer.rope = Some(0));
    Ok(EncoderConfig { ropes: vec![rope], layers, ..config })
}

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let head_dim = config.d_model / config.n_heads;
    let wanted = keys.size_or("head_dim", head_dim)?;
    if wanted != head_dim {
        return Err(format!("head_dim = {wanted} is not supported for nomic_bert; expected {head_dim}"));
    }
    check_published(keys)?;
    let biases = EncoderBiases { qkv: false, output: false, up: false, down: false, ..config.biases };
    rotary(EncoderConfig { biases, ..config }, keys, 1000.0)
}

/// Refuses options of the model's own code that transformers does not have.
fn check_published(keys: &Keys<'_>) -> Result<(), String> {
    const OFF: [&str; 8] = [
        "qkv_proj_bias",
        "mlp_fc1_bias",
        "mlp_fc2_bias",
        "prenorm",
        "causal",
        "parallel_block",
        "rotary_emb_interleaved",
        "use_rms_norm",
    ];
    for key in OFF {
        if keys.flag_or(key, false)? {
            return Err(format!("{key} = true is not supported for nomic_bert; expected false"));
        }
    }
    if let Some(name) = keys.text("activation_function")?.filter(|&name| name != "swiglu") {
        return Err(format!("activation_function '{name}' is not supported for nomic_bert; expected swiglu"));
    }
    if let Some(factor) = keys.number("rotary_scaling_factor")? {
        return Err(format!(
            "rotary_scaling_factor = {factor} is not supported for nomic_bert; expected null"
        ));
    }
    match keys.number_or("rotary_emb_fraction", 1.0)? {
        1.0 => Ok(()),
        part => Err(format!("rotary_emb_fraction = {part} is not supported for nomic_bert; expected 1")),
    }
}
