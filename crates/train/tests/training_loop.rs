//! The training loop against AdamW written out in f64, and when it stops.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod script;

use lowrank_train::{
    Alone, Better, CheckpointStore, Outcome, Result, SchedulerKind, Start, StepReport, TrainConfig, Training,
    Watch, train,
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
