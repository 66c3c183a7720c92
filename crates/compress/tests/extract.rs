//! What becomes of each tensor that differs between two models.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lowrank_checkpoint::{FloatType, HostTensor, write_safetensors};
use lowrank_compress::{CompressError, Extracted};
use lowrank_factor::Truncation;
use lowrank_factor::matrix::from_row_major;
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

#[test]
fn a_difference_of_tied_models_reaches_table_and_head() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, table: Vec<f32>, tied: bool| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        let config = format!("{{\"model_type\": \"llama\", \"tie_word_embeddings\": {tied}}}");
        fs::write(folder.join("config.json"), config).unwrap();
        let mut tensors = vec![
            HostTensor::new("model.embed_tokens.weight", [6, 4], table.clone()),
            HostTensor::new("model.layers.0.mlp.up_proj.weight", [4, 4], vec![1.0; 16]),
        ];
        if !tied {
            tensors.push(HostTensor::new("lm_head.weight", [6, 4], vec![1.0; 24]));
        }
        write_safetensors(folder.join("model.safetensors"), tensors, FloatType::F32, &BTreeMap::new())
            .unwrap();
        folder
    };
    let zero = vec![0.0; 24];
    let table: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
    for (tied, modules) in
        [(true, vec!["lm_head", "model.embed_tokens"]), (false, vec!["model.embed_tokens"])]
    {
        let (base, tuned) = (
            write(&format!("base-{tied}"), zero.clone(), tied),
            write(&format!("tuned-{tied}"), table.clone(), tied),
        );
        let made = lowrank_compress::extract(&base, &tuned, &Truncation::Energy(1.0)).unwrap();
        let paths: Vec<&str> = made.modules.iter().map(|m| m.site.path.as_str()).collect();
        assert_eq!(paths, modules);
        for module in &made.modules {
            let product = module.factors.reconstruct();
            assert_eq!(product.shape(), (module.site.d_input, module.site.d_output));
            let product = if module.site.embedding { product } else { product.transpose().to_owned() };
            let expected = from_row_major(&table, 6, 4).unwrap();
            assert!((product - expected).norm_max() < 1e-5, "{}", module.site.path);
        }
        let same = lowrank_compress::extract(&base, &base, &Truncation::Energy(1.0)).unwrap_err();
        assert!(same.to_string().contains("nothing to extract"), "{same}");
    }
}

#[test]
fn an_extracted_adapter_has_the_change_of_a_trained_head() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, kind: &str, tied: Option<bool>, head: Option<f32>, layers: usize| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        let tie = tied.map_or(String::new(), |tied| format!(", \"tie_word_embeddings\": {tied}"));
        fs::write(folder.join("config.json"), format!("{{\"model_type\": \"{kind}\"{tie}}}")).unwrap();
        let value = head.unwrap_or(0.5);
        let mut tensors = vec![HostTensor::new("model.embed_tokens.weight", [6, 4], vec![value / 2.0; 24])];
        for layer in 0..layers {
            let name = format!("model.layers.{layer}.mlp.up_proj.weight");
            tensors.push(HostTensor::new(name, [4, 4], vec![value; 16]));
        }
        tensors.extend(head.map(|value| HostTensor::new("lm_head.weight", [6, 4], vec![value; 24])));
        write_safetensors(folder.join("model.safetensors"), tensors, FloatType::F32, &BTreeMap::new())
            .unwrap();
        folder
    };
    let extract =
        |base: &Path, tuned: &Path| lowrank_compress::extract(base, tuned, &Truncation::Energy(1.0));
    let own = write("own", "llama", Some(true), Some(1.0), 2);
    let tuned = write("tuned", "llama", Some(true), Some(3.0), 2);
    let made = extract(&own, &tuned).unwrap();
    let head = made.modules.iter().find(|m| m.site.path == "lm_head").unwrap();
    assert!((head.factors.reconstruct()[(0, 0)] - 2.0).abs() < 1e-5, "its own change, not the table's");
    // A head that became the table again is not a change of the table's.
    let tied = write("tied", "llama", Some(true), None, 2);
    let error = extract(&own, &tied).unwrap_err().to_string();
    assert!(error.contains("is tied to its embedding and that of"), "{error}");
    // Tied by the default of its architecture.
    let [base, tuned] = [("cohere-base", 1.0), ("cohere-tuned", 2.0)].map(|(name, scale)| {
        let folder = write(name, "cohere", None, None, 1);
        let table = HostTensor::new("model.embed_tokens.weight", [6, 4], vec![scale; 24]);
        write_safetensors(folder.join("model.safetensors"), vec![table], FloatType::F32, &BTreeMap::new())
            .unwrap();
        folder
    });
    let paths: Vec<String> =
        extract(&base, &tuned).unwrap().modules.into_iter().map(|m| m.site.path).collect();
    assert_eq!(paths, ["lm_head", "model.embed_tokens"]);
    let error = extract(&own, &write("short", "llama", Some(true), Some(2.0), 1)).unwrap_err().to_string();
    assert!(error.contains("'model.layers.1.mlp.up_proj.weight' of"), "{error}");
}
