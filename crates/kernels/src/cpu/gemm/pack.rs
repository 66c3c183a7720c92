//! Panels of B: as wide as a tile, stored row by row.

use std::cell::Cell;
use std::ops::Range;

use super::super::buffer;
use super::super::simd::{Kernel, LANES, Simd};
use super::Right;
use crate::blocks::{BlockFormat, Chunk, Format, with_format};

/// Elements of a right factor.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    F32(&'a [f32]),
    /// Bits of half-precision numbers.
    F16(&'a [u16]),
    /// Bits of bfloat16 numbers.
    Bf16(&'a [u16]),
    /// Quantized blocks; each row has a whole number of them.
    Blocks(BlockFormat, &'a [u8]),
}

impl Weights<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Weights::F32(weights) => weights.len(),
            Weights::F16(bits) | Weights::Bf16(bits) => bits.len(),
            Weights::Blocks(format, bytes) => bytes.len() / format.block_bytes() * format.block_len(),
        }
    }
}

/// Sixteen floats aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Some rows and columns of B, divided into panels.
#[derive(Default)]
pub(in crate::cpu) struct Panels {
    room: Vec<Line>,
}

/// Location of panels.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Places {
    first: *const f32,
    /// Distance between panels.
    panel: usize,
    /// Distance between the rows of a panel.
    row: usize,
}

impl Places {
    /// A panel, and the distance between its rows.
    #[inline(always)]
    pub(in crate::cpu) fn get(&self, panel: usize) -> (*const f32, usize) {
        (self.first.wrapping_add(panel * self.panel), self.row)
    }
}

thread_local! {
    static PANELS: Cell<Panels> = const { Cell::new(Panels { room: Vec::new() }) };
}

impl Panels {
    /// The panels of this thread, which keep their memory.
    pub(in crate::cpu) fn take() -> Self {
        PANELS.take()
    }

    /// For the next [`take`](Panels::take).
    pub(in crate::cpu) fn put_back(self) {
        PANELS.set(self);
    }

    /// Divides rows `ks` and the given columns of B into panels of this width.
    ///
    /// The last panel may be narrower and is then padded with zeros to a whole vector. With `in_place`,
    /// a matrix that already has this layout is not copied.
    #[inline(always)]
    pub(in crate::cpu) fn fill<S: Simd>(
        &mut self,
        simd: S,
        b: &Right<'_>,
        ks: Range<usize>,
        columns: Range<usize>,
        width: usize,
        in_place: bool,
    ) -> Places {
        if let (Weights::F32(weights), false) = (b.weights, b.transposed)
            && in_place
            && columns.len().is_multiple_of(LANES)
            && !ks.is_empty()
        {
            return Places {
                first: weights[ks.start * b.stride + columns.start..].as_ptr(),
                panel: width,
                row: b.stride,
            };
        }
        // A line between panels keeps them from mapping to the same sets of the L1 cache.
        let panel = ks.len() * width + LANES;
        let lines = columns.len().div_ceil(width) * panel / LANES;
        if self.room.len() < lines {
            self.room.resize(lines, Line([0.0; LANES]));
        }
        let target = Target { to: self.room.as_mut_ptr().cast(), panel, width, ks, columns };
        simd.call(Fill { b, target });
        Places { first: self.room.as_ptr().cast(), panel, row: width }
    }
}

/// Fills panels that have room.
struct Fill<'a> {
    b: &'a Right<'a>,
    target: Target,
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { b, target } = self;
        macro_rules! copy {
            ($load:expr) => {
                // SAFETY: only `Panels::fill` creates one, with room for all rows of each panel.
                unsafe {
                    if b.transposed {
                        target.copy_transposed(simd, b.stride, $load);
                    } else {
                        target.copy(simd, b.stride, $load);
                    }
                }
            };
        }
        match b.weights {
            Weights::F32(weights) => {
                copy!(|at: usize, count: usize| simd.load_part(&weights[at..at + count], 0.0))
            }
            Weights::F16(bits) => {
                copy!(|at: usize, count: usize| simd.from_f16(&buffer::halves(&bits[at..at + count])))
            }
            Weights::Bf16(bits) => {
                copy!(|at: usize, count: usize| simd.from_bf16(&buffer::halves(&bits[at..at + count])))
            }
            // Rows have a multiple of sixteen elements, and so have the parts of them that are copied.
            Weights::Blocks(format, bytes) => {
                with_format!(format, F => copy!(|at: usize, _: usize| chunk::<S, F>(simd, bytes, at)));
            }
        }
    }
}

/// The sixteen elements from `at` on, a multiple of sixteen.
#[inline(always)]
fn chunk<S: Simd, F: Format>(simd: S, bytes: &[u8], at: usize) -> S::V {
    let first = at / F::LEN * F::BYTES;
    let Chunk { q, scale, offset } = F::chunk(&bytes[first..first + F::BYTES], at % F::LEN / LANES);
    let v = simd.mul(simd.from_i8(&q), simd.splat(scale));
    if F::HAS_OFFSET { simd.add(v, simd.splat(offset)) } else { v }
}

/// Destination of rows `ks` and these columns.
struct Target {
    to: *mut f32,
    panel: usize,
    width: usize,
    ks: Range<usize>,
    columns: Range<usize>,
}

impl Target {
    /// Offset of the vector that begins at this row and column, relative to the first ones.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> *mut f32 {
        self.to.wrapping_add(column / self.width * self.panel + row * self.width + column % self.width)
    }

    /// Copies rows of B; `load(at, count)` returns up to sixteen of its elements.
    ///
    /// # Safety
    /// The panels must have room.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self, simd: S, stride: usize, load: impl Fn(usize, usize) -> S::V) {
        for (row, k) in self.ks.clone().enumerate() {
            for column in (0..self.columns.len()).step_by(LANES) {
                let count = LANES.min(self.columns.len() - column);
                let v = load(k * stride + self.columns.start + column, count);
                // SAFETY: the caller's.
                unsafe { simd.store_ptr(v, self.place(row, column)) };
            }
        }
    }

    /// Copies columns of B, which are rows of its transpose; `load(at, count)` returns up to sixteen
    /// elements.
    ///
    /// # Safety
    /// The panels must have room.
    #[inline(always)]
    unsafe fn copy_transposed<S: Simd>(&self, simd: S, stride: usize, load: impl Fn(usize, usize) -> S::V) {
        for column in (0..self.columns.len()).step_by(LANES) {
            let count = LANES.min(self.columns.len() - column);
            for first in (0..self.ks.len()).step_by(LANES) {
                let depth = LANES.min(self.ks.len() - first);
                let mut square = [simd.splat(0.0); LANES];
                for (i, row) in square.iter_mut().enumerate().take(count) {
                    *row = load((self.columns.start + column + i) * stride + self.ks.start + first, depth);
                }
                for (i, &v) in simd.transpose(square).iter().enumerate().take(depth) {
                    // SAFETY: the caller's.
                    unsafe { simd.store_ptr(v, self.place(first + i, column)) };
                }
            }
        }
    }
}
