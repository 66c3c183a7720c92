//! Keys of adapter files: what PEFT's versions and loralib put around a module path and a factor's name.

/// The prefix that PEFT's keys have.
pub(super) const PREFIX: &str = "base_model.model.";

/// Names of a module's factors, as the last segments of a key.
const FACTORS: [&str; 7] = [
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "vera_lambda_b",
    "vera_lambda_d",
];

/// A key as today's PEFT has it, without its prefix; `None` for a tensor that is a copy of the base's.
///
/// Adapters are saved with the adapter's name in their keys (`lora_A.default.weight`), without `.weight`
/// (loralib), with the wrappers of modules (`base_layer`, `modules_to_save.default`, `original_module`).
pub(super) fn normalise(key: &str) -> Option<String> {
    let mut rest = key;
    for prefix in [PREFIX, "base_model.", "module."] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let mut segments: Vec<&str> = rest.split('.').filter(|s| *s != "base_layer").collect();
    if segments.contains(&"original_module") {
        return None;
    }
    if let Some(at) = segments.iter().position(|s| *s == "modules_to_save") {
        segments.remove(at);
        // The adapter's name follows, unless a parameter does.
        if segments.len() > at + 1 && segments[at] == "default" {
            segments.remove(at);
        }
    }
    let factor = segments.iter().position(|s| FACTORS.contains(s));
    let Some(at) = factor else { return Some(segments.join(".")) };
    let module = segments[..at].join(".");
    let name = segments[at];
    let is_linear = matches!(name, "lora_A" | "lora_B");
    Some(format!("{module}.{name}{}", if is_linear { ".weight" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("base_model.model.bert.l.0.query.lora_A.weight", Some("bert.l.0.query.lora_A.weight"))]
    #[case("base_model.model.bert.l.0.query.lora_A.default.weight", Some("bert.l.0.query.lora_A.weight"))]
    #[case("roberta.l.0.query.lora_B", Some("roberta.l.0.query.lora_B.weight"))]
    #[case("base_model.model.q.base_layer.bias", Some("q.bias"))]
    #[case("base_model.model.q.lora_magnitude_vector.default.weight", Some("q.lora_magnitude_vector"))]
    #[case("base_model.model.e.lora_embedding_A.default", Some("e.lora_embedding_A"))]
    #[case("base_model.model.classifier.modules_to_save.default.weight", Some("classifier.weight"))]
    #[case("base_model.model.classifier.modules_to_save.dense.bias", Some("classifier.dense.bias"))]
    #[case("base_model.model.classifier.original_module.weight", None)]
    #[case("base_model.vera_A", Some("vera_A"))]
    fn keys_of_every_version_are_one(#[case] key: &str, #[case] expect: Option<&str>) {
        assert_eq!(normalise(key).as_deref(), expect);
    }
}
