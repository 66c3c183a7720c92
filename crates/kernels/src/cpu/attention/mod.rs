//! Attention over packed sequences, without padding.
//!
//! *Algorithm*: for each sequence, head and block of queries, the whole rows of scores are computed with the
//! tiles of [`gemm`](super::gemm), turned into probabilities where they lie (in cache), and multiplied with
//! the values. The backward pass computes them again from the logarithms of the softmax denominators
//! (FlashAttention, Dao et al. 2022), so that nothing of the size queries × keys is kept.

mod backward;
mod forward;
mod terms;

use std::cell::Cell;
use std::ops::Range;

pub(crate) use backward::{Saved, attention_grads};
pub(crate) use forward::attention;

use super::gemm::pack::{Panels, Places};
use super::gemm::tile::{Strip, multiply};
use super::gemm::{Right, Weights};
use super::math;
use super::simd::{LANES, Simd};
use super::team;
use terms::Place;

use crate::spec::AttentionSpec;

/// Floating-point operations of a unit of work.
const UNIT: usize = 2_000_000;

/// Operations below which a second thread does not pay.
const ALONE: usize = 400_000;

/// Scores that are computed at a time, so that they stay in the second cache.
const BLOCK_SCORES: usize = 32 * 1024;

/// Some key heads of one sequence.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    sequence: Sequence,
    kv_heads: Range<usize>,
    /// The queries to do.
    queries: Range<usize>,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sequence {
    q_start: usize,
    q_length: usize,
    kv_start: usize,
    kv_length: usize,
}

/// Floating-point operations of a forward pass that hides nothing.
fn work(spec: &AttentionSpec) -> usize {
    let scores: usize = spec.sequences().map(|(queries, keys)| queries.len() * keys.len()).sum();
    4 * spec.n_heads * spec.head_dim * scores
}

/// Cuts an attention into units of work, the longest sequences first.
fn tasks(spec: &AttentionSpec, split_queries: bool) -> Vec<Task> {
    let group = spec.n_heads / spec.n_kv_heads;
    let cost = |sequence: &Sequence| 4 * group * spec.head_dim * sequence.q_length * sequence.kv_length;
    let sequence = |(queries, keys): (Range<usize>, Range<usize>)| Sequence {
        q_start: queries.start,
        q_length: queries.len(),
        kv_start: keys.start,
        kv_length: keys.len(),
    };
    let mut sequences: Vec<Sequence> = spec.sequences().map(sequence).collect();
    sequences.sort_by_key(|sequence| std::cmp::Reverse(cost(sequence)));
    let parts = if split_queries {
        let wanted = 4 * team::threads();
        wanted.div_ceil((sequences.len() * spec.n_kv_heads).max(1))
    } else {
        1
    };
    let mut tasks = Vec::new();
    for sequence in sequences {
        let cost = cost(&sequence).max(1);
        let heads = (UNIT / cost).clamp(1, spec.n_kv_heads);
        let parts = parts.min(cost / UNIT).clamp(1, sequence.q_length.max(1));
        for first in (0..spec.n_kv_heads).step_by(heads) {
            for part in 0..parts {
                let queries = sequence.q_length * part / parts..sequence.q_length * (part + 1) / parts;
                let kv_heads = first..spec.n_kv_heads.min(first + heads);
                tasks.push(Task { sequence, kv_heads, queries });
            }
        }
    }
    tasks
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    keys: Panels,
    keys_transposed: Panels,
    values: Panels,
    queries: Panels,
    dy: Panels,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
}

impl Scratch {
    /// Calls `f` with this thread's memory.
    fn with(f: impl FnOnce(&mut Scratch)) {
        thread_local! {
            static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
        }
        let mut scratch = SCRATCH.take().unwrap_or_default();
        f(&mut scratch);
        SCRATCH.set(Some(scratch));
    }
}

/// The columns of one head in the rows of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// From its first element on.
    elements: &'a [f32],
    /// Distance between rows.
    stride: usize,
    rows: usize,
    width: usize,
}

impl<'a> Head<'a> {
    fn new(matrix: &'a [f32], stride: usize, rows: Range<usize>, head: usize, width: usize) -> Self {
        // The last row may have nothing behind it.
        let end = (rows.end * stride).min(matrix.len());
        let start = (rows.start * stride + head * width).min(end);
        Self { elements: &matrix[start..end], stride, rows: rows.len(), width }
    }

