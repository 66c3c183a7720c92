//! Attention of burn operations: sequences are gathered into a padded batch and scattered back.

use std::cell::OnceCell;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::{unwrap, wrap};
use crate::kernels::{AttentionGrads, AttentionTensors};
use crate::spec::{AttentionSpec, Distances};

pub(crate) fn attention_saving<B: Backend>(
    tensors: AttentionTensors<FloatTensor<B>>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let q: Tensor<B, 2> = wrap(tensors.q.clone());
    let (device, dtype) = (q.device(), q.dtype());
    if spec.queries.n_tokens() == 0 {
        let log_sums = Tensor::<B, 2>::zeros([0, spec.n_heads], (&device, dtype));
        return (unwrap(q), unwrap(log_sums));
    }
    let padded = Padded::<B>::new(spec, &device, dtype);
    let AttentionTensors { k, v, by_query, by_key, .. } = tensors;
    let terms = padded.terms(by_query, by_key);
    let (k, v) = (padded.keys(wrap(k)), padded.keys(wrap(v))); // [batch, heads, keys, head_dim]
    let scores = padded.scores(padded.queries(q), k, terms);
    let max = scores.clone().max_dim(3); // [batch, heads, queries, 1]
    let exp = (scores - max.clone()).exp();
    let sums = exp.clone().sum_dim(3);
    let mut p = exp / sums.clone();
    if let Some(mask) = padded.dropout_factors() {
        p = p * mask;
    }
    let log_sums = padded.pack_queries(sums.log() + max); // [tokens, heads]
    (unwrap(padded.pack_queries(p.matmul(v))), unwrap(log_sums))
}

pub(crate) fn attention_grads<B: Backend>(
    tensors: AttentionTensors<FloatTensor<B>>,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
    spec: &AttentionSpec,
    needed: [bool; 5],
) -> AttentionGrads<FloatTensor<B>> {
    if spec.queries.n_tokens() == 0 {
        let zeros = |x: FloatTensor<B>| unwrap(wrap::<B, 2>(x).zeros_like());
        let zeros_3 = |x: FloatTensor<B>| unwrap(wrap::<B, 3>(x).zeros_like());
        let AttentionTensors { q, k, v, by_query, by_key } = tensors;
        return [
            needed[0].then(|| zeros(q)),
            needed[1].then(|| zeros(k)),
            needed[2].then(|| zeros(v)),
            by_query.filter(|_| needed[3]).map(zeros_3),
            by_key.filter(|_| needed[4]).map(zeros_3),
        ];
    }
    let AttentionTensors { q, k, v, by_query, by_key } = tensors;
    let (q, k, v): (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 2>) = (wrap(q), wrap(k), wrap(v));
    let (device, dtype) = (q.device(), q.dtype());
    let padded = Padded::<B>::new(spec, &device, dtype);
    let terms_needed = [by_query.is_some() && needed[3], by_key.is_some() && needed[4]];
    let key_rows = k.dims()[0];
    let terms = padded.terms(by_query, by_key);
    let (q, k, v) = (padded.queries(q), padded.keys(k), padded.keys(v));
    let dy = padded.queries(wrap(dy)); // [batch, heads, queries, head_dim]
    let along = (dy.clone() * padded.queries(wrap(y))).sum_dim(3); // [batch, heads, queries, 1]
    let log_sums = padded.row_values(wrap(log_sums));
    let p = (padded.scores(q.clone(), k.clone(), terms) - log_sums).exp();
    let mut dp = dy.clone().matmul(v.transpose());
    let dv = match padded.dropout_factors() {
        Some(mask) => {
            dp = dp * mask.clone();
            p.clone() * mask
        }
        None => p.clone(),
    };
    let d_scores = p * (dp - along); // [batch, heads, queries, keys]
    let ds = d_scores.clone().mul_scalar(spec.scale);
    let ds = match spec.softcap {
        Some(cap) => ds * padded.capped(q.clone(), k.clone(), cap).1,
        None => ds,
    };
    [
        needed[0].then(|| unwrap(padded.pack_queries(ds.clone().matmul(k)))),
        needed[1].then(|| unwrap(padded.pack_keys(ds.transpose().matmul(q)))),
        needed[2].then(|| unwrap(padded.pack_keys(dv.transpose().matmul(dy)))),
        terms_needed[0].then(|| unwrap(padded.query_term_grads(d_scores.clone()))),
        terms_needed[1].then(|| unwrap(padded.key_term_grads(d_scores, key_rows))),
    ]
}

