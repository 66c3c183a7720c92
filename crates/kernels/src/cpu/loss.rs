//! Cross-entropy, forward and backward.

use super::buffer::{self, Part, Start, fill_rows};
use super::math;
use super::simd::{LANES, Simd, kernel};
use super::team;

/// Targets of the rows of logits.
#[derive(Clone, Copy)]
pub(crate) struct Targets<'a> {
    /// The class of each row.
    pub(crate) classes: &'a [usize],
    /// The weight of each row, 1 if absent. A row of weight zero is ignored, whatever its class and logits.
    pub(crate) weights: Option<&'a [f32]>,
}

impl Targets<'_> {
    pub(crate) fn weight(&self, row: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[row])
    }

    /// # Panics
    /// If a class with nonzero weight is not below `count`.
    #[track_caller]
    pub(crate) fn check(&self, count: usize) {
        assert!(self.weights.is_none_or(|weights| weights.len() == self.classes.len()));
        for (row, &class) in self.classes.iter().enumerate() {
            assert!(
                class < count || self.weight(row) == 0.0,
                "cross_entropy: target {class} of {count} classes"
            );
        }
    }
}

/// Weighted sum of the cross-entropies of the rows of `logits`, `classes` wide, and the logarithms of the softmax
/// denominators.
///
/// # Panics
/// If a target with nonzero weight is not below `classes`.
pub(crate) fn cross_entropy(logits: &[f32], targets: Targets<'_>, classes: usize) -> (f32, Vec<f32>) {
    let rows = targets.classes.len();
    assert_eq!(logits.len(), rows * classes);
    targets.check(classes);
    // SAFETY: each row's value is set.
    let [log_sums] = unsafe {
        fill_rows(rows, [1], 20 * classes, |range, [mut log_sums]| {
            for (i, row) in range.enumerate() {
                let counts = targets.weight(row) != 0.0;
                log_sums.set(i, if counts { log_sum_exp(&logits[row * classes..][..classes]) } else { 0.0 });
            }
        })
    };
    let terms =
        log_sums.iter().zip(targets.classes).enumerate().filter(|&(row, _)| targets.weight(row) != 0.0);
    let total: f64 = terms
        .map(|(row, (&log_sum, &class))| {
            f64::from(targets.weight(row)) * (f64::from(log_sum) - f64::from(logits[row * classes + class]))
        })
        .sum();
    (total as f32, log_sums)
}

kernel! {
    fn log_sum_exp(simd: S, row: &'a [f32]) -> f32 {
        log_sum_exp_inline(simd, row)
    }
}

#[inline(always)]
fn log_sum_exp_inline<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let max = largest(simd, row);
    let mut total = simd.splat(0.0);
    for at in (0..row.len()).step_by(LANES) {
        let v = buffer::load(simd, row, at, f32::NEG_INFINITY);
        total = simd.add(total, math::exp(simd, simd.sub(v, simd.splat(max))));
    }
    max + math::ln(simd.sum(total))
}

/// Largest element. It may miss a NaN, which the exponentials then propagate.
#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut max = simd.splat(f32::MIN);
    for at in (0..row.len()).step_by(LANES) {
        max = simd.max(buffer::load(simd, row, at, f32::MIN), max);
    }
    simd.largest(max)
}

/// Gradient of the logits: `(softmax(logits) - onehot(targets))·weights·dy`.
pub(crate) fn cross_entropy_grad(
    logits: &[f32],
    targets: Targets<'_>,
    classes: usize,
    log_sums: &[f32],
    dy: f32,
) -> Vec<f32> {
    let rows = targets.classes.len();
    assert!(logits.len() == rows * classes && log_sums.len() == rows);
    targets.check(classes);
    // SAFETY: the kernel stores all of its part.
    let [grad] = unsafe {
        fill_rows(rows, [classes], 20 * classes, |range, [mut grad]| {
            for (i, row) in range.enumerate() {
                let logits = &logits[row * classes..(row + 1) * classes];
                let grad = grad.slice(i * classes, classes);
                // The class of an ignored row is not read.
                let scale =
                    Some(targets.weight(row)).filter(|&weight| weight != 0.0).map(|weight| weight * dy);
                grad_kernel(logits, targets.classes[row], log_sums[row], scale, grad);
            }
        })
    };
    grad
}

