//! Cross-entropy of burn operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use super::{unwrap, wrap};

pub(crate) fn cross_entropy_saving<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let logits: Tensor<B, 2> = wrap(logits);
    let targets = Tensor::<B, 1, Int>::from_primitive(targets).unsqueeze_dim::<2>(1);
    let max = logits.clone().max_dim(1); // [rows, 1]
    let log_sums = (logits.clone() - max.clone()).exp().sum_dim(1).log() + max;
    let loss = (log_sums.clone() - logits.gather(1, targets)).mean();
    (unwrap(loss), unwrap(log_sums))
}

pub(crate) fn cross_entropy_grad<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let logits: Tensor<B, 2> = wrap(logits);
    let [rows, classes] = logits.dims();
    let targets = Tensor::<B, 1, Int>::from_primitive(targets);
    let dtype = logits.dtype();
    let onehot = targets.one_hot::<2>(classes).float().cast(dtype);
    let dy = wrap::<B, 1>(dy).div_scalar(rows as f64);
    let p = (logits - wrap(log_sums)).exp();
    unwrap((p - onehot) * dy.unsqueeze())
}
