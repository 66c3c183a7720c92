//! Tables whose factors PEFT does not apply take no adapter, and are replaced by those that it saves in full.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use burn_flex::Flex;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterConfig, AdapterSet, Method, NoWeights};
use lowrank_models::{
    Adaptable, Classifier, Decoder, DecoderConfig, EncoderConfig, MaskedLm, Seq2Seq, Seq2SeqConfig,
};
use lowrank_spec::{HostTensor, Pattern, Targets};

fn check<M: Adaptable<Flex>>(model: &M, path: &str, map: &str, reason: &str) {
    let (device, dir) = (Default::default(), tempfile::tempdir().unwrap());
    let lora = |targets: &str| AdapterConfig {
        rank: 2,
        ..AdapterConfig::new(Method::LORA, Targets::new(Pattern::parse(targets)))
    };
    let refusal = format!("'{path}' takes no adapter: {reason}");
    let error = AdapterSet::init(&lora(path), model.sites(), &model.base_weights(), &device).unwrap_err();
    assert!(error.to_string().starts_with(&refusal), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);

    let write = |targets: &str, config: PeftConfig, saved: Vec<HostTensor<'static>>| {
        let set = AdapterSet::<Flex>::init(&lora(targets), model.sites(), &NoWeights, &device).unwrap();
        AdapterFolder::from_set(&set, model.sites(), config, saved).unwrap().write(dir.path()).unwrap();
        let mut model = model.clone();
        model.load_adapter(dir.path(), &device).map(|_| model)
    };
    let error = write(path, PeftConfig::default(), Vec::new()).err().unwrap().to_string();
    assert!(error.contains(&refusal), "{error}");

    let site = model.sites().iter().find(|site| site.path == path).unwrap();
    let table = vec![0.5; site.d_input * site.d_output];
    let table = HostTensor::new(format!("{path}.weight"), [site.d_input, site.d_output], table);
    let config = PeftConfig { modules_to_save: Some(vec![path.into()]), ..PeftConfig::default() };
    let model = write(map, config, vec![table]).unwrap();
    let tables = model.tensors_where(|at| at.module.path == path);
    assert!(tables.len() == 1 && tables[0].data.iter().all(|value| *value == 0.5));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

#[test]
fn relative_positions_of_deberta_are_read_without_a_call() {
    let (path, reason) =
        ("deberta.encoder.rel_embeddings", "transformers reads its weight without calling it");
    let folder = fixture("deberta-v3-cls");
    let config = EncoderConfig::read(&folder).unwrap();
    let model = Classifier::<Flex>::load(&folder, config, 0, &Default::default()).unwrap();
    check(&model, path, "query_proj", reason);
    let folder = fixture("deberta-mlm");
    let config = EncoderConfig::read(&folder).unwrap();
    let model = MaskedLm::<Flex>::load(&folder, config, &Default::default()).unwrap();
    check(&model, path, "query_proj", reason);
}

#[test]
fn learned_positions_of_opt_and_bart_are_called_with_other_inputs() {
    let (device, reason) = (Default::default(), "transformers gives it other inputs than positions");
    let folder = fixture("opt");
    let config = DecoderConfig::read(&folder).unwrap();
    let model = Decoder::<Flex>::load(&folder, config, Default::default(), &device).unwrap();
    check(&model, "model.decoder.embed_positions", "q_proj", reason);
    for name in ["seq2seq-bart", "seq2seq-mbart"] {
        let folder = fixture(name);
        let config = Seq2SeqConfig::read(&folder).unwrap();
        let model = Seq2Seq::<Flex>::load(&folder, config, Default::default(), &device).unwrap();
        check(&model, "model.encoder.embed_positions", "q_proj", reason);
        check(&model, "model.decoder.embed_positions", "q_proj", reason);
    }
}
