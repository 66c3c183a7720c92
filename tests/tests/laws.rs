//! The adapter laws: one checker over every method, architecture and backend.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterConfig, AdapterSet, Method, Mode, Pattern, Targets};
use lowrank_kernels::Kernels;
use lowrank_models::{SequenceClassifier, Trainable};
use lowrank_tests::{assert_close, distance, golden, load, pack, random, values};
use rstest::rstest;

const RANK: usize = 3;
/// alpha / rank is far from 1, so that a forgotten or doubled scale shows.
const ALPHA: f64 = 7.5;

fn config(method: Method, targets: &str) -> AdapterConfig {
    AdapterConfig {
        rank: RANK,
        alpha: ALPHA,
        seed: 5,
        ..AdapterConfig::new(method, Targets::new(Pattern::parse(targets)))
    }
}

/// Replaces every factor by random values.
fn randomised<B: Backend>(set: AdapterSet<B>) -> AdapterSet<B> {
    struct Randomise(usize);
    impl<B: Backend> ModuleMapper<B> for Randomise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let shape: [usize; D] = param.dims();
            param.map(|_| random(&format!("factor {}", self.0), shape, 0.3))
        }
    }
    set.map(&mut Randomise(0))
}

fn logits<B: Kernels>(model: &SequenceClassifier<B>, set: &AdapterSet<B>, name: &str) -> Vec<f32> {
    let golden = golden(name);
    let batch = pack::<B>(model.config(), &[&golden.cases[0], &golden.cases[1]]);
    values(model.forward(&batch, set, Mode::EVAL))
}

fn check_laws<B: Backend + Kernels>(method: Method, base: &str, targets: &str) {
    let device = Default::default();
    let (model, _) = load::<B>(base);
    let plain = logits(&model, &AdapterSet::empty(), base);
    let scale = plain.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    // Two ways of the same sums: rounding of each of some hundred terms.
    let rounding = 500.0 * f32::EPSILON * scale;

    let fresh = AdapterSet::<B>::init(&config(method, targets), model.sites(), &device).unwrap();
    assert_eq!(logits(&model, &fresh, base), plain, "a fresh adapter changes nothing");

    let set = randomised(fresh);
    let adapted = logits(&model, &set, base);
    assert!(distance(&adapted, &plain) > 1e-3 * scale, "a randomised adapter changes the output");

    let merged = model.clone().merge(&set).unwrap();
    assert_close("merged", &logits(&merged, &AdapterSet::empty(), base), &adapted, rounding);
    assert_eq!(logits(&model, &AdapterSet::empty(), base), plain, "merging leaves the base as it was");

    let dir = tempfile::tempdir().unwrap();
    let peft = PeftConfig {
        peft_type: if method == Method::Lotr { "LOTR" } else { "LORA" }.into(),
        r: RANK,
        lora_alpha: ALPHA,
        target_modules: set.target_names(),
        ..PeftConfig::default()
    };
    AdapterFolder::from_set(&set, peft, Vec::new()).write(dir.path()).unwrap();
    let (again, head) =
        AdapterFolder::read(dir.path()).unwrap().into_set::<B>(dir.path(), model.sites(), &device).unwrap();
    assert!(head.is_empty());
    for slot in set.slots() {
        let (saved, loaded) = (set.delta_weight(slot.site), again.delta_weight(slot.site));
        assert_close(&slot.path, &values(loaded.unwrap()), &values(saved.unwrap()), 0.0);
    }
    assert_close("saved and loaded", &logits(&model, &again, base), &adapted, rounding);
    let keys: Vec<String> =
        lowrank_checkpoint::Checkpoint::open(dir.path()).unwrap().names().map(String::from).collect();
    assert!(keys.iter().all(|k| k.contains("lora_") || k.contains("lotr")), "adapter keys only: {keys:?}");
}

