//! The `config.json` of a GGUF file, from its metadata and tensors.

mod rope;

use serde_json::{Map, Number, Value as Json, json};

pub(crate) use self::rope::llama3_divisors;
use super::architecture::Architecture;
use super::read::Parsed;
use super::rules::Rules;
use super::tokenizer::id_of;
use super::value::Value;
use crate::error::{Fault, excerpt};

/// Tokens that end a turn or a text beyond those that the metadata name, as in llama.cpp.
const ENDS: [&str; 12] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
];

/// The keys of a config, from the metadata and the shapes of a file.
pub(crate) fn config(parsed: &Parsed<'_>) -> Result<Map<String, Json>, Fault> {
    let keys = Keys::new(parsed)?;
    let architecture = keys.architecture;
    let mut config = Map::new();
    config.insert("model_type".into(), architecture.model_type.into());
    config.insert("architectures".into(), json!([architecture.class]));
    keys.sizes(&mut config)?;
    keys.check_complete()?;
    let (own, hub) = architecture.norm_eps;
    config.insert(hub.into(), keys.required_number(own)?);
    let (key, activation) = architecture.activation;
    config.insert(key.into(), activation.into());
    keys.positions(&mut config)?;
    keys.options(&mut config)?;
    config.insert("tie_word_embeddings".into(), (!keys.has_tensor("output.weight")).into());
    keys.tokens(&mut config);
    Ok(config)
}

/// The metadata of a model.
struct Keys<'a, 'f> {
    parsed: &'a Parsed<'f>,
    architecture: &'static Architecture,
}

impl<'a, 'f> Keys<'a, 'f> {
    fn new(parsed: &'a Parsed<'f>) -> Result<Self, Fault> {
        let name = parsed.metadata.get("general.architecture").and_then(|value| value.as_text());
        let name = name.ok_or_else(|| Fault::file("the metadata lack general.architecture"))?;
        if let Some(kind) = parsed.metadata.get("general.type").and_then(|kind| kind.as_text())
            && kind != "model"
        {
            let reason = format!("holds a GGUF file of the kind '{}'; expected a model", excerpt(kind));
            return Err(Fault::file(reason));
        }
        let architecture = Architecture::of_file(&parsed.metadata).ok_or_else(|| {
            Fault::file(format!(
                "llama.cpp's architecture '{}' is not supported; expected one of {}",
                excerpt(name),
                Architecture::known()
            ))
        })?;
        Ok(Self { parsed, architecture })
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.parsed.tensors.contains_key(name)
    }

    /// The value of a key of the architecture.
    fn get(&self, key: &str) -> Option<Value<'f>> {
        self.parsed.metadata.get(self.full(key).as_str()).copied()
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    fn wrong(&self, key: &str, expected: &str) -> Fault {
        match self.get(key) {
            None => Fault::file(format!("the metadata lack {}", self.full(key))),
            Some(_) => Fault::file(format!("{} is not {expected}", self.full(key))),
        }
    }

