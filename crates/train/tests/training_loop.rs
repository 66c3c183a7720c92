//! The training loop against AdamW written out in f64, and when it stops.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod script;

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use lowrank_kernels::{AdamW, AdamWState, adamw_step};
use lowrank_train::train::train_in_windows;
use lowrank_train::{
    Alone, Better, CheckpointStore, EvalOutput, Outcome, Result, SchedulerKind, Start, StepReport,
    TrainConfig, TrainError, Training, Watch, train,
};
use rstest::rstest;

use script::{B, PARTS, Parts, Script, WIDTH, slopes, start};

fn run(script: &Script, config: &TrainConfig, watch: &mut dyn Watch) -> (Parts<B>, Outcome) {
    let training =
        Training { config, checkpoints: None, start: Start::Fresh, keep_last: false, watch, team: &Alone };
    train::<B, _>(script, Parts::new(), training).unwrap()
}

/// AdamW of Loshchilov & Hutter with PyTorch's clipping, written out.
fn reference(script: &Script, config: &TrainConfig) -> [Vec<f64>; PARTS] {
    let mut parts = [0, 1, 2, 3].map(start);
    let mut moments = vec![vec![(0.0, 0.0); WIDTH]; PARTS];
    let total: f64 = script.weights.iter().sum();
    let rates = [1.0, 1.0, config.head_lr.map_or(1.0, |lr| lr / config.lr), config.lora_plus.unwrap_or(1.0)];
    let decays = [1.0, 0.0, 1.0, 0.0];
    for step in 0..config.max_steps {
        let mut gradient = vec![vec![0.0; WIDTH]; PARTS];
        for (micro, weight) in script.weights.iter().enumerate() {
            for (sum, part) in gradient.iter_mut().zip(slopes(step, micro)) {
                sum.iter_mut().zip(part).for_each(|(sum, slope)| *sum += weight / total * slope);
            }
        }
        let norm = gradient.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = if config.max_grad_norm > 0.0 { (config.max_grad_norm / norm).min(1.0) } else { 1.0 };
        let lr = config.lr * (1.0 - step as f64 / config.max_steps as f64);
        let power = step as i32 + 1;
        for part in 0..PARTS {
            let lr = lr * rates[part];
            for i in 0..WIDTH {
                let (g, x) = (clip * gradient[part][i], &mut parts[part][i]);
                let (mean, square) = &mut moments[part][i];
                *mean = 0.9 * *mean + 0.1 * g;
                *square = 0.999 * *square + 0.001 * g * g;
                *x -= lr * decays[part] * config.weight_decay * *x;
                let (mean, square) =
                    (*mean / (1.0 - 0.9f64.powi(power)), *square / (1.0 - 0.999f64.powi(power)));
                *x -= lr * mean / (square.sqrt() + 1e-8);
            }
        }
    }
    parts
}

/// Clipping over all parameters together, rates and decay by group, micro-batches by their weight.
#[rstest]
#[case::plain(TrainConfig { max_grad_norm: 0.0, ..base() }, &[1.0])]
#[case::clipped(TrainConfig { max_grad_norm: 0.5, ..base() }, &[1.0])]
#[case::decay(TrainConfig { weight_decay: 0.3, ..base() }, &[1.0])]
#[case::head(TrainConfig { head_lr: Some(0.2), weight_decay: 0.1, ..base() }, &[1.0])]
#[case::lora_plus(TrainConfig { lora_plus: Some(4.0), ..base() }, &[1.0])]
#[case::accumulated(TrainConfig { grad_accum: 3, head_lr: Some(0.01), ..base() }, &[1.0, 5.0, 2.5])]
fn steps_are_those_of_adamw(#[case] config: TrainConfig, #[case] weights: &[f64]) {
    let script = Script::new(weights, &[], Better::Higher);
    let (model, outcome) = run(&script, &config, &mut ());
    assert_eq!(outcome.steps, config.max_steps);
    for (part, (got, expect)) in model.values().iter().zip(reference(&script, &config)).enumerate() {
        for (got, expect) in got.iter().zip(&expect) {
            assert!((got - expect).abs() < 2e-5, "part {part}: {got}, expected {expect}");
        }
    }
}

