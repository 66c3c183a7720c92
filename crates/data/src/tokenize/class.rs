//! Which tokenizer class a folder means, by the rule of `AutoTokenizer` in transformers 5.

use super::parts::Parts;
use crate::error::Result;

/// Model types by the class that transformers registers for them. Those of classes without parts are left out: their
/// `tokenizer.json` is taken as it is.
const REGISTERED: &[(Parts, &[&str])] = &[
    (Parts::Albert, &["albert", "yoso"]),
    (
        Parts::Bert,
        &[
            "align",
            "bark",
            "bert",
            "blip",
            "bros",
            "chinese_clip",
            "convbert",
            "distilbert",
            "electra",
            "ernie",
            "flava",
            "git",
            "grounding-dino",
            "layoutlm",
            "lxmert",
            "megatron-bert",
            "mm-grounding-dino",
            "mobilebert",
            "nomic_bert",
            "squeezebert",
            "tvp",
            "vilt",
            "visual_bert",
        ],
    ),
    (Parts::Blenderbot, &["blenderbot"]),
    (Parts::Camembert, &["camembert"]),
    (
        Parts::Clip,
        &[
            "aimv2",
            "clip",
            "clipseg",
            "groupvit",
            "omdet-turbo",
            "oneformer",
            "owlv2",
            "owlvit",
            "sam3",
            "sam3_video",
            "xclip",
        ],
    ),
    (Parts::Cohere, &["aya_vision", "cohere", "cohere2"]),
    (Parts::Deberta, &["deberta"]),
    (Parts::DebertaV2, &["deberta-v2"]),
    (
        Parts::Gpt2,
        &[
            "blip-2",
            "codegen",
            "dbrx",
            "emu3",
            "gpt2",
            "gpt_neo",
            "gptj",
            "hyperclovax_vision_v2",
            "instructblip",
            "instructblipvideo",
            "jais2",
            "opt",
            "phi",
            "starcoder2",
        ],
    ),
    (
        Parts::GptNeoX,
        &["falcon_mamba", "gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv", "xlstm"],
    ),
    (
        Parts::Gemma,
        &[
            "diffusion_gemma",
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "recurrent_gemma",
            "shieldgemma2",
            "t5gemma",
            "zaya",
        ],
    ),
    (Parts::Llama, &["idefics", "idefics2"]),
    (Parts::MBart, &["mbart"]),
    (Parts::MpNet, &["mpnet"]),
    (
        Parts::Qwen2,
        &[
            "audioflamingo3",
            "colqwen2",
            "cosmos3_omni",
            "dots3_note",
            "fun_asr_nano",
            "hunyuan_vl",
            "internvl",
            "lighton_ocr",
            "moss_transcribe_diarize",
            "ovis2",
            "qianfan_ocr",
            "qwen2",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_audio",
            "qwen2_moe",
            "qwen2_vl",
            "qwen3",
            "qwen3_asr",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
            "vibevoice",
        ],
    ),
    (Parts::Qwen35, &["qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen4_exp"]),
    (
        Parts::Roberta,
        &[
            "bart",
            "bridgetower",
            "clap",
            "data2vec-text",
            "florence2",
            "ibert",
            "led",
            "lilt",
            "longformer",
            "mra",
            "mvp",
            "roberta",
            "roberta-prelayernorm",
        ],
    ),
    (Parts::T5, &["mt5", "musicgen", "musicgen_melody", "switch_transformers", "t5"]),
    (Parts::XlmRoberta, &["gte", "jina_embeddings_v3", "metaclip_2", "trocr", "xlm-roberta", "xmod"]),
];

/// Model types for which transformers takes `tokenizer.json` as it is, whatever class is named; and `siglip2`, whose class
/// has no parts here.
const GENERIC: &[&str] = &[
    "arctic",
    "aria",
    "beam",
    "bigbird_pegasus",
    "canary",
    "chatlm",
    "cohere_asr",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "fuyu",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v",
    "glm4v_moe",
    "glm_image",
    "glmasr",
    "got_ocr2",
    "gpt_bigcode",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "h2ovl_chat",
    "hyperclovax",
    "hyperclovax_vlm",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "kimi_k25",
    "kimi_linear",
    "kosmos-2",
    "llava",
    "llava_next",
    "mimo_v2_flash",
    "minicpm3",
    "minicpm_ocr",
    "minicpmv",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral_large4",
    "mixtral",
    "modernbert",
    "modernbert-decoder",
    "molmo",
    "molmo2",
    "nemo_speechlm",
    "nemotron",
    "nvfp4",
    "nystromformer",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "opencua",
    "openvla",
    "paddleocr_vl",
    "pegasus_x",
    "persimmon",
    "phi3",
    "phi3_v",
    "phimoe",
    "pix2struct",
    "pixtral",
    "siglip2",
    "smolvlm",
    "stablelm",
    "step3_vl",
    "umt5",
    "vipllava",
    "voxtral",
    "voxtral_realtime",
    "xlm-roberta-xl",
];

/// Model types whose published class is known to be wrong, so that the registered one is taken.
const PUBLISHED_WRONG: [&str; 6] =
    ["hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp"];

/// Whether a class passes token types to the model (its `model_input_names`).
pub(super) fn passes_types(named: Option<&str>, parts: Option<Parts>) -> bool {
    let named = named.map(stem);
    match parts {
        Some(Parts::Bert) => !matches!(named, Some("DistilBert" | "DPRReader")),
        Some(Parts::Deberta | Parts::DebertaV2) => true,
        Some(_) => false,
        None => {
            matches!(named, Some("Canine" | "ConvBert" | "FNet" | "LayoutLMv2" | "MarkupLM" | "Tapas"))
        }
    }
}

/// The name without `Fast` and `Tokenizer`.
pub(super) fn stem(class: &str) -> &str {
    let class = class.strip_suffix("Fast").unwrap_or(class);
    class.strip_suffix("Tokenizer").unwrap_or(class)
}

/// The class of a folder, or `None` where `tokenizer.json` is taken as it is.
///
/// `named` is the class that `tokenizer_config.json`, or else `config.json`, names; `is_byte_level` tells
/// whether `tokenizer.json` has a byte-level part, and is called only for Llama's class.
///
/// # Errors
/// Those of `is_byte_level`.
pub(super) fn chosen(
    named: Option<&str>,
    model_type: &str,
    is_byte_level: impl FnOnce() -> Result<bool>,
) -> Result<Option<Parts>> {
    if GENERIC.contains(&model_type) {
        return Ok(None);
    }
    let own = REGISTERED.iter().find(|(_, types)| types.contains(&model_type)).map(|(parts, _)| *parts);
    Ok(match named.map(stem) {
        None => own,
        Some(_) if PUBLISHED_WRONG.contains(&model_type) => own,
        // Llama 3 was published with the class of Llama 2.
        Some("Llama") if is_byte_level()? => None,
        Some(named) => Parts::of(named),
    })
}
