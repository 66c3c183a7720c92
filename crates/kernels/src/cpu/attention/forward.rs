//! The forward pass.

use std::ops::Range;

use super::super::buffer::{Buffer, Start};
use super::super::elementwise::Mask;
use super::super::math;
use super::super::rows::Rows;
use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::super::team;
use super::terms::Terms;
use super::{Block, Head, Score, Scratch, Task, combine, only_visible, panel_width, scores, tasks};
use crate::kernels::AttentionTensors;
use crate::spec::AttentionSpec;

/// Attention of tensors in the order of rows; those of queries, keys and values may be apart.
///
/// Returns the output, like the queries, and, if asked to, the logarithms of the softmax denominators,
/// `[queries, n_heads]`.
pub(crate) fn attention(
    [q, k, v]: [Rows<'_>; 3],
    [by_query, by_key]: [Option<&[f32]>; 2],
    spec: &AttentionSpec,
    with_log_sums: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let [q_width, kv_width] = [spec.n_heads, spec.n_kv_heads].map(|heads| heads * spec.head_dim);
    assert_eq!(q.shape(), [spec.queries.n_tokens(), q_width]);
    assert!(k.shape()[0] >= spec.keys.end() && k.shape()[1] == kv_width && v.shape() == k.shape());
    let mut y = Buffer::new(spec.queries.n_tokens() * q_width);
    let [(q, q_stride), (k, k_stride), (v, v_stride)] = [q, k, v].map(|rows| rows.parts());
    let tensors = AttentionTensors { q, k, v, by_query, by_key };
    let strides = [q_stride, k_stride, v_stride];
    let mut log_sums = with_log_sums.then(|| Buffer::new(spec.queries.n_tokens() * spec.n_heads));
    let y_start = Start(y.as_mut_ptr());
    let log_sums_start = log_sums.as_mut().map(|log_sums| Start(log_sums.as_mut_ptr()));
    let tasks = tasks(spec, true);
    team::for_each(tasks.len(), super::work(spec) > super::ALONE, |unit| {
        Scratch::with(|scratch| {
            dispatch(Forward {
                tensors,
                strides,
                spec,
                task: &tasks[unit],
                y: y_start.get(),
                log_sums: log_sums_start.map(Start::get),
                scratch,
            });
        });
    });
    // SAFETY: the tasks cover each query and head once, and write all of its output.
    unsafe { (y.finish(), log_sums.map(|log_sums| log_sums.finish())) }
}

struct Forward<'a> {
    tensors: AttentionTensors<&'a [f32]>,
    /// Distances between the rows of queries, keys and values.
    strides: [usize; 3],
    spec: &'a AttentionSpec,
    task: &'a Task,
    y: *mut f32,
    log_sums: Option<*mut f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            tensors,
            strides: [q_stride, k_stride, v_stride],
            spec,
            task: Task { sequence, kv_heads, queries },
            y,
            log_sums,
            scratch,
        } = self;
        let AttentionTensors { q, k, v, .. } = tensors;
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
        let group = n_heads / n_kv_heads;
        let q_width = n_heads * head_dim;
        let q_rows = sequence.q_start..sequence.q_start + sequence.q_length;
        let kv_rows = sequence.kv_start..sequence.kv_start + sequence.kv_length;
        for kv_head in kv_heads.clone() {
            let keys = Head::new(k, k_stride, kv_rows.clone(), kv_head, head_dim);
            let keys_transposed = keys.transposed_panels(simd, &mut scratch.keys_transposed);
            let values = Head::new(v, v_stride, kv_rows.clone(), kv_head, head_dim);
            let values = values.panels(simd, &mut scratch.values);
            for head in kv_head * group..(kv_head + 1) * group {
                let q_head = Head::new(q, q_stride, q_rows.clone(), head, head_dim);
                let terms = Terms::new(spec, &tensors, head);
                let mut first = queries.start;
                while first < queries.end {
                    let block =
                        Block::new(spec, *sequence, first, queries.end, [S::TILE_ROWS, panel_width::<S>()]);
                    first = block.queries.end;
                    let (rows, depth) = (block.queries.len(), block.keys.len());
                    grow(&mut scratch.scores, rows * block.stride);
                    let p = (scratch.scores.as_mut_ptr(), block.stride);
                    let from = q_head.at(block.queries.start);
                    // SAFETY: the block's queries and keys are in the sequence, and its scores fit.
                    unsafe { scores(simd, rows, from, head_dim, keys_transposed, block.keys.clone(), p) };
                    for (i, query) in block.queries.clone().enumerate() {
                        let row = (sequence.q_start + query) * n_heads + head;
                        let mask = spec.dropout.map(|dropout| Mask::new(simd, dropout, row as u64));
                        let visible = block.visible(spec, *sequence, query);
                        let p = &mut scratch.scores[i * block.stride..(i + 1) * block.stride];
                        let score = Score::new(spec, *sequence, head, query, block.keys.start);
                        let mut scale = transform(simd, p, score, block.keys.len());
                        if let Some(terms) = &terms {
                            terms.apply(p, &block.place(spec, *sequence, query), scale);
                            scale = 1.0;
                        };
                        let log_sum = softmax(simd, p, visible, scale, mask, block.keys.clone());
                        if let Some(log_sums) = log_sums {
                            // SAFETY: row is below queries · heads, and no other task has it.
                            unsafe { log_sums.add(row).write(log_sum) };
                        }
                    }
                    let at = (sequence.q_start + block.queries.start) * q_width + head * head_dim;
                    let p = (scratch.scores.as_ptr(), block.stride);
                    let to = (y.wrapping_add(at), q_width);
                    let shape = [rows, depth, head_dim];
                    // SAFETY: as above; no other task has these rows of this head.
                    unsafe { combine(simd, shape, p, false, values, block.keys.start, to, true) };
                }
            }
        }
    }
}

