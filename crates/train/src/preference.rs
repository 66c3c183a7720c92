//! Direct preference optimization as an objective.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::pack::{BatchPlan, Shard};
use lowrank_data::rows::TokenPair;
use lowrank_kernels::Kernels;

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::groups::Groups;
use crate::language::{LearntTokens, Scored, TunedDecoder, eval_order, language_groups};
use crate::objective::{EvalOutput, MicroBatch, Objective, Selection, StepBatches, backward, scalar};
use crate::recompute::layer_by_layer;

/// Hyper-parameters of the loss.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `beta` | 0.1 | strength of the KL penalty towards the reference | finite, > 0 |
/// | `label_smoothing` | 0 | probability that a preference is mislabelled | 0 ≤ x < 0.5 |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoConfig {
    /// β.
    pub beta: f64,
    /// Label smoothing (Mitchell 2023, conservative DPO).
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0 }
    }
}

impl DpoConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`TrainError::BadValue`].
    pub fn validate(&self) -> Result<()> {
        let bad = |name, value: f64, expected| {
            Err(TrainError::BadValue { name, value: value.to_string(), expected })
        };
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return bad("beta", self.beta, "a finite number above 0");
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return bad("label-smoothing", self.label_smoothing, "0 or more, and less than 0.5");
        }
        Ok(())
    }
}

/// `−(1−ε)·ln σ(β·h) − ε·ln σ(−β·h)` with `h` the margin of the policy over the reference (Rafailov et al. 2023,
/// arXiv:2305.18290); a batch is weighted by its number of pairs.
///
/// The reference is the model that training starts from, with its adapters: those of an earlier fine-tuning are a part of it.
/// Its log-probabilities are computed once for each pair.
#[derive(Debug)]
pub struct Preference<B: AutodiffBackend> {
    plan: BatchPlan,
    train: Vec<TokenPair>,
    dev: Vec<TokenPair>,
    reference: TunedDecoder<B::InnerBackend>,
    known: Mutex<HashMap<Pair, f64>>,
    config: DpoConfig,
    eval_batch: usize,
    recompute: bool,
}

/// A pair of the training or dev rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pair {
    Train(usize),
    Dev(usize),
}

/// Pairs of a batch: all chosen completions, then all rejected ones.
#[derive(Clone, Debug)]
pub struct PairBatch {
    sides: LearntTokens,
    pairs: Vec<Pair>,
}

impl<B> Preference<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    /// Training and evaluation pairs; `reference` is the model before training, and `recompute` keeps only the input of each
    /// layer for the backward pass.
    ///
    /// # Errors
    /// No pairs, a batch size that they do not fit, a loss out of range.
    pub fn new(
        train: Vec<TokenPair>,
        dev: Vec<TokenPair>,
        reference: TunedDecoder<B::InnerBackend>,
        config: &TrainConfig,
        loss: DpoConfig,
        recompute: bool,
    ) -> Result<Self> {
        loss.validate()?;
        let plan = config.plan(train.iter().map(length))?;
        let known = Mutex::default();
        let eval_batch = config.batch_size;
        Ok(Self { plan, train, dev, reference, known, config: loss, eval_batch, recompute })
    }

    /// The order of the training pairs.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    fn pair(&self, pair: Pair) -> &TokenPair {
        match pair {
            Pair::Train(row) => &self.train[row],
            Pair::Dev(row) => &self.dev[row],
        }
    }

    fn batch(&self, pairs: Vec<Pair>) -> PairBatch {
        let chosen = pairs.iter().map(|&pair| &self.pair(pair).chosen);
        let rejected = pairs.iter().map(|&pair| &self.pair(pair).rejected);
        PairBatch { sides: LearntTokens::pack(chosen.chain(rejected)), pairs }
    }

    /// How much more probable the chosen side of each pair is under the reference, as the logarithm of a ratio.
    fn reference(&self, batch: &PairBatch, device: &B::Device) -> Result<Vec<f64>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Pair> = batch.pairs.iter().copied().filter(|pair| !known.contains_key(pair)).collect();
        if !new.is_empty() {
            let missing = self.batch(new);
            let (model, adapters) = (self.reference.model(), self.reference.adapters());
            let scored = Scored::new(model, adapters, &missing.sides, Mode::EVAL, device)?;
            let values = scored.log_probabilities(&missing.sides.lengths).into_data();
            let values: Vec<f64> = values.iter::<f64>().collect();
            let (chosen, rejected) = values.split_at(missing.pairs.len());
            for ((pair, chosen), rejected) in missing.pairs.iter().zip(chosen).zip(rejected) {
                known.insert(*pair, chosen - rejected);
            }
        }
        Ok(batch.pairs.iter().map(|pair| known[pair]).collect())
    }

    /// Margins `h` of the pairs, shape `[pairs]`.
    fn margins<C: Kernels<Device = B::Device>>(
        &self,
        model: &TunedDecoder<C>,
        batch: &PairBatch,
        mode: Mode,
    ) -> Result<Tensor<C, 1>> {
        let device = model.device()?;
        let reference = self.reference(batch, &device)?;
        let scored = Scored::new(model.model(), model.adapters(), &batch.sides, mode, &device)?;
        Ok(margins(&scored, batch, &reference))
    }

    /// Mean loss of margins, shape `[1]`.
    fn loss_of<C: Backend>(&self, margins: Tensor<C, 1>) -> Tensor<C, 1> {
        let DpoConfig { beta, label_smoothing } = self.config;
        let scaled = margins * beta;
        let right = log_sigmoid(scaled.clone()).mean();
        if label_smoothing == 0.0 {
            return right.neg();
        }
        let wrong = log_sigmoid(scaled.neg()).mean();
        (right * (1.0 - label_smoothing) + wrong * label_smoothing).neg()
    }
}

