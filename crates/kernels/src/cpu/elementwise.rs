//! Elementwise steps: GELU, products, dropout, the gated activation of Llama.

use super::buffer::{self, Part, fill_rows};
use super::math;
use super::simd::{LANES, Simd, kernel};
use crate::spec::{Dropout, Gelu};

/// Memory traffic equivalent to the arithmetic of one or two exponentials.
const EXP_BYTES: usize = 16;

/// `gelu(x)`.
pub(crate) fn gelu(x: &[f32], kind: Gelu) -> Vec<f32> {
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe { fill_rows(x.len(), [1], 8 + EXP_BYTES, |range, [y]| gelu_kernel(&x[range], kind, y)) };
    y
}

kernel! {
    fn gelu_kernel(simd: S, x: &'a [f32], kind: Gelu, y: Part<'a>) {
        let mut y = y;
        for at in (0..x.len()).step_by(LANES) {
            y.store(simd, math::gelu(simd, buffer::load(simd, x, at, 0.0), kind), at);
        }
    }
}

/// `gelu(x)` and its slopes.
pub(crate) fn gelu_slope(x: &[f32], kind: Gelu) -> [Vec<f32>; 2] {
    // SAFETY: the kernel stores all of its parts.
    unsafe {
        fill_rows(x.len(), [1, 1], 12 + EXP_BYTES, |range, parts| gelu_slope_kernel(&x[range], kind, parts))
    }
}

kernel! {
    fn gelu_slope_kernel(simd: S, x: &'a [f32], kind: Gelu, parts: [Part<'a>; 2]) {
        let [mut y, mut slope] = parts;
        for at in (0..x.len()).step_by(LANES) {
            let (value, dx) = math::gelu_slope(simd, buffer::load(simd, x, at, 0.0), kind);
            y.store(simd, value, at);
            slope.store(simd, dx, at);
        }
    }
}

/// `a ∘ b`.
pub(crate) fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len());
    // SAFETY: the kernel stores all of its part.
    let [y] =
        unsafe { fill_rows(a.len(), [1], 12, |range, [y]| product_kernel(&a[range.clone()], &b[range], y)) };
    y
}

kernel! {
    fn product_kernel(simd: S, a: &'a [f32], b: &'a [f32], y: Part<'a>) {
        let mut y = y;
        for at in (0..a.len()).step_by(LANES) {
            y.store(simd, simd.mul(buffer::load(simd, a, at, 0.0), buffer::load(simd, b, at, 0.0)), at);
        }
    }
}

/// Zeroes the dropped elements of rows of this width, and scales the others.
pub(crate) fn dropout(x: &[f32], width: usize, dropout: Dropout) -> Vec<f32> {
    let rows = x.len().checked_div(width).unwrap_or(0);
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe {
        fill_rows(rows, [width], 12 * width, |range, [mut y]| {
            for (i, row) in range.enumerate() {
                dropout_kernel(
                    &x[row * width..(row + 1) * width],
                    dropout,
                    row as u64,
                    y.slice(i * width, width),
                );
            }
        })
    };
    y
}

kernel! {
    fn dropout_kernel(simd: S, x: &'a [f32], dropout: Dropout, row: u64, y: Part<'a>) {
        let mut y = y;
        let mask = Mask::new(simd, dropout, row);
        for at in (0..x.len()).step_by(LANES) {
            y.store(simd, mask.apply(simd, buffer::load(simd, x, at, 0.0), at), at);
        }
    }
}

/// The dropout of one row.
#[derive(Clone, Copy)]
pub(crate) struct Mask<S: Simd> {
    key: (u32, u32),
    threshold: S::U,
    scale: S::V,
}

impl<S: Simd> Mask<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S, dropout: Dropout, row: u64) -> Self {
        Self {
            key: dropout.row_key(row),
            threshold: simd.splat_u(dropout.threshold()),
            scale: simd.splat(dropout.scale()),
        }
    }

    /// Drops and scales the vector that begins at this column.
    #[inline(always)]
    pub(crate) fn apply(self, simd: S, v: S::V, column: usize) -> S::V {
        let hash = math::dropout_hash(simd, self.key, column as u32);
        simd.keep_ge_u(hash, self.threshold, simd.mul(v, self.scale))
    }
}

/// `silu(gate) ∘ up`.
pub(crate) fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len());
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe {
        fill_rows(gate.len(), [1], 12 + EXP_BYTES, |range, [y]| {
            swiglu_kernel(&gate[range.clone()], &up[range], y)
        })
    };
    y
}

kernel! {
    fn swiglu_kernel(simd: S, gate: &'a [f32], up: &'a [f32], y: Part<'a>) {
        let mut y = y;
        for at in (0..gate.len()).step_by(LANES) {
            let (gate, up) = (buffer::load(simd, gate, at, 0.0), buffer::load(simd, up, at, 0.0));
            y.store(simd, simd.mul(simd.mul(gate, math::sigmoid(simd, gate)), up), at);
        }
    }
}

/// Gradients of the gate and of up from that of `silu(gate) ∘ up`.
pub(crate) fn swiglu_grads(gate: &[f32], up: &[f32], dy: &[f32]) -> [Vec<f32>; 2] {
    assert!(gate.len() == up.len() && gate.len() == dy.len());
    // SAFETY: the kernel stores all of its parts.
    unsafe {
        fill_rows(gate.len(), [1, 1], 20 + EXP_BYTES, |range, parts| {
            swiglu_grads_kernel(&gate[range.clone()], &up[range.clone()], &dy[range], parts);
        })
    }
}

kernel! {
    fn swiglu_grads_kernel(simd: S, gate: &'a [f32], up: &'a [f32], dy: &'a [f32], parts: [Part<'a>; 2]) {
        let [mut d_gate, mut d_up] = parts;
        let one = simd.splat(1.0);
        for at in (0..gate.len()).step_by(LANES) {
            let (gate, up) = (buffer::load(simd, gate, at, 0.0), buffer::load(simd, up, at, 0.0));
            let dy = buffer::load(simd, dy, at, 0.0);
            let s = math::sigmoid(simd, gate);
            let silu = simd.mul(gate, s);
            // silu' = s + silu·(1 - s)
            let slope = simd.fma(silu, simd.sub(one, s), s);
            d_gate.store(simd, simd.mul(simd.mul(dy, up), slope), at);
            d_up.store(simd, simd.mul(dy, silu), at);
        }
    }
}
