//! Layer norm and RMS norm, forward and backward, and sums over rows.

use super::buffer::{self, Part, Start, fill_rows};
use super::elementwise::Mask;
use super::simd::{LANES, kernel};
use super::team;
use crate::spec::{Dropout, NormSpec};

/// The arguments of a norm over rows of the width of gamma.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: Option<&'a [f32]>,
    pub(crate) dropout: Option<Dropout>,
    pub(crate) spec: NormSpec,
}

impl<'a> Norm<'a> {
    fn rows(&self) -> usize {
        let width = self.gamma.len();
        assert!(self.beta.is_none_or(|beta| beta.len() == width));
        assert!(self.residual.is_none_or(|residual| residual.len() == self.x.len()));
        self.x.len().checked_div(width).unwrap_or(0)
    }

    fn row(&self, row: usize) -> Row<'a> {
        let range = row * self.gamma.len()..(row + 1) * self.gamma.len();
        Row {
            row: row as u64,
            x: &self.x[range.clone()],
            residual: self.residual.map(|residual| &residual[range]),
        }
    }
}

/// One row of the input.
#[derive(Clone, Copy)]
struct Row<'a> {
    row: u64,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
}

/// The norm of `dropout(x) + residual`.
pub(crate) fn norm(norm: Norm<'_>) -> Vec<f32> {
    let width = norm.gamma.len();
    // SAFETY: the kernel stores all of its part.
    let [y] = unsafe {
        fill_rows(norm.rows(), [width], 16 * width, |range, [mut y]| {
            for (i, row) in range.enumerate() {
                norm_kernel(&norm, norm.row(row), y.slice(i * width, width), None);
            }
        })
    };
    y
}

/// The norm, the normalized input and the inverse standard deviations.
pub(crate) fn norm_saving(norm: Norm<'_>) -> [Vec<f32>; 3] {
    let width = norm.gamma.len();
    // SAFETY: the kernel stores all of its parts, and the deviation is set.
    unsafe {
        fill_rows(norm.rows(), [width, width, 1], 20 * width, |range, [mut y, mut x_hat, mut inv_std]| {
            for (i, row) in range.enumerate() {
                let x_hat = x_hat.slice(i * width, width);
                inv_std.set(i, norm_kernel(&norm, norm.row(row), y.slice(i * width, width), Some(x_hat)));
            }
        })
    }
}

kernel! {
    fn norm_kernel(simd: S, norm: &'a Norm<'a>, row: Row<'a>, y: Part<'a>, x_hat: Option<Part<'a>>) -> f32 {
        let Norm { gamma, beta, dropout, spec, .. } = *norm;
        let width = gamma.len();
        let mut y = y;
        let zero = simd.splat(0.0);
        // The sum is stored where the output will be.
        let mask = dropout.map(|dropout| Mask::new(simd, dropout, row.row));
        let (mut total, mut squares) = (zero, zero);
        for at in (0..width).step_by(LANES) {
            let mut v = buffer::load(simd, row.x, at, 0.0);
            if let Some(mask) = mask {
                v = mask.apply(simd, v, at);
            }
            if let Some(residual) = row.residual {
                v = simd.add(v, buffer::load(simd, residual, at, 0.0));
            }
            total = simd.add(total, v);
            squares = simd.fma(v, v, squares);
            y.store(simd, v, at);
        }
        let inverse = 1.0 / width as f32;
        let mean = if spec.centered { simd.sum(total) * inverse } else { 0.0 };
        if spec.centered {
            squares = zero;
            for at in (0..width).step_by(LANES) {
                // SAFETY: the loop above stored it.
                let v = simd.sub(unsafe { y.load(simd, at, mean) }, simd.splat(mean));
                squares = simd.fma(v, v, squares);
            }
        }
        let inv_std = 1.0 / (simd.sum(squares) * inverse + spec.eps as f32).sqrt();
        let mut x_hat = x_hat;
        for at in (0..width).step_by(LANES) {
            // SAFETY: the first loop stored it.
            let v = unsafe { y.load(simd, at, 0.0) };
            let hat = simd.mul(simd.sub(v, simd.splat(mean)), simd.splat(inv_std));
            if let Some(x_hat) = &mut x_hat {
                x_hat.store(simd, hat, at);
            }
            let gamma = buffer::load(simd, gamma, at, 0.0);
            let value = match beta {
                Some(beta) => simd.fma(hat, gamma, buffer::load(simd, beta, at, 0.0)),
                None => simd.mul(hat, gamma),
            };
            y.store(simd, value, at);
        }
        inv_std
    }
}