/// The margins of a batch over those of the reference, shape `[pairs]`.
fn margins<C: Kernels>(scored: &Scored<'_, C>, batch: &PairBatch, reference: &[f64]) -> Tensor<C, 1> {
    let values = scored.log_probabilities(&batch.sides.lengths);
    let n = batch.pairs.len();
    let reference: Vec<f32> = reference.iter().map(|&margin| margin as f32).collect();
    let reference = Tensor::from_data(TensorData::new(reference, [n]), &values.device());
    values.clone().narrow(0, 0, n) - values.narrow(0, n, n) - reference
}

fn length(pair: &TokenPair) -> usize {
    pair.chosen.ids.len() + pair.rejected.ids.len()
}

impl<B> Objective<B> for Preference<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = TunedDecoder<B>;
    type Batch = PairBatch;

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<PairBatch>> {
        let rows = self.plan.shard_of_step(step, shard);
        let micro = rows.micro.iter().map(|rows| MicroBatch {
            data: self.batch(rows.iter().map(|&row| Pair::Train(row)).collect()),
            weight: rows.len() as f64,
            tokens: rows.iter().map(|&row| length(&self.train[row])).sum(),
        });
        Ok(StepBatches { micro: micro.collect(), epoch: rows.epoch })
    }

    fn loss(&self, model: &TunedDecoder<B>, batch: &PairBatch, mode: Mode) -> Result<Tensor<B, 1>> {
        Ok(self.loss_of(self.margins(model, batch, mode)?))
    }

    fn gradients(
        &self,
        model: &TunedDecoder<B>,
        batch: &PairBatch,
        mode: Mode,
        share: f64,
    ) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
        if !self.recompute {
            return backward(self.loss(model, batch, mode)? * share, model);
        }
        let reference = self.reference(batch, &model.device()?)?;
        layer_by_layer(model, &batch.sides, mode, |scored| {
            self.loss_of(margins(&scored, batch, &reference)) * share
        })
    }

    fn selection(&self) -> Option<Selection> {
        Some(Selection::lowest_loss())
    }

    /// `loss`, `margin` (mean reward difference `β·h`) and `accuracy` (fraction of positive margins).
    fn evaluate(&self, model: &TunedDecoder<B::InnerBackend>) -> Result<EvalOutput> {
        let lengths: Vec<usize> = self.dev.iter().map(length).collect();
        let (mut loss, mut margin, mut right) = (0.0, 0.0, 0.0);
        for rows in eval_order(&lengths).chunks(self.eval_batch) {
            let batch = self.batch(rows.iter().map(|&row| Pair::Dev(row)).collect());
            let margins = self.margins(model, &batch, Mode::EVAL)?;
            loss += scalar(self.loss_of(margins.clone())) * rows.len() as f64;
            for value in margins.into_data().iter::<f64>() {
                margin += self.config.beta * value;
                right += f64::from(u8::from(value > 0.0));
            }
        }
        let n = self.dev.len() as f64;
        let values = [("loss", loss / n), ("margin", margin / n), ("accuracy", right / n)];
        let values = values.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        Ok(EvalOutput { values, samples: Vec::new() })
    }

    fn groups(&self, model: &TunedDecoder<B>) -> Groups {
        language_groups(model)
    }

    fn constrain(&self, model: TunedDecoder<B>) -> Result<TunedDecoder<B>> {
        model.project()
    }
}