    fn at(&self, row: usize) -> (*const f32, usize) {
        (self.elements[row * self.stride..].as_ptr(), self.stride)
    }

    fn right(&self, transposed: bool) -> Right<'a> {
        Right { weights: Weights::F32(self.elements), transposed, stride: self.stride }
    }

    /// Panels of the rows.
    #[inline(always)]
    fn panels<S: Simd>(&self, simd: S, room: &mut Panels) -> Places {
        room.fill(simd, &self.right(false), 0..self.rows, 0..self.width, panel_width::<S>(), true)
    }

    /// Panels of the transpose.
    #[inline(always)]
    fn transposed_panels<S: Simd>(&self, simd: S, room: &mut Panels) -> Places {
        room.fill(simd, &self.right(true), 0..self.width, 0..self.rows, panel_width::<S>(), false)
    }
}

#[inline(always)]
fn panel_width<S: Simd>() -> usize {
    S::TILE_VECTORS * LANES
}

/// A matrix that `multiply` reads or writes, and the distance between its rows.
type From = (*const f32, usize);
type To = (*mut f32, usize);

/// Scores of some queries and the keys from `keys.start`, a multiple of a panel's width, on.
///
/// # Safety
/// `queries` must have `rows` rows of `head_dim` floats, and `scores` room for rows of the keys, rounded up to
/// whole vectors.
#[inline(always)]
unsafe fn scores<S: Simd>(
    simd: S,
    rows: usize,
    queries: From,
    head_dim: usize,
    keys_transposed: Places,
    keys: Range<usize>,
    scores: To,
) {
    let width = panel_width::<S>();
    for first in keys.clone().step_by(width) {
        let strip = Strip {
            rows,
            width: width.min(keys.end - first).next_multiple_of(LANES),
            depth: head_dim,
            a: queries,
            by_columns: false,
            b: keys_transposed.get(first / width),
            c: (scores.0.wrapping_add(first - keys.start), scores.1),
            is_first: true,
            bias: None,
            gelu: None,
            slope: None,
        };
        // SAFETY: the caller's.
        unsafe { multiply(simd, strip) };
    }
}

/// `to = factors·b` or `to += factors·b`, where b is a matrix of `width` columns given in panels, from its row
/// `first_row` on.
///
/// # Safety
/// `factors` must have `rows` rows of `depth` floats (or columns, if it lies by columns), b as many rows from
/// `first_row` on, and `to` `rows` rows of `width` floats that no one else uses.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of a matrix product")]
unsafe fn combine<S: Simd>(
    simd: S,
    [rows, depth, width]: [usize; 3],
    factors: From,
    by_columns: bool,
    b: Places,
    first_row: usize,
    to: To,
    is_first: bool,
) {
    let panel = panel_width::<S>();
    for first in (0..width).step_by(panel) {
        let (start, stride) = b.get(first / panel);
        let strip = Strip {
            rows,
            width: panel.min(width - first),
            depth,
            a: factors,
            by_columns,
            b: (start.wrapping_add(first_row * stride), stride),
            c: (to.0.wrapping_add(first), to.1),
            is_first,
            bias: None,
            gelu: None,
            slope: None,
        };
        // SAFETY: the caller's.
        unsafe { multiply(simd, strip) };
    }
}

/// What happens to the scores of one query before the softmax.
#[derive(Clone, Copy)]
struct Score<'a> {
    spec: &'a AttentionSpec,
    head: usize,
    /// Position of the query.
    position: usize,
    /// Position of the first key of the row.
    first_key: usize,
}

impl<'a> Score<'a> {
    /// For query `query` of a sequence and head `head`, whose row of scores begins at key `first_key`.
    fn new(spec: &'a AttentionSpec, sequence: Sequence, head: usize, query: usize, first_key: usize) -> Self {
        Self { spec, head, position: spec.position(query, sequence.q_length, sequence.kv_length), first_key }
    }

    /// Whether a score is its product by `scale` and nothing more.
    const fn is_plain(&self) -> bool {
        self.spec.softcap.is_none() && self.spec.alibi.is_none()
    }