/// Gradient of a norm's input.
///
/// With `g = dy ∘ gamma`: `(g - mean(g) - x_hat·mean(g ∘ x_hat)) / std`; an RMS norm has no `mean(g)`.
pub(crate) fn input_grad(
    dy: &[f32],
    x_hat: &[f32],
    inv_std: &[f32],
    gamma: &[f32],
    spec: NormSpec,
) -> Vec<f32> {
    let width = gamma.len();
    assert!(dy.len() == inv_std.len() * width && x_hat.len() == dy.len());
    // SAFETY: the kernel stores all of its part.
    let [dx] = unsafe {
        fill_rows(inv_std.len(), [width], 16 * width, |range, [mut dx]| {
            for (i, row) in range.enumerate() {
                let elements = row * width..(row + 1) * width;
                let dx = dx.slice(i * width, width);
                input_grad_kernel(&dy[elements.clone()], &x_hat[elements], inv_std[row], gamma, spec, dx);
            }
        })
    };
    dx
}

kernel! {
    fn input_grad_kernel(
        simd: S,
        dy: &'a [f32],
        x_hat: &'a [f32],
        inv_std: f32,
        gamma: &'a [f32],
        spec: NormSpec,
        dx: Part<'a>,
    ) {
        let mut dx = dx;
        let zero = simd.splat(0.0);
        let (mut total, mut along) = (zero, zero);
        for at in (0..dy.len()).step_by(LANES) {
            let g = simd.mul(buffer::load(simd, dy, at, 0.0), buffer::load(simd, gamma, at, 0.0));
            total = simd.add(total, g);
            along = simd.fma(g, buffer::load(simd, x_hat, at, 0.0), along);
        }
        let inverse = 1.0 / dy.len() as f32;
        let mean = simd.splat(if spec.centered { simd.sum(total) * inverse } else { 0.0 });
        let along = simd.splat(simd.sum(along) * inverse);
        for at in (0..dy.len()).step_by(LANES) {
            let g = simd.mul(buffer::load(simd, dy, at, 0.0), buffer::load(simd, gamma, at, 0.0));
            let v = simd.fnma(buffer::load(simd, x_hat, at, 0.0), along, simd.sub(g, mean));
            dx.store(simd, simd.mul(v, simd.splat(inv_std)), at);
        }
    }
}

/// Columns that are summed together, and rows that are summed before their sum is added to the total: the
/// rounding error grows with the number of such blocks instead of rows.
const SUM_COLUMNS: usize = 64;
const SUM_ROWS: usize = 64;

/// Sum over rows of this width of `a`, or of `a ∘ b`.
pub(crate) fn sum_rows(a: &[f32], b: Option<&[f32]>, width: usize) -> Vec<f32> {
    assert!(b.is_none_or(|b| b.len() == a.len()));
    let rows = a.len().checked_div(width).unwrap_or(0);
    let mut sums = vec![0.0; width];
    let start = Start(sums.as_mut_ptr());
    let blocks = width.div_ceil(SUM_COLUMNS);
    team::for_each(blocks, a.len() > 64 * 1024, |block| {
        let first = block * SUM_COLUMNS;
        let count = SUM_COLUMNS.min(width - first);
        // SAFETY: units have different columns of `sums`, which outlives them.
        let sums = unsafe { std::slice::from_raw_parts_mut(start.get().add(first), count) };
        for first_row in (0..rows).step_by(SUM_ROWS) {
            let rows = first_row..rows.min(first_row + SUM_ROWS);
            add_rows(a, b, width, rows, first, sums);
        }
    });
    sums
}

kernel! {
    /// Adds the sum of some rows of `a` or `a ∘ b`, from a column on, to `sums`.
    fn add_rows(
        simd: S,
        a: &'a [f32],
        b: Option<&'a [f32]>,
        width: usize,
        rows: std::ops::Range<usize>,
        first: usize,
        sums: &'a mut [f32],
    ) {
        let mut block = [simd.splat(0.0); SUM_COLUMNS / LANES];
        let count = sums.len();
        for row in rows {
            let at = row * width + first;
            let a = &a[at..at + count];
            for (i, sum) in block.iter_mut().enumerate().take(count.div_ceil(LANES)) {
                let v = buffer::load(simd, a, i * LANES, 0.0);
                *sum = match b {
                    Some(b) => simd.fma(v, buffer::load(simd, &b[at..at + count], i * LANES, 0.0), *sum),
                    None => simd.add(*sum, v),
                };
            }
        }
        for (sums, &sum) in sums.chunks_mut(LANES).zip(&block) {
            let total = simd.add(simd.load_part(sums, 0.0), sum);
            simd.store_part(total, sums);
        }
    }
}
