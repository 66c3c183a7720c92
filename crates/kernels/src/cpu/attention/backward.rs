//! The backward pass.

use std::ops::Range;

use super::super::buffer::{Buffer, Start};
use super::super::elementwise::Mask;
use super::super::math;
use super::super::simd::{Kernel, LANES, Simd, dispatch};
use super::super::team;
use super::forward::{grow, transform};
use super::terms::Terms;
use super::{Block, Head, Score, Scratch, Task, combine, only_visible, panel_width, scores, tasks};
use crate::kernels::AttentionTensors;
use crate::spec::{AttentionSpec, Distances};

/// What the backward pass starts from; `y` is the output and `dy` its gradient.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub(crate) tensors: AttentionTensors<&'a [f32]>,
    pub(crate) y: &'a [f32],
    pub(crate) log_sums: &'a [f32],
    pub(crate) dy: &'a [f32],
}

/// Gradients of the tensors, those that are needed.
///
/// With P the probabilities and M the dropout factors: `dV = (P ∘ M)ᵀ·dY`, `dP = (dY·Vᵀ) ∘ M`,
/// `dS = P ∘ (dP - rowsum(dY ∘ Y))·scale` (under a soft cap c times `1 - (score / c)²`), `dQ = dS·K`, `dK = dSᵀ·Q`. A term
/// by distance gets the sum of `dS / scale` over the scores that it was added to.
pub(crate) fn attention_grads(
    saved: Saved<'_>,
    spec: &AttentionSpec,
    needed: [bool; 5],
) -> [Option<Vec<f32>>; 5] {
    let Saved { tensors, y, log_sums, dy } = saved;
    let AttentionTensors { q, k, v, .. } = tensors;
    let queries = spec.queries.n_tokens() * spec.n_heads;
    assert!(q.len() == queries * spec.head_dim && y.len() == q.len() && dy.len() == q.len());
    assert!(log_sums.len() == queries);
    assert!(k.len() == spec.keys.end() * spec.n_kv_heads * spec.head_dim && v.len() == k.len());
    let mut grads = tensors.all().map(|like| Buffer::new(like.map_or(0, |like| like.len())));
    let starts = grads.each_mut().map(|grad| Start(grad.as_mut_ptr()));
    let tasks = tasks(spec, false);
    team::for_each(tasks.len(), 5 * super::work(spec) / 2 > super::ALONE, |unit| {
        let grads = std::array::from_fn(|i| needed[i].then(|| starts[i].get()));
        Scratch::with(|scratch| dispatch(Backward { saved, spec, task: &tasks[unit], grads, scratch }));
    });
    let mut index = 0;
    grads.map(|grad| {
        index += 1;
        // SAFETY: the tasks cover each sequence and head once, and write all of its gradients; those of absent terms
        // are empty.
        needed[index - 1].then(|| unsafe { grad.finish() })
    })
}

