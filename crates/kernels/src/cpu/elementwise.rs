//! Elementwise steps: GELU, sums, products, dropout, gated activations.

use super::buffer::{self, Part, fill_rows};
use super::math;
use super::rows::Rows;
use super::simd::{LANES, Simd, kernel};
use crate::spec::{Dropout, Gate, Gelu};

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
    // SAFETY: the kernel stores all of its part.
    unsafe { pairwise(a, b, product_kernel) }
}

kernel! {
    fn product_kernel(simd: S, a: &'a [f32], b: &'a [f32], y: Part<'a>) {
        let mut y = y;
        for at in (0..a.len()).step_by(LANES) {
            y.store(simd, simd.mul(buffer::load(simd, a, at, 0.0), buffer::load(simd, b, at, 0.0)), at);
        }
    }
}

/// `a + b`.
pub(crate) fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    // SAFETY: the kernel stores all of its part.
    unsafe { pairwise(a, b, sum_kernel) }
}

kernel! {
    fn sum_kernel(simd: S, a: &'a [f32], b: &'a [f32], y: Part<'a>) {
        let mut y = y;
        for at in (0..a.len()).step_by(LANES) {
            y.store(simd, simd.add(buffer::load(simd, a, at, 0.0), buffer::load(simd, b, at, 0.0)), at);
        }
    }
}

/// A function of two elements.
///
/// # Safety
/// `kernel` must store all of its part.
unsafe fn pairwise(a: &[f32], b: &[f32], kernel: for<'a> fn(&'a [f32], &'a [f32], Part<'a>)) -> Vec<f32> {
    assert_eq!(a.len(), b.len());
    // SAFETY: the caller's.
    let [y] = unsafe { fill_rows(a.len(), [1], 12, |range, [y]| kernel(&a[range.clone()], &b[range], y)) };
    y
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

/// `act(gate) ∘ up`, of one shape.
pub(crate) fn gated(gate: Rows<'_>, up: Rows<'_>, kind: Gate) -> Vec<f32> {
    let [rows, width] = gate.shape();
    assert_eq!(gate.shape(), up.shape());
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe {
        fill_rows(rows, [width], (12 + EXP_BYTES) * width, |range, [mut y]| {
            for (i, row) in range.enumerate() {
                gated_kernel(gate.row(row), up.row(row), kind, y.slice(i * width, width));
            }
        })
    };
    y
}

kernel! {
    fn gated_kernel(simd: S, gate: &'a [f32], up: &'a [f32], kind: Gate, y: Part<'a>) {
        let mut y = y;
        for at in (0..gate.len()).step_by(LANES) {
            let (gate, up) = (buffer::load(simd, gate, at, 0.0), buffer::load(simd, up, at, 0.0));
            let activated = match kind {
                Gate::Silu => simd.mul(gate, math::sigmoid(simd, gate)),
                Gate::Gelu(kind) => math::gelu(simd, gate, kind),
            };
            y.store(simd, simd.mul(activated, up), at);
        }
    }
}

/// Gradients of the gate and of up from that of `act(gate) ∘ up`, all of one shape.
pub(crate) fn gated_grads(gate: Rows<'_>, up: Rows<'_>, dy: Rows<'_>, kind: Gate) -> [Vec<f32>; 2] {
    let [rows, width] = gate.shape();
    assert!(gate.shape() == up.shape() && gate.shape() == dy.shape());
    // SAFETY: the kernel stores all of its parts.
    unsafe {
        fill_rows(rows, [width, width], (20 + EXP_BYTES) * width, |range, parts| {
            let [mut d_gate, mut d_up] = parts;
            for (i, row) in range.enumerate() {
                let parts = [d_gate.slice(i * width, width), d_up.slice(i * width, width)];
                gated_grads_kernel([gate, up, dy].map(|x| x.row(row)), kind, parts);
            }
        })
    }
}

kernel! {
    fn gated_grads_kernel(simd: S, rows: [&'a [f32]; 3], kind: Gate, parts: [Part<'a>; 2]) {
        let ([gate, up, dy], [mut d_gate, mut d_up]) = (rows, parts);
        let one = simd.splat(1.0);
        for at in (0..gate.len()).step_by(LANES) {
            let (gate, up) = (buffer::load(simd, gate, at, 0.0), buffer::load(simd, up, at, 0.0));
            let dy = buffer::load(simd, dy, at, 0.0);
            let (activated, slope) = match kind {
                Gate::Silu => {
                    let s = math::sigmoid(simd, gate);
                    let silu = simd.mul(gate, s);
                    // silu' = s + silu·(1 - s)
                    (silu, simd.fma(silu, simd.sub(one, s), s))
                }
                Gate::Gelu(kind) => math::gelu_slope(simd, gate, kind),
            };
            d_gate.store(simd, simd.mul(simd.mul(dy, up), slope), at);
            d_up.store(simd, simd.mul(dy, activated), at);
        }
    }
}
