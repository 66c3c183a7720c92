//! AdamW composed of burn operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::kernels::AdamWState;
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
