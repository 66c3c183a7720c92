//! The metadata of a GGUF file, from a `config.json`.

mod rope;

use serde_json::{Map, Value as Json};

use super::architecture::{Architecture, Changes};
use super::mix::Shape;
use super::rules::Rules;
use super::write::Meta;

type Result<T> = std::result::Result<T, String>;

/// A config in GGUF's terms.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) metadata: Vec<(String, Meta)>,
    /// Tensors with the factors of rotary positions.
    pub(crate) vectors: Vec<(&'static str, Vec<f32>)>,
    pub(crate) shape: Shape,
    /// Where llama.cpp will deviate from the config.
    pub(crate) warnings: Vec<String>,
}

/// The metadata of a config; `tied`: the head shares the embedding's weights.
pub(crate) fn describe(
    architecture: &'static Architecture,
    config: &Map<String, Json>,
    tied: bool,
) -> Result<Described> {
    let keys = Keys { config, name: architecture.name() };
    let (mut metadata, mut warnings) = (Vec::new(), Vec::new());
    let common = ["num_hidden_layers", "max_position_embeddings", "hidden_size", "num_attention_heads"];
    // The common names hold where a file has both.
    let names = match architecture.name() {
        "gpt2" => {
            let own = ["n_layer", "n_positions", "n_embd", "n_head"];
            std::array::from_fn(|i| if keys.get(common[i]).is_some() { common[i] } else { own[i] })
        }
        _ => common,
    };
    let [layers, length, width, heads] = names.map(|name| keys.count(name));
    let (layers, width, heads) =
        (keys.there(layers?, names[0])?, keys.there(width?, names[2])?, keys.there(heads?, names[3])?);
    let length = length?.unwrap_or(match architecture.name() {
        "gpt2" => 1024,
        "gemma" | "gemma2" => 8192,
        "gemma3" | "glm4" | "gpt-oss" => 131_072,
        "seed_oss" => 524_288,
        "smollm3" => 32_768,
        "phi3" | "starcoder2" | "arcee" => 4096,
        _ => 2048,
    });
    let inner = match architecture.name() {
        "gpt2" => keys.count("n_inner")?.unwrap_or(4 * width),
        _ => keys.there(keys.count("intermediate_size")?, "intermediate_size")?,
    };
    let usual = match architecture.name() {
        "glm4" => 2,
        "gpt-oss" => 8,
        _ => heads,
    };
    let key_heads = keys.count("num_key_value_heads")?.unwrap_or(usual);
    let head = match (keys.count("head_dim")?, architecture.name()) {
        (Some(head), _) => head,
        (None, "gemma" | "gemma2" | "gemma3") => 256,
        (None, "qwen3" | "glm4" | "seed_oss") => 128,
        (None, "gpt-oss") => 64,
        (None, _) => width / heads.max(1),
    };
    Rules::of(architecture.family).check_width(architecture.name(), [heads, head, width])?;
    let mut put = |key: &str, value: Meta| metadata.push((format!("{}.{key}", architecture.name()), value));
    let mut count = |key: &str, n: u64| -> Result<()> {
        let n = u32::try_from(n).map_err(|_| format!("{key} = {n} does not fit a GGUF file"))?;
        put(key, Meta::U32(n));
        Ok(())
    };
    count("block_count", layers)?;
    count("context_length", length)?;
    count("embedding_length", width)?;
    count("feed_forward_length", inner)?;
    count("attention.head_count", heads)?;
    if let Some(vocab) = keys.count("vocab_size")? {
        count("vocab_size", vocab)?;
    }
    if !matches!(architecture.name(), "gpt2" | "gptneox") {
        count("attention.head_count_kv", key_heads)?;
    } else if key_heads != heads {
        return Err(format!(
            "num_key_value_heads = {key_heads} is not supported by llama.cpp's {}",
            architecture.name()
        ));
    }
    if heads.checked_mul(head) != Some(width) || architecture.name().starts_with("gemma") {
        count("attention.key_length", head)?;
        count("attention.value_length", head)?;
    }
    let experts = keys.experts(architecture, &mut count)?;
    let mut vectors = Vec::new();
    if architecture.name() != "gpt2" {
        let part_key = if architecture.name() == "gptneox" { "rotary_pct" } else { "partial_rotary_factor" };
        let default = match architecture.name() {
            "gptneox" | "stablelm" => 0.25,
            "phi2" | "glm4" => 0.5,
            _ => 1.0,
        };
        let part = match keys.in_rope("partial_rotary_factor")? {
            Some(part) => part,
            // A null is not the default: whole heads are rotated.
            None if keys.is_given(part_key) => keys.number(part_key)?.unwrap_or(1.0),
            None => default,
        };
        if architecture.name() == "llama" && part != 1.0 {
            return Err(format!("partial_rotary_factor = {part} is not supported by llama.cpp's llama"));
        }
        count("rope.dimension_count", (head as f64 * part) as u64)?;
        let theta = keys.theta(architecture)?;
        put("rope.freq_base", Meta::F32(theta as f32));
        let rotated = (head as f64 * part) as usize;
        keys.scaling(architecture, theta, rotated, length, &mut put, &mut vectors)?;
    }
    let (own, hub) = architecture.norm_eps;
    let default = if architecture.name() == "llama" || own.contains("rms") { 1e-6 } else { 1e-5 };
    let default = match architecture.model_type {
        "phi3" | "olmo2" | "olmo3" | "olmoe" | "mixtral" | "arcee" | "gpt_oss" => 1e-5,
        "glm4" => 1.562_5e-7,
        _ => default,
    };
    put(own, Meta::F32(keys.number(hub)?.unwrap_or(default) as f32));
    keys.options(architecture, [head, layers, length], &mut put, &mut warnings)?;
    keys.activation(architecture)?;
    let [layers, heads, key_heads] = [layers, heads, key_heads].map(|n| n as usize);
    Ok(Described { metadata, vectors, shape: Shape { layers, heads, key_heads, tied, experts }, warnings })
}

