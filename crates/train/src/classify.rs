//! Sequence classification and regression as an objective.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::glue::Metric;
use lowrank_data::pack::{BatchPlan, EncodedDataset, PackedBatch};
use lowrank_kernels::Kernels;

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::evaluate::{DevSet, evaluate};
use crate::groups::Groups;
use crate::objective::{Better, EvalOutput, MicroBatch, Objective, Selection, StepBatches};
use crate::tuner::{Classifier, Tuned, loss};

/// Cross-entropy of classes, or squared error of scores, over the model `C`.
///
/// A batch counts for its sequences. The first metric of the first dev set selects the best weights.
#[derive(Debug)]
pub struct Classification<C> {
    plan: BatchPlan,
    train: Arc<EncodedDataset>,
    dev: Vec<DevSet>,
    metrics: Vec<Metric>,
    eval_batch: usize,
    model: PhantomData<fn() -> C>,
}

impl<C> Classification<C> {
    /// Rows to train on, and rows and metrics to evaluate with.
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
        let lengths = train.rows().iter().map(|row| row.ids.len()).collect();
        let plan = BatchPlan::new(lengths, config.size(), config.grad_accum, config.seed)?;
        Ok(Self { plan, train, dev, metrics, eval_batch: config.batch_size, model: PhantomData })
    }

    /// The order of the training rows.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }
}

impl<B, C> Objective<B> for Classification<C>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    C: Classifier<B> + AutodiffModule<B>,
    C::InnerModule: Classifier<B::InnerBackend>,
{
    type Model = Tuned<B, C>;
    type Batch = PackedBatch;

    fn batches(&self, step: usize) -> Result<StepBatches<PackedBatch>> {
        let rows = self.plan.step(step);
        let micro = rows.micro.iter().map(|rows| {
            let data = self.train.batch(rows)?;
            Ok(MicroBatch { weight: data.n_sequences() as f64, tokens: data.n_tokens(), data })
        });
        Ok(StepBatches { micro: micro.collect::<Result<_>>()?, epoch: rows.epoch })
    }

    fn loss(&self, model: &Tuned<B, C>, batch: &PackedBatch, mode: Mode) -> Result<Tensor<B, 1>> {
        loss(model.logits(batch, mode)?, &batch.labels)
    }

    fn selection(&self) -> Option<Selection> {
        self.metrics.first().map(|metric| Selection { metric: metric.to_string(), better: Better::Higher })
    }

    fn evaluate(&self, model: &Tuned<B::InnerBackend, C::InnerModule>) -> Result<EvalOutput> {
        evaluate(model, &self.dev, &self.metrics, None, self.eval_batch)
    }

    fn groups(&self, model: &Tuned<B, C>) -> Groups {
        Groups::default().with_adapters(model.adapters()).with_model(model.model())
    }

    fn constrain(&self, model: Tuned<B, C>) -> Result<Tuned<B, C>> {
        model.project()
    }
}
