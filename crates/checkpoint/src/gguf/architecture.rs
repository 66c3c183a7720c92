//! Names of architectures and their tensors in llama.cpp and in Hugging Face's transformers.

mod table;

use std::collections::BTreeSet;

use super::value::Metadata;
use crate::error::excerpt;

pub(crate) use self::table::ARCHITECTURES;

/// The architectures of llama.cpp that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Qwen2Moe,
    Qwen3Moe,
    Olmoe,
    GptOss,
    Granite,
    SmolLm3,
    Gemma,
    Gemma2,
    Gemma3,
    Glm4,
    SeedOss,
    Arcee,
    Olmo2,
    StableLm,
    Starcoder2,
    Phi2,
    Phi3,
    GptNeoX,
    Gpt2,
}

/// The stem of a tensor that is a parameter of its module in Hugging Face's files, with no `.weight` after its name.
const SINKS: &str = "attn_sinks";

/// An architecture under both names.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// What llama.cpp runs it as.
    pub(crate) family: Family,
    /// `model_type` of a config.
    pub(crate) model_type: &'static str,
    /// The class in `architectures` of a config.
    pub(crate) class: &'static str,
    /// Stems of tensors outside the layers: llama.cpp's, Hugging Face's.
    pub(crate) outer: &'static [(&'static str, &'static str)],
    /// Path of the layers.
    pub(crate) layers: &'static str,
    /// Stems of tensors inside a layer; `*` stands for the number of an expert, all of which lie in one tensor of llama.cpp.
    pub(crate) layer: &'static [(&'static str, &'static str)],
    /// Key of the norms' epsilon: llama.cpp's after the architecture, Hugging Face's.
    pub(crate) norm_eps: (&'static str, &'static str),
    /// Feed-forward activation, which a GGUF file does not record: Hugging Face's key and value.
    pub(crate) activation: (&'static str, &'static str),
    /// What llama.cpp's conversion changes in the tensors.
    pub(crate) changes: Changes,
}

/// What llama.cpp's conversion changes in the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Nothing.
    None,
    /// Rows of queries and keys: the two halves of a head alternate, for interleaved rotary positions.
    Interleaved,
    /// Rows of the map of queries, keys and values: by part and not by head.
    ByPart,
    /// Gains of norms: 1 is added.
    PlusOne,
    /// Linear maps are transposed: a file of Hugging Face has `[d_input, d_output]`.
    Transposed,
}

