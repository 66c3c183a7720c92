//! Loading keeps one copy of the weights in memory, in f32 and in the type of the file.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use lowrank_checkpoint::{Dtype, StreamOptions, StreamWriter, TensorPlan};
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig, ParamVisitor, Parameter, Parameters};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 8000, "hidden_size": 384, "num_hidden_layers": 8,
    "num_attention_heads": 6, "intermediate_size": 1024, "max_position_embeddings": 64}"#;

/// A line of /proc/self/status, in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Names and shapes of a model's tensors, as a checkpoint has them.
#[derive(Default)]
struct Shapes(Vec<(String, Vec<usize>)>);

impl<B: Backend> ParamVisitor<B> for Shapes {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        if at.layout.is_transposed() {
            shape.reverse();
        }
        self.0.push((at.key(), shape));
    }
}

// One test in this binary: the peak is the whole process's.
#[test]
fn loading_peaks_at_one_copy_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let config = DecoderConfig::read(folder.path()).unwrap();
    let device = Default::default();
    let mut shapes = Shapes::default();
    Decoder::<Flex>::init(config.clone(), 0, &device).unwrap().visit_params(&mut shapes);
    let plan =
        shapes.0.iter().map(|(name, shape)| TensorPlan::new(name, shape.clone(), Dtype::BF16)).collect();
    let mut writer = StreamWriter::create(folder.path(), plan, StreamOptions::default()).unwrap();
    let mut elements = 0;
    for (name, shape) in &shapes.0 {
        let n: usize = shape.iter().product();
        elements += n;
        writer.write_f32(name, &(0..n).map(|i| (i % 251) as f32 - 125.0).collect::<Vec<_>>()).unwrap();
    }
    writer.finish().unwrap();

    // Half first: the peak of the process only grows.
    for (weights, size) in [(WeightType::Bf16, 2), (WeightType::F32, 4)] {
        let (before, kept) = (status("VmRSS"), size * elements);
        let model = Decoder::<Flex>::load(folder.path(), config.clone(), weights, &device).unwrap();
        let peak = status("VmHWM");
        // A tenth, and what a process of this size may grow by itself.
        assert!(
            peak < before + kept + kept / 10 + (4 << 20),
            "{weights:?}: {peak} at the peak, {before} before, {kept} kept"
        );
        assert_eq!(model.config().vocab_size, 8000);
    }
}
