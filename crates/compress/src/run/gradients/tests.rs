//! Gradients taken back layer by layer beside those of whole models.

use super::super::samples::BATCH_TOKENS;
use super::*;
use lowrank_models::{LanguageModel, Parameters, Stack};

type B = burn::backend::Autodiff<burn_flex::Flex>;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Second moments of the gradients of all outputs, from one graph of the whole model.
fn of_the_whole(folder: &Path, batches: &[Batch]) -> std::collections::BTreeMap<usize, HostMoments> {
    let device = Default::default();
    let config = lowrank_models::DecoderConfig::read(folder).unwrap();
    let weights = lowrank_models::params::WeightType::F32;
    let model = lowrank_models::Decoder::<B>::load(folder, config, weights, &device).unwrap();
    let mut sums = std::collections::BTreeMap::new();
    for batch in batches {
        let tap = Arc::new(Tap::<B>::new(None));
        let adapters = AdapterSet::empty().observed(tap.clone());
        let Tokens { ids, lengths, .. } = &batch.tokens;
        let tokens = model.batch(lowrank_models::Tokens::new(ids, lengths), &device).unwrap();
        let logits = model.forward(&tokens, lowrank_models::Rows::All, lowrank_models::Run::eval(&adapters));
        let Wanted::Next(next) = Wanted::of(batch) else { panic!("{:?}", batch.answers) };
        let predicting = (0..ids.len()).filter(|&row| next[row].1 > 0.0);
        let (rows, classes): (Vec<i32>, Vec<u32>) = predicting.map(|row| (row as i32, next[row].0)).unzip();
        let logits = logits.select(0, int_tensor(rows, &device));
        let grads = (cross_entropy(logits, &classes, &device) * classes.len() as f64).backward();
        for (site, offset) in tap.take() {
            let gradient = offset.grad(&grads).unwrap();
            let width = gradient.dims()[1];
            sums.entry(site).or_insert_with(|| HostMoments::new(width)).add(&host_values(gradient));
        }
    }
    sums
}

#[rstest::rstest]
#[case("llama")]
#[case("gpt2")]
#[case("gpt-neox")]
fn gradients_taken_back_layer_by_layer_are_those_of_the_whole_model(#[case] model: &str) {
    let folder = fixture(model);
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens {
        ids: (5..29).collect(),
        type_ids: vec![0; 24],
        lengths: vec![8, 1, 12, 3],
        ..Tokens::default()
    };
    let samples = vec![(tokens, Answers::NextTokens)];
    let mut made = GradientCalibrator::<B>::new(&folder, samples, dir.path(), Default::default()).unwrap();
    let expected = of_the_whole(&folder, &made.batches[..1]);
    made.prepare(&()).unwrap();
    assert_eq!(dir.path().read_dir().unwrap().count(), 1, "the states are on disk");
    let network = made.part(Part::Layer(0)).unwrap();
    let mut seen = 0;
    for layer in [1, 0] {
        let weightings = made.weightings(layer).unwrap();
        for (index, site) in network.sites().iter().enumerate().filter(|(_, s)| s.layer == Some(layer)) {
            let Some(Weighting::Both { sums, held_out: Some(held_out), .. }) = weightings.get(&site.path)
            else {
                panic!("{} in {:?}", site.path, weightings.keys())
            };
            let expected = expected[&index].clone().finish();
            let got = &sums.outputs;
            assert_eq!((got.rows, sums.inputs.rows, held_out.outputs.rows), (21, 21, 3));
            let scale = expected.gram.norm_max();
            let difference = (&got.gram - &expected.gram).norm_max();
            assert!(scale > 0.0 && difference < 1e-4 * scale, "{}: {difference} of {scale}", site.path);
            assert_eq!(sums.inputs.gram.nrows(), site.d_input);
            seen += 1;
        }
    }
    assert!(seen >= 8);
    drop(made);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "and gone afterwards");
}

