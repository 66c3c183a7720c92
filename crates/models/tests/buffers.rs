//! Buffers that older checkpoints hold beside the parameters are left aside; other tensors are not.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::fs;
use std::path::Path;

use burn_flex::Flex;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_models::params::WeightType;
use lowrank_models::{Classifier, EncoderConfig, Seq2Seq, Seq2SeqConfig};
use rstest::rstest;

/// A fixture with one more tensor.
fn with(fixture: &str, tensor: &str) -> tempfile::TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let read = |name: &str| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        HostTensor::new(name, shape, checkpoint.read_f32(name).unwrap())
    };
    let extra = HostTensor::new(tensor, [2], vec![1.0, 0.5]);
    let tensors = checkpoint.names().map(read).chain([extra]).collect();
    let file = folder.path().join("model.safetensors");
    write_safetensors(file, tensors, FloatType::F32, &Default::default()).unwrap();
    fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

#[rstest]
#[case("nomic-cls", "encoder.layers.0.attn.rotary_emb.inv_freq", true)]
#[case("gte-cls", "embeddings.rotary_emb.inv_freq", true)]
#[case("nomic-cls", "encoder.layers.0.attn.rotary_emb.other", false)]
fn of_encoders(#[case] fixture: &str, #[case] tensor: &str, #[case] is_buffer: bool) {
    let folder = with(fixture, tensor);
    let config = EncoderConfig::read(folder.path()).unwrap();
    let model = Classifier::<Flex>::load(folder.path(), config, 0, &Default::default());
    assert_eq!(model.err().map(|error| error.to_string().contains(tensor)), (!is_buffer).then_some(true));
}

#[rstest]
#[case("model.encoder.version", true)]
#[case("model.decoder.version", true)]
#[case("model.decoder.edition", false)]
fn of_bart(#[case] tensor: &str, #[case] is_buffer: bool) {
    let folder = with("seq2seq-bart", tensor);
    let config = Seq2SeqConfig::read(folder.path()).unwrap();
    let model = Seq2Seq::<Flex>::load(folder.path(), config, WeightType::F32, &Default::default());
    assert_eq!(model.err().map(|error| error.to_string().contains(tensor)), (!is_buffer).then_some(true));
}