    /// The scores of dot products, from key `at` of the row on, and their slopes.
    #[inline(always)]
    fn of<S: Simd>(&self, simd: S, dots: S::V, at: usize) -> (S::V, S::V) {
        let mut slope = simd.splat(self.spec.scale);
        let mut score = simd.mul(dots, slope);
        if let Some(cap) = self.spec.softcap {
            let t = math::tanh(simd, simd.mul(score, simd.splat(1.0 / cap)));
            slope = simd.mul(slope, simd.fnma(t, t, simd.splat(1.0)));
            score = simd.mul(t, simd.splat(cap));
        }
        if let Some(alibi) = &self.spec.alibi {
            let key = self.first_key + at;
            let biases: [f32; LANES] =
                std::array::from_fn(|lane| alibi.bias(self.head, key + lane, self.position));
            score = simd.add(score, simd.load(&biases));
        }
        (score, slope)
    }
}

/// A block of queries and the keys that any of them sees.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    queries: Range<usize>,
    /// Begins at a multiple of a panel's width.
    keys: Range<usize>,
    /// Distance between rows of scores.
    stride: usize,
}

impl Block {
    /// The block that begins at query `first` and ends by `end`.
    fn new(
        spec: &AttentionSpec,
        sequence: Sequence,
        first: usize,
        end: usize,
        [rows, width]: [usize; 2],
    ) -> Self {
        let Sequence { q_length, kv_length, .. } = sequence;
        let count = (BLOCK_SCORES / kv_length.max(1) / rows * rows).max(rows);
        let queries = first..end.min(first + count);
        let first_key = spec.visible(queries.start, q_length, kv_length).start / width * width;
        let keys = first_key..spec.visible(queries.end - 1, q_length, kv_length).end;
        // An odd number of lines, so that rows do not compete for the same places in the first cache.
        let stride = (keys.len().div_ceil(LANES) | 1) * LANES;
        Self { queries, keys, stride }
    }

    /// The keys that a query sees, counted from the first of the block.
    fn visible(&self, spec: &AttentionSpec, sequence: Sequence, query: usize) -> Range<usize> {
        let visible = spec.visible(query, sequence.q_length, sequence.kv_length);
        visible.start - self.keys.start..visible.end - self.keys.start
    }

    /// Where the row of scores of a query is.
    fn place(&self, spec: &AttentionSpec, sequence: Sequence, query: usize) -> Place {
        let Sequence { q_start, q_length, kv_start, kv_length } = sequence;
        Place {
            query_row: q_start + query,
            key_row: kv_start + self.keys.start,
            positions: [spec.position(query, q_length, kv_length), self.keys.start],
            visible: self.visible(spec, sequence, query),
        }
    }
}

/// `x` in the lanes of a vector of scores, beginning at key `at`, that are visible, and `hidden` in the others.
#[inline(always)]
fn only_visible<S: Simd>(simd: S, x: S::V, at: usize, visible: &Range<usize>, hidden: f32) -> S::V {
    if visible.start <= at && at + LANES <= visible.end {
        return x;
    }
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    let key = simd.count_from(at as u32);
    let after = simd.keep_ge_u(key, simd.splat_u(visible.start as u32), one);
    let inside = simd.keep_ge_u(simd.splat_u((visible.end as u32).wrapping_sub(1)), key, after);
    simd.select_lt(zero, inside, x, simd.splat(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_each_head_and_query_once() {
        let lengths = [3, 0, 700, 14];
        let spec = AttentionSpec::decoder(lengths.to_vec(), 6, 3, 32);
        for split_queries in [false, true] {
            let mut seen = vec![0; spec.queries.n_tokens() * spec.n_kv_heads];
            for Task { sequence, kv_heads, queries } in tasks(&spec, split_queries) {
                for head in kv_heads {
                    for query in queries.clone() {
                        seen[(sequence.q_start + query) * spec.n_kv_heads + head] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn blocks_hold_the_visible_keys() {
        let mut spec = AttentionSpec::decoder([2000], 1, 1, 32);
        spec.window = Some(100);
        let sequence = tasks(&spec, false)[0].sequence;
        let block = Block::new(&spec, sequence, 1500, 2000, [14, 32]);
        assert_eq!(block.keys.start, 1401 / 32 * 32);
        assert_eq!(block.keys.end, block.queries.end);
        assert_eq!(block.visible(&spec, sequence, 1500), 1401 - block.keys.start..1501 - block.keys.start);
    }
}
