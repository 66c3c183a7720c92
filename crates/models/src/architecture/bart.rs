//! BART (Lewis et al. 2020) and mBART (Liu et al. 2020): learned positions that begin at the third row of their tables, layer
//! norms after the sums, in mBART before the parts, a norm over the embeddings, biases in all maps and on the logits.

use super::{bert, llama};
use crate::config::{
    CrossNames, DecoderArchitecture, DecoderConfig, DecoderDropouts, DecoderNames, Defaults, DropoutKeys,
    EmbeddingNames, EncoderArchitecture, EncoderConfig, EncoderDropouts, EncoderNames, Keys, LayerNorms,
    NormKind, QkvNames, Residual, Seq2SeqArchitecture,
};

pub(super) static BART: Seq2SeqArchitecture = Seq2SeqArchitecture {
    model_types: &[("bart", "Bart")],
    encoder: &ENCODER,
    decoder: &DECODER,
    logits_bias: Some("final_logits_bias"),
    copies: &["encoder.embed_tokens", "decoder.embed_tokens"],
    starts_with_padding: false,
    starts_with_last: false,
    says_tied: true,
};

pub(super) static MBART: Seq2SeqArchitecture = Seq2SeqArchitecture {
    model_types: &[("mbart", "MBart")],
    encoder: &ENCODER_BEFORE,
    decoder: &DECODER_BEFORE,
    starts_with_last: true,
    ..BART
};

/// Rows before that of the first position.
const OFFSET: usize = 2;

static ENCODER: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("bart", "Bart")],
    config_keys: &[
        ("d_model", "hidden_size"),
        ("encoder_attention_heads", "num_attention_heads"),
        ("encoder_layers", "num_hidden_layers"),
        ("encoder_ffn_dim", "intermediate_size"),
        ("activation_function", "hidden_act"),
        ("dropout", "hidden_dropout_prob"),
        ("attention_dropout", "attention_probs_dropout_prob"),
    ],
    defaults: || {
        vec![
            ("layer_norm_eps", 1e-5.into()),
            ("attention_probs_dropout_prob", 0.0.into()),
            ("max_position_embeddings", 1024.into()),
        ]
    },
    options,
    extras: &[],
    has_heads: false,
    names: EncoderNames {
        prefix: "model.",
        embeddings: EmbeddingNames {
            words: "shared",
            positions: Some("encoder.embed_positions"),
            types: None,
            tasks: None,
            norm: Some("encoder.layernorm_embedding"),
        },
        layers: "encoder.layers",
        qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        output: "self_attn.out_proj",
        attention_norm: "self_attn_layer_norm",
        feed_forward: ["fc1", "fc2"],
        feed_forward_norm: "final_layer_norm",
        ..bert::NAMES
    },
    ..bert::ARCHITECTURE
};

static ENCODER_BEFORE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("mbart", "MBart")],
    names: EncoderNames { norms_before: true, final_norm: Some("encoder.layer_norm"), ..ENCODER.names },
    ..ENCODER
};

static DECODER: DecoderArchitecture = DecoderArchitecture {
    model_type: "bart",
    class: "Bart",
    config_keys: &[
        ("d_model", "hidden_size"),
        ("decoder_attention_heads", "num_attention_heads"),
        ("decoder_layers", "num_hidden_layers"),
        ("decoder_ffn_dim", "intermediate_size"),
        ("activation_function", "hidden_act"),
    ],
    names: DecoderNames {
        embedding: "shared",
        embedding_norm: Some("decoder.layernorm_embedding"),
        positions: Some("decoder.embed_positions"),
        layers: "decoder.layers",
        norms: LayerNorms::before("self_attn_layer_norm", "final_layer_norm"),
        output: "self_attn.out_proj",
        cross: Some(CrossNames {
            qkv: ["encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"],
            output: "encoder_attn.out_proj",
            norm: "encoder_attn_layer_norm",
        }),
        gate: None,
        up: "fc1",
        down: "fc2",
        norm: "decoder.layer_norm",
        buffers: &["encoder.version", "decoder.version"],
        ..llama::NAMES
    },
    dropouts: DropoutKeys {
        embeddings: Some(("dropout", 0.1)),
        attention: Some(("attention_dropout", 0.0)),
        attention_output: Some(("dropout", 0.1)),
        mlp_output: Some(("dropout", 0.1)),
    },
    token_head: llama::TOKEN_HEAD,
    config: |architecture, keys| decoder(architecture, keys, Residual::PostNorm),
};

static DECODER_BEFORE: DecoderArchitecture = DecoderArchitecture {
    model_type: "mbart",
    class: "MBart",
    config: |architecture, keys| decoder(architecture, keys, Residual::Sequential),
    ..DECODER
};

/// Refuses config options that change the layers; transformers no longer reads them.
fn check(keys: &Keys<'_>) -> Result<(), String> {
    let is_mbart = keys.text("model_type")? == Some("mbart");
    // mBART was published with the last two, and has both anyway.
    let refused = ["static_position_embeddings", "add_final_layer_norm", "normalize_before"];
    for key in &refused[..if is_mbart { 1 } else { 3 }] {
        if keys.flag_or(key, false)? {
            return Err(format!("{key} = true is not supported; expected false"));
        }
    }
    if !keys.flag_or("normalize_embedding", true)? {
        return Err("normalize_embedding = false is not supported; expected true".into());
    }
    match keys.number("extra_pos_embeddings")? {
        Some(rows) if rows != OFFSET as f64 => {
            Err(format!("extra_pos_embeddings = {rows} is not supported; expected {OFFSET}"))
        }
        _ => Ok(()),
    }
}

fn embedding_scale(keys: &Keys<'_>, d_model: usize) -> Result<f64, String> {
    Ok(if keys.flag_or("scale_embedding", false)? { (d_model as f64).sqrt() } else { 1.0 })
}

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    check(keys)?;
    let inner = keys.dropout("activation_dropout")?.unwrap_or(0.0);
    Ok(EncoderConfig {
        embedding_scale: embedding_scale(keys, config.d_model)?,
        max_positions: config.max_positions + OFFSET,
        position_offset: OFFSET,
        dropouts: EncoderDropouts { inner, ..config.dropouts },
        ..config
    })
}

fn decoder(
    architecture: &'static DecoderArchitecture,
    keys: &Keys<'_>,
    residual: Residual,
) -> Result<DecoderConfig, String> {
    let defaults = Defaults { activation: "gelu", tied: true, max_positions: 1024, ..Defaults::DEFAULT };
    let common = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    let inner = keys.dropout("activation_dropout")?.unwrap_or(0.0);
    Ok(DecoderConfig {
        position_offset: OFFSET,
        embedding_scale: embedding_scale(keys, common.d_model)?,
        norm: NormKind::Layer,
        norm_eps: 1e-5,
        n_kv_heads: common.n_heads,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        residual,
        final_norm: residual == Residual::Sequential,
        dropouts: DecoderDropouts { mlp_inner: inner, ..common.dropouts },
        ..common
    })
}