/// All parameters together have, to the bit, the steps of each with its own kernel and the norm read in between.
#[test]
fn steps_are_those_of_each_parameter_to_the_bit() {
    let config = TrainConfig { max_grad_norm: 0.5, weight_decay: 0.3, ..base() };
    let script = Script::new(&[1.0], &[], Better::Higher);
    let (model, _) = run(&script, &config, &mut ());
    let device = Default::default();
    let vector = |values: Vec<f64>| {
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        Tensor::<Flex, 1>::from_data(TensorData::new(values, [WIDTH]), &device)
    };
    let mut parts: Vec<_> = (0..PARTS).map(|part| vector(start(part))).collect();
    let zeros = || vector(vec![0.0; WIDTH]);
    let mut states: Vec<_> = (0..PARTS).map(|_| AdamWState { mean: zeros(), square: zeros() }).collect();
    for index in 0..config.max_steps {
        let grads = slopes(index, 0).map(&vector);
        let squares = grads.iter().map(|grad| (grad.clone() * grad.clone()).sum());
        let square = f64::from(squares.reduce(|a, b| a + b).unwrap().into_scalar());
        for (part, grad) in grads.into_iter().enumerate() {
            let options = AdamW {
                lr: config.lr * (1.0 - index as f64 / config.max_steps as f64),
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: [0.3, 0.0, 0.3, 0.0][part],
                grad_scale: (config.max_grad_norm / (square.sqrt() + 1e-6)).min(1.0),
                step: index + 1,
            };
            let moved = adamw_step(parts[part].clone(), grad, states[part].clone(), &options);
            (parts[part], states[part]) = moved;
        }
    }
    let expect: Vec<Vec<f64>> =
        parts.into_iter().map(|part| part.into_data().iter::<f64>().collect()).collect();
    assert_eq!(model.values().to_vec(), expect);
}

/// The cases above give different results.
#[test]
fn clipping_and_groups_are_seen() {
    let script = Script::new(&[1.0], &[], Better::Higher);
    let plain = reference(&script, &TrainConfig { max_grad_norm: 0.0, ..base() });
    for config in [
        TrainConfig { max_grad_norm: 0.5, ..base() },
        TrainConfig { max_grad_norm: 0.0, weight_decay: 0.3, ..base() },
        TrainConfig { max_grad_norm: 0.0, head_lr: Some(0.2), ..base() },
        TrainConfig { max_grad_norm: 0.0, lora_plus: Some(4.0), ..base() },
    ] {
        let other = reference(&script, &config);
        let differ = plain.iter().flatten().zip(other.iter().flatten()).any(|(a, b)| (a - b).abs() > 1e-2);
        assert!(differ, "{config:?}");
    }
}

fn base() -> TrainConfig {
    TrainConfig {
        lr: 0.05,
        max_steps: 12,
        warmup_ratio: 0.0,
        scheduler: SchedulerKind::Linear,
        ..TrainConfig::default()
    }
}

fn evaluated(early_stopping: Option<usize>, max_steps: usize) -> TrainConfig {
    TrainConfig { eval_every: 1, early_stopping, max_steps, ..base() }
}

/// The steps taken, the best evaluation, and whether its weights were returned.
#[rstest]
#[case::patience(Some(2), Better::Higher, &[0.1, 0.5, 0.4, 0.5, 0.9, 0.9], 4, 2)]
#[case::lower(Some(2), Better::Lower, &[0.9, 0.5, 0.6, 0.4, 0.5, 0.5, 0.1], 6, 4)]
#[case::never(None, Better::Higher, &[0.5, 0.1, 0.2, 0.3, 0.4, 0.4], 6, 1)]
#[case::nan(Some(3), Better::Lower, &[f64::NAN, 0.5, f64::NAN, 0.6, f64::NAN, 0.0], 5, 2)]
fn patience_counts_evaluations_since_the_best(
    #[case] patience: Option<usize>,
    #[case] better: Better,
    #[case] metric: &[f64],
    #[case] steps: usize,
    #[case] best: usize,
) {
    let script = Script::new(&[1.0], metric, better);
    let config = evaluated(patience, metric.len());
    let (model, outcome) = run(&script, &config, &mut ());
    assert_eq!((outcome.steps, outcome.best), (steps, Some((best, metric[best - 1]))));
    let until_best = Script::new(&[1.0], &metric[..best], better);
    let (stopped, _) = run(&until_best, &config, &mut StopAt { step: best, now: false });
    assert_eq!(model.values(), stopped.values(), "the best weights come back");
}

/// Stops at an evaluation, as Ctrl-C does.
struct StopAt {
    step: usize,
    now: bool,
}

impl Watch for StopAt {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.now = report.step >= self.step;
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.now
    }
}