/// Output and log sums of an attention, with sinks in the softmax.
///
/// A sink only adds to the denominator: the output is scaled by the fraction of the keys in it.
pub(crate) fn add_sinks<B: Backend>(
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    sinks: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let log_sums: Tensor<B, 2> = wrap(log_sums);
    let [queries, n_heads] = log_sums.dims();
    if queries == 0 {
        return (y, unwrap(log_sums));
    }
    let y: Tensor<B, 2> = wrap(y);
    let [_, width] = y.dims();
    let sinks = wrap::<B, 1>(sinks).unsqueeze::<2>().expand([queries, n_heads]);
    // A sink of -∞ leaves the output as it is to the last bit, and one of ∞ leaves nothing: by a division, since NdArray
    // only approximates reciprocals.
    let above = sinks.clone() - log_sums.clone();
    let growth = above.clone().exp().add_scalar(1.0); // of the denominator
    let y = y.reshape([queries, n_heads, width / n_heads]) / growth.reshape([queries, n_heads, 1]);
    let log_sums = log_sums.max_pair(sinks) + above.abs().neg().exp().log1p();
    (unwrap(y.reshape([queries, width])), unwrap(log_sums))
}

/// Gradients of sinks: `−Σ p·(dy·y)` over the queries, with `p` the probability of the sink.
pub(crate) fn sinks_grad<B: Backend>(
    sinks: FloatTensor<B>,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let (sinks, log_sums): (Tensor<B, 1>, Tensor<B, 2>) = (wrap(sinks), wrap(log_sums));
    let [queries, n_heads] = log_sums.dims();
    if queries == 0 {
        return unwrap(sinks.zeros_like());
    }
    let y: Tensor<B, 2> = wrap(y);
    let [_, width] = y.dims();
    let along = (y * wrap(dy)).reshape([queries, n_heads, width / n_heads]).sum_dim(2);
    let p = (sinks.unsqueeze::<2>() - log_sums).exp(); // [queries, heads]
    unwrap((p * along.reshape([queries, n_heads])).sum_dim(0).neg().reshape([n_heads]))
}

/// The padded layout of a packed batch.
struct Padded<'a, B: Backend> {
    spec: &'a AttentionSpec,
    device: B::Device,
    dtype: DType,
    max_queries: usize,
    max_keys: usize,
    /// The row of each padded query and key, and the padded position of each packed one.
    query_rows: OnceCell<Tensor<B, 1, Int>>,
    key_rows: OnceCell<Tensor<B, 1, Int>>,
    query_places: OnceCell<Tensor<B, 1, Int>>,
    key_places: OnceCell<Tensor<B, 1, Int>>,
}

impl<'a, B: Backend> Padded<'a, B> {
    fn new(spec: &'a AttentionSpec, device: &B::Device, dtype: DType) -> Self {
        Self {
            spec,
            device: device.clone(),
            dtype,
            max_queries: spec.queries.longest(),
            max_keys: spec.keys.longest(),
            query_rows: OnceCell::new(),
            key_rows: OnceCell::new(),
            query_places: OnceCell::new(),
            key_places: OnceCell::new(),
        }
    }

    fn query_rows(&self) -> Tensor<B, 1, Int> {
        let rows = || self.index(self.spec.queries.all_rows(), self.max_queries);
        self.query_rows.get_or_init(rows).clone()
    }

    fn key_rows(&self) -> Tensor<B, 1, Int> {
        let rows = || self.index(self.spec.sequences().map(|(_, keys)| keys), self.max_keys);
        self.key_rows.get_or_init(rows).clone()
    }

    fn query_places(&self) -> Tensor<B, 1, Int> {
        let places = || self.pack_index(self.spec.queries.lengths(), self.max_queries);
        self.query_places.get_or_init(places).clone()
    }

    fn key_places(&self) -> Tensor<B, 1, Int> {
        let places = || self.pack_index(self.spec.sequences().map(|(_, keys)| keys.len()), self.max_keys);
        self.key_places.get_or_init(places).clone()
    }

    fn batch(&self) -> usize {
        self.spec.queries.n_sequences()
    }

    /// `[tokens, heads * head_dim]` to `[batch, heads, queries, head_dim]`.
    fn queries(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        x.select(0, self.query_rows())
            .reshape([self.batch(), self.max_queries, self.spec.n_heads, self.spec.head_dim])
            .swap_dims(1, 2)
    }

    /// `[tokens, heads]` to `[batch, heads, queries, 1]`.
    fn row_values(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        let shape = [self.batch(), self.max_queries, self.spec.n_heads, 1];
        x.select(0, self.query_rows()).reshape(shape).swap_dims(1, 2)
    }

    /// `[tokens, kv_heads * head_dim]` to `[batch, heads, keys, head_dim]`, each key head repeated for
    /// the query heads that it serves.
    fn keys(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *self.spec;
        let x = x
            .select(0, self.key_rows())
            .reshape([self.batch(), self.max_keys, n_kv_heads, head_dim])
            .swap_dims(1, 2)
            .unsqueeze_dim::<5>(2);
        x.repeat_dim(2, n_heads / n_kv_heads).reshape([self.batch(), n_heads, self.max_keys, head_dim])
    }

