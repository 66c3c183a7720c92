//! Errors for models that are not supported: what the model is, and the nearest supported one.

use serde_json::{Map, Value};

use super::{DECODERS, ENCODERS};

/// The commands that support encoder-decoder models.
pub(super) const SEQ2SEQ: &str = "encoder-decoder models are supported by generate, finetune, perplexity --rows, inspect, merge, compress, and convert \
     of an adapter";

/// Architectures that are known by name and not supported, with the supported one that is nearest and what differs.
const RELATIVES: &[(&str, &str)] = &[
    ("gemma3", "the model also reads images; give its text model (gemma3_text)"),
    ("gemma3n", "the nearest supported architecture is gemma3_text; per-layer embeddings and AltUp differ"),
    ("gemma4", "the nearest supported architecture is gemma3_text"),
    ("deepseek_v2", "the nearest supported architecture is qwen2_moe; latent attention differs"),
    (
        "deepseek_v3",
        "the nearest supported architecture is qwen2_moe; latent attention and groups of experts differ",
    ),
    ("phimoe", "the nearest supported architecture is mixtral; how the router chooses and its norms differ"),
    ("granitemoe", "the nearest supported architecture is granite; experts in one tensor differ"),
    ("flex_olmo", "the nearest supported architecture is olmoe; norms after each part differ"),
    (
        "glm4_moe",
        "the nearest supported architecture is qwen3_moe; a router of sigmoids and its offsets differ",
    ),
    ("ernie4_5_moe", "the nearest supported architecture is qwen2_moe; offsets of the router differ"),
    ("qwen3_next", "the nearest supported architecture is qwen3_moe; linear attention differs"),
    ("exaone", "the nearest supported architecture is llama; its names differ"),
    ("chatglm", "the nearest supported architecture is glm; its names differ"),
    ("internlm2", "the nearest supported architecture is llama; its names and its fused map differ"),
    ("apertus", "the nearest supported architecture is arcee; learnt activations and norms differ"),
    ("codegen", "the nearest supported architecture is gptj; the order of its fused map differs"),
    ("RefinedWeb", "the nearest supported architecture is falcon, under which newer files have it"),
    ("RefinedWebModel", "the nearest supported architecture is falcon, under which newer files have it"),
    ("mamba", "it has no attention; no supported architecture is near"),
    ("bart", SEQ2SEQ),
    ("mbart", SEQ2SEQ),
    ("pegasus", "the nearest supported encoder-decoder model is mbart; its table of positions differs"),
    ("marian", "the nearest supported encoder-decoder model is bart; its table of positions differs"),
    ("longt5", "the nearest supported encoder-decoder model is t5; its local attention differs"),
    ("whisper", "speech models are not supported"),
    ("deit", "the nearest supported model of pictures is vit; a distillation token differs"),
    ("beit", "the nearest supported model of pictures is vit; relative positions and layer scales differ"),
    ("dinov2", "the nearest supported model of pictures is vit; layer scales differ"),
    ("swin", "the nearest supported model of pictures is vit; shifted windows differ"),
    ("clip", "models of pictures and texts are not supported; the nearest model of pictures is vit"),
    ("deberta", "the nearest supported encoder is deberta-v2; one map for queries, keys and values differs"),
];

/// Why a model of several parts, with a section of the config for each, is refused; `None` for other models.
pub(super) fn of_parts(config: &Map<String, Value>) -> Option<String> {
    let model_type = config.get("model_type").and_then(Value::as_str)?;
    if RELATIVES.iter().any(|(name, _)| *name == model_type) {
        return None;
    }
    let refused = |rest: &str| {
        format!("model_type '{model_type}' is not supported: the model reads more than text{rest}")
    };
    let part = |key: &str| config.get(key).filter(|part| part.is_object());
    let text = part("text_config").and_then(|text| text.get("model_type")).and_then(Value::as_str);
    match text {
        Some(text) if DECODERS.iter().any(|a| a.model_type == text) => Some(refused(&format!(
            "; save its text model (text_config.model_type = '{text}') as a separate folder and give that"
        ))),
        Some(text) => Some(refused(&format!(
            ", and its text model (text_config.model_type = '{text}') is not supported either"
        ))),
        None => ["vision_config", "audio_config"].iter().any(|key| part(key).is_some()).then(|| refused("")),
    }
}

/// Why a decoder of this type is refused.
pub(super) fn decoder(model_type: &str) -> String {
    if super::SEQ2SEQ.iter().flat_map(|a| a.model_types).any(|(name, _)| *name == model_type) {
        return format!(
            "model_type '{model_type}' is an encoder-decoder model; a decoder (a language model) is needed here; {SEQ2SEQ}"
        );
    }
    if ENCODERS.iter().flat_map(|a| a.model_types).any(|(name, _)| *name == model_type) {
        return format!(
            "model_type '{model_type}' is an encoder; a decoder (a language model) is needed here"
        );
    }
    let known: Vec<&str> = DECODERS.iter().map(|a| a.model_type).collect();
    refusal(model_type, "decoders", &known)
}

/// Why an encoder of this type is refused.
pub(super) fn encoder(model_type: &str) -> String {
    if DECODERS.iter().any(|a| a.model_type == model_type) {
        return format!(
            "model_type '{model_type}' is a decoder (a language model); an encoder is needed here"
        );
    }
    let known: Vec<&str> = ENCODERS.iter().flat_map(|a| a.model_types).map(|(name, _)| *name).collect();
    refusal(model_type, "encoders", &known)
}

fn refusal(model_type: &str, kind: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    if let Some((_, why)) = RELATIVES.iter().find(|(name, _)| *name == model_type) {
        return format!("model_type '{model_type}' is not supported: {why}; supported {kind} are {all}");
    }
    let nearest = known
        .iter()
        .map(|name| (common_beginning(name, model_type), *name))
        .filter(|(n, _)| *n >= 3)
        .max_by_key(|(n, name)| (*n, std::cmp::Reverse(name.len())));
    let nearest = nearest.map(|(_, name)| format!(" (the nearest is {name})")).unwrap_or_default();
    format!("model_type '{model_type}' is not supported for {kind}{nearest}; expected one of {all}")
}

fn common_beginning(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count()
}
