//! Compression weighted by what runs through the model.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn_flex::Flex;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_compress::{
    Allocation, Amount, Answers, Calibrator, GradientCalibrator, Method, ModelCalibrator, Of, Options,
    Report, Tokens, Weighting, Weightings, compress, mean_nll,
};
use lowrank_factor::Mat;
use lowrank_factor::matrix::from_row_major;
use lowrank_spec::{Pattern, Targets};
use rstest::rstest;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn tokens() -> Tokens {
    let ids: Vec<u32> = (0..160).map(|i| 5 + (i * i + 3 * i) % 40).collect();
    Tokens { type_ids: vec![0; ids.len()], lengths: vec![16; 10], ids, ..Tokens::default() }
}

fn calibrator(folder: &Path) -> ModelCalibrator<Flex> {
    ModelCalibrator::new(folder, vec![tokens()], false, Default::default()).unwrap()
}

fn gradients(folder: &Path, scratch: &Path) -> GradientCalibrator<Autodiff<Flex>> {
    let samples = vec![(tokens(), Answers::NextTokens)];
    GradientCalibrator::new(folder, samples, scratch, Default::default()).unwrap()
}

fn matrix(folder: &Path, key: &str) -> Mat<f64> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let shape = &checkpoint.info(key).unwrap().shape;
    let values = checkpoint.read_f32(key).unwrap();
    let view = from_row_major(&values, shape[0], shape[1]).unwrap();
    Mat::from_fn(shape[0], shape[1], |i, j| f64::from(view[(i, j)]))
}

/// `‖(W − B·A)·G^½‖ / ‖W·G^½‖` of what is written.
fn weighted_error(dense: &Path, out: &Path, module: &str, gram: &Mat<f64>) -> f64 {
    let w = matrix(dense, &format!("{module}.weight"));
    let factors = ["lowrank_b", "lowrank_a"].map(|name| matrix(out, &format!("{module}.{name}.weight")));
    let error = &w - &factors[0] * &factors[1];
    let trace = |x: &Mat<f64>| {
        let through = x * gram;
        (0..x.nrows()).map(|i| (0..x.ncols()).map(|j| x[(i, j)] * through[(i, j)]).sum::<f64>()).sum::<f64>()
    };
    (trace(&error) / trace(&w)).sqrt()
}

/// The weightings of every layer and of what lies outside.
fn all_weightings(calibrator: &mut dyn Calibrator) -> Weightings {
    let mut all = calibrator.weightings(0).unwrap();
    all.extend(calibrator.weightings(1).unwrap());
    all.extend(calibrator.outside().unwrap());
    all
}

fn gram(weightings: &Weightings, module: &str) -> Mat<f64> {
    match &weightings[module] {
        Weighting::Inputs(inputs) => inputs.gram.clone(),
        Weighting::Channels(weights) => {
            let squared = |i: usize| f64::from(weights[i]).powi(2);
            Mat::from_fn(weights.len(), weights.len(), |i, j| if i == j { squared(i) } else { 0.0 })
        }
        other => panic!("{other:?}"),
    }
}

/// The diagonal by which a method weighs a module's inputs.
fn weighting_of(method: Method, weightings: &Weightings, module: &str) -> Mat<f64> {
    match (method, &weightings[module]) {
        (Method::Asvd, Weighting::Inputs(inputs)) => {
            let n = inputs.magnitude.len();
            let mean = |i: usize| inputs.magnitude[i] / inputs.rows as f64;
            Mat::from_fn(n, n, |i, j| if i == j { mean(i) } else { 0.0 })
        }
        _ => gram(weightings, module),
    }
}