impl Architecture {
    /// `general.architecture`.
    pub(crate) const fn name(&self) -> &'static str {
        match self.family {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen2Moe => "qwen2moe",
            Family::Qwen3Moe => "qwen3moe",
            Family::Olmoe => "olmoe",
            Family::GptOss => "gpt-oss",
            Family::Granite => "granite",
            Family::SmolLm3 => "smollm3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
            Family::Glm4 => "glm4",
            Family::SeedOss => "seed_oss",
            Family::Arcee => "arcee",
            Family::Olmo2 => "olmo2",
            Family::StableLm => "stablelm",
            Family::Starcoder2 => "starcoder2",
            Family::Phi2 => "phi2",
            Family::Phi3 => "phi3",
            Family::GptNeoX => "gptneox",
            Family::Gpt2 => "gpt2",
        }
    }

    /// Whether a layer may lack the weight of a stem.
    fn is_optional(&self, stem: &str) -> bool {
        use Family::{Gemma3, Olmo2, Olmoe, Qwen3, Qwen3Moe, StableLm};
        match stem {
            "attn_q_norm" | "attn_k_norm" => {
                !matches!(self.family, Qwen3 | Qwen3Moe | Olmoe | Gemma3 | Olmo2)
            }
            // Parallel layers have one norm.
            "ffn_norm" => self.family == StableLm,
            _ => false,
        }
    }

    fn lacks(&self, name: &str) -> String {
        let hub = self.to_hub(name).map_or_else(String::new, |(hub, _)| format!(" ({hub})"));
        format!("lacks the tensor '{name}'{hub}")
    }

    /// Whether the head is the token embedding where a config does not say it.
    pub(crate) fn is_tied_by_default(&self) -> bool {
        use Family::{Gemma, Gemma2, Gemma3, Gpt2, SmolLm3, Starcoder2};
        matches!(self.family, Gemma | Gemma2 | Gemma3 | Gpt2 | SmolLm3 | Starcoder2)
    }

    /// Checks that llama.cpp's names of a model's weights are those of this number of layers: no weight is missing, and no layer
    /// is left over. The head is a matter of the [rules](super::rules::Rules).
    ///
    /// # Errors
    /// One line that names the tensor.
    pub(crate) fn check_complete<'n>(
        &self,
        layers: u64,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<(), String> {
        let names: BTreeSet<&str> = names.collect();
        let outer = self.outer.iter().map(|(own, _)| *own).filter(|own| *own != "output");
        if let Some(missing) = outer.map(|own| format!("{own}.weight")).find(|name| !names.contains(&**name))
        {
            return Err(self.lacks(&missing));
        }
        let required: Vec<&str> =
            self.layer.iter().map(|(own, _)| *own).filter(|own| !self.is_optional(own)).collect();
        for layer in 0..layers {
            let has = |stem: &str| names.contains(&*format!("blk.{layer}.{stem}.weight"));
            let is_fused = |stem: &str| matches!(stem, "attn_q" | "attn_k" | "attn_v") && has("attn_qkv");
            if let Some(stem) = required.iter().find(|stem| !has(stem) && !is_fused(stem)) {
                return Err(self.lacks(&format!("blk.{layer}.{stem}.weight")));
            }
        }
        let extra = names.iter().find(|name| layer_of(name).is_some_and(|(layer, _)| layer as u64 >= layers));
        match extra {
            Some(name) => Err(format!("has the tensor '{}', and its config {layers} layers", excerpt(name))),
            None => Ok(()),
        }
    }

    /// The architecture of a file, by its name in llama.cpp; with experts if the file has an expert count, and OLMo 3 if an OLMo 2
    /// has a window.
    pub(crate) fn of_file(metadata: &Metadata<'_>) -> Option<&'static Self> {
        let name = metadata.get("general.architecture")?.as_text()?;
        let is_positive = |key: &str| metadata.get(key).and_then(|n| n.as_count()).is_some_and(|n| n > 0);
        let has_experts = is_positive(&format!("{name}.expert_count"));
        let is_olmo3 = name == "olmo2" && is_positive("olmo2.attention.sliding_window");
        let mut found = ARCHITECTURES.iter().filter(|architecture| architecture.name() == name);
        let first = found.clone().next();
        let fits = |architecture: &&Self| {
            architecture.has_experts() == has_experts && (architecture.model_type == "olmo3") == is_olmo3
        };
        found.find(fits).or(first)
    }

    /// Whether layers have experts.
    pub(crate) fn has_experts(&self) -> bool {
        self.layer.iter().any(|(own, _)| *own == "ffn_gate_exps")
    }

    /// The architecture of a `model_type`.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.model_type == model_type)
    }

    /// llama.cpp's names of all architectures.
    pub(crate) fn known() -> String {
        let mut names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name()).collect();
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        names.join(", ")
    }

    /// Hugging Face's name of a tensor of llama.cpp, with the stem of the latter.
    pub(crate) fn to_hub<'n>(&self, name: &'n str) -> Option<(String, &'n str)> {
        let (stem, end) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
        if let Some((layer, inner)) = layer_of(stem) {
            let (_, hub) = self.layer.iter().find(|(own, _)| *own == inner)?;
            let path = format!("{}.{layer}.{hub}", self.layers);
            return match inner {
                SINKS => Some((path, inner)).filter(|_| end == "weight"),
                _ => Some((format!("{path}.{end}"), inner)),
            };
        }
        let (_, hub) = self.outer.iter().find(|(own, _)| *own == stem)?;
        Some((format!("{hub}.{end}"), stem))
    }

    /// llama.cpp's name of a tensor of Hugging Face, with its stem.
    pub(crate) fn to_llama(&self, name: &str) -> Option<(String, &'static str)> {
        if let Some((layer, inner)) = self.in_layer(name)
            && self.layer.iter().any(|(own, hub)| *own == SINKS && *hub == inner)
        {
            return Some((format!("blk.{layer}.{SINKS}.weight"), SINKS));
        }
        let (path, end) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
        if let Some((layer, inner)) = self.in_layer(path) {
            let (own, _) = self.layer.iter().find(|(own, hub)| *own != SINKS && is_named(hub, inner))?;
            return Some((format!("blk.{layer}.{own}.{end}"), own));
        }
        let (own, _) = self.outer.iter().find(|(_, hub)| *hub == path)?;
        Some((format!("{own}.{end}"), own))
    }

    /// The layer of one of Hugging Face's names, and the rest of the name.
    fn in_layer<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (layer, rest) = name.strip_prefix(self.layers)?.strip_prefix('.')?.split_once('.')?;
        Some((number(layer)?, rest))
    }
}