/// Second moments of the inputs of all maps and of the gradients of their outputs, from one graph of a whole
/// encoder-decoder.
fn of_the_pairs(folder: &Path, tokens: &Tokens) -> std::collections::HashMap<String, SidedStatistics> {
    let device = Default::default();
    let config = lowrank_models::Seq2SeqConfig::read(folder).unwrap();
    let weights = lowrank_models::params::WeightType::F32;
    let model = lowrank_models::Seq2Seq::<B>::load(folder, config, weights, &device).unwrap();
    let mut side = Sided::default();
    let tap = Arc::new(Tap::<B>::new(Some(side.inputs.clone())));
    let adapters = AdapterSet::empty().observed(tap.clone());
    let run = lowrank_models::Run::eval(&adapters);
    let batch = tokens.pairs(&model, &device).unwrap();
    let states = model.encode(&batch.source, run);
    let hidden = model.hidden_states(&states, &batch.target, lowrank_models::Rows::All, run);
    let targets = int_tensor(tokens.targets.iter().map(|&id| id as i32).collect(), &device);
    let weights = Tensor::ones([tokens.targets.len()], &device);
    let none = AdapterSet::empty();
    let loss = model.nll_sum(hidden, targets, weights, lowrank_models::Run::eval(&none));
    let grads = loss.backward();
    for (site, offset) in tap.take() {
        let gradient = offset.grad(&grads).unwrap();
        let width = gradient.dims()[1];
        side.outputs.entry(site).or_insert_with(|| HostMoments::new(width)).add(&host_values(gradient));
    }
    let path = |site: usize| model.sites()[site].path.clone();
    side.finish(path).unwrap().into_iter().map(|(site, sums)| (path(site), sums)).collect()
}

/// Of every map of both halves and of the attention between them, from streamed layers.
#[rstest::rstest]
#[case("seq2seq-t5", 5)]
#[case("seq2seq-bart", 4)]
#[case("seq2seq-mbart", 4)]
fn an_encoder_decoder_has_the_inputs_and_gradients_of_the_whole(
    #[case] model: &str,
    #[case] n_layers: usize,
) {
    let (folder, dir) = (fixture(model), tempfile::tempdir().unwrap());
    let tokens = Tokens {
        ids: (5..29).collect(),
        type_ids: vec![0; 24],
        lengths: vec![8, 1, 12, 3],
        targets: (40..55).collect(),
        target_lengths: vec![4, 6, 3, 2],
        ..Tokens::default()
    };
    let samples = vec![(tokens, Answers::NextTokens)];
    let mut made = GradientCalibrator::<B>::new(&folder, samples, dir.path(), Default::default()).unwrap();
    let fit = made.batches[0].tokens.clone();
    assert_eq!((fit.ids.len(), fit.targets.len(), made.n_tokens()), (21, 13, 39));
    let mut expected = of_the_pairs(&folder, &fit);
    let mut forward = super::super::calibrate::ModelCalibrator::<burn_flex::Flex>::new(
        &folder,
        vec![fit],
        false,
        Default::default(),
    )
    .unwrap();
    let close = |what: &str, got: &lowrank_factor::Mat<f64>, expected: &lowrank_factor::Mat<f64>| {
        let (scale, off) = (expected.norm_max(), (got - expected).norm_max());
        assert!(scale > 0.0 && off < 1e-4 * scale, "{what}: {off} of {scale}");
    };
    for layer in 0..n_layers {
        for (path, weighting) in forward.weightings(layer).unwrap() {
            let Weighting::Inputs(inputs) = weighting else { panic!("{path}") };
            close(&path, &inputs.gram, &expected[&path].inputs.gram);
            assert_eq!(inputs.rows, expected[&path].inputs.rows, "{path}");
        }
    }
    made.prepare(&()).unwrap();
    for layer in (0..n_layers).rev() {
        for (path, weighting) in made.weightings(layer).unwrap() {
            let Weighting::Both { sums, held_out: Some(held_out), share } = weighting else {
                panic!("{path}")
            };
            let expected = expected.remove(&path).unwrap();
            close(&path, &sums.inputs.gram, &expected.inputs.gram);
            close(&path, &sums.outputs.gram, &expected.outputs.gram);
            assert!([(21, 3), (13, 2)].contains(&(sums.inputs.rows, held_out.inputs.rows)), "{path}");
            assert!((share - sums.inputs.rows as f64 / 34.0).abs() < 1e-12, "{path}: {share}");
        }
    }
    assert!(expected.is_empty(), "{:?}", expected.keys());
}

