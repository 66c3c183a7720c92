//! Cross-entropy, forward and backward.

use super::buffer::{self, Part, fill_rows};
use super::math;
use super::simd::{LANES, Simd, kernel};

/// Mean cross-entropy of the rows of `logits`, `classes` wide, and the logarithms of the softmax denominators.
///
/// # Panics
/// If a target is not below `classes`.
pub(crate) fn cross_entropy(logits: &[f32], targets: &[usize], classes: usize) -> (f32, Vec<f32>) {
    let rows = check(logits, targets, classes);
    // SAFETY: each row's value is set.
    let [log_sums] = unsafe {
        fill_rows(rows, [1], 20 * classes, |range, [mut log_sums]| {
            for (i, row) in range.enumerate() {
                log_sums.set(i, log_sum_exp(&logits[row * classes..(row + 1) * classes]));
            }
        })
    };
    let losses = log_sums.iter().zip(targets).enumerate();
    let total: f64 = losses
        .map(|(row, (&log_sum, &target))| f64::from(log_sum) - f64::from(logits[row * classes + target]))
        .sum();
    ((total / rows as f64) as f32, log_sums)
}

fn check(logits: &[f32], targets: &[usize], classes: usize) -> usize {
    let rows = targets.len();
    assert_eq!(logits.len(), rows * classes);
    if let Some(target) = targets.iter().find(|&&target| target >= classes) {
        panic!("cross_entropy: target {target} of {classes} classes");
    }
    rows
}

kernel! {
    fn log_sum_exp(simd: S, row: &'a [f32]) -> f32 {
        let max = largest(simd, row);
        let mut total = simd.splat(0.0);
        for at in (0..row.len()).step_by(LANES) {
            let v = buffer::load(simd, row, at, f32::NEG_INFINITY);
            total = simd.add(total, math::exp(simd, simd.sub(v, simd.splat(max))));
        }
        max + math::ln(simd.sum(total))
    }
}

/// Largest element. A NaN may be passed over; the exponentials bring it back.
#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut max = simd.splat(f32::MIN);
    for at in (0..row.len()).step_by(LANES) {
        max = simd.max(buffer::load(simd, row, at, f32::MIN), max);
    }
    simd.largest(max)
}

/// Gradient of the logits: `(softmax(logits) - onehot(targets))·dy / rows`.
pub(crate) fn cross_entropy_grad(
    logits: &[f32],
    targets: &[usize],
    classes: usize,
    log_sums: &[f32],
    dy: f32,
) -> Vec<f32> {
    let rows = check(logits, targets, classes);
    let scale = dy / rows as f32;
    // SAFETY: the kernel stores all of its part.
    let [grad] = unsafe {
        fill_rows(rows, [classes], 20 * classes, |range, [mut grad]| {
            for (i, row) in range.enumerate() {
                let logits = &logits[row * classes..(row + 1) * classes];
                let grad = grad.slice(i * classes, classes);
                grad_kernel(logits, targets[row], log_sums[row], scale, grad);
            }
        })
    };
    grad
}

kernel! {
    /// `(softmax(logits) - onehot(target))·scale` of one row.
    fn grad_kernel(simd: S, logits: &'a [f32], target: usize, log_sum: f32, scale: f32, grad: Part<'a>) {
        let mut grad = grad;
        for at in (0..logits.len()).step_by(LANES) {
            let v = simd.sub(buffer::load(simd, logits, at, 0.0), simd.splat(log_sum));
            grad.store(simd, simd.mul(math::exp(simd, v), simd.splat(scale)), at);
        }
        let mut p = [0.0; LANES];
        simd.store(math::exp(simd, simd.splat(logits[target] - log_sum)), &mut p);
        grad.set(target, (p[0] - 1.0) * scale);
    }
}
