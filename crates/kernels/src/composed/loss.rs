//! Cross-entropy composed of burn operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

use super::{unwrap, wrap};
use crate::kernels::{HeadTensors, Kernels};
use crate::weight::Weight;

/// Targets and weights of rows; rows of weight zero get class 0.
struct Targets<B: Backend> {
    /// `[rows]`.
    classes: Tensor<B, 1, Int>,
    /// `[rows, 1]`, rows whose target lies outside the classes, where a device would read and write past the logits instead
    /// of refusing it: their class is 0, and their loss is not a number.
    unknown: Option<Tensor<B, 2, Bool>>,
    /// `[rows, 1]`, and a mask of its zeros.
    weights: Option<(Tensor<B, 2>, Tensor<B, 2, Bool>)>,
}

impl<B: Kernels> Targets<B> {
    fn new(targets: IntTensor<B>, weights: Option<FloatTensor<B>>, logits: &Tensor<B, 2>) -> Self {
        let mut classes = Tensor::<B, 1, Int>::from_primitive(targets);
        let weights = weights.map(|weights| {
            let weights = wrap::<B, 1>(weights).cast(logits.dtype());
            let ignored = weights.clone().equal_elem(0.0);
            classes = classes.clone().mask_fill(ignored.clone(), 0);
            (weights.unsqueeze_dim(1), ignored.unsqueeze_dim(1))
        });
        let unknown = (!B::ON_HOST).then(|| {
            let [_, count] = logits.dims();
            let is_below = classes.clone().lower_elem(0);
            let unknown = is_below.bool_or(classes.clone().greater_equal_elem(count as i64));
            classes = classes.clone().mask_fill(unknown.clone(), 0);
            unknown.unsqueeze_dim(1)
        });
        Self { classes, unknown, weights }
    }

    /// Multiplies rows by their weights; rows of weight zero become zero even if they are not finite.
    fn weigh(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.weights.clone() {
            Some((weights, ignored)) => {
                let width = x.dims()[1];
                x.mask_fill(ignored.repeat_dim(1, width), 0.0) * weights
            }
            None => x,
        }
    }

    /// The weighted sum of the cross-entropies `[1]`, and the logarithms of the softmax denominators `[rows, 1]`.
    fn loss(&self, logits: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 2>) {
        let max = logits.clone().max_dim(1); // [rows, 1]
        let log_sums = (logits.clone() - max.clone()).exp().sum_dim(1).log() + max;
        let picked = logits.gather(1, self.classes.clone().unsqueeze_dim::<2>(1));
        let mut losses = log_sums.clone() - picked;
        if let Some(unknown) = self.unknown.clone() {
            losses = losses.mask_fill(unknown, f32::NAN);
        }
        (self.weigh(losses).sum(), log_sums)
    }

    /// The gradient of the logits. Without `one_hot`, which reads the classes on the host to check them.
    fn grad(&self, logits: Tensor<B, 2>, log_sums: Tensor<B, 2>) -> Tensor<B, 2> {
        let place = self.classes.clone().unsqueeze_dim::<2>(1); // [rows, 1]
        let own = Tensor::ones(place.dims(), (&logits.device(), logits.dtype())).neg();
        self.weigh((logits - log_sums).exp().scatter(1, place, own, IndexingUpdateOp::Add))
    }
}

pub(crate) fn cross_entropy_saving<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let logits: Tensor<B, 2> = wrap(logits);
    let (loss, log_sums) = Targets::<B>::new(targets, weights, &logits).loss(logits);
    (unwrap(loss), unwrap(log_sums))
}

pub(crate) fn cross_entropy_grad<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let logits: Tensor<B, 2> = wrap(logits);
    let grad = Targets::<B>::new(targets, weights, &logits).grad(logits, wrap(log_sums));
    scaled_by::<B>(unwrap(grad), dy)
}

pub(crate) fn scaled_by<B: Backend>(x: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B> {
    use burn::tensor::TensorMetadata;
    let ones = vec![1; x.shape().num_dims()];
    B::float_mul(x, B::float_reshape(factor, ones.into()))
}

/// Number of logits that exist at a time, if at least [`MIN_ROWS`] rows fit.
const LOGITS: usize = 8 * 1024 * 1024;
const MIN_ROWS: usize = 64;

/// The loss of a head and those of its gradients that are needed, in chunks of rows.
pub(crate) fn head_loss<B: Kernels>(
    head: HeadTensors<FloatTensor<B>>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
    soft_cap: Option<f32>,
    needed: [bool; 5],
) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 5]) {
    let x: Tensor<B, 2> = wrap(head.x.clone());
    let w = unwrap(head.w.map(wrap::<B, 2>).to_tensor(&x.device(), x.dtype()));
    let head = HeadTensors { w: Weight::Float(w), ..head };
    head_loss_over_blocks::<B>(head, targets, weights, soft_cap, needed)
}

