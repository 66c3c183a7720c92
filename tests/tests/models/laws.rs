//! The adapter laws: one checker over every method, architecture and backend.

use crate::common::Exact;
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use lowrank_adapters::algebra::Update;
use lowrank_adapters::methods::{OptionKind, Options};
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{
    AdapterConfig, AdapterSet, BaseWeights, Grouping, Init, Method, Mode, Pattern, Site, Targets,
};
use lowrank_kernels::{BlockFormat, Kernels};
use lowrank_models::params::{ToBlocks, WeightType};
use lowrank_models::{
    Adaptable, Classifier, Decoder, DecoderConfig, Parameter, Parameters, Rows, Run, Stack, Tokens, Trainable,
};
use lowrank_spec::{ModuleEntry, Representation};
use lowrank_tests::{assert_close, distance, fixture, golden, load, pack, random, values};
use rstest::rstest;

const RANK: usize = 3;
/// alpha / rank is far from 1, so that a forgotten or doubled scale shows.
const ALPHA: f64 = 7.5;

/// A method with how it starts.
#[derive(Clone, Debug, PartialEq)]
struct Variant {
    method: Method,
    init: Init,
    options: Options,
}

fn variant(method: Method, init: Init) -> Variant {
    // Of the options that the registry lists, LoRTA's heads must differ from their default to be seen.
    let has_heads = method.options.iter().any(|option| option.name == "heads");
    let options = if has_heads { Options::default().with("heads", 2) } else { Options::default() };
    Variant { method, init, options }
}

/// Every registered method with each of its initializations and with each of its switches on.
fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for method in Method::all() {
        let inits = if method.inits.is_empty() { &[Init::Default][..] } else { method.inits };
        // The update of those that need a residual is not zero at first.
        let inits_of_zero = inits.iter().filter(|init| !init.needs_residual());
        variants.extend(inits_of_zero.map(|&init| variant(method, init)));
        for option in method.options.iter().filter(|option| option.kind == OptionKind::Flag) {
            let base = variant(method, inits[0]);
            variants.push(Variant { options: base.options.clone().with(option.name, 1), ..base });
        }
    }
    assert!(variants.len() > 16, "{variants:?}");
    variants
}

impl Variant {
    fn config(&self, targets: &str) -> AdapterConfig {
        AdapterConfig {
            rank: RANK,
            alpha: ALPHA,
            seed: 5,
            init: self.init,
            options: self.options.clone(),
            ..AdapterConfig::new(self.method, Targets::new(Pattern::parse(targets)))
        }
    }

    /// Whether a fresh update is a sum of zeros, not a difference of equals.
    fn is_exactly_zero(&self) -> bool {
        !matches!(self.init, Init::Pissa | Init::PissaRandomized | Init::Olora | Init::Normal | Init::Svd)
            && self.method != Method::DORA
    }
}

/// A model of any kind under the laws.
trait Subject<B: Kernels>: Adaptable<B> {
    /// Outputs for a few tokens.
    fn run(&self, set: &AdapterSet<B>) -> Vec<f32>;
}

impl<B: Kernels> Subject<B> for Classifier<B> {
    fn run(&self, set: &AdapterSet<B>) -> Vec<f32> {
        let golden = golden("bert-cls");
        let batch = pack::<B>(self, &[&golden.cases[0], &golden.cases[1]]);
        values(self.forward(&batch, Run::eval(set)))
    }
}

impl<B: Kernels> Subject<B> for Decoder<B> {
    fn run(&self, set: &AdapterSet<B>) -> Vec<f32> {
        let tokens = Tokens::new(&[3, 14, 15, 9, 2, 6, 5, 35, 8], &[4, 5]);
        let batch = self.batch(tokens, &Default::default()).unwrap();
        values(self.forward(&batch, Rows::All, Run::eval(set)))
    }
}

fn decoder<B: Kernels>(name: &str, weights: WeightType) -> Decoder<B> {
    let folder = fixture(name);
    let config = DecoderConfig::read(&folder).unwrap();
    Decoder::load(&folder, config, weights, &Default::default()).unwrap()
}

