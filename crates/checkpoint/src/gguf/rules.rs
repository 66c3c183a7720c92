//! The biases and the head that llama.cpp's loader requires or accepts for an architecture.
//!
//! The loader rejects a file with a tensor that it does not request ("wrong number of tensors"), and one that lacks a requested
//! tensor.

use super::architecture::Family;

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
    /// The rules of an architecture, from the tensors that its source in llama.cpp (`src/models`) requests.
    pub(crate) fn of(family: Family) -> Self {
        let rules = |required, allowed, head, is_square| Self { required, allowed, head, is_square };
        match family {
            Family::Llama | Family::Granite => rules(&[], ALL, Head::Optional, false),
            Family::Qwen2 => rules(&[], QKV, Head::Optional, true),
            Family::Qwen3 | Family::Qwen3Moe | Family::Glm4 | Family::SeedOss | Family::Arcee => {
                rules(&[], QKV, Head::Optional, false)
            }
            Family::Qwen2Moe | Family::Olmoe => rules(&[], QKV, Head::Required, true),
            Family::GptOss => rules(
                &["attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
                QKV,
                Head::Required,
                false,
            ),
            Family::SmolLm3 => rules(&[], &[], Head::Optional, false),
            Family::Gemma => rules(&[], &[], Head::Tied, false),
            Family::Gemma2 => rules(&[], QKV, Head::Tied, false),
            Family::Gemma3 => rules(&[], &[], Head::Optional, false),
            Family::Olmo2 => rules(&[], &[], Head::Required, true),
            Family::Phi3 => rules(&[], &[], Head::Optional, true),
            Family::StableLm => rules(
                &["attn_norm", "output_norm"],
                &["attn_q", "attn_k", "attn_v", "ffn_norm"],
                Head::Required,
                true,
            ),
            Family::Starcoder2 => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_output", "ffn_up", "ffn_down"],
                QKV,
                Head::Optional,
                true,
            ),
            Family::Phi2 => rules(
                &["attn_norm", "output_norm", "attn_output", "ffn_up", "ffn_down", "output"],
                QKV,
                Head::Required,
                true,
            ),
            Family::GptNeoX => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"],
                &[],
                Head::Required,
                true,
            ),
            Family::Gpt2 => rules(
                &["attn_norm", "ffn_norm", "output_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"],
                &[],
                Head::Optional,
                true,
            ),
        }
    }

    /// Whether a stem may have a bias.
    pub(crate) fn has_bias(&self, stem: &str) -> bool {
        self.required.contains(&stem) || self.allowed.contains(&stem)
    }

    /// Checks that the names to be written include the required biases.
    ///
    /// # Errors
    /// One line that names the missing tensor.
    pub(crate) fn check_biases(
        &self,
        name: &str,
        layers: usize,
        has: impl Fn(&str) -> bool,
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
        Ok(())
    }

    /// Checks whether a file may have, or lack, `output.weight`.
    ///
    /// # Errors
    /// One line that says which.
    pub(crate) fn check_head(&self, name: &str, has_head: bool) -> Result<(), String> {
        match (self.head, has_head) {
            (Head::Required, false) => {
                Err(format!("lacks the tensor 'output.weight', which llama.cpp's {name} requires"))
            }
            (Head::Tied, true) => Err(format!(
                "has the tensor 'output.weight'; the head of llama.cpp's {name} is the token embedding"
            )),
            _ => Ok(()),
        }
    }

    /// Checks the width of all query heads together.
    ///
    /// # Errors
    /// One line with the widths.
    pub(crate) fn check_width(&self, name: &str, [heads, head, width]: [u64; 3]) -> Result<(), String> {
        if self.is_square && heads.checked_mul(head) != Some(width) {
            return Err(format!(
                "llama.cpp's {name} has heads of {width} elements together, not {heads} of {head}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_biases_are_asked_for_in_every_layer() {
        let rules = Rules::of(Family::Gpt2);
        let all = ["attn_norm", "ffn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"];
        let mut names: Vec<String> =
            (0..2).flat_map(|layer| all.map(|stem| format!("blk.{layer}.{stem}.bias"))).collect();
        names.push("output_norm.bias".into());
        let check = |without: &str| {
            rules.check_biases("gpt2", 2, |name| name != without && names.iter().any(|n| n == name))
        };
        assert_eq!(check(""), Ok(()));
        for name in &names {
            assert!(check(name).unwrap_err().contains(&format!("'{name}' is missing")));
        }
        assert!(Rules::of(Family::Phi2).check_biases("phi2", 0, |name| name != "output.bias").is_err());
        assert!(!rules.has_bias("ffn_gate") && rules.has_bias("ffn_up"));
    }

    #[test]
    fn heads_are_required_optional_or_refused() {
        for (family, with, without) in [
            (Family::Llama, true, true),
            (Family::Gemma, false, true),
            (Family::Gemma2, false, true),
            (Family::Gemma3, true, true),
            (Family::Olmo2, true, false),
            (Family::Qwen2Moe, true, false),
            (Family::Olmoe, true, false),
            (Family::Qwen3Moe, true, true),
        ] {
            let is_ok = |has_head| Rules::of(family).check_head("x", has_head).is_ok();
            assert_eq!((is_ok(true), is_ok(false)), (with, without), "{family:?}");
        }
    }

    #[test]
    fn heads_are_as_wide_as_the_model_where_llama_cpp_assumes_it() {
        assert!(Rules::of(Family::Qwen2Moe).check_width("qwen2moe", [4, 8, 24]).is_err());
        assert!(Rules::of(Family::Qwen2Moe).check_width("qwen2moe", [4, 6, 24]).is_ok());
        assert!(Rules::of(Family::Qwen3Moe).check_width("qwen3moe", [4, 8, 24]).is_ok());
    }
}
