//! Gradients of every parameter of every decoder, and the losses of five steps, beside PyTorch's
//! (`fixtures/make_gradients.py`).

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
use lowrank_data::rows::TokenRow;
use lowrank_models::config::DecoderDropouts;
use lowrank_models::params::WeightType;
use lowrank_models::{
    Decoder, DecoderConfig, Layout, ParamVisitor, Parameter, Parameters, Rows, Run, Stack, Tokens,
};
use lowrank_tests::{fixture, values};
use lowrank_train::{
    Alone, NextToken, SchedulerKind, Start, StepReport, TrainConfig, Training, TunedDecoder, Watch, train,
};
use serde::Deserialize;

type B = Autodiff<Flex>;

#[derive(Deserialize)]
struct Expected {
    /// Norm and `Σ gᵢ·cos(i)` by name; none for models with experts.
    gradients: BTreeMap<String, [f64; 2]>,
    /// Of the steps of a training on one text.
    losses: Vec<f64>,
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

/// The model of a fixture, all of it trained, without dropout.
fn trained(name: &str) -> Decoder<B> {
    let (folder, device) = (fixture(name), Default::default());
    let mut config = DecoderConfig::read(&folder).unwrap();
    config.dropouts = DecoderDropouts {
        embeddings: 0.0,
        attention: 0.0,
        attention_output: 0.0,
        mlp_output: 0.0,
        ..config.dropouts
    };
    let mut model = Decoder::<B>::load(&folder, config, WeightType::F32, &device).unwrap();
    model.choose_trained(|_, _| true);
    model
}

fn check_gradients(name: &str, expected: &Expected) {
    let (model, device) = (trained(name), Default::default());
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
    let off = f64::from(loss.clone().into_scalar()) - expected.losses[0];
    assert!(off.abs() < 1e-4, "{name}: the loss is off by {off}");
    let grads = loss.backward();
    let mut gather = Gather { grads: &grads, found: BTreeMap::new() };
    model.clone().visit_params(&mut gather);
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

#[derive(Default)]
struct Losses(Vec<f64>);

impl Watch for Losses {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        self.0.push(report.loss);
        Ok(())
    }
}

fn check_losses(name: &str, expected: &Expected, recompute: bool) {
    let n = expected.losses.len();
    let config = TrainConfig {
        lr: 1e-3,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        warmup_ratio: 0.0,
        scheduler: SchedulerKind::Linear,
        max_steps: n,
        eval_every: n,
        batch_size: 1,
        ..TrainConfig::default()
    };
    let ids = golden(name).cases[0].input_ids.clone();
    let row = TokenRow { is_learnt: (0..ids.len()).map(|i| i > 0).collect(), ids };
    let objective = NextToken::new(vec![row.clone()], vec![row], &config, recompute).unwrap();
    let mut watch = Losses::default();
    let training = Training {
        config: &config,
        checkpoints: None,
        start: Start::Fresh,
        keep_last: false,
        watch: &mut watch,
        team: &Alone,
    };
    train(&objective, TunedDecoder::new(trained(name), AdapterSet::empty()), training).unwrap();
    let worst = watch.0.iter().zip(&expected.losses).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(
        watch.0.len() == n && worst < 1e-4,
        "{name}, recompute {recompute}: off by {worst:e}: {:?}, expected {:?}",
        watch.0,
        expected.losses
    );
}

fn all() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(fixture("gradients.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn equal_pytorch() {
    let all = all();
    let compared: Vec<_> = all.iter().filter(|(_, expected)| !expected.gradients.is_empty()).collect();
    assert!(compared.len() > 60, "{}", compared.len());
    compared.into_iter().for_each(|(name, expected)| check_gradients(name, expected));
}

#[test]
fn five_steps_have_the_losses_of_pytorch() {
    let all = all();
    assert!(all.len() > 66, "{}", all.len());
    for (name, expected) in &all {
        check_losses(name, expected, false);
        check_losses(name, expected, true);
    }
}
