//! What the parity and law tests share: golden files, small models, comparisons.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test tools end a test on the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{
    Tensor,
    backend::{AutodiffBackend, Backend},
};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_kernels::Kernels;
use lowrank_models::{
    Classifier, ClassifierConfig, DecoderConfig, ParamVisitor, Parameter, Parameters, Role, Stack,
    TokenBatch, Tokens,
};
use lowrank_spec::rng::normal_values;
use lowrank_spec::{LowrankSection, ModuleEntry, Representation};
use serde::Deserialize;
use serde_json::json;

/// The backend of the tests that compare models and trainings with PyTorch: that of a GPU in a build for one.
#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
pub type Tested = burn_flex::Flex;
#[cfg(feature = "cuda")]
/// CUDA.
pub type Tested = burn_cuda::Cuda;
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
/// Vulkan. Without a card, `CUBECL_WGPU_DEFAULT_DEVICE=Cpu` selects Mesa's lavapipe.
pub type Tested = burn_wgpu::Vulkan;
#[cfg(all(feature = "metal", not(any(feature = "cuda", feature = "vulkan"))))]
/// Metal.
pub type Tested = burn_wgpu::Metal;

/// One text with what transformers made of it.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// What the case is about.
    pub name: String,
    /// The text.
    pub text: String,
    /// Its pair.
    pub text_pair: Option<String>,
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Token types.
    #[serde(default)]
    pub token_type_ids: Vec<u32>,
    /// The head's output.
    pub logits: Option<Vec<f32>>,
    /// Hidden states, `[tokens, d_model]`.
    pub last_hidden_state: Option<Vec<Vec<f32>>>,
}

/// A golden file.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// The base model's case, for adapters.
    pub base: Option<String>,
    /// The model's limit.
    pub max_length: usize,
    /// Texts and outputs.
    pub cases: Vec<Case>,
}

/// Folder of a golden case.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Reads the golden file of a case.
pub fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A fixture's model and tokenizer.
pub fn load<B: Backend>(name: &str) -> (Classifier<B>, TextTokenizer) {
    let folder = fixture(name);
    let config = ClassifierConfig::read(&folder).unwrap();
    let tokenizer = TextTokenizer::from_folder(&folder, Some(config.max_tokens())).unwrap();
    (Classifier::load(&folder, config, 0, &Default::default()).unwrap(), tokenizer)
}

/// Packs token ids for a model; missing type ids are 0.
pub fn pack<B: Kernels>(model: &impl Stack<B>, cases: &[&Case]) -> TokenBatch<B> {
    let ids: Vec<u32> = cases.iter().flat_map(|c| c.input_ids.clone()).collect();
    let types = |c: &&Case| {
        if c.token_type_ids.is_empty() { vec![0; c.input_ids.len()] } else { c.token_type_ids.clone() }
    };
    let type_ids: Vec<u32> = cases.iter().flat_map(types).collect();
    let lengths: Vec<usize> = cases.iter().map(|c| c.input_ids.len()).collect();
    let tokens = Tokens { ids: &ids, type_ids: &type_ids, lengths: &lengths, pixels: &[] };
    model.batch(tokens, &Default::default()).unwrap()
}

/// Values of a tensor.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Largest absolute difference; infinite where lengths or finiteness differ.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    a.iter()
        .zip(b)
        .map(|(x, y)| if x.is_finite() && y.is_finite() { (x - y).abs() } else { f32::INFINITY })
        .fold(0.0, f32::max)
}

/// Asserts that two outputs agree to `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], expect: &[f32], tolerance: f32) {
    let d = distance(got, expect);
    assert!(d <= tolerance, "{what}: off by {d}, allowed {tolerance}");
}

/// Random normal tensor.
pub fn random<B: Backend, const D: usize>(key: &str, shape: [usize; D], std: f64) -> Tensor<B, D> {
    let n = shape.iter().product();
    Tensor::from_data(
        burn::tensor::TensorData::new(normal_values(11, key, n, std), shape),
        &Default::default(),
    )
}

/// Gradients in the file's layout, by key; constants must have none.
struct Gradients<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl<B: AutodiffBackend> ParamVisitor<B> for Gradients<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let grad = param.val().grad(self.grads);
        if at.role == Role::Constant {
            assert!(grad.is_none(), "{}", at.key());
            return;
        }
        let grad = grad.unwrap_or_else(|| panic!("{}: no gradient", at.key()));
        let dims = grad.dims();
        let mut values = values(grad);
        if at.layout.is_transposed() {
            let [rows, columns] = [dims[0], dims[1]];
            values = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
        }
        self.found.insert(at.key(), values);
    }
}

/// Compares the gradients of all parameters of a model with PyTorch's, each given by its norm and by `Σ gᵢ·cos(i)` over its
/// elements in the file's order. Returns the keys of the parameters.
pub fn check_gradients<B: AutodiffBackend>(
    what: &str,
    model: &mut impl Parameters<B>,
    grads: &B::Gradients,
    expected: &BTreeMap<String, [f64; 2]>,
) -> Vec<String> {
    let mut gradients = Gradients { grads, found: BTreeMap::new() };
    model.visit_params(&mut gradients);
    let found = gradients.found;
    let missing: Vec<&String> = expected.keys().filter(|key| !found.contains_key(*key)).collect();
    assert!(missing.is_empty(), "{what}: no parameters {missing:?}");
    for (key, grad) in &found {
        // A bias that no output depends on has none in PyTorch, or one of rounding errors.
        let [norm, along] = expected.get(key).copied().unwrap_or_default();
        let tolerance = 1e-4 * (1.0 + norm);
        let sum = |f: &dyn Fn(usize, f64) -> f64| -> f64 {
            grad.iter().enumerate().map(|(i, &g)| f(i, f64::from(g))).sum()
        };
        let own = [sum(&|_, g| g * g).sqrt(), sum(&|i, g| g * (i as f64).cos())];
        for (own, expected) in own.into_iter().zip([norm, along]) {
            assert!((own - expected).abs() < tolerance, "{what}: {key}: {own}, expected {expected}");
        }
    }
    found.into_keys().collect()
}

/// A Llama of width 1024 with a vocabulary of 256 whose block linears are factors of the ranks that take away `ratio`
/// of their parameters; dense where it is 0.
pub fn llama(n_layers: usize, ratio: f64) -> DecoderConfig {
    let (d, inner) = (1024, 2816);
    let config = json!({
        "model_type": "llama", "hidden_size": d, "intermediate_size": inner, "num_hidden_layers": n_layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 256, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    let mut config = config.as_object().unwrap().clone();
    let mut section = LowrankSection::default();
    let attention = ["q", "k", "v", "o"].map(|name| (format!("self_attn.{name}_proj"), d + d, d * d));
    let mlp = ["gate", "up", "down"].map(|name| (format!("mlp.{name}_proj"), d + inner, d * inner));
    for layer in (0..n_layers).filter(|_| ratio > 0.0) {
        for (name, sides, numel) in attention.iter().chain(&mlp) {
            let rank = ((1.0 - ratio) * *numel as f64 / *sides as f64) as usize;
            let entry = ModuleEntry::new(Representation::low_rank(rank));
            section.modules.insert(format!("model.layers.{layer}.{name}"), entry);
        }
    }
    section.write(&mut config).unwrap();
    DecoderConfig::parse(config).unwrap()
}