fn check_training<B: Backend + Kernels>(method: Method, base: &str, targets: &str) {
    type Ad<B> = Autodiff<B>;
    let device = Default::default();
    let (model, _) = load::<Ad<B>>(base);
    let model = model.with_trainable(Trainable::Head);
    let set =
        randomised(AdapterSet::<Ad<B>>::init(&config(method, targets), model.sites(), &device).unwrap());
    let set = set.map(&mut RequireGrad);
    let golden = golden(base);
    let batch = pack::<Ad<B>>(model.config(), &[&golden.cases[0]]);
    let grads = model.forward(&batch, &set, Mode::train(3)).powi_scalar(2).sum().backward();

    let mut factors = Grads::<Ad<B>> { grads: &grads, with: 0, without: 0 };
    set.visit(&mut factors);
    assert!(factors.with > 0 && factors.without == 0, "every factor has a gradient");

    let mut base_grads = Grads::<Ad<B>> { grads: &grads, with: 0, without: 0 };
    model.visit(&mut base_grads);
    let head = model.head_tensors().len();
    assert_eq!(base_grads.with, head, "of the model, the head alone has gradients");
    let _ = model.valid();
}

struct RequireGrad;

impl<B: Backend> ModuleMapper<B> for RequireGrad {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(true)
    }
}

struct Grads<'a, B: burn::tensor::backend::AutodiffBackend> {
    grads: &'a B::Gradients,
    with: usize,
    without: usize,
}

impl<B: burn::tensor::backend::AutodiffBackend> ModuleVisitor<B> for Grads<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        match param.val().grad(self.grads) {
            Some(grad) if values(grad.clone()).iter().any(|v| *v != 0.0) => self.with += 1,
            _ => self.without += 1,
        }
    }
}

#[rstest]
fn laws(
    #[values(Method::Lora, Method::Lotr)] method: Method,
    #[values("bert-cls", "roberta-cls")] base: &str,
    // The second is not square.
    #[values("query,value", "intermediate.dense")] targets: &str,
) {
    check_laws::<burn_flex::Flex>(method, base, targets);
    check_laws::<burn_ndarray::NdArray>(method, base, targets);
}

#[rstest]
fn training_reaches_the_factors_and_the_head_alone(
    #[values(Method::Lora, Method::Lotr)] method: Method,
    #[values("bert-cls", "roberta-cls")] base: &str,
) {
    check_training::<burn_flex::Flex>(method, base, "query,value");
    check_training::<burn_ndarray::NdArray>(method, base, "query,value");
}

#[test]
fn lotr_is_a_lora_exactly() {
    type B = burn_flex::Flex;
    let (model, _) = load::<B>("bert-cls");
    let set = randomised(
        AdapterSet::<B>::init(&config(Method::Lotr, "query,value"), model.sites(), &Default::default())
            .unwrap(),
    );
    let lowrank_adapters::Adapter::Lotr(lotr) = &set.adapters()[0] else { panic!("a LoTR group") };
    for slot in set.slots() {
        let (a, b) = lotr.lora_factors(slot.slice);
        let lora = lowrank_adapters::lora::Lora::from_factors(a, b, lotr.scale);
        let (x, y) = (values(lora.delta_weight()), values(set.delta_weight(slot.site).unwrap()));
        let scale = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_close(&slot.path, &x, &y, 10.0 * f32::EPSILON * scale);
    }
}

#[test]
fn no_parameter_is_in_two_places() {
    type B = Autodiff<burn_flex::Flex>;
    struct Ids(Vec<burn::module::ParamId>);
    impl<B: Backend> ModuleVisitor<B> for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.id);
        }
    }
    let (model, _) = load::<B>("bert-cls");
    let set = AdapterSet::<B>::init(&config(Method::Lotr, "query,value"), model.sites(), &Default::default())
        .unwrap();
    let mut ids = Ids(Vec::new());
    model.visit(&mut ids);
    set.visit(&mut ids);
    let n = ids.0.len();
    ids.0.sort();
    ids.0.dedup();
    assert_eq!(ids.0.len(), n);
}
