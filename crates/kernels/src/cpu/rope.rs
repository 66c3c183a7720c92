//! Rotary position embedding.

use super::buffer::{self, Part, fill_rows};
use super::rows::Rows;
use super::simd::{LANES, kernel};
use crate::spec::RopeSpec;

/// Rotates each head of each row by the row's angles; backwards if `inverse`.
///
/// `cos` and `sin` have `rotary_dim / 2` values per row.
pub(crate) fn rope(x: Rows<'_>, cos: &[f32], sin: &[f32], spec: RopeSpec, inverse: bool) -> Vec<f32> {
    let [rows, width] = x.shape();
    let half = spec.rotary_dim / 2;
    assert!(cos.len() == rows * half && sin.len() == cos.len());
    assert!(
        spec.n_heads > 0
            && width.is_multiple_of(spec.n_heads)
            && spec.rotary_dim == 2 * half
            && spec.rotary_dim <= width / spec.n_heads,
        "rope: {} heads in a width of {width}, of which {} elements are rotated",
        spec.n_heads,
        spec.rotary_dim
    );
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe {
        fill_rows(rows, [width], 12 * width, |range, [mut y]| {
            for (i, row) in range.enumerate() {
                let angles = row * half..(row + 1) * half;
                let y = y.slice(i * width, width);
                rope_kernel(x.row(row), &cos[angles.clone()], &sin[angles], spec, inverse, y);
            }
        })
    };
    y
}

kernel! {
    fn rope_kernel(
        simd: S,
        x: &'a [f32],
        cos: &'a [f32],
        sin: &'a [f32],
        spec: RopeSpec,
        inverse: bool,
        y: Part<'a>,
    ) {
        let mut y = y;
        let half = spec.rotary_dim / 2;
        let sign = if inverse { -1.0 } else { 1.0 };
        let head_dim = x.len() / spec.n_heads;
        for (head, x) in x.chunks_exact(head_dim).enumerate() {
            let mut y = y.slice(head * head_dim, head_dim);
            if spec.interleaved {
                for i in 0..half {
                    let (a, b) = (x[2 * i], x[2 * i + 1]);
                    let (cos, sin) = (cos[i], sin[i] * sign);
                    y.set(2 * i, a.mul_add(cos, -(b * sin)));
                    y.set(2 * i + 1, b.mul_add(cos, a * sin));
                }
            } else {
                let (low, high) = (&x[..half], &x[half..2 * half]);
                for at in (0..half).step_by(LANES) {
                    let (a, b) = (buffer::load(simd, low, at, 0.0), buffer::load(simd, high, at, 0.0));
                    let cos = buffer::load(simd, cos, at, 0.0);
                    let sin = simd.mul(buffer::load(simd, sin, at, 0.0), simd.splat(sign));
                    y.slice(0, half).store(simd, simd.fnma(b, sin, simd.mul(a, cos)), at);
                    y.slice(half, half).store(simd, simd.fma(a, sin, simd.mul(b, cos)), at);
                }
            }
            for (i, &x) in x.iter().enumerate().skip(2 * half) {
                y.set(i, x);
            }
        }
    }
}