/// Interrupted after any step, a training stops where it would have stopped, with the same weights.
#[rstest]
fn patience_survives_a_resumption(#[values(2, 3, 4)] interrupted: usize) {
    let metric = [0.1, 0.5, 0.4, 0.3, 0.45, 0.9, 0.9, 0.9];
    let config = TrainConfig { save_every: Some(1), ..evaluated(Some(3), metric.len()) };
    let whole = Script::new(&[1.0], &metric, Better::Higher);
    let (expect, outcome) = run(&whole, &config, &mut ());
    assert_eq!(outcome.steps, 5);

    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), "hash".into());
    struct Fails(usize);
    impl Watch for Fails {
        fn step(&mut self, report: &StepReport) -> Result<()> {
            if report.step > self.0 {
                return Err(lowrank_train::TrainError::Batch("cut off".into()));
            }
            Ok(())
        }
    }
    let training = |start, watch| Training {
        config: &config,
        checkpoints: Some(&store),
        start,
        keep_last: false,
        watch,
        team: &Alone,
    };
    let first = Script::new(&[1.0], &metric, Better::Higher);
    let mut cut = Fails(interrupted);
    assert!(train::<B, _>(&first, Parts::new(), training(Start::Fresh, &mut cut)).is_err());

    let rest = Script::new(&[1.0], &metric[interrupted..], Better::Higher);
    let mut quiet = ();
    let (model, resumed) = train::<B, _>(&rest, Parts::new(), training(Start::Resume, &mut quiet)).unwrap();
    assert_eq!((resumed.steps, resumed.best), (outcome.steps, outcome.best));
    assert_eq!(
        *rest.steps.borrow(),
        (interrupted..outcome.steps).collect::<Vec<_>>(),
        "no step is made twice"
    );
    assert_eq!(model.values(), expect.values());
}

/// What a run told its watch.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Step(StepReport),
    Evaluation(usize),
}

/// Notes events, and stops as if it had failed after a step.
#[derive(Default)]
struct Notes {
    events: Vec<Event>,
    fails_after: Option<usize>,
}

impl Watch for Notes {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if self.fails_after.is_some_and(|last| report.step > last) {
            return Err(TrainError::Batch("cut off".into()));
        }
        self.events.push(Event::Step(*report));
        Ok(())
    }

    fn evaluation(&mut self, step: usize, _of: usize, _result: &EvalOutput) -> Result<()> {
        self.events.push(Event::Evaluation(step));
        Ok(())
    }
}

impl Notes {
    /// Numbers of the reported steps.
    fn steps(&self) -> Vec<usize> {
        let step = |event: &Event| match event {
            Event::Step(report) => Some(report.step),
            Event::Evaluation(_) => None,
        };
        self.events.iter().filter_map(step).collect()
    }
}

/// Trains with the losses of `window` steps read together.
fn run_windows(
    script: &Script,
    config: &TrainConfig,
    window: usize,
    watch: &mut Notes,
    (store, start): (Option<&CheckpointStore>, Start),
) -> Result<([Vec<f64>; PARTS], Outcome)> {
    let training = Training { config, checkpoints: store, start, keep_last: false, watch, team: &Alone };
    let (model, outcome) = train_in_windows::<B, _>(script, Parts::new(), training, window)?;
    Ok((model.values(), outcome))
}

const FRESH: (Option<&CheckpointStore>, Start) = (None, Start::Fresh);

/// Windows that end with an evaluation, with the training, and by their length.
fn windowed() -> TrainConfig {
    TrainConfig { max_steps: 11, eval_every: 4, max_grad_norm: 0.5, ..base() }
}

/// The events and the weights of a run do not depend on how many losses are read together.
#[rstest]
fn windows_change_nothing(#[values(2, 3, 4, 16)] window: usize) {
    let config = windowed();
    let new = || Script::new(&[1.0, 2.5], &[0.1, 0.5, 0.4], Better::Higher);
    let (mut plain, mut watch) = (Notes::default(), Notes::default());
    let (expect, whole) = run_windows(&new(), &config, 1, &mut plain, FRESH).unwrap();
    let script = new();
    let (got, outcome) = run_windows(&script, &config, window, &mut watch, FRESH).unwrap();
    assert_eq!(got, expect);
    assert_eq!(watch.events, plain.events);
    assert_eq!(plain.steps(), (1..=11).collect::<Vec<_>>());
    assert_eq!(watch.events.len(), 11 + 3);
    assert_eq!((outcome.steps, outcome.best), (whole.steps, whole.best));
    assert_eq!((outcome.step_times.len(), &outcome.step_tokens), (11, &whole.step_tokens));
    assert_eq!(*script.steps.borrow(), (0..11).collect::<Vec<_>>(), "each batch once, none past the end");
    // The steps of a window have one duration: here those before the first evaluation.
    if window >= 4 {
        assert!(outcome.step_times[..4].iter().all(|time| *time == outcome.step_times[0]));
    }
}

