//! Masked language modelling as an objective: how an encoder is pre-trained.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_data::mlm::{Masker, MlmBatch};
use lowrank_data::pack::{BatchPlan, EncodedDataset};
use lowrank_kernels::{Kernels, cross_entropy};
use lowrank_models::batch::int_tensor;
use lowrank_models::{EncoderConfig, MaskedLm, Parameters, Run, Stack, Tokens};

use crate::checkpoint::Start;
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::objective::{MicroBatch, Objective, StepBatches};
use crate::train::{Training, train};
use crate::watch::Watch;

/// Cross-entropy of the masked tokens; a batch counts for these.
#[derive(Debug)]
pub struct Masked {
    plan: BatchPlan,
    train: Arc<EncodedDataset>,
    masker: Masker,
    seed: u64,
    accum: usize,
}

impl Masked {
    /// Rows to train on.
    ///
    /// # Errors
    /// No rows, a batch size that the rows do not fit.
    pub fn new(train: Arc<EncodedDataset>, masker: Masker, config: &TrainConfig) -> Result<Self> {
        let lengths = train.rows().iter().map(|row| row.ids.len()).collect();
        let plan = BatchPlan::new(lengths, config.size(), config.grad_accum, config.seed)?;
        Ok(Self { plan, train, masker, seed: config.seed, accum: config.grad_accum })
    }
}

impl<B: AutodiffBackend + Kernels> Objective<B> for Masked {
    type Model = MaskedLm<B>;
    type Batch = MlmBatch;

    fn batches(&self, step: usize) -> Result<StepBatches<MlmBatch>> {
        let rows = self.plan.step(step);
        let micro = rows.micro.iter().enumerate().map(|(place, rows)| {
            let number = (step * self.accum + place) as u64;
            let data = self.masker.mask(self.train.batch(rows)?, self.seed, number)?;
            Ok(MicroBatch { weight: data.targets.len() as f64, tokens: data.batch.n_tokens(), data })
        });
        Ok(StepBatches { micro: micro.collect::<Result<_>>()?, epoch: rows.epoch })
    }

    fn loss(&self, model: &MaskedLm<B>, masked: &MlmBatch, mode: Mode) -> Result<Tensor<B, 1>> {
        let device = model.devices().into_iter().next();
        let device = device.ok_or_else(|| TrainError::Batch("the model has no parameters".into()))?;
        let batch = &masked.batch;
        let tokens = Tokens { ids: &batch.ids, type_ids: &batch.type_ids, lengths: &batch.lengths };
        let (tokens, none) = (model.batch(tokens, &device)?, AdapterSet::empty());
        let places = int_tensor(masked.places.iter().map(|&p| p as i32).collect(), &device);
        let targets = int_tensor(masked.targets.iter().map(|&t| t as i32).collect(), &device);
        Ok(cross_entropy(model.forward(&tokens, places, Run::new(&none, mode)), targets))
    }
}

/// Pre-trains an encoder of random weights.
///
/// # Errors
/// As [`train`]; rows that do not fit the model.
pub fn pretrain<B>(
    model: EncoderConfig,
    data: Arc<EncodedDataset>,
    masker: Masker,
    config: &TrainConfig,
    device: &B::Device,
    watch: &mut dyn Watch,
) -> Result<MaskedLm<B>>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    config.validate()?;
    let mut model = MaskedLm::<B>::init(model, config.seed, device)?;
    model.choose_trained(|_, _| true);
    let objective = Masked::new(data, masker, config)?;
    let training = Training { config, checkpoints: None, start: Start::Fresh, keep_last: false, watch };
    Ok(train(&objective, model, training)?.0)
}
