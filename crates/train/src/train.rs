//! The training loop.

use std::time::{Duration, Instant};

use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsAccumulator;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use lowrank_adapters::Mode;
use lowrank_kernels::Kernels;
use lowrank_spec::rng::mix;

use crate::checkpoint::{CheckpointStore, Position, Start};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::objective::{Objective, Selection, StepBatches};
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
    /// Receives progress events, in process 0 only. The steps of a window arrive together, in order, when their losses have
    /// been read (see [`train()`]).
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
    /// Duration of each step of this process: for steps whose losses were read together, that of all divided by their number.
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
/// # Windows
/// Losses stay on the device for up to [`Kernels::LOSS_WINDOW`] steps, 1 on CPUs, and are read together then and before each
/// evaluation, checkpoint, and the end: a GPU does not wait for the host after each step. Where that is more than one,
/// the host also builds the batches of a step while the device works on the one before. A loss that is not finite is
/// found when it is read, before an evaluation or a checkpoint, and the error names the first such step.
///
/// # Errors
/// Invalid hyper-parameters, data that do not fit the model, a loss that is not finite, files that cannot be written.
pub fn train<B, O>(objective: &O, model: O::Model, training: Training<'_>) -> Result<(O::Model, Outcome)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    train_in_windows(objective, model, training, B::LOSS_WINDOW)
}

/// [`train()`] with the losses of `window` steps read together, for tests of windows without a GPU.
///
/// # Errors
/// As [`train()`].
#[doc(hidden)]
pub fn train_in_windows<B, O>(
    objective: &O,
    model: O::Model,
    training: Training<'_>,
    window: usize,
) -> Result<(O::Model, Outcome)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    training.config.validate()?;
    let mut run = Run::<B, O>::new(objective, model, training, window)?;
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
    /// Steps whose losses are read together.
    window: usize,
    /// The steps whose losses have not been read.
    pending: Vec<Pending<B::InnerBackend>>,
    /// When the first of them began.
    begun: Instant,
    /// The batches of the next step, where they are built ahead.
    ahead: Option<Result<StepBatches<O::Batch>>>,
}

/// A step whose loss is on the device.
struct Pending<B: Backend> {
    /// Without the loss.
    report: StepReport,
    /// Of this process, shape `[1]`; none if it had no rows.
    loss: Option<Tensor<B, 1>>,
}

impl<'o, 't, B, O> Run<'o, 't, B, O>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    O: Objective<B>,
{
    fn new(objective: &'o O, model: O::Model, training: Training<'t>, window: usize) -> Result<Self> {
        let config = training.config;
        let mut run = Self {
            objective,
            optimizer: GroupedAdamW::new(config, objective.groups(&model)),
            schedule: Schedule::new(config),
            selection: objective.selection(),
            best: None,
            stale: 0,
            outcome: Outcome::default(),
            window,
            pending: Vec::new(),
            begun: Instant::now(),
            ahead: None,
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
            let saved = store.load::<B>(&position)?;
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
            if let Err(error) = self.step() {
                // The steps before it are complete; but other processes would not take part in their report.
                if self.training.team.shard().is_whole() {
                    self.report()?;
                }
                return Err(error);
            }
            let step = self.outcome.steps;
            let at_end = step == config.max_steps;
            let evaluates = step.is_multiple_of(config.eval_every) || at_end;
            let saves = config.save_every.is_some_and(|n| step.is_multiple_of(n)) && !at_end;
            if evaluates || saves || self.pending.len() >= self.window {
                self.report()?;
            }
            let stop = evaluates && self.evaluate(step)?;
            let last = (at_end || stop) && self.training.keep_last;
            if last || saves && !stop {
                self.save(step)?;
            }
            if stop {
                break;
            }
        }
        Ok(())
    }

    /// One optimizer step, whose loss is left on the device.
    fn step(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            self.begun = Instant::now();
        }
        let config = self.training.config;
        let index = self.outcome.steps;
        let step = index + 1;
        let lr = self.schedule.at(index);
        let team = self.training.team;
        let shard = team.shard();
        let batches = self.ahead.take().unwrap_or_else(|| self.objective.batches(index, shard))?;
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
        let report = StepReport {
            step,
            of: config.max_steps,
            loss: 0.0,
            lr,
            epoch: batches.epoch,
            tokens: tokens as usize,
        };
        self.pending.push(Pending { report, loss: sum });
        self.outcome.steps = step;
        if self.window > 1 && step < config.max_steps {
            self.ahead = Some(self.objective.batches(step, shard));
        }
        Ok(())
    }

    /// Reads the losses of the pending steps, in one transfer, and reports them in order.
    fn report(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let Ok(count @ 1..) = u32::try_from(pending.len()) else { return Ok(()) };
        let on_device: Vec<_> = pending.iter().filter_map(|pending| pending.loss.clone()).collect();
        let mut read = values(on_device).into_iter();
        let of_step = |pending: &Pending<_>| match pending.loss {
            Some(_) => read.next().unwrap_or(f64::NAN),
            None => 0.0,
        };
        let mut losses: Vec<f64> = pending.iter().map(of_step).collect();
        self.training.team.sum_f64(&mut losses)?;
        let time = self.begun.elapsed() / count;
        for (Pending { report, .. }, loss) in pending.into_iter().zip(losses) {
            let StepReport { step, lr, tokens, .. } = report;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step, loss, lr });
            }
            self.outcome.step_times.push(time);
            self.outcome.step_tokens.push(tokens);
            if self.is_first() {
                self.training.watch.step(&StepReport { loss, ..report })?;
            }
        }
        Ok(())
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

/// The numbers of tensors `[1]`, in one transfer.
fn values<B: Backend>(mut tensors: Vec<Tensor<B, 1>>) -> Vec<f64> {
    let tensor = if tensors.len() > 1 { Some(Tensor::cat(tensors, 0)) } else { tensors.pop() };
    tensor.map_or_else(Vec::new, |tensor| tensor.into_data().iter::<f64>().collect())
}
