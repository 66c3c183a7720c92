//! Gradients of every parameter of every decoder, and the losses of five steps of decoders and classifiers, beside
//! PyTorch's (`fixtures/make_gradients.py`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::golden;
use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_data::glue::{Label, Metric};
use lowrank_data::pack::EncodedDataset;
use lowrank_data::rows::{SourceTarget, TokenRow};
use lowrank_data::tokenize::Encoded;
use lowrank_models::config::{BodyConfig, DecoderDropouts, EncoderDropouts};
use lowrank_models::params::WeightType;
use lowrank_models::{
    Classifier, ClassifierConfig, Decoder, DecoderConfig, LanguageModel, ModelFolder, ModelKind, Parameters,
    Rows, Run, Seq2Seq, Seq2SeqConfig, Stack, Tokens, Trainable,
};
use lowrank_tests::{check_gradients, fixture};
use lowrank_train::{
    Alone, Classification, DevSet, FineTuner, NextToken, Objective, SchedulerKind, SequencePairs, Start,
    StepReport, TrainConfig, Training, TunedDecoder, TunedSeq2Seq, Watch, train,
};
use serde::Deserialize;

type B = Autodiff<Flex>;

#[derive(Deserialize)]
struct Expected {
    /// Norm and `Σ gᵢ·cos(i)` by name; none for classifiers and models with experts.
    gradients: BTreeMap<String, [f64; 2]>,
    /// Of the steps of a training on one text.
    losses: Vec<f64>,
}

fn without_dropout(config: &mut DecoderConfig) {
    config.dropouts = DecoderDropouts {
        embeddings: 0.0,
        attention: 0.0,
        attention_output: 0.0,
        mlp_output: 0.0,
        mlp_inner: 0.0,
        last: 0.0,
        ..config.dropouts
    };
}

/// The model of a fixture, all of it trained, without dropout.
fn trained(name: &str) -> Decoder<B> {
    let (folder, device) = (fixture(name), Default::default());
    let mut config = DecoderConfig::read(&folder).unwrap();
    without_dropout(&mut config);
    let mut model = Decoder::<B>::load(&folder, config, WeightType::F32, &device).unwrap();
    model.choose_trained(|_, _| true);
    model
}

fn check_backward(name: &str, expected: &Expected) {
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
    check_gradients(name, &mut model.clone(), &grads, &expected.gradients);
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Watch for Losses {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        self.0.push(report.loss);
        Ok(())
    }
}

const NO_DROPOUT: EncoderDropouts = EncoderDropouts {
    embeddings: 0.0,
    attention: 0.0,
    attention_output: 0.0,
    inner: 0.0,
    output: 0.0,
    relative: 0.0,
    last: 0.0,
};

fn config_of(expected: &Expected) -> TrainConfig {
    let n = expected.losses.len();
    TrainConfig {
        lr: 1e-3,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        warmup_ratio: 0.0,
        scheduler: SchedulerKind::Linear,
        max_steps: n,
        eval_every: n,
        batch_size: 1,
        ..TrainConfig::default()
    }
}

fn check_losses<O: Objective<B>>(what: &str, expected: &Expected, objective: &O, model: O::Model) {
    check_losses_with(what, expected, &config_of(expected), objective, model);
}

fn check_losses_with<O: Objective<B>>(
    what: &str,
    expected: &Expected,
    config: &TrainConfig,
    objective: &O,
    model: O::Model,
) {
    let mut watch = Losses::default();
    let training = Training {
        config,
        checkpoints: None,
        start: Start::Fresh,
        keep_last: false,
        watch: &mut watch,
        team: &Alone,
    };
    train(objective, model, training).unwrap();
    let worst = watch.0.iter().zip(&expected.losses).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(
        watch.0.len() == expected.losses.len() && worst < 1e-4,
        "{what}: off by {worst:e}: {:?}, expected {:?}",
        watch.0,
        expected.losses
    );
}

