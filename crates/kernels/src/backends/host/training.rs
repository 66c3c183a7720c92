//! The loss and the optimizer.

use burn::tensor::ops::{FloatTensor, IntTensor};

use super::{HostTensor, all_f32, dims2};
use crate::composed;
use crate::cpu::{loss, optimizer};
use crate::kernels::{AdamWState, Kernels};
use crate::spec::AdamW;

pub(in crate::backends) fn cross_entropy_forward<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    cross_entropy_saving::<B>(logits, targets).0
}

pub(in crate::backends) fn cross_entropy_saving<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    if !all_f32([&logits]) {
        return composed::cross_entropy_saving::<B>(logits, targets);
    }
    let [rows, classes] = dims2(&logits);
    let (loss, log_sums) = loss::cross_entropy(logits.in_rows().floats(), &targets.indices(), classes);
    (HostTensor::from_floats(vec![loss], vec![1]), HostTensor::from_floats(log_sums, vec![rows, 1]))
}

pub(in crate::backends) fn cross_entropy_grad<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    if !all_f32([&logits, &log_sums, &dy]) {
        return composed::cross_entropy_grad::<B>(logits, targets, log_sums, dy);
    }
    let [rows, classes] = dims2(&logits);
    let [logits, log_sums, dy] = [logits, log_sums, dy].map(HostTensor::in_rows);
    let dy = dy.floats().first().copied().unwrap_or(0.0);
    let grad = loss::cross_entropy_grad(logits.floats(), &targets.indices(), classes, log_sums.floats(), dy);
    HostTensor::from_floats(grad, vec![rows, classes])
}

pub(in crate::backends) fn adamw_update<B: Kernels>(
    mut param: FloatTensor<B>,
    grad: FloatTensor<B>,
    mut state: AdamWState<FloatTensor<B>>,
    options: &AdamW,
) -> (FloatTensor<B>, AdamWState<FloatTensor<B>>)
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&param, &grad, &state.mean, &state.square]) {
        return composed::adamw::<B>(param, grad, state, options);
    }
    let grad = grad.in_rows();
    let (mean, square) = (state.mean.floats_mut(), state.square.floats_mut());
    optimizer::adamw(param.floats_mut(), grad.floats(), mean, square, options);
    (param, state)
}
