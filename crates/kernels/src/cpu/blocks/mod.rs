//! Products of a few rows with a matrix in blocks, at the speed of memory: one step of generation.
//!
//! The input is rounded to 8 bits, 32 elements with one scale, as llama.cpp does, and what that takes away is rounded once
//! more and multiplied as a second row: where single elements are large, 8 bits alone lose the others. Sums of products of
//! integers are exact, and what is left to floats follows one order, so that all instruction sets give the same bits.
//!
//! The weights are read as they lie in the file, several rows at a time, and leave their blocks in registers: their
//! order there costs nothing, since the input is brought into it once for all rows.

mod formats;
mod input;

use std::ops::Range;

use super::buffer::{Buffer, Part, Start};
use super::simd::{Kernel, Simd, dispatch_dots};
use super::team;
use crate::blocks::{BlockMatrix, with_format};
use formats::Dots;
use input::residual;

/// Rows up to which this is faster than tiles of dequantized elements.
pub(crate) const MAX_ROWS: usize = 4;

/// Most bytes of a unit of work.
const WORK: usize = 64 * 1024;

/// Bytes of the matrix below which a second thread does not pay.
const ALONE: usize = 32 * 1024;

/// Rows of the matrix times rows of the input that are summed up at once.
const SUMS: usize = 4;

/// `x·Sᵀ` for the stored matrix `S` `[n, k]` and `x` `[m, k]` of at most [`MAX_ROWS`] rows: `[m, n]`.
pub(crate) fn product(m: usize, x: &[f32], matrix: &BlockMatrix) -> Vec<f32> {
    let [n, k] = matrix.stored_dims();
    assert!(m <= MAX_ROWS && x.len() == m * k);
    if k == 0 {
        return vec![0.0; m * n];
    }
    with_format!(matrix.format(), F => product_of::<F>(x, matrix.bytes(), [m, n, k]))
}

fn product_of<F: Dots>(x: &[f32], bytes: &[u8], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let steps = k.div_ceil(F::SPAN);
    let residual = residual(x, k);
    // Rows of the input, and those of what rounding takes away.
    let (results, m) = (m * n, 2 * m);
    let mut inputs = Vec::with_capacity(m * steps);
    for x in x.chunks_exact(k).chain(residual.chunks_exact(k)) {
        dispatch_dots(Round::<F> { x, inputs: &mut inputs });
    }
    let mut y = Buffer::new(m * n);
    let start = Start(y.as_mut_ptr());
    let row_bytes = bytes.len() / n.max(1);
    // Several units a thread, so that none waits long for the last.
    let most = n.div_ceil(4 * team::threads()).next_multiple_of(SUMS);
    let rows_a_unit = (WORK / row_bytes.max(1)).next_multiple_of(SUMS).clamp(SUMS, most.max(SUMS));
    team::for_each(n.div_ceil(rows_a_unit), bytes.len() > ALONE, |unit| {
        let range = unit * rows_a_unit..n.min((unit + 1) * rows_a_unit);
        let blocks = &bytes[range.start * row_bytes..range.end * row_bytes];
        let part = |row: usize| {
            // SAFETY: units have different columns of the result, which outlives them.
            unsafe { Part::new(start.get().wrapping_add(row * n + range.start), range.len()) }
        };
        let x = |row: usize| &inputs[row * steps..(row + 1) * steps];
        // The blocks of a unit stay in the second cache from some rows of the input to the next.
        let mut row = 0;
        while m - row >= 4 {
            let (x, y) = ([x(row), x(row + 1), x(row + 2), x(row + 3)], [0, 1, 2, 3].map(|i| part(row + i)));
            dispatch_dots(Rows::<F, 1, 4> { x, blocks, row_bytes, y });
            row += 4;
        }
        if m - row >= 2 {
            let (x, y) = ([x(row), x(row + 1)], [part(row), part(row + 1)]);
            dispatch_dots(Rows::<F, 2, 2> { x, blocks, row_bytes, y });
            row += 2;
        }
        if m > row {
            dispatch_dots(Rows::<F, 4, 1> { x: [x(row)], blocks, row_bytes, y: [part(row)] });
        }
    });
    // SAFETY: each column was in one unit, and `Rows` sets all of its part.
    let mut y = unsafe { y.finish() };
    let (first, second) = y.split_at_mut(results);
    first.iter_mut().zip(second).for_each(|(first, second)| *first += *second);
    y.truncate(results);
    y
}

/// Rounds a row of the input.
struct Round<'a, F: Dots> {
    x: &'a [f32],
    inputs: &'a mut Vec<F::Input>,
}

impl<F: Dots> Kernel for Round<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, inputs } = self;
        let mut at = 0;
        while at < x.len() {
            inputs.push(F::input(simd, &x[at..x.len().min(at + F::SPAN)]));
            at += F::SPAN;
        }
    }
}

/// Some rows of the matrix, which are columns of the result; `R` of them at a time.
struct Rows<'a, F: Dots, const R: usize, const M: usize> {
    x: [&'a [F::Input]; M],
    blocks: &'a [u8],
    row_bytes: usize,
    y: [Part<'a>; M],
}

impl<F: Dots, const R: usize, const M: usize> Kernel for Rows<'_, F, R, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, blocks, row_bytes, mut y } = self;
        let rows = blocks.len().checked_div(row_bytes).unwrap_or(0);
        let mut first = 0;
        // Counted loops: in a function of this size the compiler leaves iterators' steps as calls.
        while first + R <= rows {
            let mut parts: [&[u8]; R] = [&[]; R];
            let mut r = 0;
            while r < R {
                parts[r] = row(blocks, row_bytes, first + r);
                r += 1;
            }
            let lanes = F::rows::<S, R, M>(simd, parts, x);
            let mut all = [simd.splat(0.0); SUMS];
            let mut i = 0;
            while i < SUMS {
                all[i] = lanes[i / M % R][i % M];
                i += 1;
            }
            let sums = simd.sums(all);
            let mut i = 0;
            while i < R * M {
                y[i % M].set(first + i / M, sums[i]);
                i += 1;
            }
            first += R;
        }
        while R > 1 && first < rows {
            let lanes = F::rows::<S, 1, M>(simd, [row(blocks, row_bytes, first)], x);
            let mut m = 0;
            while m < M {
                y[m].set(first, simd.sum(lanes[0][m]));
                m += 1;
            }
            first += 1;
        }
    }
}

#[inline(always)]
fn row(blocks: &[u8], row_bytes: usize, row: usize) -> &[u8] {
    let Range { start, end } = row * row_bytes..(row + 1) * row_bytes;
    &blocks[start..end]
}