struct Backward<'a> {
    saved: Saved<'a>,
    spec: &'a AttentionSpec,
    task: &'a Task,
    grads: [Option<*mut f32>; 5],
    scratch: &'a mut Scratch,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { saved: Saved { tensors, y, log_sums, dy }, spec, task, grads, scratch } = self;
        let AttentionTensors { q, k, v, .. } = tensors;
        let Task { sequence, kv_heads, .. } = task;
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
        let [d_queries, d_keys, d_values, d_by_query, d_by_key] = grads;
        let group = n_heads / n_kv_heads;
        let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
        let q_rows = sequence.q_start..sequence.q_start + sequence.q_length;
        let kv_rows = sequence.kv_start..sequence.kv_start + sequence.kv_length;
        for kv_head in kv_heads.clone() {
            let keys = Head::new(k, kv_width, kv_rows.clone(), kv_head, head_dim);
            let values = Head::new(v, kv_width, kv_rows.clone(), kv_head, head_dim);
            let keys_transposed = keys.transposed_panels(simd, &mut scratch.keys_transposed);
            let values_transposed = values.transposed_panels(simd, &mut scratch.values);
            let keys = keys.panels(simd, &mut scratch.keys);
            let kv_at = sequence.kv_start * kv_width + kv_head * head_dim;
            for grad in [d_keys, d_values].into_iter().flatten() {
                for row in 0..sequence.kv_length {
                    let row = grad.wrapping_add(kv_at + row * kv_width);
                    // SAFETY: these are `head_dim` floats of this head, which no other task has.
                    unsafe { std::ptr::write_bytes(row, 0, head_dim) };
                }
            }
            for head in kv_head * group..(kv_head + 1) * group {
                let q_head = Head::new(q, q_width, q_rows.clone(), head, head_dim);
                let dy_head = Head::new(dy, q_width, q_rows.clone(), head, head_dim);
                let y_head = Head::new(y, q_width, q_rows.clone(), head, head_dim);
                let queries = q_head.panels(simd, &mut scratch.queries);
                let dys = dy_head.panels(simd, &mut scratch.dy);
                let terms = Terms::new(spec, &tensors, head);
                let n_buckets = spec.distances.as_ref().map_or(0, Distances::n_buckets);
                let cleared = |grad: Option<*mut f32>, like: Option<&[f32]>, rows: &Range<usize>| {
                    let (grad, like) = (grad?, like?);
                    let start = head * (like.len() / n_heads) + rows.start * n_buckets;
                    let len = rows.len() * n_buckets;
                    assert!(start + len <= like.len());
                    // SAFETY: these are the gradients of this head's terms in this sequence, which no other task has.
                    unsafe {
                        let start = grad.add(start);
                        std::ptr::write_bytes(start, 0, len);
                        Some(std::slice::from_raw_parts_mut(start, len))
                    }
                };
                let mut d_by_query = cleared(d_by_query, tensors.by_query, &q_rows);
                let mut d_by_key = cleared(d_by_key, tensors.by_key, &kv_rows);
                let mut first = 0;
                while first < sequence.q_length {
                    let sizes = [S::TILE_ROWS, panel_width::<S>()];
                    let block = Block::new(spec, *sequence, first, sequence.q_length, sizes);
                    first = block.queries.end;
                    let (rows, depth) = (block.queries.len(), block.keys.len());
                    grow(&mut scratch.scores, rows * block.stride);
                    grow(&mut scratch.d_scores, rows * block.stride);
                    let p = (scratch.scores.as_mut_ptr(), block.stride);
                    let dp = (scratch.d_scores.as_mut_ptr(), block.stride);
                    let (q_from, dy_from) = (q_head.at(block.queries.start), dy_head.at(block.queries.start));
                    // SAFETY: the block's queries and keys are in the sequence, and its scores fit.
                    unsafe {
                        scores(simd, rows, q_from, head_dim, keys_transposed, block.keys.clone(), p);
                        scores(simd, rows, dy_from, head_dim, values_transposed, block.keys.clone(), dp);
                    }
                    for (i, query) in block.queries.clone().enumerate() {
                        let row = (sequence.q_start + query) * n_heads + head;
                        let range = query * q_width..query * q_width + head_dim;
                        let along = dot(simd, &y_head.elements[range.clone()], &dy_head.elements[range]);
                        let scores = i * block.stride..(i + 1) * block.stride;
                        let score = Score::new(spec, *sequence, head, query, block.keys.start);
                        let place = terms.map(|terms| (terms, block.place(spec, *sequence, query)));
                        if let Some((terms, place)) = &place {
                            let row = &mut scratch.scores[scores.clone()];
                            let scale = transform(simd, row, score, block.keys.len());
                            terms.apply(row, place, scale);
                        }
                        let row = SoftmaxRow {
                            visible: block.visible(spec, *sequence, query),
                            score: place.is_none().then_some(score),
                            log_sum: log_sums[row],
                            along,
                            mask: spec.dropout.map(|dropout| Mask::new(simd, dropout, row as u64)),
                            keys: block.keys.clone(),
                        };
                        row.backward(
                            simd,
                            &mut scratch.scores[scores.clone()],
                            &mut scratch.d_scores[scores.clone()],
                        );
                        if let Some((terms, place)) = &place {
                            let row = &mut scratch.d_scores[scores];
                            let grads = [d_by_query.as_deref_mut(), d_by_key.as_deref_mut()];
                            terms.add_grads(grads, [q_rows.start, kv_rows.start], row, place);
                            row.iter_mut().for_each(|grad| *grad *= spec.scale);
                        }
                    }
                    let p = (scratch.scores.as_ptr(), block.stride);
                    let ds = (scratch.d_scores.as_ptr(), block.stride);
                    let q_at = (sequence.q_start + block.queries.start) * q_width + head * head_dim;
                    let block_at = kv_at + block.keys.start * kv_width;
                    // SAFETY: as above; no other task has these rows of these heads.
                    unsafe {
                        if let Some(d_queries) = d_queries {
                            let to = (d_queries.wrapping_add(q_at), q_width);
                            let shape = [rows, depth, head_dim];
                            combine(simd, shape, ds, false, keys, block.keys.start, to, true);
                        }
                        let shape = [depth, rows, head_dim];
                        if let Some(d_keys) = d_keys {
                            let to = (d_keys.wrapping_add(block_at), kv_width);
                            combine(simd, shape, ds, true, queries, block.queries.start, to, false);
                        }
                        if let Some(d_values) = d_values {
                            let to = (d_values.wrapping_add(block_at), kv_width);
                            combine(simd, shape, p, true, dys, block.queries.start, to, false);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut total = simd.splat(0.0);
    for at in (0..a.len()).step_by(LANES) {
        let a = super::super::buffer::load(simd, a, at, 0.0);
        total = simd.fma(a, super::super::buffer::load(simd, b, at, 0.0), total);
    }
    simd.sum(total)
}

/// What the softmax of one query is differentiated with.
struct SoftmaxRow<'a, S: Simd> {
    visible: Range<usize>,
    /// What makes a score of a dot product, where that has not been done.
    score: Option<Score<'a>>,
    log_sum: f32,
    /// `Σ y·dy`.
    along: f32,
    mask: Option<Mask<S>>,
    keys: Range<usize>,
}

impl<S: Simd> SoftmaxRow<'_, S> {
    /// Turns scores into probabilities with dropout, and the gradients of those into gradients of the dot
    /// products.
    #[inline(always)]
    fn backward(self, simd: S, scores: &mut [f32], grads: &mut [f32]) {
        let Self { visible, score: of_dots, log_sum, along, mask, keys } = self;
        let count = keys.len().div_ceil(LANES);
        let ((scores, _), (grads, _)) = (scores.as_chunks_mut::<LANES>(), grads.as_chunks_mut::<LANES>());
        let (log_sum, along) = (simd.splat(log_sum), simd.splat(along));
        for (i, (score, grad)) in scores.iter_mut().zip(grads).enumerate().take(count) {
            // Of the rounded product, as in the forward pass: never above `log_sum`.
            let (s, slope) = match of_dots {
                Some(of_dots) => of_dots.of(simd, simd.load(score), i * LANES),
                None => (simd.load(score), simd.splat(1.0)),
            };
            let p = math::exp(simd, simd.sub(s, log_sum));
            let p = only_visible(simd, p, i * LANES, &visible, 0.0);
            let (mut dropped, mut dp) = (p, simd.load(grad));
            if let Some(mask) = mask {
                let at = keys.start + i * LANES;
                (dropped, dp) = (mask.apply(simd, p, at), mask.apply(simd, dp, at));
            }
            simd.store(dropped, score);
            simd.store(simd.mul(simd.mul(p, simd.sub(dp, along)), slope), grad);
        }
    }
}