/// Makes a row at least this long.
#[inline(always)]
pub(super) fn grow(room: &mut Vec<f32>, len: usize) {
    if room.len() < len {
        room.resize(len, 0.0);
    }
}

/// Turns a row of dot products of this many keys into scores, but for a factor, which it returns.
#[inline(always)]
pub(super) fn transform<S: Simd>(simd: S, row: &mut [f32], score: Score<'_>, keys: usize) -> f32 {
    if score.is_plain() {
        return score.spec.scale;
    }
    let (lanes, _) = row.as_chunks_mut::<LANES>();
    for (i, dots) in lanes[..keys.div_ceil(LANES)].iter_mut().enumerate() {
        let (scores, _) = score.of(simd, simd.load(dots), i * LANES);
        simd.store(scores, dots);
    }
    1.0
}

/// Turns a row of scores, of which those of the `visible` keys count, into probabilities with dropout, and
/// returns the logarithm of their sum before they were normalized. The row's keys are `keys`.
#[inline(always)]
fn softmax<S: Simd>(
    simd: S,
    row: &mut [f32],
    visible: Range<usize>,
    scale: f32,
    mask: Option<Mask<S>>,
    keys: Range<usize>,
) -> f32 {
    let (lanes, _) = row.as_chunks_mut::<LANES>();
    let lanes = &mut lanes[..keys.len().div_ceil(LANES)];
    let factor = simd.splat(scale);
    let mut max = simd.splat(f32::MIN);
    for (i, scores) in lanes.iter().enumerate() {
        let score = simd.mul(simd.load(scores), factor);
        max = simd.max(only_visible(simd, score, i * LANES, &visible, f32::MIN), max);
    }
    let max = simd.largest(max);
    let (largest, mut total) = (simd.splat(max), simd.splat(0.0));
    for (i, scores) in lanes.iter_mut().enumerate() {
        // Of the rounded product, like the maximum: a fused one could be far above the maximum of large scores.
        let score = simd.mul(simd.load(scores), factor);
        let p = math::exp(simd, simd.sub(score, largest));
        let p = only_visible(simd, p, i * LANES, &visible, 0.0);
        total = simd.add(total, p);
        simd.store(p, scores);
    }
    let total = simd.sum(total);
    let inverse = simd.splat(1.0 / total);
    for (i, scores) in lanes.iter_mut().enumerate() {
        let mut p = simd.mul(simd.load(scores), inverse);
        if let Some(mask) = mask {
            p = mask.apply(simd, p, keys.start + i * LANES);
        }
        simd.store(p, scores);
    }
    max + math::ln(total)
}