    /// `[batch, heads, queries, width]` to `[tokens, heads * width]`.
    fn pack_queries(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [batch, heads, queries, width] = x.dims();
        x.swap_dims(1, 2).reshape([batch * queries, heads * width]).select(0, self.query_places())
    }

    /// `[batch, heads, keys, head_dim]` to `[tokens, kv_heads * head_dim]`, summed over the query heads
    /// of each key head.
    fn pack_keys(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *self.spec;
        x.reshape([self.batch(), n_kv_heads, n_heads / n_kv_heads, self.max_keys, head_dim])
            .sum_dim(2)
            .squeeze_dim::<4>(2)
            .swap_dims(1, 2)
            .reshape([self.batch() * self.max_keys, n_kv_heads * head_dim])
            .select(0, self.key_places())
    }

    /// Scaled scores, `[batch, heads, queries, keys]`: -∞ where a query does not see a key.
    fn scores(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, terms: Option<Tensor<B, 4>>) -> Tensor<B, 4> {
        let scores = match self.spec.softcap {
            Some(cap) => self.capped(q, k, cap).0,
            None => q.matmul(k.transpose()).mul_scalar(self.spec.scale),
        };
        let scores = match self.biases() {
            Some(biases) => scores + biases,
            None => scores,
        };
        match terms {
            Some(terms) => scores + terms + self.mask(),
            None => scores + self.mask(),
        }
    }