fn check_decoder(name: &str, expected: &Expected, recompute: bool) {
    let ids = golden(name).cases[0].input_ids.clone();
    let row = TokenRow { is_learnt: (0..ids.len()).map(|i| i > 0).collect(), ids };
    let objective = NextToken::new(vec![row.clone()], vec![row], &config_of(expected), recompute).unwrap();
    let model = TunedDecoder::new(trained(name), AdapterSet::empty());
    check_losses(&format!("{name}, recompute {recompute}"), expected, &objective, model);
}

fn check_classifier(name: &str, expected: &Expected) {
    let mut config = ClassifierConfig::read(&fixture(name)).unwrap();
    match &mut config.body {
        BodyConfig::Encoder(config) => {
            config.dropouts = NO_DROPOUT;
            (config.classifier_dropout, config.head.input_dropout) = (0.0, 0.0);
        }
        BodyConfig::Decoder(config) => without_dropout(config),
    }
    let (label, metric) = match config.labels.len() {
        1 => (Label::Score(0.0), Metric::Pearson),
        _ => (Label::Class(0), Metric::Accuracy),
    };
    let case = lowrank_tests::golden(name).cases.remove(0);
    let type_ids =
        if case.token_type_ids.is_empty() { vec![0; case.input_ids.len()] } else { case.token_type_ids };
    let row = (Encoded { ids: case.input_ids, type_ids }, label);
    let rows = Arc::new(EncodedDataset::labelled([row]));
    let dev = vec![DevSet::new(rows.clone())];
    let objective = Classification::new(rows, dev, vec![metric], &config_of(expected)).unwrap();
    let model = Classifier::<B>::load(&fixture(name), config, 0, &Default::default()).unwrap();
    let model = FineTuner::new(model.with_trainable(Trainable::All), AdapterSet::empty());
    check_losses(name, expected, &objective, model);
}

/// All pairs of a fixture in one batch.
fn check_seq2seq(name: &str, expected: &Expected, recompute: bool) {
    let (folder, device) = (fixture(name), Default::default());
    let mut config = Seq2SeqConfig::read(&folder).unwrap();
    without_dropout(&mut config.decoder);
    config.encoder.dropouts = NO_DROPOUT;
    let mut model = Seq2Seq::<B>::load(&folder, config.clone(), WeightType::F32, &device).unwrap();
    model.choose_trained(|_, _| true);
    #[derive(Deserialize)]
    struct Case {
        source_ids: Vec<u32>,
        labels: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    let golden = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let golden: Golden = serde_json::from_str(&golden).unwrap();
    let rows =
        golden.cases.into_iter().map(|case| SourceTarget { source: case.source_ids, target: case.labels });
    let rows: Vec<SourceTarget> = rows.collect();
    let steps = TrainConfig { batch_size: rows.len(), ..config_of(expected) };
    let objective = SequencePairs::new(rows.clone(), rows, config, &steps, recompute).unwrap();
    let model = TunedSeq2Seq::new(model, AdapterSet::empty());
    check_losses_with(&format!("{name}, recompute {recompute}"), expected, &steps, &objective, model);
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
    compared.into_iter().for_each(|(name, expected)| check_backward(name, expected));
}

#[test]
fn five_steps_have_the_losses_of_pytorch() {
    let (mut decoders, mut classifiers, mut pairs) = (0, 0, 0);
    for (name, expected) in &all() {
        match ModelFolder::open(&fixture(name)).unwrap().kind() {
            ModelKind::Decoder => {
                check_decoder(name, expected, false);
                check_decoder(name, expected, true);
                decoders += 1;
            }
            ModelKind::Seq2Seq => {
                check_seq2seq(name, expected, false);
                check_seq2seq(name, expected, true);
                pairs += 1;
            }
            _ => {
                check_classifier(name, expected);
                classifiers += 1;
            }
        }
    }
    assert!(decoders > 70 && classifiers > 20 && pairs == 7, "{decoders}, {classifiers}, {pairs}");
}
