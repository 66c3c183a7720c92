//! What becomes of each tensor that differs between two models.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lowrank_checkpoint::{FloatType, HostTensor, write_safetensors};
use lowrank_compress::{CompressError, Extracted};
use lowrank_factor::Truncation;
use rstest::rstest;

/// A linear map that every model has.
const MAP: &str = "encoder.layers.0.fc1";

/// The difference of two models with these tensors and [`MAP`], which always differs.
fn extract(model_type: &str, tensors: &[(&str, &[usize], bool)]) -> Result<Extracted, CompressError> {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, is_tuned: bool| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), format!("{{\"model_type\": \"{model_type}\"}}")).unwrap();
        let map = format!("{MAP}.weight");
        let all = tensors.iter().copied().chain([(map.as_str(), &[3, 2][..], true)]);
        let tensors = all.map(|(name, shape, differs)| {
            let scale = if differs && is_tuned { 2.0 } else { 1.0 };
            let values: Vec<f32> =
                (0..shape.iter().product::<usize>()).map(|i| scale * (i as f32).cos()).collect();
            HostTensor::new(name, shape, values)
        });
        let file = folder.join("model.safetensors");
        write_safetensors(file, tensors.collect(), FloatType::F32, &BTreeMap::new()).unwrap();
        folder
    };
    let (base, tuned): (&Path, &Path) = (&write("base", false), &write("tuned", true));
    lowrank_compress::extract(base, tuned, &Truncation::Energy(1.0))
}

#[rstest]
#[case("gpt_neox", "embed_out", false)]
#[case("electra", "electra.embeddings_project", false)]
#[case("albert", "albert.encoder.embedding_hidden_mapping_in", false)]
#[case("gpt_neox", "gpt_neox.embed_in", true)]
#[case("mpnet", "mpnet.encoder.relative_attention_bias", true)]
#[case("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", true)]
#[case("gpt2", "transformer.wpe", true)]
#[case("ernie", "ernie.embeddings.task_type_embeddings", true)]
#[case("modernbert", "model.embeddings.tok_embeddings", true)]
fn maps_are_told_from_tables(#[case] model_type: &str, #[case] path: &str, #[case] is_table: bool) {
    let made = extract(model_type, &[(&format!("{path}.weight"), &[6, 4], true)]).unwrap();
    let site = &made.modules.iter().find(|module| module.site.path == path).unwrap().site;
    let sides = if is_table { (6, 4) } else { (4, 6) };
    assert_eq!((site.embedding, (site.d_input, site.d_output)), (is_table, sides));
}

#[rstest]
#[case("t5", "shared")]
#[case("mt5", "shared")]
#[case("bart", "model.shared")]
#[case("mbart", "model.shared")]
#[case("t5", "encoder.embed_tokens")]
fn a_changed_table_that_is_not_called_is_refused(#[case] model_type: &str, #[case] path: &str) {
    let name = format!("{path}.weight");
    let error = extract(model_type, &[(&name, &[6, 4], true)]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("'{name}' differs from the base's")), "{error}");
    assert!(error.contains("use the tuned model itself") && error.lines().count() == 1, "{error}");
    let made = extract(model_type, &[(&name, &[6, 4], false)]).unwrap();
    assert_eq!(made.modules.iter().map(|module| &module.site.path).collect::<Vec<_>>(), [MAP]);
}

#[rstest]
#[case("deberta-v2", "deberta.encoder.rel_embeddings")]
#[case("opt", "model.decoder.embed_positions")]
#[case("bart", "model.encoder.embed_positions")]
fn a_table_that_takes_no_factors_is_saved_in_full(#[case] model_type: &str, #[case] path: &str) {
    let name = format!("{path}.weight");
    let made = extract(model_type, &[(&name, &[6, 4], true)]).unwrap();
    assert_eq!(made.modules.iter().map(|module| &module.site.path).collect::<Vec<_>>(), [MAP]);
    assert_eq!(made.saved_modules, [path]);
    let [saved] = &made.saved[..] else { panic!("{:?}", made.saved) };
    assert_eq!((saved.name.as_str(), saved.data[0]), (name.as_str(), 2.0));
    let same = extract(model_type, &[(&name, &[6, 4], false)]).unwrap();
    assert!(same.saved_modules.is_empty() && same.saved.is_empty());
}

/// PEFT cannot wrap a module inside one that it has wrapped.
#[test]
fn a_module_inside_one_that_is_saved_is_saved_with_it() {
    let made = extract(
        "vit",
        &[
            ("vit.embeddings.cls_token", &[1, 1, 4], true),
            ("vit.embeddings.inner.weight", &[4, 4], true),
            ("vit.embeddings.patch_embeddings.projection.bias", &[4], false),
            ("vit.embeddings.patch_embeddings.projection.weight", &[4, 3, 2, 2], true),
            ("vit.embeddings_project.weight", &[4, 4], true),
            ("vit.layernorm.weight", &[4], true),
        ],
    )
    .unwrap();
    assert_eq!(made.saved_modules, ["vit.embeddings", "vit.layernorm"]);
    let paths: Vec<&str> = made.modules.iter().map(|module| module.site.path.as_str()).collect();
    assert_eq!(paths, [MAP, "vit.embeddings_project"]);
    let names: Vec<&str> = made.saved.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "vit.embeddings.cls_token",
            "vit.embeddings.inner.weight",
            "vit.embeddings.patch_embeddings.projection.bias",
            "vit.embeddings.patch_embeddings.projection.weight",
            "vit.layernorm.weight",
        ]
    );
}
