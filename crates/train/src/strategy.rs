//! The training loop, as a burn-train learning strategy that counts steps.
//!
//! burn-train's own loop runs whole epochs. Here a *round* is the stretch of steps between two evaluations, and takes
//! the place of burn-train's epoch everywhere: metrics, early stopping and checkpoints see rounds 1, 2, ….

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::data::dataloader::Progress;
use burn::lr_scheduler::LrScheduler;
use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, Optimizer};
use burn::tensor::backend::AutodiffBackend;

use burn::train::{
    EventProcessorTraining, Learner, LearnerEvent, LearningComponentsMarker, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainStep, TrainingComponents, TrainingItem, ValidLoader,
};
use lowrank_kernels::Kernels;

use crate::checkpoint::{CheckpointStore, Position};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::logger::Rounds;
use crate::metrics::{EvalOutput, StepOutput};
use crate::optimizer::GroupedAdamW;
use crate::schedule::Schedule;
use crate::tuner::{FineTuner, TrainedRecord};

/// The components of our trainings.
pub type Components<B> =
    LearningComponentsMarker<B, Schedule, FineTuner<B>, GroupedAdamW<<B as AutodiffBackend>::InnerBackend>>;

/// Evaluates a model on the dev set.
pub type Evaluate<B> =
    Box<dyn Fn(&FineTuner<<B as AutodiffBackend>::InnerBackend>) -> Result<EvalOutput> + Send + Sync>;

/// Called after each evaluation with the step and its result.
pub type OnEvaluation = Box<dyn Fn(usize, &EvalOutput) -> Result<()> + Send + Sync>;

/// What a training leaves behind beside the model.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Steps made, those before a resumption included.
    pub steps: usize,
    /// The best evaluation: its step and the value of the primary metric.
    pub best: Option<(usize, f64)>,
    /// Duration of each step of this process.
    pub step_times: Vec<Duration>,
    /// Real tokens of each step of this process.
    pub step_tokens: Vec<usize>,
}

/// A loop over optimizer steps with an evaluation every so many of them.
pub struct StepStrategy<B: AutodiffBackend> {
    config: TrainConfig,
    metric: String,
    evaluate: Evaluate<B>,
    on_evaluation: OnEvaluation,
    checkpoints: Option<CheckpointStore>,
    start: Option<Position>,
    rounds: Rounds,
    outcome: Arc<Mutex<Result<Outcome>>>,
    backend: PhantomData<B>,
}

/// What a [`StepStrategy`] is made of.
pub struct StrategyParts<B: AutodiffBackend> {
    /// Hyper-parameters.
    pub config: TrainConfig,
    /// Name of the metric to select by; higher is better.
    pub metric: String,
    /// Evaluates a model on the dev set.
    pub evaluate: Evaluate<B>,
    /// Called after each evaluation.
    pub on_evaluation: OnEvaluation,
    /// Where checkpoints go.
    pub checkpoints: Option<CheckpointStore>,
    /// Where a resumed run goes on.
    pub start: Option<Position>,
    /// Waited on before the event store is asked.
    pub rounds: Rounds,
}

impl<B: AutodiffBackend> StepStrategy<B> {
    /// The strategy, and where its outcome will be found.
    pub fn new(parts: StrategyParts<B>) -> (Self, Arc<Mutex<Result<Outcome>>>) {
        let outcome = Arc::new(Mutex::new(Ok(Outcome::default())));
        let strategy = Self {
            config: parts.config,
            metric: parts.metric,
            evaluate: parts.evaluate,
            on_evaluation: parts.on_evaluation,
            checkpoints: parts.checkpoints,
            start: parts.start,
            rounds: parts.rounds,
            outcome: outcome.clone(),
            backend: PhantomData,
        };
        (strategy, outcome)
    }
}

type Processor<B> = SupervisedTrainingEventProcessor<Components<B>>;

