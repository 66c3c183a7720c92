//! What is trained: a model and its adapters as one burn module.

use burn::module::{Module, ModuleDisplay};
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_data::pack::{Labels, PackedBatch};
use lowrank_kernels::{Kernels, cross_entropy};
use lowrank_models::batch::int_tensor;
use lowrank_models::{Adaptable, Run, SequenceClassifier, Stack, TokenBatch, Tokens};

use crate::error::{Result, TrainError};
use crate::record::count;

/// A model with its adapters; parameters that require a gradient are trained, the others are the frozen base.
#[derive(Module, Debug)]
pub struct Tuned<B: Backend, M> {
    model: M,
    adapters: AdapterSet<B>,
}

/// A classifier with its adapters.
pub type FineTuner<B> = Tuned<B, SequenceClassifier<B>>;

impl<B: Backend, M> Tuned<B, M> {
    /// `model` with its trainable weights marked, and the adapters to train over it.
    pub fn new(model: M, adapters: AdapterSet<B>) -> Self {
        Self { model, adapters }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The adapters.
    pub fn adapters(&self) -> &AdapterSet<B> {
        &self.adapters
    }

    /// Full-size corrections brought back to their rank; any other method stays as it is.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn project(mut self) -> Result<Self> {
        if self.adapters.needs_projection() {
            self.adapters = self.adapters.project()?;
        }
        Ok(self)
    }

    /// Takes the two apart.
    pub fn into_parts(self) -> (M, AdapterSet<B>) {
        (self.model, self.adapters)
    }
}

impl<B: Backend, M: Module<B>> Tuned<B, M> {
    /// Numbers of trained and of all parameters.
    pub fn count(&self) -> (usize, usize) {
        let (model, adapters) = (count::<B>(&self.model), count::<B>(&self.adapters));
        (model.0 + adapters.0, model.1 + adapters.1)
    }

    /// The device of the first parameter.
    ///
    /// # Errors
    /// A model without parameters.
    pub fn device(&self) -> Result<B::Device> {
        let device = self.model.devices().into_iter().next();
        device.ok_or_else(|| TrainError::Batch("the model has no parameters".into()))
    }
}

/// A model that gives each sequence a row of logits: classes, or one score.
pub trait Classifier<B: Kernels>: Module<B> + ModuleDisplay + Adaptable<B> {
    /// Logits of a batch, shape `[sequences, labels]`.
    ///
    /// # Errors
    /// A batch that the model does not take.
    fn logits(
        &self,
        batch: &PackedBatch,
        adapters: &AdapterSet<B>,
        mode: Mode,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>>;
}

impl<B: Kernels> Classifier<B> for SequenceClassifier<B> {
    fn logits(
        &self,
        batch: &PackedBatch,
        adapters: &AdapterSet<B>,
        mode: Mode,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        Ok(self.forward(&to_device(self, batch, device)?, Run::new(adapters, mode)))
    }
}

impl<B: Kernels, C: Classifier<B>> Tuned<B, C> {
    /// Logits of a batch, shape `[sequences, labels]`.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn logits(&self, batch: &PackedBatch, mode: Mode) -> Result<Tensor<B, 2>> {
        self.model.logits(batch, &self.adapters, mode, &self.device()?)
    }
}

/// Mean loss of a batch: cross-entropy, or squared error for scores. Shape `[1]`.
///
/// # Errors
/// A batch without labels.
pub fn loss<B: Kernels>(logits: Tensor<B, 2>, labels: &Labels) -> Result<Tensor<B, 1>> {
    let device = logits.device();
    match labels {
        Labels::Classes(classes) => {
            let targets = int_tensor(classes.iter().map(|&c| c as i32).collect(), &device);
            Ok(cross_entropy(logits, targets))
        }
        Labels::Scores(scores) => {
            let n = scores.len();
            let targets = Tensor::<B, 1>::from_data(TensorData::new(scores.clone(), [n]), &device);
            Ok((logits.reshape([n]) - targets).powi_scalar(2).mean())
        }
        Labels::None => Err(TrainError::Batch("a batch without labels has no loss".into())),
    }
}

/// The packed batch on the device.
///
/// # Errors
/// Ids or lengths that the model does not take.
pub fn to_device<B: Kernels>(
    model: &impl Stack<B>,
    batch: &PackedBatch,
    device: &B::Device,
) -> Result<TokenBatch<B>> {
    let tokens = Tokens { ids: &batch.ids, type_ids: &batch.type_ids, lengths: &batch.lengths };
    Ok(model.batch(tokens, device)?)
}
