//! What llama.cpp calls an architecture, and what Hugging Face calls it and its tensors.

use super::value::Metadata;

/// An architecture in both worlds.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
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
    /// Feed-forward activation, which llama.cpp's files do not say: Hugging Face's key and value.
    pub(crate) activation: (&'static str, &'static str),
    /// What llama.cpp's conversion changes in the tensors.
    pub(crate) changes: Changes,
}

/// What llama.cpp's conversion changes in the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// Nothing.
    None,
    /// Rows of queries and keys: the halves of a head alternate, as interleaved rotary positions want them.
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
    name: "llama",
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
    name: "gemma3",
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

/// All that are known. Of several with one name in llama.cpp, the first is what a file is read as.
pub(crate) const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { model_type: "mistral", class: "MistralForCausalLM", ..LLAMA },
    Architecture {
        name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
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
        name: "qwen2moe",
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
    Architecture { name: "qwen3moe", model_type: "qwen3_moe", class: "Qwen3MoeForCausalLM", ..EXPERTS },
    Architecture { name: "olmoe", model_type: "olmoe", class: "OlmoeForCausalLM", ..EXPERTS },
    Architecture { name: "granite", model_type: "granite", class: "GraniteForCausalLM", ..LLAMA },
    Architecture { name: "smollm3", model_type: "smollm3", class: "SmolLM3ForCausalLM", ..LLAMA },
    Architecture {
        name: "gemma",
        model_type: "gemma",
        class: "GemmaForCausalLM",
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        changes: Changes::PlusOne,
        ..LLAMA
    },
    GEMMA3,
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        // Gemma 3's without norms on queries and keys, which a file that has none does not hold.
        ..GEMMA3
    },
    Architecture {
        name: "glm4",
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
        name: "seed_oss",
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
        name: "arcee",
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
        name: "olmo2",
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
        name: "stablelm",
        model_type: "stablelm",
        class: "StableLmForCausalLM",
        norm_eps: (LAYER, "layer_norm_eps"),
        changes: Changes::None,
        ..LLAMA
    },
    Architecture {
        name: "starcoder2",
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
        name: "phi2",
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
        name: "phi3",
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
        name: "gptneox",
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
        name: "gpt2",
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
    /// The architecture of a file: of its name in llama.cpp, with experts where the file counts some.
    pub(crate) fn of_file(metadata: &Metadata<'_>) -> Option<&'static Self> {
        let name = metadata.get("general.architecture")?.as_text()?;
        let count = metadata.get(format!("{name}.expert_count").as_str());
        let has_experts = count.and_then(|count| count.as_count()).is_some_and(|count| count > 0);
        let mut found = ARCHITECTURES.iter().filter(|architecture| architecture.name == name);
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

    /// llama.cpp's names of all.
    pub(crate) fn known() -> String {
        let mut names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        names.dedup();
        names.join(", ")
    }

    /// Hugging Face's name of a tensor of llama.cpp, with the stem of the latter.
    pub(crate) fn to_hub<'n>(&self, name: &'n str) -> Option<(String, &'n str)> {
        let (stem, end) = name.rsplit_once('.').filter(|(_, end)| matches!(*end, "weight" | "bias"))?;
        if let Some((layer, inner)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            let layer = number(layer)?;
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

/// A layer's number, written as such are: `07` is another name.
fn number(layer: &str) -> Option<usize> {
    layer.parse().ok().filter(|number: &usize| number.to_string() == layer)
}

/// Whether a path is what a name stands for, the number of an expert at its place.
fn is_named(name: &str, path: &str) -> bool {
    let Some((before, after)) = name.split_once('*') else { return name == path };
    let expert = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    expert.is_some_and(|expert| expert == "*" || number(expert).is_some())
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
                assert_eq!(architecture.to_llama(&hub), Some((name.clone(), stem_of(&name))), "{hub}");
                assert_eq!(stem, stem_of(&name));
            }
        }
        let own = EXPERTS.to_llama("model.layers.3.mlp.experts.12.up_proj.weight");
        assert_eq!(own, Some(("blk.3.ffn_up_exps.weight".into(), "ffn_up_exps")));
        assert_eq!(LLAMA.to_hub("blk.3.ffn_gate_inp.weight"), None);
        assert_eq!(LLAMA.to_hub("rope_freqs.weight"), None);
        assert_eq!(LLAMA.to_hub("blk.03.ffn_up.weight"), None);
    }

    fn stem_of(name: &str) -> &'static str {
        let stem = name.rsplit_once('.').unwrap().0.rsplit('.').next().unwrap().to_owned();
        let all = ARCHITECTURES.iter().flat_map(|a| a.outer.iter().chain(a.layer));
        all.map(|(own, _)| *own).find(|own| *own == stem).unwrap()
    }
}