kernel! {
    /// `(softmax(logits) - onehot(target))·scale` of one row; zeros without a scale.
    fn grad_kernel(
        simd: S,
        logits: &'a [f32],
        target: usize,
        log_sum: f32,
        scale: Option<f32>,
        grad: Part<'a>,
    ) {
        let mut grad = grad;
        let Some(scale) = scale else {
            for at in (0..logits.len()).step_by(LANES) {
                grad.store(simd, simd.splat(0.0), at);
            }
            return;
        };
        for at in (0..logits.len()).step_by(LANES) {
            let v = simd.sub(buffer::load(simd, logits, at, 0.0), simd.splat(log_sum));
            grad.store(simd, simd.mul(math::exp(simd, v), simd.splat(scale)), at);
        }
        grad.set(target, (probability(simd, logits[target] - log_sum) - 1.0) * scale);
    }
}

#[inline(always)]
fn probability<S: Simd>(simd: S, log: f32) -> f32 {
    let mut p = [0.0; LANES];
    simd.store(math::exp(simd, simd.splat(log)), &mut p);
    p[0]
}

/// Caps logits, sums their weighted cross-entropies, and, if `with_grad`, replaces them by their gradients.
///
/// A cap maps a logit `l` to `cap·tanh(l / cap)`. All rows count.
pub(crate) fn cross_entropy_in_place(
    logits: &mut [f32],
    targets: Targets<'_>,
    classes: usize,
    soft_cap: Option<f32>,
    with_grad: bool,
) -> f64 {
    let rows = targets.classes.len();
    assert_eq!(logits.len(), rows * classes);
    let mut losses = vec![0.0_f32; 2 * rows];
    let starts = [Start(logits.as_mut_ptr()), Start(losses.as_mut_ptr())];
    team::for_each(rows, rows * classes > 16 * 1024, |row| {
        // SAFETY: units have different rows of the logits and of the losses, which outlive them.
        let [logits, loss] = unsafe {
            [(starts[0].get().add(row * classes), classes), (starts[1].get().add(2 * row), 2)]
                .map(|(start, len)| std::slice::from_raw_parts_mut(start, len))
        };
        let target = targets.classes[row];
        let (log_sum, logit) = row_in_place(logits, target, targets.weight(row), soft_cap, with_grad);
        (loss[0], loss[1]) = (log_sum, logit);
    });
    let losses = losses.as_chunks().0.iter().enumerate();
    losses
        .map(|(row, &[log_sum, logit])| {
            f64::from(targets.weight(row)) * (f64::from(log_sum) - f64::from(logit))
        })
        .sum()
}

kernel! {
    /// The logarithm of the softmax denominator, and the target's logit.
    fn row_in_place(
        simd: S,
        row: &'a mut [f32],
        target: usize,
        weight: f32,
        soft_cap: Option<f32>,
        with_grad: bool,
    ) -> (f32, f32) {
        if let Some(cap) = soft_cap {
            let (cap, inverse) = (simd.splat(cap), simd.splat(1.0 / cap));
            for lanes in row.chunks_mut(LANES) {
                let v = simd.mul(simd.load_part(lanes, 0.0), inverse);
                simd.store_part(simd.mul(cap, math::tanh(simd, v)), lanes);
            }
        }
        let log_sum = log_sum_exp_inline(simd, row);
        let logit = row[target];
        if with_grad {
            let scale = simd.splat(weight);
            // The slope of a cap is 1 - tanh², that is 1 - (logit / cap)².
            let inverse = soft_cap.map_or(0.0, |cap| 1.0 / cap);
            for lanes in row.chunks_mut(LANES) {
                let v = simd.load_part(lanes, 0.0);
                let mut grad = simd.mul(math::exp(simd, simd.sub(v, simd.splat(log_sum))), scale);
                if soft_cap.is_some() {
                    let t = simd.mul(v, simd.splat(inverse));
                    grad = simd.mul(grad, simd.fnma(t, t, simd.splat(1.0)));
                }
                simd.store_part(grad, lanes);
            }
            let t = logit * inverse;
            row[target] = (probability(simd, logit - log_sum) - 1.0) * weight * (1.0 - t * t);
        }
        (log_sum, logit)
    }
}
