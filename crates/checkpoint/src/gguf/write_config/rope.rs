//! The metadata of rotary positions.

use serde_json::{Map, Value as Json};

use super::super::architecture::{Architecture, Family};
use super::super::config::llama3_divisors;
use super::super::write::Meta;
use super::{Keys, Result};

impl Keys<'_> {
    /// The object that describes rotary positions; that of full attention if each kind of layer has its own.
    pub(super) fn rope(&self) -> Option<&Map<String, Json>> {
        let old = self.get("rope_scaling").and_then(Json::as_object).filter(|keys| !keys.is_empty());
        let new = || {
            let all = self.get("rope_parameters")?.as_object()?;
            all.get("full_attention").and_then(Json::as_object).or(Some(all))
        };
        old.or_else(new)
    }

    pub(super) fn in_rope(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.rope().and_then(|rope| rope.get(key)).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        value.as_f64().map(Some).ok_or_else(|| format!("rope: {key} = {value}; expected a number"))
    }

    pub(super) fn theta(&self, architecture: &Architecture) -> Result<f64> {
        let (key, default) = match architecture.name() {
            "gptneox" => ("rotary_emb_base", 10_000.0),
            "gemma3" => ("rope_theta", 1_000_000.0),
            "llama" if architecture.model_type == "mixtral" => ("rope_theta", 1_000_000.0),
            "smollm3" => ("rope_theta", 2_000_000.0),
            "gpt-oss" => ("rope_theta", 150_000.0),
            "olmo2" if architecture.model_type == "olmo3" => ("rope_theta", 500_000.0),
            _ => ("rope_theta", 10_000.0),
        };
        match self.in_rope("rope_theta")? {
            Some(theta) => Ok(theta),
            None => Ok(self.number(key)?.unwrap_or(default)),
        }
    }

    pub(super) fn scaling(
        &self,
        architecture: &Architecture,
        theta: f64,
        rotated: usize,
        length: u64,
        put: &mut impl FnMut(&str, Meta),
        vectors: &mut Vec<(&'static str, Vec<f32>)>,
    ) -> Result<()> {
        let Some(rope) = self.rope() else { return Ok(()) };
        let kind =
            rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str).unwrap_or("default");
        let required = |key: &str| {
            let value = self.in_rope(key)?;
            value.ok_or_else(|| format!("rope scaling '{kind}': {key} is missing"))
        };
        let original = || -> Result<f64> {
            // The one outside takes precedence, which Phi-3's config has by default.
            let default = (architecture.family == Family::Phi3).then_some(4096.0);
            let outer = self.number("original_max_position_embeddings")?.or(default);
            match outer.filter(|length| *length > 1.0) {
                Some(original) => Ok(original),
                None => Ok(self.in_rope("original_max_position_embeddings")?.unwrap_or(length as f64)),
            }
        };
        let check_divisors = || match architecture.family {
            Family::Llama | Family::Granite | Family::Arcee => Ok(()),
            // llama.cpp would refuse the tensor, and without it compute other positions.
            _ => {
                Err(format!("rope scaling '{kind}' is not supported by llama.cpp's {}", architecture.name()))
            }
        };
        match kind {
            "default" => {}
            "linear" => {
                put("rope.scaling.type", Meta::text("linear"));
                put("rope.scaling.factor", Meta::F32(required("factor")? as f32));
            }
            "yarn" => {
                let factor = required("factor")?;
                put("rope.scaling.type", Meta::text("yarn"));
                put("rope.scaling.factor", Meta::F32(factor as f32));
                put("rope.scaling.original_context_length", Meta::U32(original()? as u32));
                for (key, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                    if let Some(beta) = self.in_rope(key)?.filter(|beta| *beta != usual) {
                        return Err(format!(
                            "rope scaling 'yarn' with {key} = {beta}: llama.cpp uses {usual}"
                        ));
                    }
                }
                // To transformers a null is false. Files of gpt-oss stand for models without.
                let truncates = rope.get("truncate").is_none_or(|truncate| *truncate == Json::Bool(true));
                if truncates == (architecture.family == Family::GptOss) {
                    let (name, truncate) =
                        (architecture.name(), rope.get("truncate").unwrap_or(&Json::Bool(true)));
                    return Err(format!(
                        "rope scaling 'yarn' with truncate = {truncate} is not supported by llama.cpp's {name}"
                    ));
                }
                if rope.contains_key("mscale") || rope.contains_key("mscale_all_dim") {
                    return Err("rope scaling 'yarn' with mscale cannot be written".into());
                }
                // llama.cpp multiplies YaRN's usual factor by the former; its converter writes the latter.
                if let Some(attention) = self.in_rope("attention_factor")? {
                    let usual = 0.1 * factor.max(1.0).ln() + 1.0;
                    put("rope.scaling.attn_factor", Meta::F32((attention / usual) as f32));
                    put("rope.scaling.yarn_attn_factor", Meta::F32(attention as f32));
                }
            }
            "llama3" => {
                let frequencies = [required("low_freq_factor")?, required("high_freq_factor")?];
                let divisors = llama3_divisors(theta, rotated, required("factor")?, frequencies, original()?);
                check_divisors()?;
                vectors.push(("rope_freqs.weight", divisors.iter().map(|x| *x as f32).collect()));
            }
            "longrope" | "su" => {
                let list = |key: &str| -> Result<Vec<f32>> {
                    let list = rope.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
                    let numbers: Vec<f32> = list.iter().filter_map(Json::as_f64).map(|x| x as f32).collect();
                    if numbers.len() != rotated / 2 {
                        return Err(format!("rope scaling: {key} is not a list of {} numbers", rotated / 2));
                    }
                    Ok(numbers)
                };
                let (short, long) = (list("short_factor")?, list("long_factor")?);
                let original = original()?;
                let factor = match self.in_rope("factor")? {
                    Some(factor) => factor,
                    None => length as f64 / original,
                };
                let attention = match self.in_rope("attention_factor")? {
                    Some(attention) => attention,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / original.ln()).sqrt(),
                };
                if architecture.name() == "phi3" {
                    put("rope.scaling.original_context_length", Meta::U32(original as u32));
                    put("rope.scaling.attn_factor", Meta::F32(attention as f32));
                    vectors.push(("rope_factors_long.weight", long));
                    vectors.push(("rope_factors_short.weight", short));
                } else if short == long && attention == 1.0 {
                    check_divisors()?;
                    vectors.push(("rope_freqs.weight", short));
                } else {
                    return Err(format!(
                        "rope scaling 'longrope' is not supported by llama.cpp's {}",
                        architecture.name()
                    ));
                }
            }
            other => return Err(format!("rope scaling '{other}' is not supported by llama.cpp")),
        }
        Ok(())
    }
}
