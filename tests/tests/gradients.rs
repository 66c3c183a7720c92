//! Gradients of every parameter of every decoder beside PyTorch's (`fixtures/make_gradients.py`).

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn_flex::Flex;
use common::golden;
use lowrank_adapters::AdapterSet;
use lowrank_models::params::WeightType;
use lowrank_models::{
    Decoder, DecoderConfig, Layout, ParamVisitor, Parameter, Parameters, Rows, Run, Stack, Tokens,
};
use lowrank_tests::{fixture, values};
use serde::Deserialize;

type B = Autodiff<Flex>;

#[derive(Deserialize)]
struct Expected {
    loss: f64,
    /// Norm and `Σ gᵢ·cos(i)` by name.
    gradients: BTreeMap<String, [f64; 2]>,
}

/// The gradients of the parameters it visits, in the file's layout.
struct Gather<'a> {
    grads: &'a <B as AutodiffBackend>::Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl ParamVisitor<B> for Gather<'_> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let grad = param.val().grad(self.grads).unwrap_or_else(|| panic!("{}: no gradient", at.key()));
        let dims = grad.dims();
        let mut values = values(grad);
        if at.layout == Layout::Transposed {
            let [rows, columns] = [dims[0], dims[1]];
            values = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
        }
        self.found.insert(at.key(), values);
    }
}

fn check(name: &str, expected: &Expected) {
    let (folder, device) = (fixture(name), Default::default());
    let config = DecoderConfig::read(&folder).unwrap();
    let mut model = Decoder::<B>::load(&folder, config, WeightType::F32, &device).unwrap();
    model.choose_trained(|_, _| true);
    let ids = &golden(name).cases[0].input_ids;
    let n = ids.len();
    let batch = model.batch(Tokens::new(ids, &[n]), &device).unwrap();
    let none = AdapterSet::empty();
    let run = Run::eval(&none);
    let hidden = model.hidden_states(&batch, Rows::All, run);
    let targets: Vec<i32> = ids.iter().cycle().skip(1).take(n).map(|&id| id as i32).collect();
    let targets = Tensor::from_ints(targets.as_slice(), &device);
    let weights: Vec<f32> = (0..n).map(|i| if i + 1 < n { 1.0 / (n - 1) as f32 } else { 0.0 }).collect();
    let loss = model.nll_sum(hidden, targets, Tensor::from_floats(weights.as_slice(), &device), run);
    let off = f64::from(loss.clone().into_scalar()) - expected.loss;
    assert!(off.abs() < 1e-4, "{name}: the loss is off by {off}");
    let grads = loss.backward();
    let mut gather = Gather { grads: &grads, found: BTreeMap::new() };
    model.visit_params(&mut gather);
    let found = gather.found;
    assert!(
        expected.gradients.keys().all(|key| found.contains_key(key)),
        "{name}: {:?} for {:?}",
        found.keys(),
        expected.gradients.keys()
    );
    for (key, grad) in &found {
        // A bias that no output depends on has none in PyTorch, or one of rounding errors.
        let [norm, along] = expected.gradients.get(key).copied().unwrap_or_default();
        let got = |f: &dyn Fn(usize) -> f64| {
            grad.iter().enumerate().map(|(i, &g)| f64::from(g) * f(i)).sum::<f64>()
        };
        let own_norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let tolerance = 1e-4 * (1.0 + norm);
        assert!((own_norm - norm).abs() < tolerance, "{name}: {key}: norm {own_norm}, expected {norm}");
        let own_along = got(&|i| (i as f64).cos());
        assert!((own_along - along).abs() < tolerance, "{name}: {key}: {own_along}, expected {along}");
    }
}

#[test]
fn equal_pytorch() {
    let text = std::fs::read_to_string(fixture("gradients.json")).unwrap();
    let all: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
    assert!(all.len() > 60, "{}", all.len());
    all.iter().for_each(|(name, expected)| check(name, expected));
}