fn fresh<B: Backend>(variant: &Variant, model: &impl Adaptable<B>, targets: &str) -> AdapterSet<B> {
    let config = variant.config(targets);
    AdapterSet::init(&config, model.sites(), &model.base_weights(), &Default::default()).unwrap()
}

/// Replaces every trained factor by random values; full-size corrections are brought back to their rank.
fn randomised<B: Backend>(set: AdapterSet<B>) -> AdapterSet<B> {
    struct Randomise(usize);
    impl<B: Backend> ModuleMapper<B> for Randomise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let (shape, grad): ([usize; D], bool) = (param.dims(), param.is_require_grad());
            param.map(|_| random(&format!("factor {}", self.0), shape, 0.4).set_require_grad(grad))
        }
    }
    set.map(&mut Randomise(0)).project().unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(1.0f32, |m, v| m.max(v.abs()))
}

fn tensors<B: Backend>(model: &impl Adaptable<B>) -> Vec<(String, Vec<u32>)> {
    let all = model.tensors_where(|_| true);
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect();
    all.iter().map(|t| (t.name.clone(), bits(&t.data))).collect()
}

fn folder<B: Backend>(set: &AdapterSet<B>, model: &impl Adaptable<B>) -> AdapterFolder {
    AdapterFolder::from_set(set, model.sites(), PeftConfig::default(), Vec::new()).unwrap()
}

/// The modules that a config names, whose order has no meaning.
fn targets(folder: &AdapterFolder) -> Vec<String> {
    let mut names = match &folder.config.target_modules {
        Some(Pattern::Names(names)) => names.clone(),
        other => panic!("expected names, got {other:?}"),
    };
    names.sort();
    names
}

/// Written, read, and written again: the second folder is the first to the bit.
fn saved<B: Backend>(set: &AdapterSet<B>, model: &impl Adaptable<B>, dir: &std::path::Path) -> AdapterSet<B> {
    let first = folder(set, model);
    first.write(dir).unwrap();
    let read = AdapterFolder::read(dir).unwrap();
    let (again, head) =
        read.into_set(dir, model.sites(), &model.base_weights(), &Default::default()).unwrap();
    assert!(head.is_empty());
    let second = folder(&again, model);
    assert_eq!(targets(&second), targets(&first));
    assert_eq!((second.config.r, second.config.lora_alpha), (first.config.r, first.config.lora_alpha));
    assert!(second.tensors == first.tensors, "saved and loaded is bit-equal");
    again
}

/// What the base's weights are, and with it what is exact.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    /// Matrices in f32: a step with an adapter of zeros is the base's own step, to the bit.
    Full,
    /// Matrices of two bytes a number: the fused step may round in another order.
    Half,
    /// Factors: a merge cuts back to their rank.
    Factors,
}

fn check_laws<B: Kernels>(variant: &Variant, model: &impl Subject<B>, targets: &str, weights: Weights) {
    let before = tensors(model);
    let plain = model.run(&AdapterSet::empty());
    let scale = largest(&plain);
    // Two ways of the same sums: rounding of each of some hundred terms.
    let rounding = 500.0 * f32::EPSILON * scale;
    let what = |law: &str| format!("{:?} on {targets}: {law}", variant);

    let set = fresh(variant, model, targets);
    let is_exact = variant.is_exactly_zero() && weights != Weights::Half;
    let allowed = if is_exact { 0.0 } else { rounding };
    assert_close(&what("a fresh adapter changes nothing"), &model.run(&set), &plain, allowed);

    let set = randomised(set);
    let adapted = model.run(&set);
    assert!(distance(&adapted, &plain) > 1e-3 * scale, "{}", what("a randomized adapter changes the output"));
    // Updates much larger than the weights widen the rounding.
    let rounding = rounding * largest(&adapted) * 4.0;

    let merged = model.merged(&set).unwrap();
    if weights != Weights::Factors {
        assert_close(&what("merged"), &merged.run(&AdapterSet::empty()), &adapted, rounding);
    }
    assert!(tensors(model) == before, "{}", what("merging leaves the base as it was, bit for bit"));
    assert_eq!(model.run(&AdapterSet::empty()), plain, "{}", what("unmerged, the base answers as before"));

    let dir = tempfile::tempdir().unwrap();
    let again = saved(&set, model, dir.path());
    assert_close(&what("saved and loaded"), &model.run(&again), &adapted, rounding);
    let keys: Vec<String> =
        lowrank_checkpoint::Checkpoint::open(dir.path()).unwrap().names().map(String::from).collect();
    let is_base = |key: &String| before.iter().any(|(name, _)| key.ends_with(name.as_str()));
    assert!(!keys.iter().any(is_base), "{}: {keys:?}", what("adapter keys only"));

    let base = model.base_weights();
    let updates = set.updates(model.sites(), |site| base.weight(site)).unwrap();
    let as_lora = AdapterSet::<B>::from_updates(updates, model.sites(), &Default::default());
    assert_close(&what("as a LoRA"), &model.run(&as_lora), &adapted, rounding);
}