    /// Scores under a soft cap, and what their gradients are multiplied with.
    fn capped(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, cap: f32) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let t = q.matmul(k.transpose()).mul_scalar(self.spec.scale).div_scalar(cap).tanh();
        let slope = t.clone().powi_scalar(2).neg().add_scalar(1.0);
        (t.mul_scalar(cap), slope)
    }

    /// What each head adds to its scores by distance, `[batch, heads, queries, keys]`.
    fn biases(&self) -> Option<Tensor<B, 4>> {
        let alibi = self.spec.alibi.as_ref()?;
        let shape = [self.batch(), self.spec.n_heads, self.max_queries, self.max_keys];
        let mut biases = Vec::with_capacity(shape.iter().product());
        for (queries, keys) in self.spec.sequences() {
            for head in 0..self.spec.n_heads {
                for query in 0..self.max_queries {
                    let position = self.spec.position(query, queries.len(), keys.len());
                    biases.extend((0..self.max_keys).map(|key| alibi.bias(head, key, position)));
                }
            }
        }
        Some(Tensor::from_data(TensorData::new(biases, shape), (&self.device, self.dtype)))
    }

    /// The terms by distance, `[batch, heads, queries, keys]`; any where a query does not see a key.
    fn terms(
        &self,
        by_query: Option<FloatTensor<B>>,
        by_key: Option<FloatTensor<B>>,
    ) -> Option<Tensor<B, 4>> {
        let distances = self.spec.distances.as_ref()?;
        let n = distances.n_buckets();
        let gather = |terms: FloatTensor<B>, rows: Tensor<B, 1, Int>, index: Tensor<B, 4, Int>| {
            let max = index.dims()[2];
            let padded = wrap::<B, 3>(terms).select(1, rows); // [heads, batch · rows, buckets]
            padded.reshape([self.spec.n_heads, self.batch(), max, n]).swap_dims(0, 1).gather(3, index)
        };
        let by_query = by_query.map(|terms| gather(terms, self.query_rows(), self.buckets(distances)));
        let by_key = by_key.map(|terms| {
            gather(terms, self.key_rows(), self.buckets(distances).swap_dims(2, 3)).swap_dims(2, 3)
        });
        match (by_query, by_key) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    }

    /// The bucket of each query and key, `[batch, heads, queries, keys]`; 0 where there is no such query or key.
    fn buckets(&self, distances: &Distances) -> Tensor<B, 4, Int> {
        let shape = [self.batch(), self.spec.n_heads, self.max_queries, self.max_keys];
        let mut buckets = vec![0; shape[0] * shape[2] * shape[3]];
        for (sequence, (queries, keys)) in self.spec.sequences().enumerate() {
            let (q_length, kv_length) = (queries.len(), keys.len());
            for query in 0..q_length {
                let row = (sequence * self.max_queries + query) * self.max_keys;
                let seen = distances.seen_from(self.spec.position(query, q_length, kv_length), 0);
                for (to, &bucket) in buckets[row..row + kv_length].iter_mut().zip(seen) {
                    *to = bucket as i32;
                }
            }
        }
        let data = TensorData::new(buckets, [shape[0], 1, shape[2], shape[3]]);
        Tensor::<B, 4, Int>::from_data(data, &self.device).expand(shape)
    }

    /// Gradients of the terms by query from those of the scores, `[heads, queries, buckets]`.
    fn query_term_grads(&self, d_scores: Tensor<B, 4>) -> Tensor<B, 3> {
        let index = self.spec.distances.as_ref().map(|distances| self.buckets(distances));
        self.scattered(d_scores, index, self.query_places())
    }

    /// Gradients of the terms by key, `[heads, rows, buckets]`.
    fn key_term_grads(&self, d_scores: Tensor<B, 4>, key_rows: usize) -> Tensor<B, 3> {
        let index = self.spec.distances.as_ref().map(|distances| self.buckets(distances).swap_dims(2, 3));
        let rows = self.key_places();
        debug_assert_eq!(rows.dims(), [key_rows]);
        self.scattered(d_scores.swap_dims(2, 3), index, rows)
    }

    /// Sums of `d_scores` `[batch, heads, rows, others]` by bucket, of the packed rows: `[heads, packed, buckets]`.
    fn scattered(
        &self,
        d_scores: Tensor<B, 4>,
        index: Option<Tensor<B, 4, Int>>,
        rows: Tensor<B, 1, Int>,
    ) -> Tensor<B, 3> {
        let [batch, heads, max, _] = d_scores.dims();
        let n = self.spec.distances.as_ref().map_or(0, Distances::n_buckets);
        let zeros = Tensor::<B, 4>::zeros([batch, heads, max, n], (&self.device, self.dtype));
        let sums = match index {
            Some(index) => zeros.scatter(3, index, d_scores, IndexingUpdateOp::Add),
            None => zeros,
        };
        sums.swap_dims(0, 1).reshape([heads, batch * max, n]).select(1, rows)
    }

    /// 0 where a query sees a key and -∞ elsewhere, `[batch, 1, queries, keys]`.
    ///
    /// A padded query sees none: its output, which is NaN, is not packed, and its probabilities are zero in the
    /// backward pass, where the softmax denominator is that of a real row.
    fn mask(&self) -> Tensor<B, 4> {
        let spec = self.spec;
        let mut mask = vec![f32::NEG_INFINITY; self.batch() * self.max_queries * self.max_keys];
        for (sequence, (queries, keys)) in spec.sequences().enumerate() {
            let (q_length, kv_length) = (queries.len(), keys.len());
            for query in 0..q_length {
                let row = (sequence * self.max_queries + query) * self.max_keys;
                let visible = spec.visible(query, q_length, kv_length);
                mask[row + visible.start..row + visible.end].fill(0.0);
            }
        }
        let mask = TensorData::new(mask, [self.batch(), 1, self.max_queries, self.max_keys]);
        Tensor::from_data(mask, (&self.device, self.dtype))
    }

    /// 0 where a probability is dropped and the scale of the others elsewhere, `[batch, heads, queries, keys]`.
    fn dropout_factors(&self) -> Option<Tensor<B, 4>> {
        let dropout = self.spec.dropout?;
        let shape = [self.batch(), self.spec.n_heads, self.max_queries, self.max_keys];
        let mut factors = Vec::with_capacity(shape.iter().product());
        let mut first_query = 0;
        for q_length in self.spec.queries.lengths() {
            for head in 0..self.spec.n_heads {
                for query in 0..self.max_queries {
                    let row = (first_query + query) * self.spec.n_heads + head;
                    let keep = dropout.row_mask(row as u64);
                    factors.extend(
                        (0..self.max_keys).map(|key| if keep(key as u32) { dropout.scale() } else { 0.0 }),
                    );
                }
            }
            first_query += q_length;
        }
        Some(Tensor::from_data(TensorData::new(factors, shape), (&self.device, self.dtype)))
    }

    /// For each padded position of sequences with these rows, the row to read; padding reads the sequence's first row,
    /// since others may hold NaN.
    fn index(&self, sequences: impl Iterator<Item = Range<usize>>, max: usize) -> Tensor<B, 1, Int> {
        let mut index = Vec::new();
        for rows in sequences {
            let padding = if rows.is_empty() { 0 } else { rows.start };
            index.extend((0..max).map(|i| if i < rows.len() { rows.start + i } else { padding } as i32));
        }
        Tensor::from_data(index.as_slice(), &self.device)
    }

    /// For each packed row, the padded position to read.
    fn pack_index(&self, lengths: impl Iterator<Item = usize>, max: usize) -> Tensor<B, 1, Int> {
        let positions = lengths
            .enumerate()
            .flat_map(|(sequence, length)| (0..length).map(move |i| (sequence * max + i) as i32));
        let index: Vec<i32> = positions.collect();
        Tensor::from_data(index.as_slice(), &self.device)
    }
}