struct Keys<'a> {
    config: &'a Map<String, Json>,
    name: &'static str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Json> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn count(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| format!("{key} = {value}; expected a count"))
    }

    fn there<T>(&self, value: Option<T>, key: &str) -> Result<T> {
        value.ok_or_else(|| format!("{key} is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| format!("{key} = {value}; expected a number"))
    }

    /// Whether a key is there, even if null, or the same among the rotary parameters.
    fn is_given(&self, key: &str) -> bool {
        self.config.contains_key(key)
            || self.rope().is_some_and(|rope| rope.contains_key("partial_rotary_factor"))
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Json::as_bool).unwrap_or(false)
    }

    /// Writes the keys of experts and returns their number.
    fn experts(
        &self,
        architecture: &Architecture,
        count: &mut impl FnMut(&str, u64) -> Result<()>,
    ) -> Result<usize> {
        if !architecture.has_experts() {
            return Ok(0);
        }
        let name = architecture.name();
        // transformers takes one name for the other, and the second name holds where a file has both.
        let (keys, default, per_token): (&[&str], _, _) = match architecture.model_type {
            "mixtral" => (&["num_experts", "num_local_experts"], 8, 2),
            "gpt_oss" => (&["num_experts", "num_local_experts"], 128, 4),
            "qwen2_moe" => (&["num_experts"], 60, 4),
            "qwen3_moe" => (&["num_local_experts", "num_experts"], 128, 8),
            _ => (&["num_local_experts", "num_experts"], 64, 8),
        };
        let key = keys.iter().find(|key| self.get(key).is_some());
        let number = key.map_or(Ok(None), |key| self.count(key))?.unwrap_or(default);
        count("expert_count", number)?;
        let used = self.count("num_experts_per_tok")?.unwrap_or(per_token);
        count("expert_used_count", used)?;
        if name.starts_with("qwen") {
            let inner = self.there(self.count("moe_intermediate_size")?, "moe_intermediate_size")?;
            count("expert_feed_forward_length", inner)?;
            let is_dense =
                self.get("mlp_only_layers").and_then(Json::as_array).is_some_and(|all| !all.is_empty());
            if is_dense || self.count("decoder_sparse_step")?.unwrap_or(1) != 1 {
                return Err(format!("llama.cpp's {name} has experts in all layers, this model only in some"));
            }
        }
        if name == "qwen2moe" {
            let key = "shared_expert_intermediate_size";
            count("expert_shared_feed_forward_length", self.there(self.count(key)?, key)?)?;
        }
        if name == "gpt-oss" {
            let inner = self.there(self.count("intermediate_size")?, "intermediate_size")?;
            count("expert_feed_forward_length", inner)?;
        }
        if !matches!(name, "llama" | "gpt-oss") && self.flag("norm_topk_prob") != (name == "qwen3moe") {
            let does = if name == "qwen3moe" { "divides" } else { "does not divide" };
            return Err(format!(
                "norm_topk_prob = {}: llama.cpp's {name} {does} the weights of a token's experts by their sum",
                self.flag("norm_topk_prob")
            ));
        }
        if name == "olmoe"
            && self
                .count("num_key_value_heads")?
                .is_some_and(|n| Some(n) != self.count("num_attention_heads").ok().flatten())
        {
            return Err("llama.cpp's olmoe requires num_key_value_heads = num_attention_heads".into());
        }
        if let Some(clip) = self.number("clip_qkv")? {
            return Err(format!("clip_qkv = {clip} is not supported by llama.cpp's {name}"));
        }
        usize::try_from(number).map_err(|_| format!("num_experts = {number} is out of range"))
    }

    fn activation(&self, architecture: &Architecture) -> Result<()> {
        let (key, expected) = architecture.activation;
        // Gemma's first version reads this key alone; its first releases have `gelu` there and mean the tanh approximation.
        let key = if architecture.model_type == "gemma" { "hidden_act" } else { key };
        let given = match self.get(key).and_then(Json::as_str) {
            Some(given) => given,
            None if architecture.changes == Changes::PlusOne => return Ok(()),
            None => self.get("hidden_act").and_then(Json::as_str).unwrap_or(expected),
        };
        let same = [["gelu_new", "gelu_pytorch_tanh"], ["gelu_pytorch_tanh", "gelu_new"], ["silu", "swish"]];
        // llama.cpp computes the approximation for both.
        let gelu = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"];
        let is_same = given == expected
            || same.contains(&[expected, given])
            || (gelu.contains(&expected) && gelu.contains(&given));
        match is_same {
            true => Ok(()),
            false => Err(format!("{key} '{given}': llama.cpp's {} computes {expected}", architecture.name())),
        }
    }

    fn options(
        &self,
        architecture: &Architecture,
        [head, layers, length]: [u64; 3],
        put: &mut impl FnMut(&str, Meta),
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let name = architecture.name();
        let window = match self.config.contains_key("sliding_window") {
            true => self.count("sliding_window")?,
            // The default of transformers.
            false => Some(4096).filter(|_| matches!(architecture.model_type, "mistral" | "olmo3")),
        };
        let slides = match architecture.model_type {
            "mistral" | "smollm3" if self.get("layer_types").is_some() => {
                let mut types = self.get("layer_types").and_then(Json::as_array).into_iter().flatten();
                types.any(|name| name.as_str() == Some("sliding_attention"))
            }
            "mistral" | "mixtral" | "starcoder2" | "phi3" => window.is_some(),
            "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" | "smollm3" => {
                self.flag("use_sliding_window") && window.is_some()
            }
            _ => false,
        };
        if slides && window.is_some_and(|window| window < length) {
            warnings.push(format!(
                "llama.cpp's {name} has no sliding window: a token attends to all previous ones, not to {}",
                window.unwrap_or(0)
            ));
        }
        match name {
            "granite" => {
                let scales = [
                    ("attention_multiplier", "attention.scale"),
                    ("embedding_multiplier", "embedding_scale"),
                    ("residual_multiplier", "residual_scale"),
                    ("logits_scaling", "logit_scale"),
                ];
                for (hub, own) in scales {
                    // llama.cpp reads 0 as unset and then skips the scaling.
                    put(own, Meta::F32(self.number(hub)?.unwrap_or(1.0) as f32));
                }
            }
            "olmo2" if architecture.model_type == "olmo3" => self.olmo3(architecture, window, layers, put)?,
            "gpt-oss" => self.gpt_oss(layers, put, warnings)?,
            "gemma3" => self.gemma3(head, layers, put)?,
            "gemma2" => self.gemma2(head, layers, put)?,
            "phi3" => put("attention.sliding_window", Meta::U32(window.unwrap_or(0) as u32)),
            "gptneox" => {
                let parallel = self.get("use_parallel_residual").and_then(Json::as_bool).unwrap_or(true);
                put("use_parallel_residual", Meta::Bool(parallel));
            }
            "stablelm" => put("use_parallel_residual", Meta::Bool(self.flag("use_parallel_residual"))),
            "phi2" if self.flag("qk_layernorm") => {
                return Err("qk_layernorm = true is not supported by llama.cpp's phi2".into());
            }
            "gpt2" if self.get("scale_attn_weights").and_then(Json::as_bool) == Some(false) => {
                return Err("scale_attn_weights = false is not supported by llama.cpp".into());
            }
            "gpt2" if self.flag("scale_attn_by_inverse_layer_idx") => {
                return Err("scale_attn_by_inverse_layer_idx is not supported by llama.cpp".into());
            }
            "smollm3" => {
                let usual = self.get("no_rope_layers").and_then(Json::as_array).is_none_or(|list| {
                    let has_rope = |i: usize| u64::from(!(i + 1).is_multiple_of(4));
                    list.iter().enumerate().all(|(i, has)| has.as_u64() == Some(has_rope(i)))
                });
                if !usual || self.count("no_rope_layer_interval")?.unwrap_or(4) != 4 {
                    return Err(
                        "llama.cpp's smollm3 omits rotary positions in exactly every fourth layer".into()
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn gemma2(&self, head: u64, layers: u64, put: &mut impl FnMut(&str, Meta)) -> Result<()> {
        self.check_scalar(head, layers == 46)?;
        for (hub, own, usual) in [
            ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
            ("final_logit_softcapping", "final_logit_softcapping", 30.0),
        ] {
            match self.config.contains_key(hub) {
                true => {
                    let cap = self.number(hub)?;
                    let cap =
                        cap.ok_or_else(|| format!("{hub} = null: llama.cpp's gemma2 requires a value"))?;
                    put(own, Meta::F32(cap as f32));
                }
                false => put(own, Meta::F32(usual)),
            }
        }
        let types = self.get("layer_types").and_then(Json::as_array);
        let usual = types.is_none_or(|types| {
            let expected =
                |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
            types.iter().enumerate().all(|(i, kind)| kind.as_str() == Some(expected(i)))
        });
        if !usual {
            return Err(
                "llama.cpp's gemma2 has sliding windows in every other layer, beginning with the first"
                    .into(),
            );
        }
        match self.config.contains_key("sliding_window") {
            true => {
                let window = self.count("sliding_window")?;
                let window = window.ok_or("sliding_window = null: llama.cpp's gemma2 requires a value")?;
                put("attention.sliding_window", Meta::U32(window as u32));
            }
            false => put("attention.sliding_window", Meta::U32(4096)),
        }
        Ok(())
    }

    /// Checks the scale of the attention scores: llama.cpp derives it from the width of a head, except in the model that it
    /// recognizes by its number of layers.
    fn check_scalar(&self, head: u64, is_largest: bool) -> Result<()> {
        let scalar = self.number("query_pre_attn_scalar")?.unwrap_or(256.0);
        let expected = match is_largest {
            true => {
                self.count("hidden_size")?.unwrap_or(0)
                    / self.count("num_attention_heads")?.unwrap_or(1).max(1)
            }
            false => head,
        };
        match scalar == expected as f64 {
            true => Ok(()),
            false => Err(format!("query_pre_attn_scalar = {scalar}: llama.cpp uses {expected}")),
        }
    }

    /// OLMo 3: windows by layer, unscaled positions of the same base in those.
    fn olmo3(
        &self,
        architecture: &Architecture,
        window: Option<u64>,
        layers: u64,
        put: &mut impl FnMut(&str, Meta),
    ) -> Result<()> {
        let window = window.filter(|window| *window > 0);
        let window = window.ok_or("sliding_window = null: llama.cpp's olmo2 requires a value")?;
        let local = self.get("rope_parameters").and_then(|all| all["sliding_attention"].as_object());
        let local = |key: &str| local.and_then(|local| local.get(key)).filter(|value| !value.is_null());
        // The default of transformers.
        let (theta, own) =
            (self.theta(architecture)?, local("rope_theta").and_then(Json::as_f64).unwrap_or(500_000.0));
        if own != theta {
            return Err(format!(
                "rope_theta = {own} in layers with a window and {theta} in the others: llama.cpp's olmo2 has one for all"
            ));
        }
        if let Some(kind) = local("rope_type").and_then(Json::as_str).filter(|kind| *kind != "default") {
            return Err(format!(
                "rope scaling '{kind}' of layers with a window is not supported by llama.cpp's olmo2"
            ));
        }
        let slides: Vec<bool> = match self.get("layer_types").and_then(Json::as_array) {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => (1..=layers).map(|layer| !layer.is_multiple_of(4)).collect(),
        };
        if slides.len() as u64 != layers {
            return Err(format!("layer_types has {} entries for {layers} layers", slides.len()));
        }
        put("attention.sliding_window", Meta::U32(window as u32));
        put("attention.sliding_window_pattern", Meta::Bools(slides));
        Ok(())
    }

    /// gpt-oss: the gate of llama.cpp, windows by layer, and YaRN's ramp as these models have it.
    fn gpt_oss(
        &self,
        layers: u64,
        put: &mut impl FnMut(&str, Meta),
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        for (key, expected) in [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)] {
            if let Some(value) = self.number(key)?.filter(|value| *value != expected) {
                return Err(format!("{key} = {value}: llama.cpp's gpt-oss computes with {expected}"));
            }
        }
        let Some(rope) = self.rope() else {
            return Err("rope_parameters is missing".into());
        };
        if rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str) == Some("yarn") {
            warnings.push(
                "llama.cpp rounds the bounds of YaRN's ramp to whole dimensions, unlike this model (truncate = false)"
                    .into(),
            );
        }
        let window = match self.config.contains_key("sliding_window") {
            true => self.count("sliding_window")?,
            false => Some(128),
        };
        let window = window.filter(|window| *window > 0);
        let window = window.ok_or("sliding_window = null: llama.cpp's gpt-oss requires a value")?;
        put("attention.sliding_window", Meta::U32(window as u32));
        let Some(types) = self.get("layer_types").and_then(Json::as_array) else { return Ok(()) };
        if types.len() as u64 != layers {
            return Err(format!("layer_types has {} entries for {layers} layers", types.len()));
        }
        let slides: Vec<bool> = types.iter().map(|kind| kind == "sliding_attention").collect();
        if !slides.iter().enumerate().all(|(layer, slides)| *slides == layer.is_multiple_of(2)) {
            put("attention.sliding_window_pattern", Meta::Bools(slides));
        }
        Ok(())
    }

    fn gemma3(&self, head: u64, layers: u64, put: &mut impl FnMut(&str, Meta)) -> Result<()> {
        self.check_scalar(head, layers == 62)?;
        let local =
            match self.get("rope_parameters").and_then(|all| all["sliding_attention"]["rope_theta"].as_f64())
            {
                Some(theta) => theta,
                None => self.number("rope_local_base_freq")?.unwrap_or(10_000.0),
            };
        put("rope.freq_base_swa", Meta::F32(local as f32));
        if let Some(cap) = self.number("final_logit_softcapping")? {
            put("final_logit_softcapping", Meta::F32(cap as f32));
        }
        let window = match self.config.contains_key("sliding_window") {
            true => self.count("sliding_window")?,
            false => Some(4096),
        };
        let pattern = self.count("sliding_window_pattern")?.unwrap_or(6);
        let types = self.get("layer_types").and_then(Json::as_array);
        let usual = types.is_none_or(|types| {
            let is_full = |i: usize| (i + 1).is_multiple_of(6);
            let expected = |i: usize| if is_full(i) { "full_attention" } else { "sliding_attention" };
            types.iter().enumerate().all(|(i, kind)| kind.as_str() == Some(expected(i)))
        });
        match window {
            Some(window) if usual && (types.is_some() || pattern == 6) => {
                put("attention.sliding_window", Meta::U32(window as u32));
                Ok(())
            }
            Some(_) => Err("llama.cpp's gemma3 has sliding windows in all layers except every sixth".into()),
            None => Err("sliding_window = null: llama.cpp's gemma3 requires a value".into()),
        }
    }
}

impl std::fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn described(changes: Json) -> Result<Described> {
        let mut config = json!({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 16, "vocab_size": 9, "head_dim": 16});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = config.as_object().unwrap();
        let model_type = config["model_type"].as_str().unwrap();
        describe(Architecture::of_model_type(model_type).unwrap(), config, true)
    }

    fn count(described: &Described, key: &str) -> Option<u32> {
        described.metadata.iter().find_map(|(name, value)| match value {
            Meta::U32(n) if name == key => Some(*n),
            _ => None,
        })
    }

    #[test]
    fn gemma_is_written_with_its_own_activation_only() {
        let of = |act: &str| {
            described(
                json!({"model_type": "gemma", "hidden_act": act, "hidden_activation": "gelu_pytorch_tanh"}),
            )
        };
        for same in ["gelu", "gelu_pytorch_tanh"] {
            assert!(of(same).is_ok(), "{same}");
        }
        assert!(of("relu").unwrap_err().contains("hidden_act 'relu'"));
        // The key that Gemma does not read.
        assert!(described(json!({"model_type": "gemma", "hidden_activation": "relu"})).is_ok());
    }

    #[test]
    fn second_names_give_way_and_absent_numbers_have_defaults() {
        let gpt2 = described(json!({"model_type": "gpt2", "n_head": 2, "n_layer": 3, "n_embd": 8})).unwrap();
        assert_eq!(count(&gpt2, "gpt2.attention.head_count"), Some(4));
        assert_eq!(count(&gpt2, "gpt2.block_count"), Some(2));
        let mixtral = described(json!({"model_type": "mixtral"})).unwrap();
        assert_eq!(count(&mixtral, "llama.expert_count"), Some(8));
        assert_eq!(count(&mixtral, "llama.expert_used_count"), Some(2));
    }
}
