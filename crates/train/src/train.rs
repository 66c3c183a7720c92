//! The training loop.

use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsAccumulator;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_kernels::Kernels;
use lowrank_spec::rng::mix;

use crate::checkpoint::{CheckpointStore, Position, Start};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::objective::{Objective, Selection, scalar};
use crate::optimizer::GroupedAdamW;
use crate::record::TrainedRecord;
use crate::schedule::Schedule;
use crate::team::{Team, sum_gradients};
use crate::watch::{StepReport, Watch};

/// Setup of a training run.
pub struct Training<'a> {
    /// Hyper-parameters.
    pub config: &'a TrainConfig,
    /// Folder of the checkpoints, if any.
    pub checkpoints: Option<&'a CheckpointStore>,
    /// From the beginning, or from the newest checkpoint.
    pub start: Start,
    /// Keep a checkpoint of the last step, from which training can be extended.
    pub keep_last: bool,
    /// Receives progress events, in process 0 only.
    pub watch: &'a mut dyn Watch,
    /// The processes that share the training.
    pub team: &'a dyn Team,
}

/// The result of training, beside the model.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Completed steps, including those before a resumption.
    pub steps: usize,
    /// The best evaluation: its step and the value of the selecting metric.
    pub best: Option<(usize, f64)>,
    /// Duration of each step of this process.
    pub step_times: Vec<Duration>,
    /// Real tokens of each step of this process.
    pub step_tokens: Vec<usize>,
}

/// Minimizes an objective; the returned model has the weights of the best evaluation, or the last ones if
/// there was no evaluation.
///
/// # Algorithm
/// AdamW on the gradient of `Σ wᵢ·lᵢ / Σ wᵢ` over the micro-batches of a step (see [`Objective`]), with the rate of
/// [`Schedule`]. Dropout's seed is a function of the run's seed, the index of the micro-batch and the process.
///
/// With several processes the micro-batches are divided among them, and gradients are summed over all: up to
/// rounding, and dropout, the result is that of one process. Process 0 evaluates, writes checkpoints and has the best
/// weights; the others return the last ones.
///
/// # Errors
/// Invalid hyper-parameters, data that do not fit the model, a loss that is not finite, files that cannot be written.
pub fn train<B, O>(objective: &O, model: O::Model, training: Training<'_>) -> Result<(O::Model, Outcome)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    training.config.validate()?;
    let mut run = Run::<B, O>::new(objective, model, training)?;
    let result = run.steps();
    run.training.watch.end();
    result?;
    let last = run.model()?;
    let model = match &run.best {
        Some(best) => best.restore::<B, _>(last)?,
        None => last,
    };
    Ok((model, run.outcome))
}

/// A training run in progress.
struct Run<'o, 't, B, O>
where
    B: AutodiffBackend,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    objective: &'o O,
    training: Training<'t>,
    /// Taken out only by the optimizer, which puts it back.
    model: Option<O::Model>,
    optimizer: GroupedAdamW<B::InnerBackend>,
    schedule: Schedule,
    selection: Option<Selection>,
    best: Option<TrainedRecord>,
    /// Evaluations since the best one.
    stale: usize,
    outcome: Outcome,
}