/// A byte budget makes two passes: the second goes back from the states of the first.
#[test]
fn a_second_pass_does_not_run_the_model_forward() {
    struct Stages(std::sync::Mutex<Vec<String>>);
    impl Progress for Stages {
        fn stage(&self, name: &str, _: u64) {
            self.0.lock().unwrap().push(name.into());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let tokens =
        Tokens { ids: (5..29).collect(), type_ids: vec![0; 24], lengths: vec![12, 12], ..Tokens::default() };
    let samples = vec![(tokens, Answers::NextTokens)];
    let mut made =
        GradientCalibrator::<B>::new(&fixture("llama"), samples, dir.path(), Default::default()).unwrap();
    let stages = Stages(std::sync::Mutex::default());
    let mut pass = || {
        made.prepare(&stages).unwrap();
        let mut sums: Vec<_> = made.weightings(1).unwrap().into_iter().collect();
        sums.sort_by(|a, b| a.0.cmp(&b.0));
        sums.into_iter()
            .map(|(path, weighting)| {
                let Weighting::Both { sums, .. } = weighting else { panic!("{path}") };
                (path, sums.outputs.gram.norm_l2(), sums.inputs.gram.norm_l2())
            })
            .collect::<Vec<_>>()
    };
    let first = pass();
    assert!(!first.is_empty());
    assert_eq!(first, pass());
    assert_eq!(*stages.0.lock().unwrap(), ["calibration"]);
}

#[test]
fn what_predicts_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |model: &str, tokens: Tokens, answers: Answers| {
        let samples = vec![(tokens, answers)];
        let made = GradientCalibrator::<B>::new(&fixture(model), samples, dir.path(), Default::default());
        made.err().unwrap().to_string()
    };
    let single = Tokens { ids: vec![5, 6], type_ids: vec![0; 2], lengths: vec![1, 1], ..Tokens::default() };
    let error = refused("llama", single.clone(), Answers::NextTokens);
    assert!(error.contains("nothing to predict"), "{error}");
    let error = refused("llama", single.clone(), Answers::Classes(vec![0, 1]));
    assert!(error.contains("its own text"), "{error}");
    let error = refused("bert-cls", single, Answers::NextTokens);
    assert!(error.contains("give --task"), "{error}");
}

#[test]
fn one_sample_in_eight_is_held_out_and_none_is_lost() {
    let sample = |i: u32| {
        let ids = vec![i; 300];
        (
            Tokens { ids, type_ids: vec![0; 300], lengths: vec![100, 200], ..Tokens::default() },
            Answers::Classes(vec![i, i + 1]),
        )
    };
    let made = batches((0..20).map(sample).collect());
    let count = |held_out: bool| -> usize {
        let own = made.iter().filter(|batch| batch.is_held_out == held_out);
        own.map(|batch| batch.tokens.lengths.len()).sum()
    };
    assert_eq!((count(false), count(true)), (35, 5));
    for batch in &made {
        let Answers::Classes(classes) = &batch.answers else { panic!("{:?}", batch.answers) };
        assert_eq!(classes.len(), batch.tokens.lengths.len());
        assert_eq!(batch.tokens.lengths.iter().sum::<usize>(), batch.tokens.ids.len());
        assert!(batch.tokens.ids.len() <= BATCH_TOKENS);
    }
    assert!(!batches(vec![sample(1)]).is_empty());
    let one = Tokens { ids: vec![1, 2], type_ids: vec![0; 2], lengths: vec![2], ..Tokens::default() };
    assert!(batches(vec![(one, Answers::NextTokens)]).iter().all(|batch| !batch.is_held_out));
}

/// Second moments that are summed on the device, and what is compressed by them.
#[rstest::rstest]
#[case("llama")]
#[case("qwen2-moe")]
#[case("seq2seq-t5")]
fn sums_on_the_device_are_those_of_the_host(#[case] model: &str) {
    let (folder, dir) = (fixture(model), tempfile::tempdir().unwrap());
    let is_pair = model.starts_with("seq2seq");
    let tokens = Tokens {
        ids: (0..240).map(|i| 5 + (i * i + 3 * i) % 40).collect(),
        type_ids: vec![0; 240],
        lengths: vec![24; 10],
        targets: if is_pair { (0..60).map(|i| 5 + (i * i + i) % 40).collect() } else { Vec::new() },
        target_lengths: if is_pair { vec![6; 10] } else { Vec::new() },
        ..Tokens::default()
    };
    let made = |sums_on_device: bool| {
        let samples = vec![(tokens.clone(), Answers::NextTokens)];
        let made = GradientCalibrator::<B>::new(&folder, samples, dir.path(), Default::default()).unwrap();
        GradientCalibrator { sums_on_device, ..made }
    };
    let close = |path: &str, got: &crate::InputStatistics, expected: &crate::InputStatistics| {
        assert_eq!(got.rows, expected.rows, "{path}");
        // Sums of some hundred terms in f32, in another order.
        let (scale, off) = (expected.gram.norm_max(), (&got.gram - &expected.gram).norm_max());
        assert!(scale > 0.0 && off < 1e-5 * scale, "{path}: {off} of {scale}");
        for (got, expected) in got.magnitude.iter().zip(&expected.magnitude) {
            assert!((got - expected).abs() <= 1e-5 * expected, "{path}: {got} beside {expected}");
        }
    };
    let (mut on_host, mut on_device) = (made(false), made(true));
    on_host.prepare(&()).unwrap();
    on_device.prepare(&()).unwrap();
    let mut seen = 0;
    for layer in (0..on_host.config.n_layers()).rev() {
        let expected = on_host.weightings(layer).unwrap();
        let got = on_device.weightings(layer).unwrap();
        assert_eq!(got.len(), expected.len());
        for (path, weighting) in expected {
            let (
                Weighting::Both { sums, held_out, share },
                Weighting::Both { sums: got, held_out: apart, share: of },
            ) = (&weighting, &got[&path])
            else {
                panic!("{path}")
            };
            assert_eq!((share, held_out.is_some()), (of, apart.is_some()));
            for (expected, got) in std::iter::once((sums, got)).chain(held_out.iter().zip(apart)) {
                close(&path, &got.inputs, &expected.inputs);
                close(&path, &got.outputs, &expected.outputs);
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen}");
    let amount = crate::Amount::Ratio { ratio: 0.4, of: crate::Of::Layers };
    let options = crate::Options::new(crate::Method::TwoSided, amount);
    let [expected, got] = [made(false), made(true)].map(|mut calibrator| {
        let out = dir.path().join(if calibrator.sums_on_device { "device" } else { "host" });
        crate::compress(&folder, &out, &options, Some(&mut calibrator), &()).unwrap()
    });
    for (expected, got) in expected.modules.iter().zip(&got.modules) {
        assert_eq!(got.ranks, expected.ranks, "{}", expected.module);
        assert!(
            (got.error - expected.error).abs() < 1e-4,
            "{}: {} beside {}",
            got.module,
            got.error,
            expected.error
        );
    }
}
