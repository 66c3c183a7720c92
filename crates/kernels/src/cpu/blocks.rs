//! Products of a few rows with a matrix in blocks, at the speed of memory: one step of generation.
//!
//! The input is rounded to 8 bits, 32 elements with one scale, as llama.cpp does; products of integers are exact, and
//! what is left to floats follows one order, so that all instruction sets give the same bits.

use std::marker::PhantomData;

use super::buffer::{Buffer, Part, Start};
use super::simd::{Kernel, LANES, Simd, dispatch_dots};
use super::team;
use crate::blocks::{BlockMatrix, Format, Unit, with_format};

/// Rows up to which this is faster than tiles of dequantised elements.
pub(crate) const MAX_ROWS: usize = 4;

/// Elements that share a scale of the input.
const UNIT: usize = 32;

/// Bytes of a unit of work, and below which a second thread is not worth its while.
const WORK: usize = 64 * 1024;
const ALONE: usize = 64 * 1024;

/// A row of the input in 8 bits; an odd number of units is filled up with zeros.
struct Rounded {
    q: Vec<[i8; UNIT]>,
    scales: Vec<f32>,
    /// `scale·Σ q` of each half of a unit.
    sums: Vec<[f32; 2]>,
}

impl Rounded {
    fn new(x: &[f32]) -> Self {
        let units = (x.len() / UNIT).next_multiple_of(2);
        let mut rounded =
            Self { q: vec![[0; UNIT]; units], scales: vec![0.0; units], sums: vec![[0.0; 2]; units] };
        for (i, x) in x.as_chunks::<UNIT>().0.iter().enumerate() {
            let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            // A NaN is not the maximum of anything and must not be lost.
            let scale = if x.iter().any(|x| x.is_nan()) { f32::NAN } else { max / 127.0 };
            let inverse = if scale > 0.0 { 127.0 / max } else { 0.0 };
            let q = x.map(|x| (x * inverse).round_ties_even() as i8);
            let sum = |half: &[i8]| scale * half.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
            rounded.sums[i] = [sum(&q[..UNIT / 2]), sum(&q[UNIT / 2..])];
            (rounded.q[i], rounded.scales[i]) = (q, scale);
        }
        rounded
    }
}

/// `x·Sᵀ` for the stored matrix `S` `[n, k]` and `x` `[m, k]` of at most [`MAX_ROWS`] rows: `[m, n]`.
pub(crate) fn product(m: usize, x: &[f32], matrix: &BlockMatrix) -> Vec<f32> {
    let [n, k] = matrix.stored_dims();
    assert!(m <= MAX_ROWS && x.len() == m * k);
    if k == 0 {
        return vec![0.0; m * n];
    }
    let rows: Vec<Rounded> = x.chunks_exact(k).map(Rounded::new).collect();
    let mut y = Buffer::new(m * n);
    let start = Start(y.as_mut_ptr());
    let bytes = matrix.bytes();
    let row_bytes = bytes.len() / n.max(1);
    let rows_a_unit = (WORK / row_bytes.max(1)).clamp(LANES, n.div_ceil(2 * team::threads()).max(LANES));
    team::for_each(n.div_ceil(rows_a_unit), bytes.len() > ALONE, |unit| {
        let range = unit * rows_a_unit..n.min((unit + 1) * rows_a_unit);
        let blocks = &bytes[range.start * row_bytes..range.end * row_bytes];
        let part = |row: usize| {
            // SAFETY: units have different columns of the result, which outlives them.
            unsafe { Part::new(start.get().wrapping_add(row * n + range.start), range.len()) }
        };
        with_format!(matrix.format(), F => {
            // The blocks of a unit stay in the second cache from one pair of rows to the next.
            let (pairs, rest) = rows.as_chunks::<2>();
            for (i, x) in pairs.iter().enumerate() {
                let y = [part(2 * i), part(2 * i + 1)];
                dispatch_dots(Rows::<F, 2> { x: x.each_ref(), blocks, row_bytes, y, format: PhantomData });
            }
            if let [x] = rest {
                let y = [part(m - 1)];
                dispatch_dots(Rows::<F, 1> { x: [x], blocks, row_bytes, y, format: PhantomData });
            }
        });
    });
    // SAFETY: each column was in one unit, and `Rows` sets all of its part.
    unsafe { y.finish() }
}

/// Some rows of the matrix, which are columns of the result.
struct Rows<'a, F, const M: usize> {
    x: [&'a Rounded; M],
    blocks: &'a [u8],
    row_bytes: usize,
    y: [Part<'a>; M],
    format: PhantomData<F>,
}

impl<F: Format, const M: usize> Kernel for Rows<'_, F, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, blocks, row_bytes, mut y, .. } = self;
        let rows = blocks.len().checked_div(row_bytes).unwrap_or(0);
        let mut row = 0;
        while row < rows {
            let sums = one_row::<S, F, M>(simd, &x, &blocks[row * row_bytes..(row + 1) * row_bytes]);
            let mut m = 0;
            while m < M {
                y[m].set(row, sums[m]);
                m += 1;
            }
            row += 1;
        }
    }
}

/// The products of a row of blocks with all rows of the input.
///
/// Counted loops: in a function of this size the compiler leaves iterators' steps as calls.
#[inline(always)]
fn one_row<S: Simd, F: Format, const M: usize>(simd: S, x: &[&Rounded; M], blocks: &[u8]) -> [f32; M] {
    let mut sums = [simd.splat(0.0); M];
    let mut offsets = [0.0_f32; M];
    let units_a_block = F::LEN / UNIT;
    let units = blocks.len() / F::BYTES * units_a_block;
    let unit_of = |unit: usize| -> Unit {
        if unit >= units {
            return Unit::ZERO;
        }
        let (block, inside) = (unit / units_a_block, unit % units_a_block);
        let block = &blocks[block * F::BYTES..(block + 1) * F::BYTES];
        F::unit(block, inside)
    };
    let mut unit = 0;
    while unit < units {
        let pair = [unit_of(unit), unit_of(unit + 1)];
        let mut m = 0;
        while m < M {
            let x = x[m];
            let dots = simd.dot_pair([&pair[0].q, &pair[1].q], [&x.q[unit], &x.q[unit + 1]]);
            let mut scales = [0.0; LANES];
            let mut i = 0;
            while i < 4 {
                let scale = pair[i / 2].scale[i % 2] * x.scales[unit + i / 2];
                let mut lane = 0;
                while lane < LANES / 4 {
                    scales[LANES / 4 * i + lane] = scale;
                    lane += 1;
                }
                if F::HAS_OFFSET {
                    offsets[m] = pair[i / 2].offset[i % 2].mul_add(x.sums[unit + i / 2][i % 2], offsets[m]);
                }
                i += 1;
            }
            sums[m] = simd.fma(dots, simd.load(&scales), sums[m]);
            m += 1;
        }
        unit += 2;
    }
    let mut results = offsets;
    let mut m = 0;
    while m < M {
        results[m] += simd.sum(sums[m]);
        m += 1;
    }
    results
}
