//! Low-rank optimization of any module: an optimizer of full-size matrices with a projection onto low rank
//! after every step.
//!
//! The update is that of the inner optimizer in the full space, which also holds its state (Adam's moments):
//! the state derives from the gradients, which are independent of the projection, and has the shape of the
//! parameter at any rank.

use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{
    Adam, AdamConfig, AdamW, AdamWConfig, GradientsParams, MultiGradientsParams, Optimizer, Sgd, SgdConfig,
};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::methods::correction::project;

/// An optimizer whose steps end on matrices of rank `rank`: every trained matrix `[m, n]` is projected by truncated
/// SVD, every trained stack `[slices, m, n]` by Tucker2 over its slices. Vectors are left to the inner optimizer.
///
/// Values that are not finite have no projection and are left for the caller's own check of the loss.
#[derive(Clone)]
pub struct LowRankOptimizer<O> {
    inner: O,
    rank: usize,
}

/// Gradient descent over matrices of low rank.
pub type LowRankSgd<B, M> =
    LowRankOptimizer<OptimizerAdaptor<Sgd<<B as AutodiffBackend>::InnerBackend>, M, B>>;
/// Adam over matrices of low rank.
pub type LowRankAdam<B, M> = LowRankOptimizer<OptimizerAdaptor<Adam, M, B>>;
/// AdamW over matrices of low rank.
pub type LowRankAdamW<B, M> = LowRankOptimizer<OptimizerAdaptor<AdamW, M, B>>;

impl<O> LowRankOptimizer<O> {
    /// Projects the results of `inner` onto rank `rank`, at least 1.
    pub fn new(inner: O, rank: usize) -> Self {
        Self { inner, rank: rank.max(1) }
    }
}

/// [`LowRankSgd`] with a configuration and a rank.
pub fn low_rank_sgd<B: AutodiffBackend, M: AutodiffModule<B>>(
    config: &SgdConfig,
    rank: usize,
) -> LowRankSgd<B, M> {
    LowRankOptimizer::new(config.init(), rank)
}

/// [`LowRankAdam`] with a configuration and a rank.
pub fn low_rank_adam<B: AutodiffBackend, M: AutodiffModule<B>>(
    config: &AdamConfig,
    rank: usize,
) -> LowRankAdam<B, M> {
    LowRankOptimizer::new(config.init(), rank)
}

/// [`LowRankAdamW`] with a configuration and a rank.
pub fn low_rank_adamw<B: AutodiffBackend, M: AutodiffModule<B>>(
    config: &AdamWConfig,
    rank: usize,
) -> LowRankAdamW<B, M> {
    LowRankOptimizer::new(config.init(), rank)
}

impl<O, M, B> Optimizer<M, B> for LowRankOptimizer<O>
where
    O: Optimizer<M, B>,
    M: AutodiffModule<B>,
    B: AutodiffBackend,
{
    type Record = O::Record;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.inner.step(lr, module, grads).map(&mut Projector { rank: self.rank })
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        self.inner.step_multi(lr, module, grads).map(&mut Projector { rank: self.rank })
    }

    fn to_record(&self) -> Self::Record {
        self.inner.to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self { inner: self.inner.load_record(record), ..self }
    }
}

struct Projector {
    rank: usize,
}

impl<B: Backend> ModuleMapper<B> for Projector {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() || !(D == 2 || D == 3) {
            return param;
        }
        let shape = param.dims();
        let (slices, m, n) = if D == 2 { (1, shape[0], shape[1]) } else { (shape[0], shape[1], shape[2]) };
        let rank = self.rank.min(m).min(n);
        let stack = param.val().detach().reshape([slices, m, n]);
        let matrices = (0..slices).map(|s| stack.clone().narrow(0, s, 1).reshape([m, n])).collect();
        let Ok(projected) = project(matrices, rank, D == 3) else { return param };
        let projected = Tensor::stack::<3>(projected, 0).reshape(shape);
        param.map(|_| projected.require_grad())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn_autodiff::Autodiff;
    use burn_flex::Flex;
    use lowrank_factor::svd;

    use super::*;
    use crate::host::to_mat;
    use crate::init::normal;

    type B = Autodiff<Flex>;

    #[derive(Module, Debug)]
    struct Model<B: Backend> {
        matrix: Param<Tensor<B, 2>>,
        stack: Param<Tensor<B, 3>>,
        bias: Param<Tensor<B, 1>>,
    }

    fn model() -> Model<B> {
        let device = Default::default();
        Model {
            matrix: Param::from_tensor(Tensor::zeros([12, 7], &device)),
            stack: Param::from_tensor(Tensor::zeros([3, 6, 5], &device)),
            bias: Param::from_tensor(Tensor::zeros([7], &device)),
        }
    }

    fn low_rank<const N: usize>(key: &str, shape: [usize; N], [m, n]: [usize; 2]) -> Tensor<B, N> {
        let device = Default::default();
        let slices = shape.iter().product::<usize>() / (m * n);
        let (left, right) = (normal(1, key, [m, 2], 1.0, &device), normal(2, key, [2, n], 1.0, &device));
        let slice = |s: usize| {
            let core = normal::<B, 2>(3 + s as u64, key, [2, 2], 1.0, &device);
            Tensor::<B, 2>::matmul(left.clone(), core).matmul(right.clone())
        };
        Tensor::stack::<3>((0..slices).map(slice).collect(), 0).reshape(shape)
    }

    fn train<O: Optimizer<Model<B>, B>>(mut optimizer: O, lr: f64, steps: usize) {
        let (matrix, stack) =
            (low_rank::<2>("matrix", [12, 7], [12, 7]), low_rank::<3>("stack", [3, 6, 5], [6, 5]));
        let loss = |model: &Model<B>| {
            (model.matrix.val() - matrix.clone()).powi_scalar(2).sum()
                + (model.stack.val() - stack.clone()).powi_scalar(2).sum()
                + (model.bias.val() - 1.0).powi_scalar(2).sum()
        };
        let value = |model: &Model<B>| loss(model).into_data().iter::<f64>().next().unwrap();
        let mut model = model();
        let before = value(&model);
        for step in 0..steps {
            let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
            let decay = 1.0 - step as f64 / steps as f64;
            model = optimizer.step(lr * decay, model, grads);
        }
        let after = value(&model);
        assert!(after < 1e-2 * before, "{before} -> {after}");
        let s = svd::exact(to_mat(model.matrix.val().inner()).unwrap().as_ref()).unwrap().s().to_vec();
        // The third singular value is the rounding of the product that wrote the projection back.
        assert!(s[1] > 0.1 && s[2] < 20.0 * f32::EPSILON * s[0], "the matrix has rank 2: {s:?}");
        let unfolded = model.stack.val().inner().swap_dims(0, 1).reshape([6, 15]);
        let s = svd::exact(to_mat(unfolded).unwrap().as_ref()).unwrap().s().to_vec();
        assert!(s[2] < 20.0 * f32::EPSILON * s[0], "the stack has one basis of two columns: {s:?}");
    }

    #[test]
    fn every_optimizer_learns_within_the_rank() {
        train(low_rank_sgd::<B, _>(&SgdConfig::new(), 2), 0.2, 60);
        train(low_rank_adam::<B, _>(&AdamConfig::new(), 2), 0.1, 250);
        train(low_rank_adamw::<B, _>(&AdamWConfig::new().with_weight_decay(0.0), 2), 0.1, 250);
    }
}