#[rstest]
#[case::whitened(Method::Whitened)]
#[case::asvd(Method::Asvd)]
#[case::fwsvd(Method::Fwsvd)]
fn an_error_is_met_also_where_factors_do_not_pay(
    #[case] method: Method,
    #[values(Amount::Error(0.2), Amount::Energy(0.96), Amount::Error(0.02))] amount: Amount,
) {
    let folder = fixture("llama");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let allowed = if amount == Amount::Error(0.02) { 0.02 } else { 0.2 };
    let options = Options { always_factor: true, ..Options::new(method, amount) };
    let mut sums = all_weightings(&mut calibrator(&folder));
    if method == Method::Fwsvd {
        for (module, weighting) in &mut sums {
            let n = gram(&Weightings::from([(module.clone(), weighting.clone())]), module).nrows();
            *weighting = Weighting::Channels((0..n).map(|i| 1.0 / (1.0 + i as f32)).collect());
        }
    }
    let report = compress(&folder, &out, &options, Some(&mut sums.clone()), &()).unwrap();
    assert_eq!(report.dense, 0);
    let mut past_break_even = 0;
    for module in &report.modules {
        let error =
            weighted_error(&folder, &out, &module.module, &weighting_of(method, &sums, &module.module));
        assert!(error <= allowed + 1e-4, "{}: {error}, said {}", module.module, module.error);
        assert!((error - module.error).abs() < 1e-3, "{}: {error}, said {}", module.module, module.error);
        past_break_even += usize::from(module.parameters.after >= module.parameters.before);
    }
    // A loose error is met by ranks that pay, on so small a text.
    assert!(past_break_even > 0 || allowed > 0.1, "no factors past the rank that pays");
}

#[rstest]
#[case(Method::Whitened, "lm_head")]
#[case(Method::Asvd, "lm_head")]
#[case(Method::Whitened, "embed_tokens")]
fn what_lies_outside_the_layers_is_weighted_too(#[case] method: Method, #[case] name: &str) {
    let folder = fixture("llama");
    let dir = tempfile::tempdir().unwrap();
    let sums = all_weightings(&mut calibrator(&folder));
    let targets = Some(Targets::new(Pattern::parse(name)));
    let run = |method: Method, out: &Path| -> Report {
        let options = Options {
            targets: targets.clone(),
            ..Options::new(method, Amount::Ranks(vec![(name.into(), 6)]))
        };
        let mut calibrator = calibrator(&folder);
        let calibrator: Option<&mut dyn Calibrator> =
            if method == Method::Svd { None } else { Some(&mut calibrator) };
        compress(&folder, out, &options, calibrator, &()).unwrap()
    };
    let (weighted, plain) = (dir.path().join("weighted"), dir.path().join("plain"));
    let report = run(method, &weighted);
    run(Method::Svd, &plain);
    let module = &report.modules[0];
    if name == "lm_head" {
        let by = weighting_of(method, &sums, &module.module);
        let [of_weighted, of_plain] =
            [&weighted, &plain].map(|out| weighted_error(&folder, out, &module.module, &by));
        assert!((of_weighted - module.error).abs() < 1e-3, "{of_weighted}, said {}", module.error);
        assert!(of_weighted < of_plain, "{of_weighted} beside {of_plain}");
    } else {
        let key = format!("{}.lowrank_a.weight", module.module);
        assert_ne!(matrix(&weighted, &key), matrix(&plain, &key));
    }
}

/// Copies a fixture without the tensors that `keep` refuses, with changes to its config.
fn edited(
    name: &str,
    dir: &Path,
    keep: impl Fn(&str) -> bool,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    more: Vec<HostTensor<'static>>,
) -> PathBuf {
    let (from, to) = (fixture(name), dir.join("model"));
    fs::create_dir(&to).unwrap();
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(to.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&from).unwrap();
    let kept = checkpoint.names().filter(|name| keep(name)).map(|name| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        HostTensor::new(name, shape, checkpoint.read_f32(name).unwrap())
    });
    let tensors: Vec<_> = kept.chain(more).collect();
    write_safetensors(to.join("model.safetensors"), tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    to
}

