//! The biases and the head that llama.cpp's loader requires or accepts for an architecture.
//!
//! It rejects a file with a tensor that it does not request ("wrong number of tensors"), and one that lacks a requested tensor.

use serde_json::{Map, Value as Json};

/// The optional tensors of an architecture.
pub(crate) struct Rules {
    /// Stems that require a bias.
    required: &'static [&'static str],
    /// Stems that may have a bias.
    allowed: &'static [&'static str],
    /// Whether `output.weight` is stored.
    pub(crate) head: Head,
    /// Whether the query heads together must be as wide as the model.
    is_square: bool,
}

/// Whether a file stores `output.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The token embedding is the head if it is absent.
    Optional,
    /// It must be present: a tied model stores the token embedding twice.
    Required,
    /// It must be absent: the token embedding is the head.
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

    /// Whether a stem may have a bias.
    pub(crate) fn has_bias(&self, stem: &str) -> bool {
        self.required.contains(&stem) || self.allowed.contains(&stem)
    }

    /// Checks the names to be written and the widths of the config.
    ///
    /// # Errors
    /// One line that names what llama.cpp would not load.
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
