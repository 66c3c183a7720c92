//! Sequence and token classification and regression as an objective.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::glue::{Label, Metric};
use lowrank_data::pack::{BatchPlan, EncodedDataset, PackedBatch, Shard};
use lowrank_kernels::Kernels;

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::evaluate::{DevSet, evaluate};
use crate::groups::Groups;
use crate::objective::{Better, EvalOutput, MicroBatch, Objective, Selection, StepBatches};
use crate::tuner::{FineTuner, loss, weight};

/// Cross-entropy of classes, of sequences or tokens; binary cross-entropy of label sets; squared error of
/// scores.
///
/// A batch is weighted by its number of sequences or labelled tokens, or by the sum of their class weights,
/// if there are any. The first metric of the first dev set selects the best weights.
#[derive(Debug)]
pub struct Classification {
    plan: BatchPlan,
    train: Arc<EncodedDataset>,
    dev: Vec<DevSet>,
    metrics: Vec<Metric>,
    eval_batch: usize,
    class_weights: Option<Vec<f32>>,
}

impl Classification {
    /// Training rows, and evaluation rows with their metrics.
    ///
    /// # Errors
    /// No rows, no metric, a batch size that the rows do not fit.
    pub fn new(
        train: Arc<EncodedDataset>,
        dev: Vec<DevSet>,
        metrics: Vec<Metric>,
        config: &TrainConfig,
    ) -> Result<Self> {
        if metrics.is_empty() {
            return Err(TrainError::Batch("the task has no metric".into()));
        }
        let plan = BatchPlan::new(train.lengths(), config.size(), config.grad_accum, config.seed)?;
        Ok(Self { plan, train, dev, metrics, eval_batch: config.batch_size, class_weights: None })
    }

    /// Weights each training example by its class. The loss on held-out data stays unweighted.
    ///
    /// # Errors
    /// A class without a weight, a weight that is negative or not finite, rows without a single class.
    pub fn with_class_weights(mut self, weights: Vec<f32>) -> Result<Self> {
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
            return Err(TrainError::Batch(format!(
                "a class weight is {weight}; expected a number of at least 0"
            )));
        }
        let is_weighted = |label: &Option<Label>| match label {
            Some(Label::Class(class)) => weights.len() > *class as usize,
            Some(Label::Tags(tags)) => tags.iter().flatten().all(|class| weights.len() > *class as usize),
            _ => false,
        };
        if !self.train.labels().iter().all(is_weighted) {
            return Err(TrainError::Batch("class weights apply to rows or tokens of one class each".into()));
        }
        self.class_weights = Some(weights);
        Ok(self)
    }

    /// The order of the training rows.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }
}

impl<B> Objective<B> for Classification
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = FineTuner<B>;
    type Batch = PackedBatch;

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<PackedBatch>> {
        let rows = self.plan.shard_of_step(step, shard);
        let micro = rows.micro.iter().map(|rows| {
            let data = self.train.batch(rows)?;
            let weight = weight(&data.labels, self.class_weights.as_deref());
            Ok(MicroBatch { weight, tokens: data.n_tokens(), data })
        });
        Ok(StepBatches { micro: micro.collect::<Result<_>>()?, epoch: rows.epoch })
    }

    fn loss(&self, model: &FineTuner<B>, batch: &PackedBatch, mode: Mode) -> Result<Tensor<B, 1>> {
        loss(model.logits(batch, mode)?, &batch.labels, self.class_weights.as_deref())
    }

    fn selection(&self) -> Option<Selection> {
        self.metrics.first().map(|metric| Selection { metric: metric.to_string(), better: Better::Higher })
    }

    fn evaluate(&self, model: &FineTuner<B::InnerBackend>) -> Result<EvalOutput> {
        evaluate(model, &self.dev, &self.metrics, None, self.eval_batch)
    }

    fn groups(&self, model: &FineTuner<B>) -> Groups {
        Groups::default().with_adapters(model.adapters()).with_model(model.model())
    }

    fn constrain(&self, model: FineTuner<B>) -> Result<FineTuner<B>> {
        model.project()
    }
}
