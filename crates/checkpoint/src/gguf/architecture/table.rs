//! The table of architectures.

use super::{Architecture, Changes, Family};

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

pub(super) const LLAMA: Architecture = Architecture {
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

pub(super) const EXPERTS: Architecture = Architecture {
    layer: with_experts!(
        "mlp.gate",
        ["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"]
    ),
    changes: Changes::None,
    ..LLAMA
};

const GPT_OSS: Architecture = Architecture {
    family: Family::GptOss,
    model_type: "gpt_oss",
    class: "GptOssForCausalLM",
    layer: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_sinks", "self_attn.sinks"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "mlp.router"),
        ("ffn_gate_exps", "mlp.experts.*.gate_proj"),
        ("ffn_up_exps", "mlp.experts.*.up_proj"),
        ("ffn_down_exps", "mlp.experts.*.down_proj"),
    ],
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

const OLMO2: Architecture = Architecture {
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
};

/// All known architectures. A file is read as the first of those that share its name in llama.cpp, less the exceptions of
/// [`of_file`](Architecture::of_file).
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
    GPT_OSS,
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
    OLMO2,
    Architecture { model_type: "olmo3", class: "Olmo3ForCausalLM", ..OLMO2 },
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