/// The first bad step is named whatever its place in the window, after reports of those before it and before anything of
/// it is evaluated or saved.
#[rstest]
fn divergence_is_found_when_losses_are_read(
    #[values(1, 2, 3, 16)] window: usize,
    #[values(0, 2, 3, 4, 6, 10)] diverges_at: usize,
) {
    let config = TrainConfig { save_every: Some(4), ..windowed() };
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), "hash".into());
    let mut script = Script::new(&[1.0], &[0.1, 0.5, 0.4], Better::Higher);
    script.diverges_at = Some(diverges_at);
    let mut watch = Notes::default();
    let error = run_windows(&script, &config, window, &mut watch, (Some(&store), Start::Fresh)).unwrap_err();
    let lr = config.lr * (1.0 - diverges_at as f64 / config.max_steps as f64);
    let TrainError::Diverged { step, loss, lr: named } = error else { panic!("{error}") };
    assert!(step == diverges_at + 1 && loss.is_nan() && (named - lr).abs() < 1e-12, "{step} {loss} {named}");
    assert_eq!(watch.steps(), (1..=diverges_at).collect::<Vec<_>>());
    assert_eq!(script.evaluations.get(), diverges_at / 4);
    let position = store.position(Start::Resume, config.max_steps).unwrap();
    assert_eq!(position.map(|position| position.step), Some(diverges_at / 4 * 4).filter(|step| *step > 0));
}

/// Broken off within a window, a training resumes from its checkpoint to the weights of an uninterrupted one.
#[rstest]
fn a_run_in_windows_resumes(#[values(2, 3, 16)] window: usize, #[values(4, 6, 9)] last: usize) {
    let config = TrainConfig { save_every: Some(4), ..windowed() };
    let metric = [0.1, 0.5, 0.6];
    let mut whole = Notes::default();
    let script = Script::new(&[1.0], &metric, Better::Higher);
    let (expect, _) = run_windows(&script, &config, window, &mut whole, FRESH).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), "hash".into());
    let mut cut = Notes { fails_after: Some(last), ..Notes::default() };
    let script = Script::new(&[1.0], &metric, Better::Higher);
    run_windows(&script, &config, window, &mut cut, (Some(&store), Start::Fresh)).unwrap_err();
    assert_eq!(cut.steps(), (1..=last).collect::<Vec<_>>());
    let saved = last / 4 * 4;
    let script = Script::new(&[1.0], &metric[saved / 4..], Better::Higher);
    let mut rest = Notes::default();
    let resumed = run_windows(&script, &config, window, &mut rest, (Some(&store), Start::Resume));
    assert_eq!(resumed.unwrap().0, expect);
    assert_eq!(*script.steps.borrow(), (saved..11).collect::<Vec<_>>());
    assert!(whole.events.ends_with(&rest.events), "{:?}", rest.events);
}

/// Batches are built ahead, but a step whose batches fail is reached only after all before it.
#[rstest]
fn batches_that_fail_lose_no_step(#[values(1, 2, 3, 16)] window: usize, #[values(0, 1, 5, 8)] step: usize) {
    let mut script = Script::new(&[1.0], &[0.1, 0.5, 0.4], Better::Higher);
    script.fails_at = Some(step);
    let mut watch = Notes::default();
    let error = run_windows(&script, &windowed(), window, &mut watch, FRESH).unwrap_err();
    assert_eq!(error.to_string(), format!("no batches for step {step}"));
    assert_eq!(watch.steps(), (1..=step).collect::<Vec<_>>());
    assert_eq!(script.evaluations.get(), step / 4);
}

/// A step past the last one, planned or by early stopping, is never begun.
#[rstest]
#[case::planned(None, 11)]
#[case::stopped(Some(1), 8)]
fn batches_past_the_end_do_not_matter(
    #[values(1, 3, 16)] window: usize,
    #[case] early_stopping: Option<usize>,
    #[case] steps: usize,
) {
    let mut script = Script::new(&[1.0], &[0.5, 0.4, 0.3], Better::Higher);
    script.fails_at = Some(steps);
    let config = TrainConfig { early_stopping, ..windowed() };
    let (_, outcome) = run_windows(&script, &config, window, &mut Notes::default(), FRESH).unwrap();
    assert_eq!(outcome.steps, steps);
    // Without a window nothing is built ahead.
    let built = if window > 1 && steps < 11 { steps + 1 } else { steps };
    assert_eq!(script.steps.borrow().len(), built);
}
