//! Rotary positions of a GGUF file.

use serde_json::{Map, Value as Json, json};

use super::super::value::Value;
use super::{Keys, number, shortest};
use crate::convert::extend_f32;
use crate::error::{Fault, excerpt};

impl Keys<'_, '_> {
    /// Rotary positions.
    pub(super) fn positions(&self, config: &mut Map<String, Json>) -> Result<(), Fault> {
        let name = self.architecture.name();
        if name == "gpt2" {
            return Ok(());
        }
        let theta = match self.number("rope.freq_base")? {
            Some(theta) => theta,
            None if name == "gemma3" => 1_000_000.0,
            None => 10_000.0,
        };
        let theta_key = if name == "gptneox" { "rotary_emb_base" } else { "rope_theta" };
        config.insert(theta_key.into(), number(theta));
        if name == "gemma3" {
            let local = self.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
            config.insert("rope_local_base_freq".into(), number(local));
        }
        self.check_rotation()?;
        let head = self.head_width()?;
        let rotated = self.count("rope.dimension_count")?.unwrap_or(head);
        if rotated > head {
            let reason = format!("{} is more than the head's {head}", self.full("rope.dimension_count"));
            return Err(Fault::file(reason));
        }
        let part_key = if name == "gptneox" { "rotary_pct" } else { "partial_rotary_factor" };
        if rotated != head || matches!(name, "gptneox" | "stablelm" | "phi2" | "glm4") {
            config.insert(part_key.into(), number(part_of(rotated, head)));
        }
        // A config of gpt-oss without it has YaRN.
        let plain = (name == "gpt-oss").then(|| json!({"rope_type": "default"}));
        if let Some(scaling) = self.scaling(config)?.or(plain) {
            config.insert("rope_scaling".into(), scaling);
        }
        if self.architecture.model_type == "olmo3" {
            // One base for all layers, scaling for those without a window.
            let plain = json!({"rope_type": "default", "rope_theta": number(theta)});
            let mut full = config.remove("rope_scaling").unwrap_or_else(|| plain.clone());
            full["rope_theta"] = number(theta);
            config.remove("rope_theta");
            config.insert(
                "rope_parameters".into(),
                json!({"full_attention": full, "sliding_attention": plain}),
            );
        }
        Ok(())
    }

    /// Refuses rotary positions that the architecture has here, but this file has not.
    fn check_rotation(&self) -> Result<(), Fault> {
        // The rows of queries and keys are in another order then.
        let sections = self.get("rope.dimension_sections").and_then(|sections| sections.as_array());
        let mut sections =
            sections.iter().flat_map(|list| list.values()).filter_map(|value| value.as_count());
        let has_sections =
            [sections.next(), sections.next()].iter().all(|section| section.is_some_and(|n| n > 0));
        if self.architecture.name() == "glm4" && has_sections {
            let key = self.full("rope.dimension_sections");
            return Err(Fault::file(format!("{key} (positions in space and time) is not supported")));
        }
        if self.architecture.name() == "gpt-oss"
            && let Some(local) = self.number("rope.freq_base_swa")?
            && Some(local) != self.number("rope.freq_base")?
        {
            let key = self.full("rope.freq_base_swa");
            return Err(Fault::file(format!(
                "{key} = {local}, another base than in other layers, is not supported"
            )));
        }
        if self.architecture.name() == "granite"
            && self.get("rope.scaling.finetuned").and_then(Value::as_bool) == Some(false)
        {
            let key = self.full("rope.scaling.finetuned");
            return Err(Fault::file(format!(
                "{key} = false, a Granite without rotary positions, is not supported"
            )));
        }
        Ok(())
    }