#[test]
fn a_stored_copy_of_a_tied_head_is_not_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let tie =
        |config: &mut serde_json::Map<_, _>| drop(config.insert("tie_word_embeddings".into(), true.into()));
    let source = Checkpoint::open(fixture("llama")).unwrap();
    let table = "model.embed_tokens.weight";
    let shape = source.info(table).unwrap().shape.clone();
    let copy = HostTensor::new("lm_head.weight", shape, source.read_f32(table).unwrap());
    let model = edited("llama", dir.path(), |name| name != "lm_head.weight", tie, vec![copy]);
    let targets = Some(Targets::new(Pattern::parse("lm_head")));
    let ratio = Amount::Ratio { ratio: 0.5, of: Of::Layers };
    let options = Options { targets, ..Options::new(Method::Svd, ratio) };
    let error = compress(&model, &dir.path().join("out"), &options, None, &()).unwrap_err().to_string();
    assert!(error.contains("'lm_head' is tied to 'model.embed_tokens'"), "{error}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn an_encoder_without_a_head_is_calibrated_on_all_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let headless =
        edited("bert-cls", dir.path(), |name| !name.starts_with("classifier."), |_| {}, Vec::new());
    let rows = |folder: &Path| {
        let mut calibrator = calibrator(folder);
        calibrator.weightings(0).unwrap();
        match &calibrator.weightings(1).unwrap()["bert.encoder.layer.1.output.dense"] {
            Weighting::Inputs(inputs) => inputs.rows,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((rows(&fixture("bert-cls")), rows(&headless)), (10, 160));
}

#[rstest]
#[case::svd(Method::Svd, 40, 0.003)]
#[case::svd_truncated(Method::Svd, 20, 1.0)]
#[case::whitened(Method::Whitened, 40, 0.003)]
#[case::asvd(Method::Asvd, 40, 0.003)]
fn the_reported_error_is_that_of_the_rounded_factors(
    #[case] method: Method,
    #[case] rank: usize,
    #[case] most: f64,
    #[values(FloatType::BF16, FloatType::F16)] dtype: FloatType,
) {
    let folder = fixture("llama");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let amount = Amount::Ranks(vec![("mlp.up_proj".into(), rank), ("self_attn.q_proj".into(), rank)]);
    let options = Options { always_factor: true, dtype: Some(dtype), ..Options::new(method, amount) };
    let mut sums = all_weightings(&mut calibrator(&folder));
    let calibrator: Option<&mut dyn Calibrator> = if method == Method::Svd { None } else { Some(&mut sums) };
    let report = compress(&folder, &out, &options, calibrator, &()).unwrap();
    let sums = all_weightings(&mut self::calibrator(&folder));
    for module in &report.modules {
        let by = match method {
            Method::Svd => Mat::identity(32, 32),
            _ => weighting_of(method, &sums, &module.module),
        };
        let error = weighted_error(&folder, &out, &module.module, &by);
        assert!(error < most && error > 1e-5, "{}: {error}", module.module);
        assert!(
            (error / module.error - 1.0).abs() < 0.2,
            "{}: {error}, said {}",
            module.module,
            module.error
        );
    }
}

#[test]
fn a_dense_weight_that_is_narrowed_says_what_that_costs() {
    let folder = fixture("llama");
    let dir = tempfile::tempdir().unwrap();
    let amount = Amount::Ranks(vec![("q_proj".into(), 32)]);
    let options = Options { dtype: Some(FloatType::BF16), ..Options::new(Method::Svd, amount) };
    let report = compress(&folder, &dir.path().join("out"), &options, None, &()).unwrap();
    assert_eq!(report.dense, 2);
    assert!(report.modules.iter().all(|m| m.error > 5e-4 && m.error < 4e-3), "{:?}", report.modules);
}

/// On the inputs of calibration, factors that minimize the error there have a smaller one than a plain SVD's, in every map of
/// both halves and of the attention between them.
#[rstest]
#[case("seq2seq-t5", 5)]
#[case("seq2seq-bart", 4)]
fn an_encoder_decoder_is_weighted_by_pairs(#[case] model: &str, #[case] n_layers: usize) {
    let (folder, dir) = (fixture(model), tempfile::tempdir().unwrap());
    let pairs = Tokens {
        targets: (0..100).map(|i| 5 + (3 * i * i + i) % 50).collect(),
        target_lengths: vec![10; 10],
        ..tokens()
    };
    let calibrator = |is_sequential: bool| {
        let batches = vec![pairs.clone()];
        ModelCalibrator::<Flex>::new(&folder, batches, is_sequential, Default::default()).unwrap()
    };
    let mut sums = Weightings::new();
    let mut whole = calibrator(false);
    (0..n_layers).for_each(|layer| sums.extend(whole.weightings(layer).unwrap()));
    let ratio = Amount::Ratio { ratio: 0.4, of: Of::Layers };
    let run = |method: Method, calibrator: Option<&mut dyn Calibrator>| {
        let options = Options { allocation: Allocation::Uniform, ..Options::new(method, ratio.clone()) };
        let out = dir.path().join(method.name());
        (compress(&folder, &out, &options, calibrator, &()).unwrap(), out)
    };
    let (report, weighted) = run(Method::Whitened, Some(&mut calibrator(false)));
    let (_, plain) = run(Method::Svd, None);
    for module in &report.modules {
        let gram = gram(&sums, &module.module);
        let [of_weighted, of_plain] =
            [&weighted, &plain].map(|out| weighted_error(&folder, out, &module.module, &gram));
        assert!((of_weighted - module.error).abs() < 1e-3, "{of_weighted}, said {}", module.error);
        assert!(of_weighted < of_plain, "{}: {of_weighted} beside {of_plain}", module.module);
    }
    let is_cross = |path: &str| path.contains("EncDecAttention") || path.contains("encoder_attn");
    assert_eq!(report.modules.iter().filter(|m| is_cross(&m.module)).count(), 8);
    assert_eq!(report.modules.len(), sums.len());
    // Layers of the decoder come after those of the encoder, whose compressed outputs they see if asked to.
    let first = report.modules.iter().position(|m| m.module.contains("decoder.")).unwrap();
    assert!(report.modules[first..].iter().all(|m| m.module.contains("decoder.")), "{:?}", report.modules);
    let options = Options::new(Method::Whitened, ratio.clone());
    let out = dir.path().join("sequential");
    let sequential = compress(&folder, &out, &options, Some(&mut calibrator(true)), &()).unwrap();
    assert!(sequential.layers.ratio >= 0.4);
    // Targets of the same length count the same.
    let nll = |batches: &[Tokens]| mean_nll::<Flex>(&out, batches, &Default::default()).unwrap();
    let one = |i: usize| Tokens {
        ids: pairs.ids[16 * i..16 * (i + 1)].to_vec(),
        lengths: vec![16],
        targets: pairs.targets[10 * i..10 * (i + 1)].to_vec(),
        target_lengths: vec![10],
        ..Tokens::default()
    };
    let mean = (0..10).map(|i| nll(&[one(i)])).sum::<f64>() / 10.0;
    assert!((nll(std::slice::from_ref(&pairs)) - mean).abs() < 1e-4 && mean > 1.0, "{mean}");
}

fn two_sided(out: &Path, options: &Options) -> Report {
    let scratch = tempfile::tempdir().unwrap();
    let folder = fixture("llama");
    let mut gradients = gradients(&folder, scratch.path());
    compress(&folder, out, options, Some(&mut gradients), &()).unwrap()
}

#[test]
fn both_sides_give_the_same_bytes_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let ratio = Amount::Ratio { ratio: 0.3, of: Of::Layers };
    let options = Options::new(Method::TwoSided, ratio);
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let report = two_sided(&first, &options);
    assert!((0.3..0.4).contains(&report.layers.ratio), "{}", report.layers.ratio);
    assert!(report.modules.iter().any(|m| m.kind == "low_rank"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let other = pool.install(|| two_sided(&second, &options));
    assert_eq!(report, other);
    for name in ["model.safetensors", "config.json"] {
        assert_eq!(fs::read(first.join(name)).unwrap(), fs::read(second.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn both_sides_reach_what_is_asked_or_say_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let error = Options { always_factor: true, ..Options::new(Method::TwoSided, Amount::Error(0.3)) };
    let report = two_sided(&dir.path().join("error"), &error);
    assert!(report.modules.iter().all(|m| m.error <= 0.3 + 1e-6 && m.kind == "low_rank"));
    let half = Options { dtype: Some(FloatType::BF16), ..error };
    let rounded = two_sided(&dir.path().join("half"), &half);
    assert!(rounded.modules.iter().zip(&report.modules).all(|(r, m)| r.error > m.error));
    let folder = fixture("llama");
    let targets = Some(Targets::new(Pattern::parse("lm_head")));
    let head =
        Options { targets, ..Options::new(Method::TwoSided, Amount::Ratio { ratio: 0.3, of: Of::Layers }) };
    let mut gradients = gradients(&folder, dir.path());
    let error = compress(&folder, &dir.path().join("head"), &head, Some(&mut gradients), &()).unwrap_err();
    assert!(error.to_string().contains("'lm_head' is outside of them"), "{error}");
    // A calibration that says nothing of a weight must not fall back on another method silently.
    for method in [Method::Whitened, Method::Asvd, Method::Fwsvd, Method::TwoSided] {
        let options = Options::new(method, Amount::Error(0.1));
        let out = dir.path().join(method.name());
        let error = compress(&folder, &out, &options, Some(&mut Weightings::new()), &()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("no statistics of it, which {} needs", method.name())),
            "{error}"
        );
    }
}

/// Equal tokens choose the same experts: what the others lose is unknown, and must not look like nothing.
#[rstest]
#[case::svd(Method::Svd)]
#[case::whitened(Method::Whitened)]
#[case::asvd(Method::Asvd)]
#[case::two_sided(Method::TwoSided)]
fn an_expert_that_no_token_reached_keeps_its_share_and_is_named(#[case] method: Method) {
    let (folder, dir) = (fixture("olmoe"), tempfile::tempdir().unwrap());
    let few = Tokens { ids: vec![5; 8], type_ids: vec![0; 8], lengths: vec![4, 4], ..Tokens::default() };
    let mut calibrator: Box<dyn Calibrator> = if method == Method::TwoSided {
        let samples = vec![(few, Answers::NextTokens)];
        let made =
            GradientCalibrator::<Autodiff<Flex>>::new(&folder, samples, dir.path(), Default::default());
        Box::new(made.unwrap())
    } else {
        Box::new(ModelCalibrator::<Flex>::new(&folder, vec![few], false, Default::default()).unwrap())
    };
    let out = dir.path().join("out");
    let options = Options::new(method, Amount::Ratio { ratio: 0.3, of: Of::Layers });
    let report = compress(&folder, &out, &options, Some(&mut *calibrator), &()).unwrap();
    // In each of 2 layers 4 of 7 experts, with 3 maps each.
    assert_eq!(report.unreached.len(), 24, "{:?}", report.unreached);
    for module in &report.modules {
        assert!(!module.module.ends_with("mlp.gate"), "routers stay as they are");
        if report.unreached.contains(&module.module) {
            let share = module.parameters.after as f64 / module.parameters.before as f64;
            assert!((0.55..=0.7).contains(&share), "{}: {share}", module.module);
        }
    }
    let made = Checkpoint::open(&out).unwrap();
    for name in made.names() {
        assert!(made.read_f32(name).unwrap().iter().all(|x| x.is_finite()), "{name}");
    }
}
