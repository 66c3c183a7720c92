//! Adapters on a pooler that the checkpoint lacks come with its weights.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use burn_flex::Flex;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterConfig, AdapterSet, Method};
use lowrank_checkpoint::{FloatType, write_safetensors};
use lowrank_models::{Adaptable, Classifier, EncoderConfig, Parameters};
use lowrank_spec::{Pattern, Targets};
use rstest::rstest;

const CONFIG: &str = r#"{"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8}"#;

#[rstest]
#[case(Method::LORA)]
// Magnitudes are relative to the norms of the pooler in the file.
#[case(Method::DORA)]
#[case(Method::VERA)]
fn an_adapted_pooler_is_read_from_the_adapter(#[case] method: Method) {
    let (folder, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let config = EncoderConfig::read(folder.path()).unwrap();
    let device = Default::default();
    let body = Classifier::<Flex>::init(config.clone(), 0, &device).tensors_where(|at| {
        !at.module.path.starts_with("bert.pooler") && !at.module.path.starts_with("classifier")
    });
    write_safetensors(folder.path().join("model.safetensors"), body, FloatType::F32, &Default::default())
        .unwrap();
    let load = |seed| Classifier::<Flex>::load(folder.path(), config.clone(), seed, &device).unwrap();

    let model = load(1);
    let targets = Targets::new(Pattern::parse("query,pooler.dense"));
    let options = AdapterConfig { rank: 2, ..AdapterConfig::new(method, targets) };
    let set = AdapterSet::init(&options, model.sites(), &model.base_weights(), &device).unwrap();
    let config = PeftConfig { modules_to_save: Some(vec!["classifier".into()]), ..PeftConfig::default() };
    let written = AdapterFolder::from_set(&set, model.sites(), config, model.head_tensors()).unwrap();
    written.write(adapter.path()).unwrap();

    let mut again = load(2);
    let [expect, other] = [&model, &again].map(Classifier::head_tensors);
    assert!(expect.iter().zip(&other).any(|(a, b)| a.name == "bert.pooler.dense.weight" && a.data != b.data));
    let read = again.load_adapter(adapter.path(), &device).unwrap();
    assert!(again.newly_initialized().is_empty(), "{:?}", again.newly_initialized());
    // New adapters change nothing.
    let merged = again.merged(&read).unwrap().head_tensors();
    assert_eq!(merged.len(), expect.len());
    for (merged, expect) in merged.iter().zip(&expect) {
        assert_eq!(merged.name, expect.name);
        for (a, b) in merged.data.iter().zip(expect.data.iter()) {
            assert!((a - b).abs() < 1e-6, "{}: {a} and {b}", expect.name);
        }
    }
}