    /// `rope_scaling`.
    fn scaling(&self, config: &mut Map<String, Json>) -> Result<Option<Json>, Fault> {
        let length = self.required_count("context_length")?;
        let original = self.count("rope.scaling.original_context_length")?.unwrap_or(length);
        // As in llama.cpp: the default type is linear, and a factor of 0 means no scaling.
        let kind = self.get("rope.scaling.type").and_then(|kind| kind.as_text()).unwrap_or("linear");
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => factor,
            None => self.number("rope.scale_linear")?.unwrap_or(0.0),
        };
        let factor = if kind == "none" || factor == 0.0 { 1.0 } else { factor };
        let attention = self.number("rope.scaling.attn_factor")?;
        let lists = ["short", "long"].map(|which| self.floats(&format!("rope_factors_{which}.weight")));
        if let [Some(short), Some(long)] = lists.map(|list| list.transpose()) {
            config.insert("original_max_position_embeddings".into(), original.into());
            let mut scaling = json!({"rope_type": "longrope", "short_factor": short?, "long_factor": long?});
            if let Some(attention) = attention {
                scaling["attention_factor"] = number(attention);
            }
            return Ok(Some(scaling));
        }
        if let Some(attention) = attention.filter(|attention| *attention != 1.0 && kind != "yarn") {
            return Err(Fault::file(format!(
                "{} = {attention} without yarn is not supported",
                self.full("rope.scaling.attn_factor")
            )));
        }
        if let Some(divisors) = self.floats("rope_freqs.weight")? {
            if factor != 1.0 {
                let key = self.full("rope.scaling.factor");
                return Err(Fault::file(format!(
                    "{key} = {factor} beside rope_freqs.weight is not supported"
                )));
            }
            return Ok(Some(self.by_frequency(&divisors)?));
        }
        match (kind, factor) {
            ("none" | "linear", 1.0) => Ok(None),
            ("linear", factor) => Ok(Some(json!({"rope_type": "linear", "factor": number(factor)}))),
            ("yarn", factor) => {
                for (key, usual) in [("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0)] {
                    let key = format!("rope.scaling.{key}");
                    if let Some(beta) = self.number(&key)?.filter(|beta| *beta != usual) {
                        let key = self.full(&key);
                        return Err(Fault::file(format!(
                            "{key} = {beta} is not supported; expected {usual}"
                        )));
                    }
                }
                let usual = 0.1 * factor.max(1.0).ln() + 1.0;
                // llama.cpp multiplies YaRN's usual factor by the former. Its converter writes the latter, a config's
                // `attention_factor`; its model saver writes both, the latter always as 1.
                let attention = match (attention, self.number("rope.scaling.yarn_attn_factor")?) {
                    (None, Some(attention)) => attention,
                    (times, _) => times.unwrap_or(1.0) * usual,
                };
                let mut scaling = json!({
                    "rope_type": "yarn",
                    "factor": number(factor),
                    "original_max_position_embeddings": original,
                    "attention_factor": number(attention),
                });
                if self.architecture.name() == "gpt-oss" {
                    // As all of these models have it; files do not record it.
                    scaling["truncate"] = false.into();
                }
                Ok(Some(scaling))
            }
            (kind, factor) => Err(Fault::file(format!(
                "{} '{}' with the factor {factor} is not supported",
                self.full("rope.scaling.type"),
                excerpt(kind)
            ))),
        }
    }

    /// Divisors of the frequencies: as parameters if they are those of Llama 3.1, otherwise as a list.
    fn by_frequency(&self, divisors: &[f64]) -> Result<Json, Fault> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let factor = divisors.iter().copied().fold(1.0, f64::max);
        let expected = llama3_divisors(theta, 2 * divisors.len(), factor, [1.0, 4.0], 8192.0);
        if divisors.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b) {
            return Ok(json!({
                "rope_type": "llama3", "factor": number(factor), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }));
        }
        let length = self.required_count("context_length")?;
        Ok(json!({
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }))
    }

    /// The elements of a vector of floats, if the file has it.
    fn floats(&self, name: &str) -> Result<Option<Vec<f64>>, Fault> {
        let Some(tensor) = self.parsed.tensors.get(name) else { return Ok(None) };
        let head = self.head_width()?;
        if tensor.shape.len() != 1 || tensor.shape[0] as u64 > head {
            return Err(Fault::tensor(name, "has another shape than a divisor for each frequency"));
        }
        let mut values = Vec::with_capacity(tensor.shape[0]);
        extend_f32(tensor.dtype, self.parsed.bytes(tensor), &mut values);
        Ok(Some(values.into_iter().map(|x| shortest(x.into())).collect()))
    }
}

/// The divisors of Llama 3.1's rotary frequencies (`rope_freqs` of llama.cpp).
pub(crate) fn llama3_divisors(
    theta: f64,
    dim: usize,
    factor: f64,
    [low, high]: [f64; 2],
    original: f64,
) -> Vec<f64> {
    let divisor = |pair: usize| {
        let frequency = theta.powf(-2.0 * pair as f64 / dim as f64);
        let turns = original * frequency / std::f64::consts::TAU;
        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / (keep + (1.0 - keep) / factor)
    };
    (0..dim / 2).map(divisor).collect()
}

/// The share of a head that is rotated, such that its width times the share is that part again.
fn part_of(rotated: u64, head: u64) -> f64 {
    let share = rotated as f64 / head.max(1) as f64;
    if (head as f64 * share) as u64 == rotated { share } else { share.next_up() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_heads_keep_their_width() {
        for head in 1..=512 {
            for rotated in 0..=head {
                assert_eq!((head as f64 * part_of(rotated, head)) as u64, rotated);
            }
        }
    }
}
