//! The loss and the optimizer.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};

use super::{HostTensor, all_f32, dims2, weight_dims};
use crate::composed;
use crate::cpu::gemm::Weights;
use crate::cpu::loss::Targets;
use crate::cpu::{head, loss, optimizer};
use crate::kernels::{AdamWState, AdamWStep, HeadTensors, Kernels};
use crate::spec::AdamW;
use crate::weight::Weight;

/// Calls `f` with the targets and weights of rows; `None` if the weights are not of type `f32`.
fn with_targets<F: HostTensor, I: HostTensor, R>(
    targets: &I,
    weights: Option<&F>,
    f: impl FnOnce(Targets<'_>) -> R,
) -> Option<R> {
    if !weights.is_none_or(|weights| all_f32([weights])) {
        return None;
    }
    let (classes, weights) = (targets.indices(), weights.map(|weights| weights.clone().in_rows()));
    Some(f(Targets { classes: &classes, weights: weights.as_ref().map(F::floats) }))
}

pub(in crate::backends) fn cross_entropy_forward<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    cross_entropy_saving::<B>(logits, targets, weights).0
}

pub(in crate::backends) fn cross_entropy_saving<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    let [rows, classes] = dims2(&logits);
    let of_f32 = all_f32([&logits]).then(|| logits.clone().in_rows());
    let found = of_f32.and_then(|logits| {
        with_targets(&targets, weights.as_ref(), |targets| {
            loss::cross_entropy(logits.floats(), targets, classes)
        })
    });
    match found {
        Some((loss, log_sums)) => {
            (HostTensor::from_floats(vec![loss], vec![1]), HostTensor::from_floats(log_sums, vec![rows, 1]))
        }
        None => composed::cross_entropy_saving::<B>(logits, targets, weights),
    }
}

pub(in crate::backends) fn cross_entropy_grad<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    let [rows, classes] = dims2(&logits);
    let of_f32 = all_f32([&logits, &log_sums, &dy]).then(|| {
        let [logits, log_sums, dy] = [&logits, &log_sums, &dy].map(|tensor| tensor.clone().in_rows());
        (logits, log_sums, dy)
    });
    let grad = of_f32.and_then(|(logits, log_sums, dy)| {
        let dy = dy.floats().first().copied().unwrap_or(0.0);
        with_targets(&targets, weights.as_ref(), |targets| {
            loss::cross_entropy_grad(logits.floats(), targets, classes, log_sums.floats(), dy)
        })
    });
    match grad {
        Some(grad) => HostTensor::from_floats(grad, vec![rows, classes]),
        None => composed::cross_entropy_grad::<B>(logits, targets, weights, log_sums, dy),
    }
}

pub(in crate::backends) fn head_loss_saving<B: Kernels>(
    tensors: HeadTensors<FloatTensor<B>>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
    soft_cap: Option<f32>,
    needed: [bool; 5],
) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 5])
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    let found = with_head(&tensors, needed, |head| {
        with_targets(&targets, weights.as_ref(), |targets| {
            head::head_loss(head::Head { targets, soft_cap, ..head })
        })
    });
    let Some((loss, grads, d_bias)) = found.flatten() else {
        return composed::head_loss::<B>(tensors, targets, weights, soft_cap, needed);
    };
    let vocab = weight_dims(&tensors.w)[1];
    let mut of_terms = [None, None, None, None];
    for (i, ([dx, dw], (x, w))) in grads.into_iter().zip(terms_of(tensors)).enumerate() {
        let [rows, depth] = dims2(&x);
        of_terms[2 * i] = dx.map(|dx| HostTensor::from_floats(dx, vec![rows, depth]));
        of_terms[2 * i + 1] = dw.map(|dw| {
            // The gradient has the layout of the weight.
            if w.float().and_then(|w| w.weights()).is_some_and(|(_, transposed)| transposed) {
                B::float_transpose(HostTensor::from_floats(dw, vec![vocab, depth]))
            } else {
                HostTensor::from_floats(dw, vec![depth, vocab])
            }
        });
    }
    let [d_x, d_w, d_h, d_b] = of_terms;
    let d_bias = d_bias.map(|d_bias| HostTensor::from_floats(d_bias, vec![vocab]));
    (HostTensor::from_floats(vec![loss], vec![1]), [d_x, d_w, d_bias, d_h, d_b])
}