fn check_training<B: Backend + Kernels>(variant: &Variant, base: &str, targets: &str) {
    type Ad<B> = Autodiff<B>;
    let (model, _) = load::<Ad<B>>(base);
    let before = tensors(&model);
    let model = model.with_trainable(Trainable::Head);
    let set = randomised(fresh(variant, &model, targets));
    let golden = golden(base);
    let batch = pack::<Ad<B>>(&model, &[&golden.cases[0]]);
    let grads = model.forward(&batch, Run::new(&set, Mode::train(3))).powi_scalar(2).sum().backward();

    let mut factors = Grads::<Ad<B>> { grads: &grads, with: 0, without: 0, frozen: 0 };
    set.visit(&mut factors);
    assert!(factors.with > 0 && factors.without == 0, "every trained factor has a gradient");
    let frozen = if variant.method == Method::LORA_FA { factors.with } else { 0 };
    assert_eq!(factors.frozen, frozen, "LoRA-FA alone has frozen factors");

    let mut base_grads = Grads::<Ad<B>> { grads: &grads, with: 0, without: 0, frozen: 0 };
    model.visit(&mut base_grads);
    let head = model.head_tensors();
    assert_eq!(base_grads.with, head.len(), "of the model, the head alone has gradients");

    // A step on all that has a gradient.
    let stepped = model.map(&mut Step::<Ad<B>> { grads: &grads });
    for ((name, old), (_, new)) in before.iter().zip(tensors(&stepped)) {
        let is_head = head.iter().any(|t| t.name == *name);
        assert_eq!(*old != new, is_head, "{name}");
    }
}

struct Grads<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    with: usize,
    without: usize,
    frozen: usize,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Grads<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        match param.val().grad(self.grads) {
            Some(grad) if values(grad.clone()).iter().any(|v| *v != 0.0) => self.with += 1,
            _ if param.is_require_grad() => self.without += 1,
            _ => self.frozen += 1,
        }
    }
}

struct Step<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Step<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match param.val().grad(self.grads) {
            Some(grad) => param.map(|p| Tensor::from_inner(p.inner() - grad * 0.1)),
            None => param,
        }
    }
}

#[rstest]
fn laws(
    #[values("bert-cls", "roberta-cls")] base: &str,
    // The second is not square, the third mixes shapes.
    #[values("query,value", "intermediate.dense", "key,output.dense")] targets: &str,
) {
    for variant in &variants() {
        check_laws(variant, &load::<burn_flex::Flex>(base).0, targets, Weights::Full);
        check_laws(variant, &load::<burn_ndarray::NdArray>(base).0, targets, Weights::Full);
    }
}

/// One map for queries, keys and values, and one for gate and inner values; maps that relative positions go through too.
#[rstest]
#[case("modernbert-cls", "Wqkv,Wi")]
#[case("modernbert-biases", "attn.Wo,mlp.Wo")]
#[case("mpnet-cls", "attn.q,attn.v")]
#[case("deberta-v3-cls", "query_proj,value_proj,key_proj")]
#[case("deberta-v2-cls", "pos_key_proj,value_proj")]
fn laws_over_further_encoders(#[case] base: &str, #[case] targets: &str) {
    for variant in &variants() {
        check_laws(variant, &load::<Flex>(base).0, targets, Weights::Full);
        check_training::<Flex>(variant, base, targets);
    }
}

