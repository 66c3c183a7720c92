//! Products of a few rows with a large matrix, at the speed of memory: one step of generation.
//!
//! The matrix is read once, front to back, several rows at a time, while the sums stay in the first cache.
//! Each sum is the same chain as in [`gemm`](super::gemm), so both give the same bits.

use std::array;
use std::ops::Range;

use super::buffer::{self, Buffer, Part, Start};
use super::gemm::{Finish, Weights};
use super::math;
use super::simd::{Kernel, LANES, Simd, dispatch};
use super::team;

/// Rows up to which this is faster than tiles.
pub(crate) const MAX_ROWS: usize = 4;

/// Rows of the matrix that are read together.
const ROWS: usize = 8;

/// Columns of a unit of work: enough to read long stretches of memory, and few enough for the first cache.
const MIN_COLUMNS: usize = 256;
const MAX_COLUMNS: usize = 2048;

/// Bytes of the matrix below which a second thread is not worth its while.
const ALONE: usize = 128 * 1024;

/// `x·w + bias` with an activation, for an `[m, k]` matrix of at most [`MAX_ROWS`] rows.
///
/// Writes all of `y` and, if given, the activation's slopes.
pub(crate) fn gemv(
    [m, k, n]: [usize; 3],
    x: &[f32],
    w: Weights<'_>,
    finish: Finish<'_>,
    y: &mut Buffer,
    slope: Option<&mut Buffer>,
) {
    assert!(m <= MAX_ROWS && x.len() == m * k && w.len() == k * n && y.len() == m * n);
    assert!(finish.bias.is_none_or(|bias| bias.len() == n));
    assert!(slope.as_ref().is_none_or(|slope| slope.len() == m * n && finish.gelu.is_some()));
    let (y, slope) = (Start(y.as_mut_ptr()), slope.map(|slope| Start(slope.as_mut_ptr())));
    let columns = n.div_ceil(2 * team::threads()).clamp(MIN_COLUMNS, MAX_COLUMNS).next_multiple_of(LANES);
    let bytes = k * n * if matches!(w, Weights::F32(_)) { 4 } else { 2 };
    team::for_each(n.div_ceil(columns), bytes > ALONE, |unit| {
        let columns = unit * columns..n.min((unit + 1) * columns);
        macro_rules! rows {
            ($($rows:literal)*) => {
                match m {
                    $($rows => {
                        let parts = |start: Start| array::from_fn(|row| {
                            // SAFETY: units have different columns of the results, which outlive them.
                            unsafe { Part::new(start.get().wrapping_add(row * n + columns.start), columns.len()) }
                        });
                        let x: [_; $rows] = array::from_fn(|row| &x[row * k..(row + 1) * k]);
                        let (y, slope) = (parts(y), slope.map(parts));
                        dispatch(Unit { x, w, n, columns: columns.clone(), finish, y, slope });
                    })*
                    _ => {},
                }
            };
        }
        rows!(1 2 3 4);
    });
}

/// Some columns of the results.
struct Unit<'a, const M: usize> {
    x: [&'a [f32]; M],
    w: Weights<'a>,
    n: usize,
    columns: Range<usize>,
    finish: Finish<'a>,
    y: [Part<'a>; M],
    slope: Option<[Part<'a>; M]>,
}

impl<const M: usize> Kernel for Unit<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, w, n, columns, finish, mut y, mut slope } = self;
        let k = x.first().map_or(0, |x| x.len());
        for y in &mut y {
            for at in (0..columns.len()).step_by(LANES) {
                y.store(simd, simd.splat(0.0), at);
            }
        }
        for first in (0..k).step_by(ROWS) {
            let ks = first..k.min(first + ROWS);
            match w {
                Weights::F32(w) => {
                    let load = |at: usize, count: usize| simd.load_part(&w[at..at + count], 0.0);
                    add_rows(simd, x, load, n, ks, columns.clone(), &mut y);
                }
                Weights::F16(w) => {
                    let load = |at: usize, count: usize| simd.from_f16(&buffer::halves(&w[at..at + count]));
                    add_rows(simd, x, load, n, ks, columns.clone(), &mut y);
                }
                Weights::Bf16(w) => {
                    let load = |at: usize, count: usize| simd.from_bf16(&buffer::halves(&w[at..at + count]));
                    add_rows(simd, x, load, n, ks, columns.clone(), &mut y);
                }
            }
        }
        if finish.bias.is_none() && finish.gelu.is_none() {
            return;
        }
        for (row, y) in y.iter_mut().enumerate() {
            for at in (0..columns.len()).step_by(LANES) {
                // SAFETY: it was stored above.
                let mut v = unsafe { y.load(simd, at, 0.0) };
                if let Some(bias) = finish.bias {
                    v = simd.add(v, buffer::load(simd, &bias[columns.clone()], at, 0.0));
                }
                match (finish.gelu, &mut slope) {
                    (Some(kind), Some(slope)) => {
                        let (value, dx) = math::gelu_slope(simd, v, kind);
                        slope[row].store(simd, dx, at);
                        v = value;
                    }
                    (Some(kind), None) => v = math::gelu(simd, v, kind),
                    (None, _) => {}
                }
                y.store(simd, v, at);
            }
        }
    }
}

/// Adds the products with rows `ks` of the matrix; `load(at, count)` gives up to sixteen of its elements.
#[inline(always)]
fn add_rows<S: Simd, const M: usize>(
    simd: S,
    x: [&[f32]; M],
    load: impl Fn(usize, usize) -> S::V,
    n: usize,
    ks: Range<usize>,
    columns: Range<usize>,
    y: &mut [Part<'_>; M],
) {
    let x = x.map(|x| &x[ks.clone()]);
    for at in (0..columns.len()).step_by(LANES) {
        let count = LANES.min(columns.len() - at);
        // SAFETY: the caller has stored all of y.
        let mut sums = y.each_ref().map(|y| unsafe { y.load(simd, at, 0.0) });
        for (i, k) in ks.clone().enumerate() {
            let w = load(k * n + columns.start + at, count);
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = simd.fma(simd.splat(x[i]), w, *sum);
            }
        }
        for (y, &sum) in y.iter_mut().zip(&sums) {
            y.store(simd, sum, at);
        }
    }
}