    /// A count, or a list of one count for all layers.
    fn count(&self, key: &str) -> Result<Option<u64>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(list) = value else {
            return value.as_count().map(Some).ok_or_else(|| self.wrong(key, "a count"));
        };
        let mut counts = list.values().map(|value| value.as_count());
        let first = counts.next().flatten();
        match first {
            Some(first) if counts.all(|count| count == Some(first)) => Ok(Some(first)),
            _ => {
                Err(Fault::file(format!("{} differs between layers, which is not supported", self.full(key))))
            }
        }
    }

    fn required_count(&self, key: &str) -> Result<u64, Fault> {
        self.count(key)?.ok_or_else(|| self.wrong(key, "a count"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_number().filter(|x| x.is_finite()).map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn required_number(&self, key: &str) -> Result<Json, Fault> {
        self.number(key)?.map(number).ok_or_else(|| self.wrong(key, "a number"))
    }

    /// Checks that every layer has its tensors, and that the head is stored as llama.cpp expects it.
    fn check_complete(&self) -> Result<(), Fault> {
        let layers = self.required_count("block_count")?;
        let names = self.parsed.tensors.keys().copied();
        self.architecture.check_complete(layers, names).map_err(Fault::file)?;
        let rules = Rules::of(self.architecture.family);
        rules.check_head(self.architecture.name(), self.has_tensor("output.weight")).map_err(Fault::file)
    }

    /// Widths, layers and heads.
    fn sizes(&self, config: &mut Map<String, Json>) -> Result<(), Fault> {
        let [width, layers, heads, length] =
            ["embedding_length", "block_count", "attention.head_count", "context_length"]
                .map(|key| self.required_count(key));
        let (width, layers, heads, length) = (width?, layers?, heads?, length?);
        // The tensor's shape is reliable; llama.cpp's conversion of GPT-2 and Phi assumes a value for the key.
        let down = match self.architecture.name() {
            "gpt-oss" => "blk.0.ffn_down_exps.weight",
            _ => "blk.0.ffn_down.weight",
        };
        let down = self.parsed.tensors.get(down).and_then(|t| t.shape.last().copied());
        let inner = match down {
            Some(inner) => inner as u64,
            None => self.required_count("feed_forward_length")?,
        };
        let vocab = self.parsed.tensors.get("token_embd.weight").and_then(|t| t.shape.first().copied());
        let vocab = vocab.ok_or_else(|| Fault::file("lacks the tensor 'token_embd.weight'"))?;
        self.experts(config)?;
        config.insert("vocab_size".into(), vocab.into());
        let names = match self.architecture.name() {
            "gpt2" => ["n_embd", "n_layer", "n_head", "n_positions", "n_inner"],
            _ => [
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "max_position_embeddings",
                "intermediate_size",
            ],
        };
        for (name, value) in names.into_iter().zip([width, layers, heads, length, inner]) {
            config.insert(name.into(), value.into());
        }
        if self.architecture.name() == "gpt2" {
            return Ok(());
        }
        let keys = self.count("attention.head_count_kv")?.unwrap_or(heads);
        config.insert("num_key_value_heads".into(), keys.into());
        let head = self.head_width()?;
        if self.count("attention.value_length")?.is_some_and(|values| values != head) {
            return Err(Fault::file(format!(
                "{} is not {head}, the width of keys, which is not supported",
                self.full("attention.value_length")
            )));
        }
        config.insert("head_dim".into(), head.into());
        Ok(())
    }

    /// Keys of experts.
    fn experts(&self, config: &mut Map<String, Json>) -> Result<(), Fault> {
        if !self.architecture.has_experts() {
            return match self.count("expert_count")?.unwrap_or(0) {
                0 => Ok(()),
                _ => Err(Fault::file(format!("experts ({}) are not supported", self.full("expert_count")))),
            };
        }
        if let Some(scale) = self.number("expert_weights_scale")?.filter(|scale| ![0.0, 1.0].contains(scale))
        {
            let key = self.full("expert_weights_scale");
            return Err(Fault::file(format!("{key} = {scale} is not supported; expected 1")));
        }
        let name = self.architecture.name();
        let count_key = if matches!(name, "llama" | "gpt-oss") { "num_local_experts" } else { "num_experts" };
        config.insert(count_key.into(), self.required_count("expert_count")?.into());
        config.insert("num_experts_per_tok".into(), self.required_count("expert_used_count")?.into());
        let width = |stem: &str| {
            let tensor = self.parsed.tensors.get(format!("blk.0.{stem}.weight").as_str());
            let width = tensor.and_then(|tensor| tensor.shape.last().copied());
            width.ok_or_else(|| Fault::file(format!("lacks the tensor 'blk.0.{stem}.weight'")))
        };
        if name.starts_with("qwen") {
            config.insert("moe_intermediate_size".into(), width("ffn_down_exps")?.into());
            config.insert("norm_topk_prob".into(), (name == "qwen3moe").into());
        }
        if name == "qwen2moe" {
            config.insert("shared_expert_intermediate_size".into(), width("ffn_down_shexp")?.into());
        }
        Ok(())
    }

    /// The width of a head.
    fn head_width(&self) -> Result<u64, Fault> {
        let heads = self.required_count("attention.head_count")?;
        match self.count("attention.key_length")? {
            Some(width) => Ok(width),
            None => Ok(self.required_count("embedding_length")? / heads.max(1)),
        }
    }

    /// Keys of single architectures.
    fn options(&self, config: &mut Map<String, Json>) -> Result<(), Fault> {
        let first = |stem: &str, end: &str| self.has_tensor(&format!("blk.0.{stem}.{end}"));
        // The converter may fuse the three.
        let has_query_bias = first("attn_q", "bias") || first("attn_qkv", "bias");
        let window = self.count("attention.sliding_window")?.filter(|&window| window > 0);
        if self.get("attention.causal").and_then(Value::as_bool) == Some(false) {
            let key = self.full("attention.causal");
            return Err(Fault::file(format!("{key} = false is not supported; expected a decoder")));
        }
        self.check_scale()?;
        let mut set = |key: &str, value: Json| drop(config.insert(key.into(), value));
        match self.architecture.name() {
            "llama" | "granite" | "smollm3" | "arcee" => {
                set("attention_bias", has_query_bias.into());
                set("mlp_bias", first("ffn_down", "bias").into());
            }
            "seed_oss" => {
                set("attention_bias", has_query_bias.into());
                set("attention_out_bias", first("attn_output", "bias").into());
                set("mlp_bias", first("ffn_down", "bias").into());
            }
            "qwen3" | "qwen3moe" | "olmoe" | "gemma" | "glm4" => {
                set("attention_bias", has_query_bias.into());
            }
            "qwen2moe" => set("qkv_bias", has_query_bias.into()),
            "olmo2" => {
                set("attention_bias", has_query_bias.into());
                if let Some(window) = window {
                    set("sliding_window", window.into());
                    if let Some(types) = self.layer_types()? {
                        set("layer_types", types);
                    }
                }
            }
            "stablelm" => {
                set("use_qkv_bias", has_query_bias.into());
                set("qk_layernorm", first("attn_q_norm", "weight").into());
                set("use_parallel_residual", (!first("ffn_norm", "weight")).into());
            }
            "gpt-oss" => {
                set("attention_bias", has_query_bias.into());
                set("sliding_window", window.map_or(Json::Null, Json::from));
                if let Some(types) = self.layer_types()? {
                    set("layer_types", types);
                }
            }
            "starcoder2" => set("use_bias", first("ffn_up", "bias").into()),
            "phi3" => set("sliding_window", window.map_or(Json::Null, Json::from)),
            "gptneox" => {
                let parallel = self.get("use_parallel_residual").and_then(Value::as_bool).unwrap_or(true);
                set("use_parallel_residual", parallel.into());
                set("attention_bias", first("attn_qkv", "bias").into());
            }
            _ => {}
        }
        match self.architecture.name() {
            "granite" => {
                let scales = [
                    ("attention.scale", "attention_multiplier"),
                    ("embedding_scale", "embedding_multiplier"),
                    ("residual_scale", "residual_multiplier"),
                    ("logit_scale", "logits_scaling"),
                ];
                for (own, hub) in scales {
                    let usual =
                        if own == "attention.scale" { (self.head_width()? as f64).powf(-0.5) } else { 1.0 };
                    // 0 stands for none.
                    let scale = self.number(own)?.filter(|scale| *scale != 0.0);
                    set(hub, number(scale.unwrap_or(usual)));
                }
            }
            "gemma2" => {
                set("attention_bias", has_query_bias.into());
                set("sliding_window", window.unwrap_or(4096).into());
                set("query_pre_attn_scalar", self.scalar()?.into());
                if let Some(types) = self.layer_types()? {
                    set("layer_types", types);
                }
                // The defaults of llama.cpp.
                for (key, usual) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
                    set(key, number(self.number(key)?.unwrap_or(usual)));
                }
            }
            "gemma3" => {
                set("attention_bias", has_query_bias.into());
                set("sliding_window", window.map_or(Json::Null, Json::from));
                // Without a window llama.cpp does not read the pattern.
                match self.layer_types()?.filter(|_| window.is_some()) {
                    Some(types) => set("layer_types", types),
                    None => set("sliding_window_pattern", 6.into()),
                }
                set("query_pre_attn_scalar", self.scalar()?.into());
                if let Some(cap) = self.number("final_logit_softcapping")? {
                    set("final_logit_softcapping", number(cap));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The kind of each layer, if the file has a pattern: a flag for each layer with a window, or the period of layers without.
    fn layer_types(&self) -> Result<Option<Json>, Fault> {
        const KEY: &str = "attention.sliding_window_pattern";
        let layers = self.required_count("block_count")?;
        let slides: Vec<bool> = match self.get(KEY) {
            None => return Ok(None),
            Some(Value::Array(list)) => {
                let flag = |value: Value<'_>| value.as_bool().or_else(|| value.as_count().map(|n| n != 0));
                let flags: Option<Vec<bool>> = list.values().map(flag).collect();
                let flags = flags.filter(|flags| flags.len() as u64 == layers);
                flags.ok_or_else(|| {
                    self.wrong(KEY, &format!("a list of {layers} flags, one for each layer"))
                })?
            }
            // A period of 0 stands for windows in all layers.
            Some(_) => match self.required_count(KEY)? {
                0 => vec![true; layers as usize],
                period => (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect(),
            },
        };
        let name = |slides: bool| if slides { "sliding_attention" } else { "full_attention" };
        Ok(Some(slides.into_iter().map(name).collect()))
    }

    /// Refuses a scale of the attention scores other than the one that the config implies. Granite's config has a key for it.
    fn check_scale(&self) -> Result<(), Fault> {
        // 0 stands for none.
        let scale = self.number("attention.scale")?.filter(|scale| *scale != 0.0);
        let Some(scale) = scale.filter(|_| self.architecture.name() != "granite") else { return Ok(()) };
        let implied = (self.scalar()? as f64).powf(-0.5);
        if (scale - implied).abs() > 1e-6 * implied {
            let (key, scale) = (self.full("attention.scale"), shortest(scale));
            return Err(Fault::file(format!("{key} = {scale} is not supported; expected {implied}")));
        }
        Ok(())
    }

    /// The number whose inverse root scales the attention scores: the width of a head, or, in the largest Gemma 2 and 3, which
    /// llama.cpp recognizes by their number of layers, the hidden width divided by the number of heads.
    fn scalar(&self) -> Result<u64, Fault> {
        let of_largest = match self.architecture.name() {
            "gemma2" => Some(46),
            "gemma3" => Some(62),
            _ => None,
        };
        if of_largest == Some(self.required_count("block_count")?) {
            let heads = self.required_count("attention.head_count")?;
            return Ok(self.required_count("embedding_length")? / heads.max(1));
        }
        self.head_width()
    }

    /// Ids of tokens with a role.
    fn tokens(&self, config: &mut Map<String, Json>) {
        let id = |role: &str| id_of(self.parsed, role);
        for (role, key) in [("bos", "bos_token_id"), ("padding", "pad_token_id")] {
            if let Some(id) = id(role) {
                config.insert(key.into(), id.into());
            }
        }
        let mut ends: Vec<usize> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        let tokens = self.parsed.metadata.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.as_array());
        for (id, token) in tokens.iter().flat_map(|tokens| tokens.values()).enumerate() {
            if token.as_text().is_some_and(|text| ENDS.contains(&text)) {
                ends.push(id);
            }
        }
        // A message of gpt-oss ends with `<|end|>`, and its turn goes on: llama.cpp recognizes the vocabulary by these three.
        let [message, turn, call] = ["<|end|>", "<|return|>", "<|call|>"].map(|text| {
            let mut ids = tokens.iter().flat_map(|tokens| tokens.values()).enumerate();
            ids.find_map(|(id, token)| (token.as_text() == Some(text)).then_some(id))
        });
        let mut seen = std::collections::BTreeSet::new();
        let ends_message = |id: usize| message == Some(id) && turn.is_some() && call.is_some();
        ends.retain(|id| !ends_message(*id) && seen.insert(*id));
        if !ends.is_empty() {
            config.insert("eos_token_id".into(), if ends.len() == 1 { json!(ends[0]) } else { json!(ends) });
        }
    }
}

/// A float that was rounded to f32 as the shortest decimal number that rounds to it.
fn shortest(x: f64) -> f64 {
    let narrow = x as f32;
    if f64::from(narrow) == x { narrow.to_string().parse().unwrap_or(x) } else { x }
}

fn number(x: f64) -> Json {
    Number::from_f64(shortest(x)).map_or(Json::Null, Json::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_what_was_meant() {
        assert_eq!(number(f64::from(1e-5_f32)).as_f64(), Some(1e-5));
        assert_eq!(number(f64::from(0.1_f32)).as_f64(), Some(0.1));
        assert_eq!(number(500_000.0).as_f64(), Some(500_000.0));
    }
}
