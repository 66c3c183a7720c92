//! What is learnt: the batches, the loss, the metrics and the parameter groups of one kind of training.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use lowrank_adapters::Mode;

use crate::error::Result;
use crate::groups::Groups;

/// A part of an optimizer step: what goes through the model at once.
#[derive(Clone, Debug)]
pub struct MicroBatch<T> {
    /// The batch on the host.
    pub data: T,
    /// What the batch counts for in its step: its sequences, masked tokens, learnt tokens, pairs.
    pub weight: f64,
    /// Real tokens.
    pub tokens: usize,
}

/// All of an optimizer step.
#[derive(Clone, Debug)]
pub struct StepBatches<T> {
    /// Its parts, at least one.
    pub micro: Vec<MicroBatch<T>>,
    /// Epochs of data seen at the end of the step.
    pub epoch: f64,
}

/// The result of evaluating on held-out data: its loss and metrics by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalOutput {
    /// `loss` and the task's metrics.
    pub values: BTreeMap<String, f64>,
    /// Texts that a language model wrote, for the log.
    pub samples: Vec<String>,
}

/// Which of two values of a metric is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The higher: accuracies, correlations.
    Higher,
    /// The lower: losses, perplexities.
    Lower,
}

impl Better {
    /// Whether `value` improves on `best`. A NaN improves on nothing.
    pub fn improves(self, value: f64, best: Option<f64>) -> bool {
        !value.is_nan()
            && best.is_none_or(|best| match self {
                Self::Higher => value > best,
                Self::Lower => value < best,
            })
    }
}

/// The metric that selects the best weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Its name among the values of an [`EvalOutput`].
    pub metric: String,
    /// Its direction.
    pub better: Better,
}

impl Selection {
    /// The lowest `loss`.
    pub(crate) fn lowest_loss() -> Self {
        Self { metric: "loss".into(), better: Better::Lower }
    }
}

/// A loss and its gradients.
pub(crate) fn backward<B: AutodiffBackend, M: AutodiffModule<B>>(
    loss: Tensor<B, 1>,
    model: &M,
) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
    Ok((loss.clone().inner(), GradientsParams::from_grads(loss.backward(), model)))
}

/// The value of a tensor of one; NaN where it has none.
pub(crate) fn scalar<B: Backend>(tensor: Tensor<B, 1>) -> f64 {
    tensor.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

/// A training objective over any burn module, which [`train`](crate::train()) minimises.
///
/// The loss of a step is `Σ wᵢ·lᵢ / Σ wᵢ` over its micro-batches, `lᵢ` being the mean that [`loss`](Self::loss) returns
/// and `wᵢ` the [weight](MicroBatch::weight): a short micro-batch counts for what it holds, and an accumulated step has
/// the gradient of one large batch.
///
/// What is trained, and therefore kept in checkpoints and restored from them, are the parameters of the model that
/// require a gradient.
pub trait Objective<B: AutodiffBackend> {
    /// The module whose parameters are trained.
    type Model: AutodiffModule<B>;
    /// A micro-batch on the host.
    type Batch;

    /// The micro-batches of step `step`, counted from 0: a function of the step alone, so that a resumed training sees
    /// what an uninterrupted one would.
    ///
    /// # Errors
    /// Rows that cannot be put together.
    fn batches(&self, step: usize) -> Result<StepBatches<Self::Batch>>;

    /// The mean loss over what the batch counts, shape `[1]`.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> Result<Tensor<B, 1>>;

    /// `share` times the loss, and its gradients.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    fn gradients(
        &self,
        model: &Self::Model,
        batch: &Self::Batch,
        mode: Mode,
        share: f64,
    ) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
        backward(self.loss(model, batch, mode)? * share, model)
    }

    /// The metric by which the best weights are chosen; without one there is no evaluation, and the last weights are
    /// the result.
    fn selection(&self) -> Option<Selection> {
        None
    }

    /// Loss and metrics on held-out data.
    ///
    /// # Errors
    /// Data that do not fit the model, outputs that are not finite.
    fn evaluate(&self, _model: &<Self::Model as AutodiffModule<B>>::InnerModule) -> Result<EvalOutput> {
        Ok(EvalOutput::default())
    }

    /// The groups of the model's parameters; the others have the base rate, and decay if they are matrices.
    fn groups(&self, _model: &Self::Model) -> Groups {
        Groups::default()
    }

    /// The model after an optimizer step, where the method brings it back to its constraints.
    ///
    /// # Errors
    /// Values that are not finite.
    fn constrain(&self, model: Self::Model) -> Result<Self::Model> {
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_is_a_direction_and_nan_is_never_better() {
        assert!(Better::Higher.improves(0.5, None) && Better::Higher.improves(0.6, Some(0.5)));
        assert!(!Better::Higher.improves(0.5, Some(0.5)));
        assert!(Better::Lower.improves(1.0, Some(2.0)) && !Better::Lower.improves(2.0, Some(1.0)));
        assert!(!Better::Lower.improves(f64::NAN, None) && !Better::Higher.improves(f64::NAN, Some(0.0)));
    }
}
