//! Storage of a checkpoint's weights, according to its config.

use serde_json::{Map, Value};

use crate::error::{Result, SpecError};

/// Keys of a config that describe quantized weights.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// Methods whose checkpoints can be read.
const READ: [&str; 4] = ["GPTQ", "AWQ", "bitsandbytes", "MXFP4"];

/// The name of the method by which the weights of a checkpoint are quantized, according to its `config.json`.
pub fn quantizer(raw: &Map<String, Value>) -> Option<&str> {
    let section = KEYS.into_iter().find_map(|key| raw.get(key).filter(|section| !section.is_null()))?;
    let is_set = |key: &str| section.get(key).and_then(Value::as_bool).unwrap_or(false);
    Some(match section.get("quant_method").and_then(Value::as_str) {
        Some("gptq") => "GPTQ",
        Some("awq") => "AWQ",
        Some("bitsandbytes") => "bitsandbytes",
        None if is_set("load_in_4bit") || is_set("load_in_8bit") => "bitsandbytes",
        Some("fp8" | "fbgemm_fp8" | "finegrained_fp8") => "FP8",
        Some("mxfp4") => "MXFP4",
        Some(other) => other,
        None => "an unnamed method",
    })
}

/// Removes `quantization_config` from the object of a `config.json`: readers return floats, and a model
/// written from them is not quantized that way.
///
/// # Errors
/// [`SpecError::Storage`] naming a method whose checkpoints cannot be read.
pub fn take_storage(raw: &mut Map<String, Value>) -> Result<()> {
    if let Some(name) = quantizer(raw).filter(|name| !READ.contains(name)) {
        return Err(SpecError::Storage(format!(
            "quantization_config: the weights are quantized with {name}, which is not supported; \
             give the model's original checkpoint in f32, f16 or bf16, or in GPTQ, AWQ, bitsandbytes, MXFP4 or GGUF"
        )));
    }
    for key in KEYS {
        raw.remove(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"quantization_config": {"quant_method": "fp8"}}), "FP8")]
    #[case(json!({"compression_config": {"quant_method": "compressed-tensors"}}), "compressed-tensors")]
    #[case(json!({"quantization_config": {}}), "an unnamed method")]
    fn methods_that_cannot_be_read_are_named(#[case] config: Value, #[case] name: &str) {
        let error = take_storage(&mut config.as_object().unwrap().clone()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }

    #[rstest]
    #[case(json!({"a": 1}))]
    #[case(json!({"a": 1, "quantization_config": null}))]
    #[case(json!({"a": 1, "quantization_config": {"quant_method": "gptq", "bits": 4}}))]
    #[case(json!({"a": 1, "quantization_config": {"quant_method": "awq"}}))]
    #[case(json!({"a": 1, "quantization_config": {"quant_method": "mxfp4"}}))]
    #[case(json!({"a": 1, "quantization_config": {"load_in_4bit": true}}))]
    fn what_is_read_as_floats_is_said_no_longer(#[case] config: Value) {
        let mut config = config.as_object().unwrap().clone();
        take_storage(&mut config).unwrap();
        assert_eq!(Value::Object(config), json!({"a": 1}));
    }
}
