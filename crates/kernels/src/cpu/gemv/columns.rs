//! Columns that lie together: heads that are tied to an embedding.
//!
//! A square of sixteen columns and sixteen elements is turned round in the registers, so that each lane has a sum of its
//! own, in the order of [`gemm`](super::super::gemm). Of bfloat16, pairs of elements are turned round.

use std::ops::Range;

use super::super::buffer::{self, Part};
use super::super::gemm::Weights;
use super::super::simd::{LANES, Simd};

/// The products with some columns of the matrix.
#[inline(always)]
pub(super) fn multiply<S: Simd, const M: usize>(
    simd: S,
    x: &[&[f32]; M],
    w: Weights<'_>,
    columns: &Range<usize>,
    y: &mut [Part<'_>; M],
) {
    let k = if M == 0 { 0 } else { x[0].len() };
    let mut first = columns.start;
    while first < columns.end {
        let end = columns.end.min(first + LANES);
        let range = first * k..end * k;
        let sums = [simd.splat(0.0); M];
        let sums = match w {
            Weights::F32(w) => add(simd, x, 0, &w[range], sums, |part| simd.load_part(part, 0.0)),
            Weights::F16(w) => add(simd, x, 0, &w[range], sums, |part| simd.from_f16(&buffer::halves(part))),
            Weights::Bf16(w) => {
                let w = &w[range];
                let (sums, done) = if w.len() == LANES * k { add_pairs(simd, x, w, sums) } else { (sums, 0) };
                add(simd, x, done, w, sums, |part| simd.from_bf16(&buffer::halves(part)))
            }
            // Refused by the caller.
            Weights::Blocks(..) => sums,
        };
        let mut m = 0;
        while m < M {
            y[m].store(simd, sums[m], first - columns.start);
            m += 1;
        }
        first = end;
    }
}

/// Adds the products from element `from` on of at most sixteen columns, in `w` one after the other.
#[inline(always)]
fn add<S: Simd, T, const M: usize>(
    simd: S,
    x: &[&[f32]; M],
    from: usize,
    w: &[T],
    mut sums: [S::V; M],
    load: impl Fn(&[T]) -> S::V,
) -> [S::V; M] {
    let k = if M == 0 { 0 } else { x[0].len() };
    let mut at = from;
    while at < k {
        let depth = LANES.min(k - at);
        let mut square = [simd.splat(0.0); LANES];
        let mut i = 0;
        while i < LANES && (i + 1) * k <= w.len() {
            let part = &w[i * k + at..i * k + at + depth];
            buffer::prefetch(part.as_ptr().wrapping_add(LANES * k));
            square[i] = load(part);
            i += 1;
        }
        let turned = simd.transpose(square);
        let mut j = 0;
        while j < depth {
            let mut m = 0;
            while m < M {
                sums[m] = simd.fma(simd.splat(x[m][at + j]), turned[j], sums[m]);
                m += 1;
            }
            j += 1;
        }
        at += depth;
    }
    sums
}

/// [`add`] of sixteen columns, as far as pairs of elements fill squares; and how far that is.
#[inline(always)]
fn add_pairs<S: Simd, const M: usize>(
    simd: S,
    x: &[&[f32]; M],
    w: &[u16],
    mut sums: [S::V; M],
) -> ([S::V; M], usize) {
    let k = w.len() / LANES;
    let mut at = 0;
    while at + 2 * LANES <= k {
        let mut square = [simd.splat(0.0); LANES];
        let mut i = 0;
        while i < LANES {
            let part = &w[i * k + at..i * k + at + 2 * LANES];
            buffer::prefetch(part.as_ptr().wrapping_add(LANES * k));
            // SAFETY: the part has 32 numbers of two bytes, which are sixteen words of any bits.
            square[i] = unsafe { simd.load_ptr(part.as_ptr().cast()) };
            i += 1;
        }
        let turned = simd.transpose(square);
        let mut j = 0;
        while j < LANES {
            // The first of a pair is in the low half of a word.
            let pair = simd.to_bits(turned[j]);
            let first = simd.from_bits(simd.shl_u::<16>(pair));
            let second = simd.from_bits(simd.shl_u::<16>(simd.shr_u::<16>(pair)));
            let mut m = 0;
            while m < M {
                sums[m] = simd.fma(simd.splat(x[m][at + 2 * j]), first, sums[m]);
                sums[m] = simd.fma(simd.splat(x[m][at + 2 * j + 1]), second, sums[m]);
                m += 1;
            }
            j += 1;
        }
        at += 2 * LANES;
    }
    (sums, at)
}
