//! GPT-BigCode, as in SantaCoder and StarCoder (Li et al. 2023): GPT-2 with one key head for all queries by option.

use super::gpt2;
use crate::config::{DecoderArchitecture, DecoderConfig, DecoderNames, Keys, QkvNames};

pub(super) const ARCHITECTURE: DecoderArchitecture = DecoderArchitecture {
    model_type: "gpt_bigcode",
    class: "GPTBigCode",
    names: DecoderNames {
        // One key head: its queries, then its key and value. As many as queries: side by side for each head.
        qkv: QkvNames::Fused { name: "attn.c_attn", by_head: true },
        conv1d: false,
        ..gpt2::NAMES
    },
    config,
    ..gpt2::ARCHITECTURE
};

fn config(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults = crate::config::Defaults { activation: "gelu_pytorch_tanh", ..gpt2::DEFAULTS };
    let config = gpt2::common(architecture, keys, defaults)?;
    let shares_keys = keys.flag_or("multi_query", true)?;
    Ok(DecoderConfig { n_kv_heads: if shares_keys { 1 } else { config.n_heads }, ..config })
}
