//! Products of a few rows with a large matrix, at memory bandwidth: one step of generation.
//!
//! The matrix is read once, front to back, several rows at a time, while the sums stay in the L1 cache; a matrix
//! stored by columns is read sixteen columns at a time, while the sums stay in registers.
//! Each sum is the same chain as in [`gemm`](super::gemm), so both give the same bits.

mod columns;

use std::array;
use std::ops::Range;

use super::buffer::{self, Buffer, Part, Start};
use super::gemm::{Finish, Right, Weights};
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

/// Bytes of the matrix below which a second thread does not pay.
const ALONE: usize = 128 * 1024;

/// `x·w + bias` with an activation, for an `[m, k]` matrix of at most [`MAX_ROWS`] rows.
///
/// Writes all of `y` and, if given, the activation's slopes.
pub(crate) fn gemv(
    [m, k, n]: [usize; 3],
    x: &[f32],
    b: Right<'_>,
    finish: Finish<'_>,
    y: &mut Buffer,
    slope: Option<&mut Buffer>,
) {
    let Right { weights: w, transposed, .. } = b;
    assert!(m <= MAX_ROWS && x.len() == m * k && w.len() == k * n && y.len() == m * n);
    assert!(!matches!(w, Weights::Blocks(..)), "blocks are multiplied elsewhere");
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
                        dispatch(Unit { x, w, transposed, n, columns: columns.clone(), finish, y, slope });
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
    /// Whether the columns of the matrix lie together.
    transposed: bool,
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
        let Self { x, w, transposed, n, columns, finish, mut y, mut slope } = self;
        if transposed {
            columns::multiply(simd, &x, w, &columns, &mut y);
        } else {
            multiply_rows(simd, &x, (w, n), &columns, &mut y);
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

/// The products with some columns of a matrix stored by rows.
#[inline(always)]
fn multiply_rows<S: Simd, const M: usize>(
    simd: S,
    x: &[&[f32]; M],
    (w, n): (Weights<'_>, usize),
    columns: &Range<usize>,
    y: &mut [Part<'_>; M],
) {
    for y in &mut *y {
        for at in (0..columns.len()).step_by(LANES) {
            y.store(simd, simd.splat(0.0), at);
        }
    }
    let k = x.first().map_or(0, |x| x.len());
    for first in (0..k).step_by(ROWS) {
        let ks = first..k.min(first + ROWS);
        match w {
            Weights::F32(w) => add_rows(simd, x, (w, n), (ks, columns), y, |w| simd.load(w)),
            Weights::F16(w) => add_rows(simd, x, (w, n), (ks, columns), y, |w| simd.from_f16(w)),
            Weights::Bf16(w) => add_rows(simd, x, (w, n), (ks, columns), y, |w| simd.from_bf16(w)),
            // Refused above.
            Weights::Blocks(..) => {}
        }
    }
}

/// Adds the products with rows `ks` of the matrix, which is `n` wide and whose elements `widen` makes numbers of.
///
/// Counted loops: in a function of this size the compiler leaves iterators' steps as calls.
#[inline(always)]
fn add_rows<S: Simd, T: Copy + Default, const M: usize>(
    simd: S,
    x: &[&[f32]; M],
    (w, n): (&[T], usize),
    (ks, columns): (Range<usize>, &Range<usize>),
    y: &mut [Part<'_>; M],
    widen: impl Fn(&[T; LANES]) -> S::V,
) {
    let width = columns.len();
    let vectors = width / LANES;
    let row = |k: usize| &w[k * n + columns.start..k * n + columns.end];
    // Whole vectors of eight rows at once; the rest row by row.
    let mut at = if ks.len() == ROWS { vectors * LANES } else { 0 };
    while at < width {
        let count = LANES.min(width - at);
        let mut m = 0;
        while m < M {
            // SAFETY: the caller has stored all of y.
            let mut sum = unsafe { y[m].load(simd, at, 0.0) };
            let mut k = ks.start;
            while k < ks.end {
                let mut lanes = [T::default(); LANES];
                lanes[..count].copy_from_slice(&row(k)[at..at + count]);
                sum = simd.fma(simd.splat(x[m][k]), widen(&lanes), sum);
                k += 1;
            }
            y[m].store(simd, sum, at);
            m += 1;
        }
        at += LANES;
    }
    if ks.len() < ROWS {
        return;
    }
    let mut rows: [&[[T; LANES]]; ROWS] = [&[]; ROWS];
    let mut factors = [[0.0; ROWS]; M];
    let mut i = 0;
    while i < ROWS {
        rows[i] = &row(ks.start + i).as_chunks().0[..vectors];
        let mut m = 0;
        while m < M {
            factors[m][i] = x[m][ks.start + i];
            m += 1;
        }
        i += 1;
    }
    let mut at = 0;
    while at < vectors {
        let mut sums = [simd.splat(0.0); M];
        let mut m = 0;
        while m < M {
            // SAFETY: the caller has stored all of y.
            sums[m] = unsafe { y[m].load(simd, at * LANES, 0.0) };
            m += 1;
        }
        let mut i = 0;
        while i < ROWS {
            let lanes = &rows[i][at];
            // The stretch is shorter than what the processor needs to see coming.
            buffer::prefetch(std::ptr::from_ref(lanes).cast::<T>().wrapping_add(ROWS * n));
            let w = widen(lanes);
            let mut m = 0;
            while m < M {
                sums[m] = simd.fma(simd.splat(factors[m][i]), w, sums[m]);
                m += 1;
            }
            i += 1;
        }
        let mut m = 0;
        while m < M {
            y[m].store(simd, sums[m], at * LANES);
            m += 1;
        }
        at += 1;
    }
}
