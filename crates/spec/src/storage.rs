//! How the weights of a checkpoint are stored, as far as its config tells.

use serde_json::{Map, Value};

use crate::error::{Result, SpecError};

/// Refuses checkpoints whose weights are stored quantised (`quantization_config` of a `config.json`).
///
/// # Errors
/// [`SpecError::Storage`] naming the method.
pub fn check_storage(raw: &Map<String, Value>) -> Result<()> {
    let Some(section) = raw.get("quantization_config").or_else(|| raw.get("compression_config")) else {
        return Ok(());
    };
    if section.is_null() {
        return Ok(());
    }
    let bits = |key: &str| section.get(key).and_then(Value::as_bool).unwrap_or(false);
    let method = section.get("quant_method").and_then(Value::as_str);
    let name = match method {
        Some("gptq") => "GPTQ",
        Some("awq") => "AWQ",
        Some("fp8" | "fbgemm_fp8" | "finegrained_fp8") => "FP8",
        Some("bitsandbytes") => "bitsandbytes",
        Some("compressed-tensors") => "compressed-tensors",
        Some("mxfp4") => "MXFP4",
        Some(other) => other,
        None if bits("load_in_4bit") || bits("load_in_8bit") => "bitsandbytes",
        None => "an unnamed method",
    };
    Err(SpecError::Storage(format!(
        "quantization_config: the weights are quantised with {name}, which is not supported; \
         give the model's original checkpoint in f32, f16 or bf16"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "GPTQ")]
    #[case(json!({"quantization_config": {"quant_method": "awq"}}), "AWQ")]
    #[case(json!({"quantization_config": {"load_in_4bit": true}}), "bitsandbytes")]
    #[case(json!({"compression_config": {"quant_method": "compressed-tensors"}}), "compressed-tensors")]
    #[case(json!({"quantization_config": {}}), "an unnamed method")]
    fn quantised_weights_are_named(#[case] config: Value, #[case] name: &str) {
        let error = check_storage(config.as_object().unwrap()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }

    #[test]
    fn plain_weights_pass() {
        for config in [json!({}), json!({"quantization_config": null})] {
            check_storage(config.as_object().unwrap()).unwrap();
        }
    }
}