impl<'o, 't, B, O> Run<'o, 't, B, O>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    fn new(objective: &'o O, model: O::Model, training: Training<'t>) -> Result<Self> {
        let config = training.config;
        let mut run = Self {
            objective,
            optimizer: GroupedAdamW::new(config, objective.groups(&model)),
            schedule: Schedule::new(config),
            selection: objective.selection(),
            best: None,
            stale: 0,
            outcome: Outcome::default(),
            model: None,
            training,
        };
        let position = match run.training.checkpoints {
            Some(store) => store.position(run.training.start, config.max_steps)?,
            None => None,
        };
        let mut model = model;
        if let (Some(position), Some(store)) = (position, run.training.checkpoints) {
            let device = model.devices().into_iter().next().unwrap_or_default();
            let saved = store.load::<B>(&position, run.training.start)?;
            model = saved.model.restore::<B, _>(model)?;
            run.optimizer = run.optimizer.load_record::<B>(saved.optimizer, &model, &device);
            run.outcome.steps = position.step;
            run.outcome.best = position.best;
            run.best = saved.best;
            // An extended run starts with its full patience.
            run.stale = if run.training.start == Start::Extend { 0 } else { position.stale };
        }
        run.model = Some(model);
        Ok(run)
    }

    fn model(&mut self) -> Result<O::Model> {
        self.model.take().ok_or_else(no_model)
    }

    fn steps(&mut self) -> Result<()> {
        let config = self.training.config;
        while self.outcome.steps < config.max_steps {
            let report = self.step()?;
            if self.is_first() {
                self.training.watch.step(&report)?;
            }
            let step = report.step;
            let at_end = step == config.max_steps;
            let mut stop = false;
            if step.is_multiple_of(config.eval_every) || at_end {
                stop = self.evaluate(step)?;
            }
            let last = (at_end || stop) && self.training.keep_last;
            if last || config.save_every.is_some_and(|n| step.is_multiple_of(n)) && !at_end && !stop {
                self.save(step)?;
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<StepReport> {
        let begun = Instant::now();
        let config = self.training.config;
        let index = self.outcome.steps;
        let step = index + 1;
        let lr = self.schedule.at(index);
        let team = self.training.team;
        let shard = team.shard();
        let batches = self.objective.batches(index, shard)?;
        let weight: f64 = batches.micro.iter().map(|micro| micro.weight).sum();
        let tokens: usize = batches.micro.iter().map(|micro| micro.tokens).sum();
        let mut sums = [weight, tokens as f64];
        team.sum_f64(&mut sums)?;
        let [total, tokens] = sums;
        if total.is_nan() || total < 0.0 {
            return Err(TrainError::Batch(format!("the batch of step {step} has weight {total}")));
        }
        // A batch in which all classes have weight 0 has zero gradients.
        let share = |weight: f64| if total > 0.0 { weight / total } else { 0.0 };
        let model = self.model.as_ref().ok_or_else(no_model)?;
        let mut accumulator = GradientsAccumulator::new();
        let (mut grads, mut sum) = (None, None::<Tensor<B::InnerBackend, 1>>);
        let n_micro = batches.micro.len();
        for (place, micro) in batches.micro.iter().enumerate() {
            // The mean loss of nothing is not a number.
            if micro.weight == 0.0 && !shard.is_whole() {
                continue;
            }
            let mut seed = mix(config.seed, (index * config.grad_accum + place + 1) as u64);
            if !self.is_first() {
                seed = mix(seed, shard.index() as u64);
            }
            let mode = Mode::train(seed);
            let (loss, part) = self.objective.gradients(model, &micro.data, mode, share(micro.weight))?;
            sum = Some(match sum {
                Some(sum) => sum + loss,
                None => loss,
            });
            if n_micro == 1 {
                grads = Some(part);
            } else {
                accumulator.accumulate(model, part);
            }
        }
        let grads = grads.unwrap_or_else(|| accumulator.grads());
        let grads = sum_gradients::<B, _>(team, model, grads)?;
        // The optimizer gets the only handle on the weights, so that it can update them in place.
        let model = self.model()?;
        let model = self.objective.constrain(self.optimizer.step::<B, _>(lr, model, grads))?;
        self.model = Some(model);
        let mut loss = [sum.map_or(0.0, scalar)];
        team.sum_f64(&mut loss)?;
        let [loss] = loss;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss, lr });
        }
        self.outcome.steps = step;
        self.outcome.step_times.push(begun.elapsed());
        let tokens = tokens as usize;
        self.outcome.step_tokens.push(tokens);
        Ok(StepReport { step, of: config.max_steps, loss, lr, epoch: batches.epoch, tokens })
    }

    /// Evaluates, if the objective has a selecting metric, and records the best weights; whether to stop.
    fn evaluate(&mut self, step: usize) -> Result<bool> {
        let mut stop = false;
        if self.is_first() {
            self.evaluate_here(step)?;
            stop = self.training.config.early_stopping.is_some_and(|patience| self.stale >= patience)
                || self.training.watch.should_stop();
        }
        let mut decision = [f64::from(u8::from(stop))];
        self.training.team.broadcast(&mut decision)?;
        Ok(decision != [0.0])
    }

    fn evaluate_here(&mut self, step: usize) -> Result<()> {
        let Some(Selection { metric, better }) = &self.selection else { return Ok(()) };
        let model = self.model.as_ref().ok_or_else(no_model)?;
        let result = self.objective.evaluate(&model.valid())?;
        // The loss of a step is that before its update.
        if let Some(&loss) = result.values.get("loss").filter(|loss| !loss.is_finite()) {
            return Err(TrainError::DevLoss { step, loss, lr: self.schedule.at(step.saturating_sub(1)) });
        }
        self.training.watch.evaluation(step, self.training.config.max_steps, &result)?;
        let value = result.values.get(metric).copied().unwrap_or(f64::NAN);
        if better.improves(value, self.outcome.best.map(|(_, best)| best)) {
            self.outcome.best = Some((step, value));
            self.best = Some(TrainedRecord::of::<B>(model));
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        Ok(())
    }

    /// Whether this is process 0.
    fn is_first(&self) -> bool {
        self.training.team.shard().index() == 0
    }

    fn save(&self, step: usize) -> Result<()> {
        if !self.is_first() {
            return Ok(());
        }
        let Some(store) = self.training.checkpoints else { return Ok(()) };
        let model = self.model.as_ref().ok_or_else(no_model)?;
        let position = Position { step, best: self.outcome.best, stale: self.stale };
        let optimizer = self.optimizer.to_record::<B>(model);
        let planned = self.training.config.max_steps;
        store.save::<B>(&position, planned, TrainedRecord::of::<B>(model), optimizer, self.best.clone())
    }
}

fn no_model() -> TrainError {
    TrainError::Batch("the model was lost by an earlier error".into())
}
