//! Masked language modelling from random weights: how the embedded model is made.

use std::sync::Arc;

use burn::module::Param;
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::mlm::Masker;
use lowrank_data::pack::{EncodedDataset, TrainBatches};
use lowrank_kernels::{Kernels, cross_entropy};
use lowrank_models::batch::int_tensor;
use lowrank_models::params::{Layout, ParamIo};
use lowrank_models::{EncoderConfig, MaskedLm, TokenBatch};
use lowrank_spec::rng::mix;

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::optimizer::GroupedAdamW;
use crate::schedule::Schedule;

/// Pre-trains an encoder; `on_step` is told each step and its loss.
///
/// # Errors
/// Invalid hyper-parameters, rows that do not fit the model, a loss that is no number.
pub fn pretrain<B>(
    model: EncoderConfig,
    data: Arc<EncodedDataset>,
    masker: &Masker,
    config: &TrainConfig,
    device: &B::Device,
    mut on_step: impl FnMut(usize, f64),
) -> Result<MaskedLm<B>>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    config.validate()?;
    let mut model = MaskedLm::<B>::init(model, config.seed, device)?;
    model.walk(&mut Trained);
    let mut optimizer = GroupedAdamW::new(config);
    let schedule = Schedule::new(config);
    let mut batches = TrainBatches::new(data, config.batch_size, config.seed)?;
    for step in 0..config.max_steps {
        let Some(batch) = batches.next() else { break };
        let masked = masker.mask(batch?, config.seed, step as u64)?;
        let batch = &masked.batch;
        let tokens =
            TokenBatch::<B>::new(model.config(), &batch.ids, &batch.type_ids, &batch.lengths, device)?;
        let places = int_tensor(masked.places.iter().map(|&p| p as i32).collect(), device);
        let targets = int_tensor(masked.targets.iter().map(|&t| t as i32).collect(), device);
        let logits = model.forward(&tokens, places, Mode::train(mix(config.seed, step as u64)));
        let loss = cross_entropy(logits, targets);
        let value = loss.clone().into_data().iter::<f64>().next().unwrap_or(f64::NAN);
        if !value.is_finite() {
            return Err(TrainError::Diverged { step: step + 1, loss: value, lr: schedule.at(step) });
        }
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(schedule.at(step), model, grads);
        on_step(step + 1, value);
    }
    Ok(model)
}

/// Gives every parameter a gradient.
struct Trained;

impl<B: Backend> ParamIo<B> for Trained {
    fn param<const D: usize>(&mut self, _key: &str, _layout: Layout, param: &mut Param<Tensor<B, D>>) {
        *param = param.clone().set_require_grad(true);
    }
}
