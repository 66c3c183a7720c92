//! One training, from a model and data to the trained model, on burn-train's machinery.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use burn::tensor::backend::AutodiffBackend;
use burn::train::metric::store::{Aggregate, Direction, Split};
#[cfg(feature = "tui")]
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::{
    Interrupter, Learner, MetricEarlyStoppingStrategy, StoppingCondition, SupervisedTraining,
    TrainingStrategy,
};
use lowrank_data::glue::Metric;
use lowrank_data::pack::EncodedDataset;
use lowrank_kernels::Kernels;
use lowrank_report::tfevents::EventWriter;

use crate::checkpoint::CheckpointStore;
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::evaluate::{DevSet, evaluate};
use crate::loader::{NoBatches, PackedLoader};
use crate::logger::{EventLogger, Rounds};
use crate::metrics::{EvalOutput, Plain, StepValues};
use crate::optimizer::GroupedAdamW;
use crate::renderer::ProgressRenderer;
use crate::schedule::Schedule;
use crate::strategy::{Components, OnEvaluation, Outcome, StepStrategy, StrategyParts};
use crate::tuner::FineTuner;

/// What a training needs beside the model.
pub struct Fit {
    /// Hyper-parameters.
    pub config: TrainConfig,
    /// Training rows.
    pub train: Arc<EncodedDataset>,
    /// Evaluation rows; the first set's first metric selects the best weights.
    pub dev: Vec<DevSet>,
    /// The task's metrics, the one to select by first.
    pub metrics: Vec<Metric>,
    /// A folder for burn-train's own use.
    pub folder: PathBuf,
    /// Where scalars are logged.
    pub events: Option<EventWriter>,
    /// Where checkpoints go, if any are kept.
    pub checkpoints: Option<CheckpointStore>,
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Show burn-train's dashboard on standard output, a terminal, in place of a bar.
    #[cfg(feature = "tui")]
    pub dashboard: bool,
    /// Stops the training after the current round when told to.
    pub interrupter: Interrupter,
    /// Called after each evaluation.
    pub on_evaluation: OnEvaluation,
}

/// Trains `model`; what comes back carries the best weights.
///
/// # Errors
/// Invalid hyper-parameters, data that do not fit the model, a loss that is no number, files that cannot be written.
pub fn fit<B>(model: FineTuner<B>, fit: Fit) -> Result<(FineTuner<B::InnerBackend>, Outcome)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    let config = fit.config;
    config.validate()?;
    let Some(primary) = fit.metrics.first().copied() else {
        return Err(TrainError::Batch("the task has no metric".into()));
    };
    let start = match &fit.checkpoints {
        Some(store) if fit.resume => store.latest()?,
        _ => None,
    };
    let steps = start.as_ref().map_or(0, |p| p.step);
    let rounds = Rounds::default();
    let loader = PackedLoader::new(fit.train, &config, steps)?;

    let (dev, metrics, batch_size) = (fit.dev, fit.metrics.clone(), config.batch_size);
    let names = metric_names(&dev, &metrics);
    let evaluate: crate::strategy::Evaluate<B> =
        Box::new(move |model| evaluate(model, &dev, &metrics, None, batch_size));
    let (strategy, outcome) = StepStrategy::<B>::new(StrategyParts {
        config: config.clone(),
        metric: primary.to_string(),
        evaluate,
        on_evaluation: fit.on_evaluation,
        checkpoints: fit.checkpoints,
        start,
        rounds: rounds.clone(),
    });

    #[cfg(feature = "tui")]
    let dashboard = fit.dashboard.then(|| fit.interrupter.clone());
    let training =
        SupervisedTraining::<Components<B>>::new(fit.folder, Arc::new(loader), Arc::new(NoBatches))
            .with_application_logger(None)
            .with_metric_logger(EventLogger::new(fit.events, steps, rounds))
            .with_interrupter(fit.interrupter)
            .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
            .metric_train_numeric(Plain::<StepValues>::new("loss", false, |_, item, _| item.loss))
            .metric_train_numeric(Plain::<StepValues>::new("learning_rate", false, |_, _, m| {
                m.lr.unwrap_or(0.0)
            }))
            .metric_train_numeric(Plain::<StepValues>::new("epoch", true, |_, item, _| item.epoch));
    #[cfg(feature = "tui")]
    let mut training = match dashboard {
        Some(interrupter) => training.renderer(TuiMetricsRendererWrapper::new(interrupter, None)),
        None => training.renderer(ProgressRenderer::new()),
    };
    #[cfg(not(feature = "tui"))]
    let mut training = training.renderer(ProgressRenderer::new());
    for name in &names {
        let higher_is_better = !name.starts_with("loss");
        training = training.metric_valid_numeric(Plain::<EvalOutput>::evaluation(name, higher_is_better));
    }
    if let Some(rounds) = config.early_stopping {
        training = training.early_stopping(MetricEarlyStoppingStrategy::new(
            &Plain::<EvalOutput>::evaluation(&primary.to_string(), true),
            Aggregate::Mean,
            Direction::Highest,
            Split::Valid,
            StoppingCondition::NoImprovementSince { n_epochs: rounds },
        ));
    }
    let optimizer = GroupedAdamW::new(&config);
    let result = training.launch(Learner::new(model, optimizer, Schedule::new(&config)));
    let outcome = std::mem::replace(
        &mut *outcome.lock().unwrap_or_else(PoisonError::into_inner),
        Ok(Outcome::default()),
    )?;
    Ok((result.model, outcome))
}

/// Loss and metrics of every dev set, as they are called in logs.
fn metric_names(dev: &[DevSet], metrics: &[Metric]) -> Vec<String> {
    let of_set = |set: &DevSet| {
        let suffix = set.suffix.clone();
        let names = std::iter::once("loss".to_string()).chain(metrics.iter().map(Metric::to_string));
        names.map(|name| format!("{name}{suffix}")).collect::<Vec<_>>()
    };
    dev.iter().flat_map(of_set).collect()
}