/// The pairs of matrices whose products give the logits.
fn terms_of<T>(tensors: HeadTensors<T>) -> impl Iterator<Item = (T, Weight<T>)> {
    let update = tensors.update.map(|[h, b]| (h, Weight::Float(b)));
    [Some((tensors.x, tensors.w)), update].into_iter().flatten()
}

/// Calls `f` with a head that has no targets yet; `None` if the kernel does not support a tensor's type.
fn with_head<T: HostTensor, R>(
    tensors: &HeadTensors<T>,
    needed: [bool; 5],
    f: impl FnOnce(head::Head<'_>) -> R,
) -> Option<R> {
    let bias = tensors.bias.as_ref();
    let held: Vec<(T, Weight<T>)> = terms_of(tensors.clone())
        .map(|(x, w)| (x.in_rows(), w.map(|w| if w.weights().is_some() { w } else { w.in_rows() })))
        .collect();
    if !held.iter().all(|(x, _)| all_f32([x])) || !bias.is_none_or(|bias| all_f32([bias])) {
        return None;
    }
    let bias = bias.map(|bias| bias.clone().in_rows());
    let [x_needed, w_needed, bias_needed, h_needed, b_needed] = needed;
    let terms: Option<Vec<head::Term<'_>>> = held
        .iter()
        .zip([[x_needed, w_needed], [h_needed, b_needed]])
        .map(|((x, w), needed)| {
            let (weights, transposed) = match w {
                Weight::Float(w) => w.weights()?,
                Weight::Blocks(w) => (Weights::Blocks(w.format(), w.bytes()), w.is_transposed()),
            };
            let w = head::Matrix { weights, transposed };
            Some(head::Term { x: x.floats(), w, depth: dims2(x)[1], needed })
        })
        .collect();
    Some(f(head::Head {
        terms: &terms?,
        bias: bias.as_ref().map(T::floats),
        bias_needed,
        vocab: weight_dims(&tensors.w)[1],
        targets: Targets { classes: &[], weights: None },
        soft_cap: None,
    }))
}

pub(in crate::backends) fn scaled_by<B: Kernels>(x: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&factor]) {
        return composed::scaled_by::<B>(x, factor);
    }
    match factor.in_rows().floats().first() {
        Some(&1.0) | None => x,
        Some(&factor) => B::float_mul_scalar(x, factor.into()),
    }
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

/// The factor is a number here, which the kernel takes with the other options.
pub(in crate::backends) fn adamw_update_all<B: Kernels>(
    mut steps: Vec<AdamWStep<FloatTensor<B>>>,
    clip: Option<FloatTensor<B>>,
) -> Vec<(FloatTensor<B>, AdamWState<FloatTensor<B>>)> {
    if let Some(clip) = clip.and_then(number::<B>) {
        steps.iter_mut().for_each(|step| step.options.grad_scale *= clip);
    }
    composed::adamw_all::<B>(steps, None)
}

/// In double precision from the sum of squares on.
pub(in crate::backends) fn clip_factor<B: Kernels>(
    grads: Vec<FloatTensor<B>>,
    max_norm: f64,
) -> Option<FloatTensor<B>> {
    let sum = composed::square_sum::<B>(grads)?;
    let like = (B::float_device(&sum), TensorMetadata::dtype(&sum));
    let square = number::<B>(sum).unwrap_or(0.0);
    // As in PyTorch: the small term makes a norm of zero harmless. If the norm is not a number, the factor is 1.
    let factor = (max_norm / (square.sqrt() + 1e-6)).min(1.0);
    Some(Tensor::<B, 1>::from_data([factor], (&like.0, like.1)).into_primitive().tensor())
}

/// The number in a tensor `[1]`.
fn number<B: Kernels>(tensor: FloatTensor<B>) -> Option<f64> {
    let tensor = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(tensor));
    tensor.into_data().iter::<f64>().next()
}
