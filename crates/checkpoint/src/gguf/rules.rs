//! What llama.cpp's loader of an architecture wants of a model beyond the names: which biases there are, and a head.
//!
//! It refuses a file with a tensor that it does not ask for ("wrong number of tensors"), as one in which a tensor is missing.

use serde_json::{Map, Value as Json};

/// What a model must have, may have, and must not have.
pub(crate) struct Rules {
    /// Stems whose bias has to be there.
    required: &'static [&'static str],
    /// Stems whose bias may be there.
    allowed: &'static [&'static str],
    /// Whether there is a head of its own: it has to be there, must not be, or either.
    pub(crate) head: Head,
    /// Whether heads of queries together are as wide as the model.
    is_square: bool,
}

/// Whether `output.weight` is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The table of embeddings serves where it is missing.
    Optional,
    /// The table is written once more where the two share their weights.
    Required,
    /// The table is the head.
    Tied,
}

const QKV: &[&str] = &["attn_q", "attn_k", "attn_v"];
const ALL: &[&str] = &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

impl Rules {
    /// The rules of an architecture by llama.cpp's name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let rules = |required, allowed, head, is_square| Some(Self { required, allowed, head, is_square });
        match name {
            "llama" | "granite" => rules(&[], ALL, Head::Optional, false),
            "qwen2" => rules(&[], QKV, Head::Optional, true),
            "qwen3" => rules(&[], QKV, Head::Optional, false),
            "smollm3" => rules(&[], &[], Head::Optional, false),
            "gemma" => rules(&[], &[], Head::Tied, false),
            "gemma3" => rules(&[], &[], Head::Optional, false),
            "olmo2" => rules(&[], &[], Head::Required, true),
            "phi3" => rules(&[], &[], Head::Optional, true),
            "stablelm" => rules(
                &["attn_norm", "output_norm"],
                &["attn_q", "attn_k", "attn_v", "ffn_norm"],
                Head::Required,
                true,
            ),
            "starcoder2" => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_output", "ffn_up", "ffn_down"],
                QKV,
                Head::Optional,
                true,
            ),
            "phi2" => rules(
                &["attn_norm", "output_norm", "attn_output", "ffn_up", "ffn_down", "output"],
                QKV,
                Head::Required,
                true,
            ),
            "gptneox" => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"],
                &[],
                Head::Required,
                true,
            ),
            "gpt2" => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"],
                &[],
                Head::Optional,
                true,
            ),
            _ => None,
        }
    }

    /// Whether a bias has a place.
    pub(crate) fn has_bias(&self, stem: &str) -> bool {
        self.required.contains(&stem) || self.allowed.contains(&stem)
    }

    /// What of the names that are written is missing, or what does not fit.
    ///
    /// # Errors
    /// A line that says what llama.cpp would not load.
    pub(crate) fn check(
        &self,
        name: &str,
        layers: usize,
        has: impl Fn(&str) -> bool,
        config: &Map<String, Json>,
    ) -> Result<(), String> {
        for stem in self.required {
            let names = match *stem {
                "output" | "output_norm" => vec![format!("{stem}.bias")],
                _ => (0..layers).map(|layer| format!("blk.{layer}.{stem}.bias")).collect(),
            };
            if let Some(missing) = names.into_iter().find(|name| !has(name)) {
                return Err(format!("llama.cpp's {name} has biases, and '{missing}' is missing"));
            }
        }
        let count = |keys: [&str; 2]| keys.iter().find_map(|key| config.get(*key)?.as_u64());
        let [heads, width] = [["num_attention_heads", "n_head"], ["hidden_size", "n_embd"]].map(count);
        if let (Some(heads), Some(width), Some(head)) = (heads, width, count(["head_dim", "head_dim"]))
            && self.is_square
            && heads * head != width
        {
            return Err(format!(
                "llama.cpp's {name} has heads of {width} elements together, not {heads} of {head}"
            ));
        }
        Ok(())
    }
}
