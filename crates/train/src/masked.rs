//! Masked language modelling as an objective: pre-training of an encoder, or its adaptation to a domain.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::mlm::{Masker, MlmBatch};
use lowrank_data::pack::{BatchPlan, EncodedDataset, Shard};
use lowrank_kernels::{Kernels, cross_entropy};
use lowrank_models::batch::int_tensor;
use lowrank_models::{MaskedLm, Run, Stack, Tokens};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::groups::Groups;
use crate::language::eval_order;
use crate::objective::{EvalOutput, MicroBatch, Objective, Selection, StepBatches, scalar};
use crate::tuner::Tuned;

/// An encoder with its masked language modelling head, and its adapters.
pub type TunedMaskedLm<B> = Tuned<B, MaskedLm<B>>;

/// Cross-entropy of the masked tokens; a batch is weighted by their number.
#[derive(Debug)]
pub struct Masked {
    plan: BatchPlan,
    train: Arc<EncodedDataset>,
    dev: Option<Arc<EncodedDataset>>,
    masker: Masker,
    seed: u64,
    accum: usize,
    eval_batch: usize,
}

/// The seed of the masks of the dev rows: the same tokens in every run, so that losses are comparable.
const DEV_SEED: u64 = 0x6d61_736b;

impl Masked {
    /// Training rows and evaluation rows; without the latter the result has the last weights.
    ///
    /// # Errors
    /// No rows, a batch size that the rows do not fit.
    pub fn new(
        train: Arc<EncodedDataset>,
        dev: Option<Arc<EncodedDataset>>,
        masker: Masker,
        config: &TrainConfig,
    ) -> Result<Self> {
        let plan = config.plan(train.rows().iter().map(|row| row.ids.len()))?;
        let (seed, accum, eval_batch) = (config.seed, config.grad_accum, config.batch_size);
        Ok(Self { plan, train, dev, masker, seed, accum, eval_batch })
    }

    /// The order of the training rows.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }
}

/// Logits and targets of the masked tokens of a batch, shapes `[hidden, vocab_size]` and `[hidden]`.
fn predict<B: Kernels>(
    model: &TunedMaskedLm<B>,
    masked: &MlmBatch,
    mode: Mode,
) -> Result<(Tensor<B, 2>, Tensor<B, 1, Int>)> {
    let device = model.device()?;
    let batch = &masked.batch;
    let tokens = Tokens { ids: &batch.ids, type_ids: &batch.type_ids, lengths: &batch.lengths, pixels: &[] };
    let tokens = model.model().batch(tokens, &device)?;
    let places = int_tensor(masked.places.iter().map(|&p| p as i32).collect(), &device);
    let targets = int_tensor(masked.targets.iter().map(|&t| t as i32).collect(), &device);
    let logits = model.model().forward(&tokens, places, Run::new(model.adapters(), mode));
    Ok((logits, targets))
}

/// `loss` and `perplexity` of the masked tokens of rows, and `accuracy`, the fraction predicted correctly.
///
/// # Errors
/// Rows that the model does not accept, or in which nothing can be masked.
pub(crate) fn evaluate_masked<B: Kernels>(
    model: &TunedMaskedLm<B>,
    rows: &EncodedDataset,
    masker: &Masker,
    batch_size: usize,
) -> Result<EvalOutput> {
    let lengths: Vec<usize> = rows.rows().iter().map(|row| row.ids.len()).collect();
    let (mut sum, mut right, mut hidden) = (0.0, 0usize, 0usize);
    for (number, part) in eval_order(&lengths).chunks(batch_size.max(1)).enumerate() {
        let masked = masker.mask(rows.batch(part)?, DEV_SEED, number as u64)?;
        let (logits, targets) = predict(model, &masked, Mode::EVAL)?;
        let best = logits.clone().argmax(1).into_data();
        let hits = best.iter::<i64>().zip(&masked.targets).filter(|(id, target)| *id == i64::from(**target));
        right += hits.count();
        sum += scalar(cross_entropy(logits, targets)) * masked.targets.len() as f64;
        hidden += masked.targets.len();
    }
    let loss = sum / hidden as f64;
    let values = [("loss", loss), ("perplexity", loss.exp()), ("accuracy", right as f64 / hidden as f64)];
    let values = values.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    Ok(EvalOutput { values, samples: Vec::new() })
}

impl<B> Objective<B> for Masked
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = TunedMaskedLm<B>;
    type Batch = MlmBatch;

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<MlmBatch>> {
        let rows = self.plan.step(step);
        let mut micro = Vec::with_capacity(rows.micro.len());
        for (place, rows) in rows.micro.iter().enumerate() {
            let number = (step * self.accum + place) as u64;
            // The whole batch is masked in every process: which tokens are masked depends on all of its rows.
            let masked = self.masker.mask(self.train.batch(rows)?, self.seed, number)?;
            let data = if shard.is_whole() {
                Some(masked)
            } else {
                masked.select(&shard.of_lengths(&masked.batch.lengths))
            };
            micro.extend(data.map(|data| MicroBatch {
                weight: data.targets.len() as f64,
                tokens: data.batch.n_tokens(),
                data,
            }));
        }
        Ok(StepBatches { micro, epoch: rows.epoch })
    }

    fn loss(&self, model: &TunedMaskedLm<B>, masked: &MlmBatch, mode: Mode) -> Result<Tensor<B, 1>> {
        let (logits, targets) = predict(model, masked, mode)?;
        Ok(cross_entropy(logits, targets))
    }

    fn selection(&self) -> Option<Selection> {
        self.dev.is_some().then(Selection::lowest_loss)
    }

    fn evaluate(&self, model: &TunedMaskedLm<B::InnerBackend>) -> Result<EvalOutput> {
        match &self.dev {
            Some(dev) => evaluate_masked(model, dev, &self.masker, self.eval_batch),
            None => Ok(EvalOutput::default()),
        }
    }

    fn groups(&self, model: &TunedMaskedLm<B>) -> Groups {
        Groups::default().with_adapters(model.adapters()).with_model(model.model())
    }

    fn constrain(&self, model: TunedMaskedLm<B>) -> Result<TunedMaskedLm<B>> {
        model.project()
    }
}
