//! GPT-2 (Radford et al. 2019): a table of positions, `Conv1D` maps, the head tied to the embedding.

use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, DecoderNames, Keys, LayerKind, LayerNorms, MAX_DIM,
    MAX_LAYERS, NormKind, QkvNames, Residual, lookup,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gpt2",
    class: "GPT2",
    names: DecoderNames {
        prefix: "transformer.",
        embedding: "wte",
        positions: Some("wpe"),
        layers: "h",
        norms: LayerNorms::before("ln_1", "ln_2"),
        qkv: QkvNames::Fused { name: "attn.c_attn", by_head: false },
        qk_norms: ["", ""],
        output: "attn.c_proj",
        gate: None,
        up: "mlp.c_fc",
        up_has_gate: false,
        down: "mlp.c_proj",
        norm: "ln_f",
        head: "lm_head",
        conv1d: true,
        buffers: &["attn.bias", "attn.masked_bias"],
    },
    config,
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let (d_model, n_heads) = (keys.size("n_embd")?, keys.size("n_head")?);
    let n_layers = keys.size_within("n_layer", MAX_LAYERS)?;
    let head_dim = d_model / n_heads;
    if head_dim * n_heads != d_model {
        return Err(format!("n_embd {d_model} is not a multiple of n_head {n_heads}"));
    }
    let scale = if keys.flag_or("scale_attn_weights", true)? { (head_dim as f32).powf(-0.5) } else { 1.0 };
    let by_layer = keys.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let activation = keys.text("activation_function")?.unwrap_or("gelu_new");
    let layer = |i: usize| LayerKind {
        window: None,
        rope: None,
        scale: if by_layer { scale / (i + 1) as f32 } else { scale },
        norms: architecture.names.norms,
        experts: false,
    };
    Ok(DecoderConfig {
        architecture,
        vocab_size: keys.size("vocab_size")?,
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_ff: keys.optional_size("n_inner", MAX_DIM)?.unwrap_or(4 * d_model),
        experts: None,
        max_positions: keys.size_or("n_positions", 1024)?,
        norm: NormKind::Layer,
        norm_eps: keys.number_or("layer_norm_epsilon", 1e-5)?,
        ropes: Vec::new(),
        activation: lookup("activation_function", activation, &Activation::NAMES)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        residual: Residual::Sequential,
        qk_norm: None,
        layers: (0..n_layers).map(layer).collect(),
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
        head_bias: false,
        tied: keys.flag_or("tie_word_embeddings", true)?,
        bos: keys.ids("bos_token_id")?.first().copied(),
        eos: keys.ids("eos_token_id")?,
        padding: keys.ids("pad_token_id")?.first().copied(),
        lowrank: keys.section()?,
        raw: Default::default(),
    })
}
