//! BLOOM (BigScience 2022): ALiBi instead of positions, a norm over the embedding, query, key and value in
//! one map head by head.

use super::{falcon, gpt2};
use crate::config::{
    Activation, DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, DropoutKeys, Keys, NormKind,
};
use lowrank_kernels::{Alibi, Gelu};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "bloom",
    class: "Bloom",
    config_keys: &[
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("seq_length", "max_position_embeddings"),
    ],
    names: DecoderNames { embedding_norm: Some("word_embeddings_layernorm"), ..falcon::ARCHITECTURE.names },
    dropouts: DropoutKeys {
        attention_output: Some(("hidden_dropout", 0.0)),
        ..falcon::ARCHITECTURE.dropouts
    },
    token_head: falcon::TOKEN_HEAD,
    config,
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    if keys.flag_or("apply_residual_connection_post_layernorm", false)? {
        return Err("apply_residual_connection_post_layernorm = true is not supported; expected false".into());
    }
    let parts = keys.size_or("pretraining_tp", 1)?;
    if parts > 1 && keys.flag_or("slow_but_exact", false)? {
        return Err(format!(
            "slow_but_exact = true with pretraining_tp = {parts} is not supported; expected false or 1"
        ));
    }
    let defaults = Defaults { activation_key: "", max_positions: 2048, ..gpt2::DEFAULTS };
    let common = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    Ok(DecoderConfig {
        d_ff: 4 * common.d_model,
        norm: NormKind::Layer,
        activation: Activation::Gelu(Gelu::Tanh),
        n_kv_heads: common.n_heads,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        alibi: Some(Alibi { slopes: slopes(common.n_heads).into(), rounded: None }),
        ..common
    })
}

/// ALiBi's slopes: `2^(-8i/n)` for a power of two of heads; the first of twice as many fill up other numbers.
pub(super) fn slopes(n_heads: usize) -> Vec<f32> {
    let power = (n_heads + 1).next_power_of_two() / 2;
    let of = |heads: usize, i: usize| (-8.0 * i as f64 / heads as f64).exp2() as f32;
    let more = (0..n_heads - power).map(|i| of(2 * power, 2 * i + 1));
    (1..=power).map(|i| of(power, i)).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_halve_or_go_by_roots_of_two() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // Two of two heads, then the first of four.
        assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(1), [0.00390625]);
    }
}
