//! Terms of the scores that depend on the distance of query and key.

use std::ops::Range;

use crate::kernels::AttentionTensors;
use crate::spec::{AttentionSpec, Distances};

/// The terms of one head.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    distances: &'a Distances,
    /// Shape `[queries, buckets]`.
    by_query: Option<&'a [f32]>,
    /// Shape `[keys, buckets]`.
    by_key: Option<&'a [f32]>,
}

/// Where a row of scores is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Row of the query among all queries.
    pub(super) query_row: usize,
    /// Row of the first key among all keys.
    pub(super) key_row: usize,
    /// Positions of the query and of the first key.
    pub(super) positions: [usize; 2],
    /// The keys that the query sees, counted from the first.
    pub(super) visible: Range<usize>,
}

impl<'a> Terms<'a> {
    /// Those of head `head`; `None` for an attention without.
    pub(super) fn new(
        spec: &'a AttentionSpec,
        tensors: &AttentionTensors<&'a [f32]>,
        head: usize,
    ) -> Option<Self> {
        let of_head = |terms: &'a [f32]| {
            let n = terms.len() / spec.n_heads;
            &terms[head * n..(head + 1) * n]
        };
        Some(Self {
            distances: spec.distances.as_ref()?,
            by_query: tensors.by_query.map(of_head),
            by_key: tensors.by_key.map(of_head),
        })
    }

    fn buckets(&self, place: &Place) -> &'a [u32] {
        let [query, first_key] = place.positions;
        &self.distances.seen_from(query, first_key)[place.visible.clone()]
    }

    /// Turns the dot products of a row into scores, those of the visible keys.
    pub(super) fn apply(&self, row: &mut [f32], place: &Place, scale: f32) {
        let (n, buckets) = (self.distances.n_buckets(), self.buckets(place));
        let row = &mut row[place.visible.clone()];
        row.iter_mut().for_each(|score| *score *= scale);
        if let Some(terms) = self.by_query {
            let terms = &terms[place.query_row * n..(place.query_row + 1) * n];
            for (score, &bucket) in row.iter_mut().zip(buckets) {
                *score += terms[bucket as usize];
            }
        }
        if let Some(terms) = self.by_key {
            let terms = &terms[(place.key_row + place.visible.start) * n..];
            for ((score, &bucket), terms) in row.iter_mut().zip(buckets).zip(terms.chunks_exact(n)) {
                *score += terms[bucket as usize];
            }
        }
    }

    /// Adds the gradients of a row of scores to those of the sequence's terms, by query and by key; `starts` are the first
    /// rows of the sequence.
    pub(super) fn add_grads(
        &self,
        grads: [Option<&mut [f32]>; 2],
        starts: [usize; 2],
        row: &[f32],
        place: &Place,
    ) {
        let (n, buckets) = (self.distances.n_buckets(), self.buckets(place));
        let row = &row[place.visible.clone()];
        let [by_query, by_key] = grads;
        if let Some(grads) = by_query {
            let at = place.query_row - starts[0];
            let grads = &mut grads[at * n..(at + 1) * n];
            for (grad, &bucket) in row.iter().zip(buckets) {
                grads[bucket as usize] += grad;
            }
        }
        if let Some(grads) = by_key {
            let at = place.key_row + place.visible.start - starts[1];
            for ((grad, &bucket), grads) in row.iter().zip(buckets).zip(grads[at * n..].chunks_exact_mut(n)) {
                grads[bucket as usize] += grad;
            }
        }
    }
}
