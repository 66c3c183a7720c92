//! Memory for results, written once and not cleared before.

use std::marker::PhantomData;
use std::ops::Range;

use super::simd::{LANES, Simd};
use super::team;

/// A result under construction: `len` floats, not yet initialized.
pub(crate) struct Buffer {
    /// Has capacity for `len` floats and length 0.
    room: Vec<f32>,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(len: usize) -> Self {
        Self { room: Vec::with_capacity(len), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.room.as_mut_ptr()
    }

    /// The result.
    ///
    /// # Safety
    /// All floats must have been written.
    pub(crate) unsafe fn finish(mut self) -> Vec<f32> {
        // SAFETY: the capacity suffices, and the caller has written all floats.
        unsafe { self.room.set_len(self.len) };
        self.room
    }
}

/// A part of a [`Buffer`] that is being written, in vectors. Reads see what was written.
pub(crate) struct Part<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut f32>,
}

impl Part<'_> {
    /// `len` floats to be written.
    ///
    /// # Safety
    /// They must be allocated, and not be used elsewhere, as long as this exists.
    pub(crate) unsafe fn new(start: *mut f32, len: usize) -> Self {
        Self { start, len, lifetime: PhantomData }
    }

    /// Stores a vector, or as much of it as fits, at `at`.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&mut self, simd: S, v: S::V, at: usize) {
        if at + LANES <= self.len {
            // SAFETY: sixteen floats fit.
            unsafe { simd.store_ptr(v, self.start.add(at)) };
        } else if at < self.len {
            let mut lanes = [0.0; LANES];
            simd.store(v, &mut lanes);
            // SAFETY: self.len - at of them fit.
            unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), self.start.add(at), self.len - at) };
        }
    }

    /// The part that begins at `at` and has `len` floats.
    #[inline(always)]
    pub(crate) fn slice(&mut self, at: usize, len: usize) -> Part<'_> {
        assert!(at + len <= self.len);
        Part { start: self.start.wrapping_add(at), len, lifetime: PhantomData }
    }

    /// The vector that begins at `at`; lanes past the end are `rest`.
    ///
    /// # Safety
    /// It must have been stored.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(&self, simd: S, at: usize, rest: f32) -> S::V {
        let count = self.len.saturating_sub(at);
        if count >= LANES {
            // SAFETY: sixteen floats are there, and the caller has written them.
            return unsafe { simd.load_ptr(self.start.add(at)) };
        }
        let mut lanes = [rest; LANES];
        // SAFETY: as above, for `count` of them.
        unsafe { std::ptr::copy_nonoverlapping(self.start.wrapping_add(at), lanes.as_mut_ptr(), count) };
        simd.load(&lanes)
    }

    /// Writes one float.
    #[inline(always)]
    pub(crate) fn set(&mut self, at: usize, x: f32) {
        assert!(at < self.len);
        // SAFETY: it is inside.
        unsafe { self.start.add(at).write(x) };
    }
}

/// The vector of `from` that begins at `at`; lanes past the end are `rest`.
#[inline(always)]
pub(crate) fn load<S: Simd>(simd: S, from: &[f32], at: usize, rest: f32) -> S::V {
    match from[at..].first_chunk() {
        Some(lanes) => simd.load(lanes),
        None => simd.load_part(&from[at..], rest),
    }
}

/// Prefetches the cache line at an address that will be read soon; any address is allowed.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Up to sixteen half-precision numbers; the others are zero.
#[inline(always)]
pub(crate) fn halves(from: &[u16]) -> [u16; LANES] {
    match from.as_array() {
        Some(&lanes) => lanes,
        None => {
            let mut lanes = [0; LANES];
            lanes[..from.len()].copy_from_slice(from);
            lanes
        }
    }
}

/// Bytes of memory traffic below which a second thread does not pay.
const ALONE: usize = 96 * 1024;

/// Bytes of memory traffic per unit of work.
const UNIT: usize = 128 * 1024;

/// Creates `N` results of `rows` rows each, row ranges in parallel.
///
/// `fill` receives a range of rows and those rows of each result; `row_bytes` is the memory traffic of a row,
/// plus an equivalent of its arithmetic.
///
/// # Safety
/// `fill` must write every element that it receives.
pub(crate) unsafe fn fill_rows<const N: usize>(
    rows: usize,
    widths: [usize; N],
    row_bytes: usize,
    fill: impl Fn(Range<usize>, [Part<'_>; N]) + Sync,
) -> [Vec<f32>; N] {
    let mut buffers = widths.map(|width| Buffer::new(rows * width));
    let starts = buffers.each_mut().map(|buffer| Start(buffer.as_mut_ptr()));
    let rows_a_unit =
        (UNIT / row_bytes.max(1)).max(1).next_multiple_of(if row_bytes < 1024 { LANES } else { 1 });
    team::for_each(rows.div_ceil(rows_a_unit), rows * row_bytes > ALONE, |unit| {
        let range = unit * rows_a_unit..rows.min((unit + 1) * rows_a_unit);
        let parts = std::array::from_fn(|i| {
            let start = starts[i].get().wrapping_add(range.start * widths[i]);
            // SAFETY: units have different rows of the results, which outlive them.
            unsafe { Part::new(start, range.len() * widths[i]) }
        });
        fill(range, parts);
    });
    // SAFETY: each row was in one unit, and the caller vouches for `fill`.
    buffers.map(|buffer| unsafe { buffer.finish() })
}

/// The start of memory whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(crate) struct Start(pub(crate) *mut f32);

// SAFETY: code that makes parts from the pointer on several threads keeps them disjoint.
unsafe impl Sync for Start {}
// SAFETY: as above.
unsafe impl Send for Start {}

impl Start {
    /// The pointer. A method, so that closures capture the whole struct, which is `Sync`.
    #[inline(always)]
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_filled_once_each() {
        for rows in [0, 1, 7, 5000] {
            // SAFETY: every row is written.
            let [ids, doubles] = unsafe {
                fill_rows(rows, [3, 1], 64, |range, [mut ids, mut doubles]| {
                    for (i, row) in range.enumerate() {
                        (0..3).for_each(|column| ids.set(i * 3 + column, (row * 3 + column) as f32));
                        doubles.set(i, 2.0 * row as f32);
                    }
                })
            };
            assert!(ids.iter().enumerate().all(|(i, &x)| x == i as f32) && ids.len() == 3 * rows);
            assert!(doubles.iter().enumerate().all(|(i, &x)| x == 2.0 * i as f32) && doubles.len() == rows);
        }
    }
}
