//! Keys of adapter files: the parts that PEFT's versions and loralib add to a module path and a factor's
//! name.

use lowrank_spec::names::path_in_files;

use crate::methods::Method;

/// The prefix of PEFT's keys.
pub(super) const PREFIX: &str = "base_model.model.";

/// The suffix after a module's path in a canonical key: the name of a factor, and the part after the
/// adapter's name.
fn factor_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    let keys = Method::all().flat_map(|method| method.keys.iter());
    keys.filter_map(|key| {
        let key = key.strip_prefix('.')?;
        let (factor, rest) = key.split_once('.').unwrap_or((key, ""));
        // Numbered tensors have no adapter's name in their keys.
        (!rest.starts_with(|c: char| c.is_ascii_digit())).then_some((factor, rest))
    })
}

/// A key in the format of current PEFT, without its prefix and with the module's path in the files of models; `None` for a
/// tensor that is a copy of the base's.
///
/// Adapters are saved with the adapter's name in their keys (`lora_A.default.weight`), without `.weight`
/// (loralib), with the wrappers of modules (`base_layer`, `modules_to_save.default`, `original_module`).
pub(super) fn normalize(key: &str) -> Option<String> {
    let key = without_wrappers(key)?;
    Some(path_in_files(&key).unwrap_or(key))
}

fn without_wrappers(key: &str) -> Option<String> {
    let mut rest = key;
    for prefix in [PREFIX, "base_model.", "module."] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in rest.split('.') {
        // Experts may be adapted twice, the inner adapter under this name.
        if segment != "base_layer" || segments.last() == Some(&"experts") {
            segments.push(segment);
        }
    }
    if segments.contains(&"original_module") {
        return None;
    }
    // The table below its trained rows.
    if segments.ends_with(&["token_adapter", "weight"]) {
        segments.remove(segments.len() - 2);
    }
    if let Some(at) = segments.iter().position(|s| *s == "modules_to_save") {
        segments.remove(at);
        // The adapter's name follows, unless a parameter does.
        if segments.len() > at + 1 && segments[at] == "default" {
            segments.remove(at);
        }
    }
    let is_factor = |segment: &&str| factor_keys().any(|(factor, _)| factor == *segment);
    let Some(at) = segments.iter().position(is_factor) else { return Some(segments.join(".")) };
    let (module, factor, last) = (segments[..at].join("."), segments[at], segments[segments.len() - 1]);
    // Of several tensors of a factor (weight and bias) the key names one; loralib's keys end with the factor.
    let rests: Vec<&str> = factor_keys().filter(|(name, _)| *name == factor).map(|(_, rest)| rest).collect();
    let first = rests.first().copied().unwrap_or_default();
    match rests.into_iter().find(|rest| *rest == last).unwrap_or(first) {
        "" => Some(format!("{module}.{factor}")),
        rest => Some(format!("{module}.{factor}.{rest}")),
    }
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
    #[case("base_model.model.embed.token_adapter.base_layer.weight", Some("embed.weight"))]
    #[case(
        "base_model.model.embed.token_adapter.trainable_tokens_delta",
        Some("embed.token_adapter.trainable_tokens_delta")
    )]
    #[case("base_model.model.q.lora_B.bias", Some("q.lora_B.bias"))]
    #[case("base_model.model.q.lora_B.default.bias", Some("q.lora_B.bias"))]
    #[case("base_model.model.bert.l.0.tt_left.2", Some("bert.l.0.tt_left.2"))]
    #[case("base_model.model.l.0.mlp.experts.lora_A.weight", Some("l.0.mlp.experts.lora_A.weight"))]
    #[case(
        "base_model.model.l.0.mlp.experts.base_layer.lora_A.weight",
        Some("l.0.mlp.experts.base_layer.lora_A.weight")
    )]
    #[case("base_model.vera_A", Some("vera_A"))]
    #[case(
        "base_model.model.vit.layers.1.attention.o_proj.lora_A.weight",
        Some("vit.encoder.layer.1.attention.output.dense.lora_A.weight")
    )]
    #[case(
        "base_model.model.vit.layers.1.layernorm_after.bias",
        Some("vit.encoder.layer.1.layernorm_after.bias")
    )]
    fn keys_of_every_version_are_one(#[case] key: &str, #[case] expect: Option<&str>) {
        assert_eq!(normalize(key).as_deref(), expect);
    }
}