/// Grouped keys and values; `Conv1D`, which stores its weights the other way round; biases.
#[rstest]
#[case("small-llama", "q_proj,v_proj")]
#[case("small-llama-tied", "down_proj")]
#[case("small-gpt2", "c_attn,c_fc")]
#[case("small-qwen2", "q_proj,up_proj")]
fn laws_over_decoders(#[case] base: &str, #[case] targets: &str) {
    for variant in &variants() {
        check_laws(variant, &decoder::<Flex>(base, WeightType::F32), targets, Weights::Full);
    }
}

#[rstest]
#[case("small-llama", "embed_tokens")]
#[case("small-llama-tied", "embed_tokens,q_proj")]
#[case("small-gpt2", "wte")]
fn laws_over_embeddings(#[case] base: &str, #[case] targets: &str) {
    for variant in variants().iter().filter(|variant| variant.method.takes_embeddings) {
        // What starts from a weight starts from those of linear layers.
        if matches!(variant.init, Init::Default | Init::Kaiming | Init::Gaussian) {
            check_laws(variant, &decoder::<Flex>(base, WeightType::F32), targets, Weights::Full);
        }
    }
}

#[rstest]
fn laws_over_tied_heads(#[values("small-llama-tied", "small-gpt2", "small-qwen2")] base: &str) {
    for variant in &variants() {
        let mut model = decoder::<Flex>(base, WeightType::F32);
        model.untie().unwrap();
        check_laws(variant, &model, "lm_head", Weights::Full);
    }
}

/// The base in two bytes a weight: adapters are f32, and a merged weight too.
#[rstest]
fn laws_over_half_precision(#[values(WeightType::Bf16, WeightType::F16)] weights: WeightType) {
    for variant in &variants() {
        let model = decoder::<Flex>("small-llama", weights);
        check_laws(variant, &model, "q_proj,down_proj", Weights::Half);
    }
}

/// A base whose linear maps are factors, which a merge cuts back to their rank.
#[test]
fn laws_over_factors() {
    let mut config = DecoderConfig::read(&fixture("small-llama")).unwrap();
    for layer in 0..config.n_layers {
        for name in ["q_proj", "v_proj"] {
            let representation = Representation::low_rank(6);
            let entry = ModuleEntry::new(representation);
            config.lowrank.modules.insert(format!("model.layers.{layer}.self_attn.{name}"), entry);
        }
    }
    let model = Decoder::<Flex>::init(config, 7, &Default::default()).unwrap();
    for variant in &variants() {
        check_laws(variant, &model, "q_proj,v_proj", Weights::Factors);
    }
}

