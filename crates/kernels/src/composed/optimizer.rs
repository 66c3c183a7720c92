//! AdamW composed of burn operations.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::kernels::{AdamWState, AdamWStep, Kernels};
use crate::spec::AdamW;

pub(crate) fn adamw<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    state: AdamWState<FloatTensor<B>>,
    options: &AdamW,
) -> (FloatTensor<B>, AdamWState<FloatTensor<B>>) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale, .. } = *options;
    let [correction1, correction2] = options.corrections();
    let grad = wrap::<B, 1>(grad) * grad_scale;
    let mean = wrap::<B, 1>(state.mean) * beta1 + grad.clone() * (1.0 - beta1);
    let square = wrap::<B, 1>(state.square) * beta2 + grad.square() * (1.0 - beta2);
    let root = (square.clone() / correction2).sqrt() + eps;
    let param = wrap::<B, 1>(param) * (1.0 - lr * weight_decay) - mean.clone() / root * (lr / correction1);
    (unwrap(param), AdamWState { mean: unwrap(mean), square: unwrap(square) })
}

pub(crate) fn adamw_all<B: Kernels>(
    steps: Vec<AdamWStep<FloatTensor<B>>>,
    clip: Option<FloatTensor<B>>,
) -> Vec<(FloatTensor<B>, AdamWState<FloatTensor<B>>)> {
    let update = |AdamWStep { param, grad, state, options }| {
        let grad = match (grad, &clip) {
            (Some(grad), Some(clip)) => B::scaled_by(grad, clip.clone()),
            (Some(grad), None) => grad,
            (None, _) => B::float_zeros(param.shape(), &B::float_device(&param), param.dtype().into()),
        };
        B::adamw_update(param, grad, state, &options)
    };
    steps.into_iter().map(update).collect()
}

pub(crate) fn clip_factor<B: Backend>(grads: Vec<FloatTensor<B>>, max_norm: f64) -> Option<FloatTensor<B>> {
    let norm = wrap::<B, 1>(square_sum::<B>(grads)?).sqrt();
    // As in PyTorch: the small term makes a norm of zero harmless.
    let factor = (norm + 1e-6).recip() * max_norm;
    // Not a number is not below 1.
    let is_less = factor.clone().lower_elem(1.0);
    Some(unwrap(factor.mask_fill(is_less.bool_not(), 1.0)))
}

/// Sum of squares of all gradients, `[1]`.
pub(crate) fn square_sum<B: Backend>(grads: Vec<FloatTensor<B>>) -> Option<FloatTensor<B>> {
    let squares = grads.into_iter().map(|grad| B::float_sum(B::float_mul(grad.clone(), grad)));
    squares.reduce(B::float_add)
}