/// The layer of one of llama.cpp's names, and the rest of the name: `blk.3.ffn_up.weight` is `ffn_up.weight` of layer 3.
pub(crate) fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((number(layer)?, rest))
}

/// A number in canonical form: `07` belongs to another name.
fn number(layer: &str) -> Option<usize> {
    layer.parse().ok().filter(|number: &usize| number.to_string() == layer)
}

/// Whether a path matches a name in which `*` stands for the number of an expert.
fn is_named(name: &str, path: &str) -> bool {
    let Some((before, after)) = name.split_once('*') else { return name == path };
    let expert = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    expert.and_then(number).is_some()
}

#[cfg(test)]
mod tests {
    use super::table::{EXPERTS, LLAMA};
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for architecture in ARCHITECTURES {
            let outer = architecture.outer.iter().map(|(own, _)| format!("{own}.weight"));
            let layer = architecture.layer.iter().map(|(own, _)| match *own {
                SINKS => format!("blk.11.{own}.weight"),
                own => format!("blk.11.{own}.bias"),
            });
            for name in outer.chain(layer) {
                let (hub, stem) = architecture.to_hub(&name).unwrap();
                // The file has all experts in one tensor.
                let hub = hub.replace('*', "7");
                assert_eq!(architecture.to_llama(&hub), Some((name.clone(), stem_of(&name))), "{hub}");
                assert_eq!(stem, stem_of(&name));
            }
        }
        let own = EXPERTS.to_llama("model.layers.3.mlp.experts.12.up_proj.weight");
        assert_eq!(own, Some(("blk.3.ffn_up_exps.weight".into(), "ffn_up_exps")));
        assert_eq!(EXPERTS.to_llama("model.layers.3.mlp.experts.*.up_proj.weight"), None);
        assert_eq!(EXPERTS.to_llama("model.layers.3.mlp.experts.07.up_proj.weight"), None);
        let oss = Architecture::of_model_type("gpt_oss").unwrap();
        assert_eq!(oss.to_hub("blk.3.attn_sinks.bias"), None);
        assert_eq!(oss.to_llama("model.layers.3.self_attn.sinks.weight"), None);
        assert_eq!(LLAMA.to_llama("model.layers.3.self_attn.sinks"), None);
        assert_eq!(LLAMA.to_hub("blk.3.ffn_gate_inp.weight"), None);
        assert_eq!(LLAMA.to_hub("rope_freqs.weight"), None);
        assert_eq!(LLAMA.to_hub("blk.03.ffn_up.weight"), None);
    }

    #[test]
    fn a_model_with_a_hole_is_named() {
        for architecture in ARCHITECTURES {
            let outer = architecture.outer.iter().map(|(own, _)| format!("{own}.weight"));
            let layers = (0..2).flat_map(|layer| {
                architecture.layer.iter().map(move |(own, _)| format!("blk.{layer}.{own}.weight"))
            });
            let names: Vec<String> = outer.chain(layers).collect();
            let check = |layers: u64, without: &str| {
                architecture.check_complete(layers, names.iter().map(|n| &**n).filter(|n| *n != without))
            };
            assert_eq!(check(2, ""), Ok(()));
            for name in &names {
                let stem = name.trim_end_matches(".weight").rsplit('.').next().unwrap();
                let is_needed = stem != "output" && !architecture.is_optional(stem);
                assert_eq!(check(2, name).is_err(), is_needed, "{} without {name}", architecture.name());
            }
            assert!(check(3, "").unwrap_err().contains("lacks the tensor 'blk.2."));
            assert!(check(1, "").unwrap_err().contains("has the tensor 'blk.1."));
        }
    }

    fn stem_of(name: &str) -> &'static str {
        let stem = name.rsplit_once('.').unwrap().0.rsplit('.').next().unwrap().to_owned();
        let all = ARCHITECTURES.iter().flat_map(|a| a.outer.iter().chain(a.layer));
        all.map(|(own, _)| *own).find(|own| *own == stem).unwrap()
    }
}
