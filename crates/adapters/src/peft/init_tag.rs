//! The meaning of `init_lora_weights` for the base.

use serde_json::Value;

/// Change of the base by an initialization when PEFT loads the adapter: the initialization is repeated, and
/// its factors are subtracted from the base's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitTag {
    /// The base is unchanged.
    #[default]
    Plain,
    /// The leading singular triplets are subtracted.
    Pissa {
        /// Whether by a randomized SVD, whose random numbers the file does not contain.
        is_randomized: bool,
    },
    /// The leading part of the QR decomposition is subtracted.
    Olora,
}

impl InitTag {
    /// Parses the value of `init_lora_weights`.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let name = match value {
            Value::Null | Value::Bool(_) => return Ok(Self::Plain),
            Value::String(name) => name.as_str(),
            other => return Err(format!("'init_lora_weights' is {other}; expected true, false or a name")),
        };
        let refused = |why: &str| {
            Err(format!(
                "init_lora_weights '{name}' is not supported: {why}; save it as a plain LoRA with PEFT's \
                 path_initial_model_for_weight_conversion"
            ))
        };
        match name.to_ascii_lowercase().as_str() {
            // None of these changes the base.
            "true" | "false" | "gaussian" | "eva" | "orthogonal" | "mica" => Ok(Self::Plain),
            "olora" => Ok(Self::Olora),
            "pissa" => Ok(Self::Pissa { is_randomized: false }),
            other if other.strip_prefix("pissa_niter_").is_some_and(|n| n.parse::<u32>().is_ok()) => {
                Ok(Self::Pissa { is_randomized: true })
            }
            other if other.starts_with("corda") => {
                refused("it changes the base by input statistics that the file does not contain")
            }
            "lora_ga" => refused("it changes the base by a gradient that the file does not contain"),
            "loftq" => refused("it belongs to a quantized base that cannot be reconstructed from the file"),
            _ => refused("its effect on the base is unknown"),
        }
    }
}
