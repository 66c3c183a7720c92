//! Names of architectures and their tensors in llama.cpp and in Hugging Face's transformers.

use std::collections::BTreeSet;

use super::value::Metadata;
use crate::error::printable;

/// The architectures of llama.cpp that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Qwen2Moe,
    Qwen3Moe,
    Olmoe,
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

const RMS: (&str, &str) = ("attention.layer_norm_rms_epsilon", "rms_norm_eps");
const LAYER: &str = "attention.layer_norm_epsilon";
const SILU: (&str, &str) = ("hidden_act", "silu");

const LLAMA_OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const LLAMA_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Llama's attention and norms, and experts.
macro_rules! with_experts {
    ($router:literal, [$gate:literal, $up:literal, $down:literal] $(, $own:literal => $hub:literal)*) => {
        &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate_inp", $router),
            ("ffn_gate_exps", $gate),
            ("ffn_up_exps", $up),
            ("ffn_down_exps", $down)
            $(, ($own, $hub))*
        ]
    };
}

const LLAMA: Architecture = Architecture {
    family: Family::Llama,
    model_type: "llama",
    class: "LlamaForCausalLM",
    outer: LLAMA_OUTER,
    layers: "model.layers",
    layer: LLAMA_LAYER,
    norm_eps: RMS,
    activation: SILU,
    changes: Changes::Interleaved,
};

const EXPERTS: Architecture = Architecture {
    layer: with_experts!(
        "mlp.gate",
        ["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"]
    ),
    changes: Changes::None,
    ..LLAMA
};

const GEMMA3: Architecture = Architecture {
    family: Family::Gemma3,
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    changes: Changes::PlusOne,
    ..LLAMA
};

/// All known architectures. A file is read as the first of those that share its name in llama.cpp.
pub(crate) const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { model_type: "mistral", class: "MistralForCausalLM", ..LLAMA },
    Architecture {
        family: Family::Qwen2,
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Qwen3,
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        layer: with_experts!(
            "block_sparse_moe.gate",
            [
                "block_sparse_moe.experts.*.w1",
                "block_sparse_moe.experts.*.w3",
                "block_sparse_moe.experts.*.w2"
            ]
        ),
        ..LLAMA
    },
    Architecture {
        family: Family::Qwen2Moe,
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        layer: with_experts!(
            "mlp.gate",
            ["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"],
            "ffn_gate_inp_shexp" => "mlp.shared_expert_gate",
            "ffn_gate_shexp" => "mlp.shared_expert.gate_proj",
            "ffn_up_shexp" => "mlp.shared_expert.up_proj",
            "ffn_down_shexp" => "mlp.shared_expert.down_proj"
        ),
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Qwen3Moe,
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        ..EXPERTS
    },
    Architecture { family: Family::Olmoe, model_type: "olmoe", class: "OlmoeForCausalLM", ..EXPERTS },
    Architecture { family: Family::Granite, model_type: "granite", class: "GraniteForCausalLM", ..LLAMA },
    Architecture { family: Family::SmolLm3, model_type: "smollm3", class: "SmolLM3ForCausalLM", ..LLAMA },
    Architecture {
        family: Family::Gemma,
        model_type: "gemma",
        class: "GemmaForCausalLM",
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        changes: Changes::PlusOne,
        ..LLAMA
    },
    GEMMA3,
    Architecture {
        family: Family::Gemma2,
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        // Gemma 3's layer without the norms of queries and keys.
        ..GEMMA3
    },
    Architecture {
        family: Family::Glm4,
        model_type: "glm4",
        class: "Glm4ForCausalLM",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("post_attention_norm", "post_self_attn_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("post_ffw_norm", "post_mlp_layernorm"),
        ],
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::SeedOss,
        model_type: "seed_oss",
        class: "SeedOssForCausalLM",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Arcee,
        model_type: "arcee",
        class: "ArceeForCausalLM",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        activation: ("hidden_act", "relu2"),
        ..LLAMA
    },
    Architecture {
        family: Family::Olmo2,
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        layer: &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::StableLm,
        model_type: "stablelm",
        class: "StableLmForCausalLM",
        norm_eps: (LAYER, "layer_norm_eps"),
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Starcoder2,
        model_type: "starcoder2",
        class: "Starcoder2ForCausalLM",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        norm_eps: (LAYER, "norm_epsilon"),
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Phi2,
        model_type: "phi",
        class: "PhiForCausalLM",
        outer: &[
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.final_layernorm"),
            ("output", "lm_head"),
        ],
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        norm_eps: (LAYER, "layer_norm_eps"),
        activation: ("hidden_act", "gelu_new"),
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::Phi3,
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        family: Family::GptNeoX,
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        outer: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        layers: "gpt_neox.layers",
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        norm_eps: (LAYER, "layer_norm_eps"),
        activation: ("hidden_act", "gelu"),
        changes: Changes::ByPart,
    },
    Architecture {
        family: Family::Gpt2,
        model_type: "gpt2",
        class: "GPT2LMHeadModel",
        outer: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        layers: "transformer.h",
        layer: &[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        norm_eps: (LAYER, "layer_norm_epsilon"),
        activation: ("activation_function", "gelu_new"),
        changes: Changes::Transposed,
    },
];

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
            Some(name) => {
                Err(format!("has the tensor '{}', and its config {layers} layers", printable(name)))
            }
            None => Ok(()),
        }
    }

    /// The architecture of a file, by its name in llama.cpp; with experts if the file has an expert count.
    pub(crate) fn of_file(metadata: &Metadata<'_>) -> Option<&'static Self> {
        let name = metadata.get("general.architecture")?.as_text()?;
        let count = metadata.get(format!("{name}.expert_count").as_str());
        let has_experts = count.and_then(|count| count.as_count()).is_some_and(|count| count > 0);
        let mut found = ARCHITECTURES.iter().filter(|architecture| architecture.name() == name);
        let first = found.clone().next();
        found.find(|architecture| architecture.has_experts() == has_experts).or(first)
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
        names.dedup();
        names.join(", ")
    }

    /// Hugging Face's name of a tensor of llama.cpp, with the stem of the latter.
    pub(crate) fn to_hub<'n>(&self, name: &'n str) -> Option<(String, &'n str)> {
        let (stem, end) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
        if let Some((layer, inner)) = layer_of(stem) {
            let (_, hub) = self.layer.iter().find(|(own, _)| *own == inner)?;
            return Some((format!("{}.{layer}.{hub}.{end}", self.layers), inner));
        }
        let (_, hub) = self.outer.iter().find(|(own, _)| *own == stem)?;
        Some((format!("{hub}.{end}"), stem))
    }

    /// llama.cpp's name of a tensor of Hugging Face, with its stem.
    pub(crate) fn to_llama(&self, name: &str) -> Option<(String, &'static str)> {
        let (path, end) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
        let inner = path.strip_prefix(self.layers).and_then(|rest| rest.strip_prefix('.'));
        if let Some((layer, inner)) = inner.and_then(|rest| rest.split_once('.')) {
            let layer = number(layer)?;
            let (own, _) = self.layer.iter().find(|(_, hub)| is_named(hub, inner))?;
            return Some((format!("blk.{layer}.{own}.{end}"), own));
        }
        let (own, _) = self.outer.iter().find(|(_, hub)| *hub == path)?;
        Some((format!("{own}.{end}"), own))
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
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for architecture in ARCHITECTURES {
            let outer = architecture.outer.iter().map(|(own, _)| format!("{own}.weight"));
            let layer = architecture.layer.iter().map(|(own, _)| format!("blk.11.{own}.bias"));
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
