//! GPT-J (Wang & Komatsuzaki 2021): parallel attention and feed-forward over one norm, interleaved
//! rotary pairs, a head with a bias.

use super::{gpt2, llama};
use crate::config::{
    DecoderArchitecture, DecoderConfig, DecoderNames, Defaults, Keys, LayerNorms, NormKind, QkvNames,
    Residual, RopeConfig, RopeScaling,
};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gptj",
    class: "GPTJ",
    names: DecoderNames {
        positions: None,
        norms: LayerNorms { mlp: None, ..gpt2::NAMES.norms },
        qkv: QkvNames::Separate(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
        output: "attn.out_proj",
        up: "mlp.fc_in",
        down: "mlp.fc_out",
        conv1d: false,
        ..gpt2::NAMES
    },
    dropouts: gpt2::dropouts(0.0),
    token_head: llama::TOKEN_HEAD,
    config,
    ..gpt2::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { tied: false, max_positions: 2048, ..gpt2::DEFAULTS };
    let common = DecoderConfig::with(architecture, keys, defaults)?;
    if common.tied {
        return Err("tie_word_embeddings = true is not supported; expected false".into());
    }
    if keys.has("rotary_dim") && keys.get("rotary_dim").is_none() {
        return Err("rotary_dim = null is not supported; expected an even number".into());
    }
    let rotary_dim = keys.size_or("rotary_dim", 64)?;
    if rotary_dim > common.head_dim || !rotary_dim.is_multiple_of(2) {
        return Err(format!(
            "rotary_dim = {rotary_dim} is out of range; expected an even number up to the width of a head, {}",
            common.head_dim
        ));
    }
    let rope = RopeConfig {
        theta: 10_000.0,
        rotary_dim,
        interleaved: true,
        scaling: RopeScaling::None,
        query_growth: None,
    };
    Ok(DecoderConfig {
        norm: NormKind::Layer,
        ropes: vec![rope],
        n_kv_heads: common.n_heads,
        mlp_bias: true,
        head_bias: true,
        residual: Residual::Parallel,
        ..common
    })
}