/// The same for backends whose products over blocks do without their floats.
pub(crate) fn head_loss_over_blocks<B: Kernels>(
    HeadTensors { x, w, bias, update }: HeadTensors<FloatTensor<B>>,
    targets: IntTensor<B>,
    weights: Option<FloatTensor<B>>,
    soft_cap: Option<f32>,
    needed: [bool; 5],
) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 5]) {
    let x: Tensor<B, 2> = wrap(x);
    let dtype = x.dtype();
    let w = w.map(|w| wrap::<B, 2>(w).cast(dtype));
    let bias = bias.map(wrap::<B, 1>);
    let update = update.map(|tensors| tensors.map(wrap::<B, 2>));
    let targets = Tensor::<B, 1, Int>::from_primitive(targets);
    let weights = weights.map(wrap::<B, 1>);
    // A row of weight zero may hold anything, and zero times that may be NaN.
    let counted = |x: Tensor<B, 2>| match &weights {
        Some(weights) => {
            let ignored = weights.clone().equal_elem(0.0).unsqueeze_dim::<2>(1);
            let width = x.dims()[1];
            x.mask_fill(ignored.repeat_dim(1, width), 0.0)
        }
        None => x,
    };
    let x = counted(x);
    let update = update.map(|[h, b]| [counted(h), b]);
    let one = Tensor::<B, 1>::ones([1], (&x.device(), dtype));
    let ([rows, _], [_, vocab]) = (x.dims(), w.dims());
    // Each chunk decodes the blocks of a weight anew.
    let min_rows = if matches!(w, Weight::Blocks(_)) { 4 * MIN_ROWS } else { MIN_ROWS };
    let rows_a_chunk = (LOGITS / vocab.max(1)).max(min_rows);
    let mut loss = Tensor::<B, 1>::zeros([1], (&x.device(), dtype));
    let [x_needed, w_needed, bias_needed, h_needed, b_needed] = needed;
    // Gradients by row are concatenated, gradients of shared tensors are summed.
    let (mut d_x, mut d_h) = (Vec::new(), Vec::new());
    let (mut d_w, mut d_bias, mut d_b) = (None, None, None);
    for start in (0..rows).step_by(rows_a_chunk) {
        let count = rows_a_chunk.min(rows - start);
        let x = x.clone().narrow(0, start, count);
        let targets = || targets.clone().narrow(0, start, count).into_primitive();
        let weights = || weights.clone().map(|weights| unwrap(weights.narrow(0, start, count)));
        let h = update.as_ref().map(|[h, _]| h.clone().narrow(0, start, count));
        let mut logits = times(x.clone(), w.clone()); // [count, vocab]
        if let Some(bias) = &bias {
            logits = logits + bias.clone().unsqueeze();
        }
        if let (Some(h), Some([_, b])) = (&h, &update) {
            logits = logits + times(h.clone(), Weight::Float(b.clone()));
        }
        if let Some(cap) = soft_cap {
            logits = (logits / cap).tanh() * cap;
        }
        let (part, log_sums) = B::cross_entropy_saving(unwrap(logits.clone()), targets(), weights());
        loss = loss + wrap(part);
        if !needed.contains(&true) {
            continue;
        }
        let (all, scale) = (unwrap(logits.clone()), unwrap(one.clone()));
        let mut grad: Tensor<B, 2> = wrap(B::cross_entropy_grad(all, targets(), weights(), log_sums, scale));
        if let Some(cap) = soft_cap {
            grad = grad * ((logits / cap).square().neg() + 1.0);
        }
        if x_needed {
            d_x.push(input_grad(grad.clone(), w.clone()));
        }
        if w_needed {
            d_w = add(d_w, weight_grad(x, grad.clone()));
        }
        if bias_needed {
            d_bias = add(d_bias, grad.clone().sum_dim(0));
        }
        if let (Some(h), Some([_, b])) = (h, &update) {
            if b_needed {
                d_b = add(d_b, weight_grad(h, grad.clone()));
            }
            if h_needed {
                d_h.push(input_grad(grad, Weight::Float(b.clone())));
            }
        }
    }
    let zeros = |shape: [usize; 2]| Tensor::<B, 2>::zeros(shape, (&x.device(), dtype));
    let stacked = |parts: Vec<Tensor<B, 2>>, like: &Tensor<B, 2>| {
        unwrap(if parts.is_empty() { zeros(like.dims()) } else { Tensor::cat(parts, 0) })
    };
    let summed = |sum: Option<Tensor<B, 2>>, dims: [usize; 2]| unwrap(sum.unwrap_or_else(|| zeros(dims)));
    let d_bias = bias.filter(|_| bias_needed).map(|_| {
        let sum = d_bias.unwrap_or_else(|| zeros([1, vocab]));
        unwrap(sum.reshape([vocab]))
    });
    let [d_h, d_b] = match &update {
        Some([h, b]) => [h_needed.then(|| stacked(d_h, h)), b_needed.then(|| summed(d_b, b.dims()))],
        None => [None, None],
    };
    let grads =
        [x_needed.then(|| stacked(d_x, &x)), w_needed.then(|| summed(d_w, w.dims())), d_bias, d_h, d_b];
    (unwrap(loss), grads)
}

/// `x·w`.
fn times<B: Kernels>(x: Tensor<B, 2>, w: Weight<Tensor<B, 2>>) -> Tensor<B, 2> {
    wrap(B::linear_forward(unwrap(x), w.map(unwrap), None))
}

/// `dy·wᵀ`.
fn input_grad<B: Kernels>(dy: Tensor<B, 2>, w: Weight<Tensor<B, 2>>) -> Tensor<B, 2> {
    wrap(B::linear_input_grad(unwrap(dy), w.map(unwrap)))
}

/// `xᵀ·dy`.
fn weight_grad<B: Kernels>(x: Tensor<B, 2>, dy: Tensor<B, 2>) -> Tensor<B, 2> {
    wrap(B::linear_weight_grad(unwrap(x), unwrap(dy)))
}

fn add<B: Backend>(sum: Option<Tensor<B, 2>>, term: Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    Some(match sum {
        Some(sum) => sum + term,
        None => term,
    })
}
