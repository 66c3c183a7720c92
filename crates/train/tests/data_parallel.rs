//! Several processes train as one: threads stand for them.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod script;

use std::path::Path;
use std::sync::{Barrier, Mutex};

use lowrank_train::train::train_in_windows;
use lowrank_train::{
    Alone, Better, CheckpointStore, Outcome, Result, SchedulerKind, Shard, Start, StepReport, Team,
    TrainConfig, Training, Watch, train,
};
use rstest::rstest;

use script::{B, PARTS, Parts, Script};

/// What the threads of a team share.
struct Board {
    barrier: Barrier,
    slots: Mutex<Vec<Vec<f64>>>,
}

struct Thread<'a> {
    shard: Shard,
    board: &'a Board,
}

impl Thread<'_> {
    /// The numbers of all threads.
    fn exchange(&self, mine: Vec<f64>) -> Vec<Vec<f64>> {
        self.board.slots.lock().unwrap()[self.shard.index()] = mine;
        self.board.barrier.wait();
        let all = self.board.slots.lock().unwrap().clone();
        self.board.barrier.wait();
        all
    }
}

impl Team for Thread<'_> {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(values.iter().map(|&value| f64::from(value)).collect());
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|of_thread| of_thread[i] as f32).sum();
        }
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        let all = self.exchange(values.to_vec());
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|of_thread| of_thread[i]).sum();
        }
        Ok(())
    }

    fn broadcast(&self, values: &mut [f64]) -> Result<()> {
        values.copy_from_slice(&self.exchange(values.to_vec())[0]);
        Ok(())
    }
}

/// One result for each thread.
fn in_threads<T: Send>(of: usize, run: impl Fn(&dyn Team) -> T + Sync) -> Vec<T> {
    let board = Board { barrier: Barrier::new(of), slots: Mutex::new(vec![Vec::new(); of]) };
    let (board, run) = (&board, &run);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..of)
            .map(|index| scope.spawn(move || run(&Thread { shard: Shard::new(index, of).unwrap(), board })))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const WEIGHTS: [f64; 5] = [2.0, 1.0, 3.0, 0.5, 0.0];

fn config(max_steps: usize) -> TrainConfig {
    TrainConfig { lr: 0.05, max_steps, eval_every: 1, weight_decay: 0.1, ..TrainConfig::default() }
}

type Values = [Vec<f64>; PARTS];

fn run(script: &Script, config: &TrainConfig, team: &dyn Team, watch: &mut dyn Watch) -> (Values, Outcome) {
    run_windows(script, config, team, watch, 1)
}

/// Trains with the losses of `window` steps read together.
fn run_windows(
    script: &Script,
    config: &TrainConfig,
    team: &dyn Team,
    watch: &mut dyn Watch,
    window: usize,
) -> (Values, Outcome) {
    let training = Training { config, checkpoints: None, start: Start::Fresh, keep_last: false, watch, team };
    let (model, outcome) = train_in_windows::<B, _>(script, Parts::new(), training, window).unwrap();
    (model.values(), outcome)
}

#[track_caller]
fn assert_near(got: &Values, expect: &Values) {
    for (got, expect) in got.iter().flatten().zip(expect.iter().flatten()) {
        assert!((got - expect).abs() < 1e-5, "{got}, expected {expect}");
    }
}

/// Losses of the steps.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Watch for Losses {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.0.push(report.loss);
        Ok(())
    }
}

/// Also where a process has no rows at all: five rows, eight processes.
#[rstest]
fn the_result_is_that_of_one_process(#[values(2, 3, 4, 8)] of: usize, #[values(1, 3, 16)] window: usize) {
    let config = TrainConfig { eval_every: if window == 1 { 1 } else { 5 }, ..config(7) };
    let mut alone = Losses::default();
    let script = Script::new(&WEIGHTS, &[], Better::Higher);
    let (expect, outcome) = run(&script, &config, &Alone, &mut alone);
    let results = in_threads(of, |team| {
        let mut watch = Losses::default();
        let script = Script::new(&WEIGHTS, &[], Better::Higher);
        let (values, outcome) = run_windows(&script, &config, team, &mut watch, window);
        (values, outcome.step_tokens, watch.0)
    });
    for (values, tokens, _) in &results {
        assert_eq!(values, &results[0].0, "all processes have the same weights");
        assert_near(values, &expect);
        assert_eq!(*tokens, outcome.step_tokens, "tokens of all processes");
    }
    for (got, expect) in results[0].2.iter().zip(&alone.0) {
        assert!((got - expect).abs() < 1e-5 * expect.abs().max(1.0), "loss {got}, expected {expect}");
    }
    assert_eq!(results[0].2.len(), 7);
    assert!(results[1..].iter().all(|(_, _, losses)| losses.is_empty()), "process 0 reports");
}

#[test]
fn process_0_evaluates_and_all_stop() {
    let metric = [0.1, 0.5, 0.4, 0.5, 0.9];
    let config = TrainConfig { early_stopping: Some(2), ..config(metric.len()) };
    let results = in_threads(3, |team| {
        let script = Script::new(&WEIGHTS, &metric, Better::Higher);
        let (_, outcome) = run(&script, &config, team, &mut ());
        (outcome.steps, outcome.best, script.evaluations.get())
    });
    assert_eq!(results[0], (4, Some((2, 0.5)), 4));
    assert!(results[1..].iter().all(|result| *result == (4, None, 0)), "{results:?}");
}

/// Interrupted with two processes, resumed with another number.
#[rstest]
fn a_run_resumes_with_another_number_of_processes(#[values(1, 4)] of: usize) {
    let config = TrainConfig { scheduler: SchedulerKind::Constant, save_every: Some(1), ..config(6) };
    let script = || Script::new(&WEIGHTS, &[], Better::Higher);
    let (expect, _) = run(&script(), &config, &Alone, &mut ());
    let dir = tempfile::tempdir().unwrap();
    let go = |dir: &Path, start, team: &dyn Team, watch: &mut dyn Watch| {
        let store = CheckpointStore::new(dir, "hash".into());
        let training =
            Training { config: &config, checkpoints: Some(&store), start, keep_last: false, watch, team };
        let script = script();
        let result = train::<B, _>(&script, Parts::new(), training);
        let steps = script.steps.borrow().clone();
        result.map(|(model, _)| (model.values(), steps))
    };
    // A complete run of three steps, since an error in one process would leave the others waiting.
    let three = TrainConfig { max_steps: 3, ..config.clone() };
    in_threads(2, |team| {
        let store = CheckpointStore::new(dir.path(), "hash".into());
        let mut watch = ();
        let training = Training {
            config: &three,
            checkpoints: Some(&store),
            start: Start::Fresh,
            keep_last: true,
            watch: &mut watch,
            team,
        };
        train::<B, _>(&script(), Parts::new(), training).map(|_| ()).unwrap();
    });
    let results = in_threads(of, |team| go(dir.path(), Start::Extend, team, &mut ()).unwrap());
    for (values, steps) in results {
        assert_eq!(steps, [3, 4, 5]);
        assert_near(&values, &expect);
    }
}