impl<B> StepStrategy<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    /// Runs the steps on the model in `slot`, which ends at its best evaluation.
    fn run(
        &self,
        slot: &mut Option<FineTuner<B>>,
        loader: &TrainLoader<Components<B>>,
        components: &mut TrainingComponents<Components<B>>,
    ) -> Result<Outcome> {
        let config = &self.config;
        let mut optimizer = GroupedAdamW::new(config);
        let mut schedule = Schedule::new(config);
        let mut outcome = Outcome::default();
        let mut best: Option<TrainedRecord> = None;
        if let (Some(position), Some(store)) = (&self.start, &self.checkpoints) {
            let saved = store.load::<B>(position)?;
            slot.as_mut().ok_or_else(no_model)?.restore(&saved.model)?;
            optimizer = Optimizer::<FineTuner<B>, B>::load_record(optimizer, saved.optimizer);
            schedule.seek(position.step);
            outcome.steps = position.step;
            outcome.best = position.best;
            best = saved.best;
        }
        let mut batches = loader.iter();
        while outcome.steps < config.max_steps {
            let begun = Instant::now();
            let step = outcome.steps + 1;
            let mut accumulator = GradientsAccumulator::new();
            let mut tokens = 0;
            let mut last: Option<StepOutput<B::InnerBackend>> = None;
            let mut grads = None;
            for _ in 0..config.grad_accum {
                let Some(item) = batches.next() else {
                    return Err(TrainError::Batch("the training data ended".into()));
                };
                tokens += item.batch.n_tokens();
                let model = slot.as_ref().ok_or_else(no_model)?;
                let output = TrainStep::step(model, item);
                if config.grad_accum == 1 {
                    grads = Some(output.grads);
                } else {
                    accumulator.accumulate(model, output.grads);
                }
                last = Some(match last.take() {
                    Some(sum) => StepOutput { loss: sum.loss + output.item.loss, epoch: output.item.epoch },
                    None => output.item,
                });
            }
            let lr = schedule.step();
            let grads = grads.unwrap_or_else(|| accumulator.grads());
            // The optimizer is given the only handle on the weights, so that it can update them in place.
            let owned = slot.take().ok_or_else(no_model)?;
            let model = slot.insert(optimizer.step(lr, owned, grads).project()?);
            outcome.steps = step;
            if let Some(mut output) = last {
                output.loss = output.loss / config.grad_accum as f64;
                let loss = output.loss.clone().into_data().iter::<f64>().next().unwrap_or(f64::NAN);
                if !loss.is_finite() {
                    return Err(TrainError::Diverged { step, loss, lr });
                }
                outcome.step_times.push(begun.elapsed());
                outcome.step_tokens.push(tokens);
                let item =
                    TrainingItem::new(output, batches.progress(), self.progress(step), Some(step), Some(lr));
                components.event_processor.process_train(LearnerEvent::ProcessedItem(item));
            }
            let at_end = step == config.max_steps;
            if step.is_multiple_of(config.eval_every) || at_end {
                let round = step.div_ceil(config.eval_every);
                let improved =
                    self.evaluate_round(round, step, model, &mut components.event_processor, &mut outcome)?;
                if improved {
                    best = Some(model.clone().into_record());
                }
                let stop = components
                    .early_stopping
                    .as_mut()
                    .is_some_and(|s| s.should_stop(round, &components.event_store));
                let save = config.save_every.is_some_and(|n| step.is_multiple_of(n)) && !at_end && !stop;
                if let (true, Some(store)) = (save, &self.checkpoints) {
                    let position = Position { step, best: outcome.best };
                    let optimizer = Optimizer::<FineTuner<B>, B>::to_record(&optimizer);
                    store.save::<B>(&position, model.clone().into_record(), optimizer, best.clone())?;
                }
                if stop || components.interrupter.should_stop() {
                    break;
                }
            }
        }
        if let Some(best) = &best {
            slot.as_mut().ok_or_else(no_model)?.restore(best)?;
        }
        Ok(outcome)
    }

    /// Evaluates and reports a round; whether it is the best so far.
    fn evaluate_round(
        &self,
        round: usize,
        step: usize,
        model: &FineTuner<B>,
        processor: &mut Processor<B>,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        processor.process_train(LearnerEvent::EndEpoch(round));
        let result = (self.evaluate)(&model.valid())?;
        (self.on_evaluation)(step, &result)?;
        let value = result.values.get(&self.metric).copied().unwrap_or(f64::NAN);
        let item = TrainingItem::new(result, Progress::new(1, 1), self.progress(step), Some(step), None);
        processor.process_valid(LearnerEvent::ProcessedItem(item));
        processor.process_valid(LearnerEvent::EndEpoch(round));
        self.rounds.wait_for(round);
        let improved = match outcome.best {
            Some((_, best)) => value > best,
            None => true,
        };
        if improved {
            outcome.best = Some((step, value));
        }
        Ok(improved)
    }

    fn progress(&self, step: usize) -> Progress {
        Progress::new(step, self.config.max_steps)
    }
}

impl<B> SupervisedLearningStrategy<Components<B>> for StepStrategy<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    fn fit(
        &self,
        mut components: TrainingComponents<Components<B>>,
        learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        _valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (FineTuner<B>, Processor<B>) {
        let untrained = learner.model();
        drop(learner);
        let mut slot = Some(untrained);
        let result = self.run(&mut slot, &train, &mut components);
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = result;
        (slot.expect("only the optimizer takes the model, and gives it back"), components.event_processor)
    }
}

fn no_model() -> TrainError {
    TrainError::Batch("the model was lost by an earlier error".into())
}