/// A base in blocks of few bits, dense, as a sum with factors, and as factors.
#[rstest]
fn laws_over_blocks(#[values(BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q5_1)] format: BlockFormat) {
    let mut config = DecoderConfig::read(&fixture("llama")).unwrap();
    for layer in 0..config.n_layers {
        for (name, representation) in [
            ("self_attn.k_proj", Representation::Sum { rank: 5 }),
            ("self_attn.v_proj", Representation::low_rank(6)),
        ] {
            let entry = ModuleEntry::new(representation);
            config.lowrank.modules.insert(format!("model.layers.{layer}.{name}"), entry);
        }
    }
    let mut model = Decoder::<Flex>::init(config, 7, &Default::default()).unwrap();
    let mut round = ToBlocks::new(|at: &Parameter<'_>| at.module.layer.map(|_| format));
    model.visit_params(&mut round);
    model.visit_params(&mut Exact);
    assert!(model.blocks_where(|_| true).len() > 4, "{:?}", round.problems);
    for variant in &variants() {
        check_laws(variant, &model, "q_proj,k_proj", Weights::Half);
        check_laws(variant, &model, "v_proj", Weights::Factors);
    }
}

#[rstest]
fn training_reaches_the_factors_and_the_head_alone(#[values("bert-cls", "roberta-cls")] base: &str) {
    for variant in &variants() {
        check_training::<burn_flex::Flex>(variant, base, "query,value");
        check_training::<burn_ndarray::NdArray>(variant, base, "query,value");
    }
}

type Flex = burn_flex::Flex;

fn two_members(model: &Classifier<Flex>) -> [AdapterSet<Flex>; 2] {
    let of = |variant: Variant, targets| randomised(fresh(&variant, model, targets));
    [
        of(variant(Method::LORA, Init::Default), "query,output.dense"),
        of(variant(Method::DORA, Init::Default), "query,intermediate.dense,pooler.dense"),
    ]
}

#[test]
fn each_row_of_a_batch_has_its_own_adapter() {
    let (model, _) = load::<Flex>("bert-cls");
    let [a, b] = two_members(&model);
    let both = AdapterSet::join([("a".to_string(), a.clone()), ("b".to_string(), b.clone())]).unwrap();
    let golden = golden("bert-cls");
    let cases: Vec<_> = golden.cases.iter().take(4).collect();
    let lengths: Vec<usize> = cases.iter().map(|c| c.input_ids.len()).collect();
    let routed = both.routed(&[Some("b"), None, Some("a"), Some("b")], &lengths).unwrap();
    let got = values(model.forward(&pack::<Flex>(&model, &cases), Run::eval(&routed)));
    let none = AdapterSet::empty();
    let alone = cases.iter().zip([&b, &none, &a, &b]);
    let expect: Vec<f32> = alone
        .flat_map(|(case, set)| values(model.forward(&pack::<Flex>(&model, &[case]), Run::eval(set))))
        .collect();
    assert_close("routed", &got, &expect, 500.0 * f32::EPSILON * largest(&expect));
    assert!(both.routed(&[Some("c")], &[3]).is_err());
}

/// The second of three sequences has ended: each of the others keeps its own adapter.
#[test]
fn a_routed_set_generates_after_a_sequence_has_ended() {
    let (model, device) = (decoder::<Flex>("small-llama", WeightType::F32), Default::default());
    let of = |targets| randomised(fresh(&variant(Method::LORA, Init::Kaiming), &model, targets));
    let (a, b) = (of("q_proj"), of("v_proj,down_proj"));
    let both = AdapterSet::join([("a".to_string(), a.clone()), ("b".to_string(), b.clone())]).unwrap();
    let prompts: [&[u32]; 3] = [&[3, 14, 15], &[9, 2], &[6, 5, 35, 8]];
    let lengths = prompts.map(<[u32]>::len);
    let routed = both.routed(&[Some("a"), None, Some("b")], &lengths).unwrap();
    let mut cache = model.cache(&[8; 3], &device);
    let step = |ids: &[u32], lengths: &[usize], active: &[usize], cache: &mut _| {
        let run = Run::eval(&routed);
        values(model.advance(Tokens::new(ids, lengths), active, cache, run, &device).unwrap())
    };
    step(&prompts.concat(), &lengths, &[0, 1, 2], &mut cache);
    let got = step(&[7, 11], &[1, 1], &[0, 2], &mut cache);
    let alone = |set: &AdapterSet<Flex>, prompt: &[u32], next: u32| {
        let ids = [prompt, &[next]].concat();
        let batch = model.batch(Tokens::new(&ids, &[ids.len()]), &device).unwrap();
        values(model.forward(&batch, Rows::Last, Run::eval(set)))
    };
    let expect = [alone(&a, prompts[0], 7), alone(&b, prompts[2], 11)].concat();
    assert_close("routed", &got, &expect, 1e-4 * largest(&expect));
}

#[test]
fn members_are_enabled_disabled_and_detached() {
    let (model, _) = load::<Flex>("bert-cls");
    let [a, b] = two_members(&model);
    let run = |set: &AdapterSet<Flex>| model.run(set);
    let mut both = AdapterSet::join([("a".to_string(), a.clone()), ("b".to_string(), b.clone())]).unwrap();
    both.set_enabled("b", false).unwrap();
    assert_eq!(run(&both), run(&a));
    both.set_enabled("b", true).unwrap();
    both.set_enabled("a", false).unwrap();
    assert_eq!(run(&both), run(&b));
    both.set_all_enabled(false);
    assert_eq!(run(&both), run(&AdapterSet::empty()));
    both.set_all_enabled(true);
    let merged = model.merged(&both).unwrap().run(&AdapterSet::empty());
    assert_close("both merged", &merged, &run(&both), 500.0 * f32::EPSILON * largest(&merged));
    let (kept, taken) = both.detach("a").unwrap();
    assert_eq!((run(&kept), run(&taken)), (run(&b), run(&a)));
    assert!(AdapterSet::join([("a".to_string(), a.clone()), ("a".to_string(), b)]).is_err());
}

#[test]
fn a_merge_that_is_not_finite_is_refused() {
    let (model, _) = load::<Flex>("bert-cls");
    struct Spoil;
    impl<B: Backend> ModuleMapper<B> for Spoil {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|p| p * f32::MAX * 4.0)
        }
    }
    let set = randomised(fresh(&variant(Method::LORA, Init::Default), &model, "query")).map(&mut Spoil);
    let error = model.merged(&set).unwrap_err().to_string();
    assert!(error.contains("query") && error.contains("not finite"), "{error}");
}

