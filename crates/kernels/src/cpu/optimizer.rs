//! AdamW in one pass over a parameter.

use super::buffer::Start;
use super::simd::{LANES, kernel};
use super::team;
use crate::spec::AdamW;

/// Elements per unit of work.
const UNIT: usize = 8 * 1024;

/// Elements below which a second thread does not pay.
const ALONE: usize = 16 * 1024;

/// Updates a parameter and the moments of its gradients.
pub(crate) fn adamw(param: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], options: &AdamW) {
    let count = param.len();
    assert!(grad.len() == count && mean.len() == count && square.len() == count);
    let factors = Factors::new(options);
    let starts = [param, mean, square].map(|slice| Start(slice.as_mut_ptr()));
    team::for_each(count.div_ceil(UNIT), count > ALONE, |unit| {
        let range = unit * UNIT..count.min((unit + 1) * UNIT);
        // SAFETY: units have different elements of the three slices, which outlive them.
        let [param, mean, square] = starts.map(|start| unsafe {
            std::slice::from_raw_parts_mut(start.get().add(range.start), range.len())
        });
        update(param, &grad[range], mean, square, &factors);
    });
}

/// The options as precomputed factors.
struct Factors {
    keep: f32,
    rate: f32,
    betas: [f32; 2],
    rests: [f32; 2],
    inverse_root: f32,
    eps: f32,
    grad_scale: f32,
}

impl Factors {
    fn new(options: &AdamW) -> Self {
        let AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale, .. } = *options;
        let [correction1, correction2] = options.corrections();
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            rate: (lr / correction1) as f32,
            betas: [beta1 as f32, beta2 as f32],
            rests: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            inverse_root: (1.0 / correction2.sqrt()) as f32,
            eps: eps as f32,
            grad_scale: grad_scale as f32,
        }
    }
}

kernel! {
    fn update(
        simd: S,
        param: &'a mut [f32],
        grad: &'a [f32],
        mean: &'a mut [f32],
        square: &'a mut [f32],
        factors: &'a Factors,
    ) {
        let [beta1, beta2] = factors.betas.map(|beta| simd.splat(beta));
        let [rest1, rest2] = factors.rests.map(|rest| simd.splat(rest));
        let (keep, rate) = (simd.splat(factors.keep), simd.splat(factors.rate));
        let (inverse_root, eps) = (simd.splat(factors.inverse_root), simd.splat(factors.eps));
        let grad_scale = simd.splat(factors.grad_scale);
        let parts = param.chunks_mut(LANES).zip(grad.chunks(LANES));
        for ((param, grad), (mean, square)) in parts.zip(mean.chunks_mut(LANES).zip(square.chunks_mut(LANES))) {
            let g = simd.mul(simd.load_part(grad, 0.0), grad_scale);
            let m = simd.fma(simd.load_part(mean, 0.0), beta1, simd.mul(g, rest1));
            let v = simd.fma(simd.load_part(square, 0.0), beta2, simd.mul(simd.mul(g, g), rest2));
            let root = simd.fma(simd.sqrt(v), inverse_root, eps);
            let step = simd.div(simd.mul(m, rate), root);
            let p = simd.sub(simd.mul(simd.load_part(param, 0.0), keep), step);
            simd.store_part(m, mean);
            simd.store_part(v, square);
            simd.store_part(p, param);
        }
    }
}
