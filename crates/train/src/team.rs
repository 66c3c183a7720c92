//! Data-parallel training: several processes, each with its shard of every batch.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use lowrank_data::pack::Shard;

use crate::error::Result;

/// The processes of a training.
///
/// All of them call the same operations in the same order, and all get the same bits. Process 0 evaluates and
/// writes files; the others compute gradients only.
pub trait Team {
    /// The shard of this process of every batch; its number is that of the process.
    fn shard(&self) -> Shard;

    /// Replaces each number by its sum over the processes.
    ///
    /// # Errors
    /// [`TrainError::Team`](crate::TrainError::Team) if a process cannot be reached.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// The same in double precision.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn sum_f64(&self, values: &mut [f64]) -> Result<()>;

    /// Replaces the numbers by those of process 0.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn broadcast(&self, values: &mut [f64]) -> Result<()>;
}

/// A training in a single process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Team for Alone {
    fn shard(&self) -> Shard {
        Shard::WHOLE
    }

    fn sum(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn sum_f64(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// Sums the gradients of the trained parameters over the processes, in one message.
///
/// A parameter has a gradient in the result if it has one in any process: an expert may have received tokens in
/// one of them only.
///
/// # Errors
/// As [`Team::sum`].
pub(crate) fn sum_gradients<B, M>(
    team: &dyn Team,
    model: &M,
    grads: GradientsParams,
) -> Result<GradientsParams>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
{
    if team.shard().is_whole() {
        return Ok(grads);
    }
    let mut flat = Flatten { grads: &grads, has_gradient: Vec::new(), values: Vec::new() };
    model.visit(&mut flat);
    let Flatten { has_gradient, mut values, .. } = flat;
    let n_parameters = has_gradient.len();
    values.extend(has_gradient);
    team.sum(&mut values)?;
    let has_gradient = values.split_off(values.len() - n_parameters);
    let mut summed =
        Unflatten { values: &values, has_gradient: has_gradient.into_iter(), grads: GradientsParams::new() };
    model.visit(&mut summed);
    Ok(summed.grads)
}

/// The gradients of the trained parameters in the order of the module, zeros for a parameter without one.
struct Flatten<'a> {
    grads: &'a GradientsParams,
    /// 1 or 0 for each trained parameter.
    has_gradient: Vec<f32>,
    values: Vec<f32>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Flatten<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !param.is_require_grad() {
            return;
        }
        let grad = self.grads.get::<B::InnerBackend, D>(param.id);
        self.has_gradient.push(if grad.is_some() { 1.0 } else { 0.0 });
        match grad {
            Some(grad) => self.values.extend(grad.into_data().iter::<f32>()),
            None => self.values.resize(self.values.len() + param.shape().num_elements(), 0.0),
        }
    }
}

/// The way back.
struct Unflatten<'a, I> {
    values: &'a [f32],
    has_gradient: I,
    grads: GradientsParams,
}

impl<B: AutodiffBackend, I: Iterator<Item = f32>> ModuleVisitor<B> for Unflatten<'_, I> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !param.is_require_grad() {
            return;
        }
        let shape = param.shape();
        let (values, rest) = self.values.split_at(shape.num_elements());
        self.values = rest;
        if self.has_gradient.next().is_some_and(|count| count > 0.0) {
            let data = TensorData::new(values.to_vec(), shape);
            let grad = Tensor::<B::InnerBackend, D>::from_data(data, &param.device());
            self.grads.register::<B::InnerBackend, D>(param.id, grad);
        }
    }
}