#[test]
fn lotr_groups_follow_shape_or_kind() {
    let (model, _) = load::<Flex>("bert-cls");
    let count = |grouping, targets: &str| {
        let config = AdapterConfig { grouping, ..variant(Method::LOTR, Init::Default).config(targets) };
        let set =
            AdapterSet::init(&config, model.sites(), &model.base_weights(), &Default::default()).unwrap();
        set.adapters().len()
    };
    assert_eq!(count(Grouping::Shape, "query,value"), 1);
    assert_eq!(count(Grouping::Kind, "query,value"), 2);
    // 32x32, 32x48 and 48x32.
    assert_eq!(count(Grouping::Shape, "all-linear"), 3);
}

#[test]
fn lora_to_lotr_is_exact_where_the_ranks_suffice() {
    let (model, _) = load::<Flex>("bert-cls");
    let device = Default::default();
    let set = randomised(fresh(&variant(Method::LOTR, Init::Default), &model, "query,value"));
    let updates = set.updates(model.sites(), |_| None).unwrap();
    let (again, errors) =
        AdapterSet::lotr_from_updates(&updates, model.sites(), RANK, Grouping::Shape, &device).unwrap();
    assert!(errors.iter().all(|e| *e < 1e-5), "{errors:?}");
    let (x, y) = (model.run(&again), model.run(&set));
    assert_close("the group", &x, &y, 5000.0 * f32::EPSILON * largest(&y));
    // Four independent pairs do not share factors of rank 3.
    let lora = randomised(fresh(&variant(Method::LORA, Init::Default), &model, "query,value"));
    let updates: Vec<Update> = lora.updates(model.sites(), |_| None).unwrap();
    let (_, errors) =
        AdapterSet::<Flex>::lotr_from_updates(&updates, model.sites(), RANK, Grouping::Shape, &device)
            .unwrap();
    assert!(errors[0] > 0.1 && errors[0] < 1.0, "{errors:?}");
}

#[test]
fn no_parameter_is_in_two_places() {
    struct Ids(Vec<burn::module::ParamId>);
    impl<B: Backend> ModuleVisitor<B> for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.id);
        }
    }
    let (model, _) = load::<Autodiff<Flex>>("bert-cls");
    for variant in &variants() {
        let set = fresh(variant, &model, "query,value");
        let mut ids = Ids(Vec::new());
        model.visit(&mut ids);
        set.visit(&mut ids);
        let n = ids.0.len();
        ids.0.sort();
        ids.0.dedup();
        assert_eq!(ids.0.len(), n, "{variant:?}");
    }
}

#[test]
fn counts_are_those_of_the_formulas() {
    let sites: Vec<Site> = (0..24)
        .map(|i| Site {
            path: format!("layer.{}.{}", i / 2, if i % 2 == 0 { "query" } else { "value" }),
            layer: Some(i / 2),
            d_input: 768,
            d_output: 768,
            head: false,
            ..Site::default()
        })
        .collect();
    let count = |method, rank| {
        let targets = Targets::new(Pattern::parse("query,value"));
        let config = AdapterConfig { rank, ..AdapterConfig::new(method, targets) };
        let set: AdapterSet<Flex> =
            AdapterSet::init(&config, &sites, &lowrank_adapters::NoWeights, &Default::default()).unwrap();
        set.num_params()
    };
    for r in [1, 2, 8, 32] {
        assert_eq!(count(Method::LOTR, r), 2 * 768 * r + 24 * r * r);
        assert_eq!(count(Method::LORA, r), 24 * 2 * 768 * r);
    }
}
