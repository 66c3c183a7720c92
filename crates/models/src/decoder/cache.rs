//! Keys and values of the tokens that have been read, so that each is computed once.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;

/// Positions by which a cache grows.
const BLOCK: usize = 256;

/// The cache of a batch of sequences: for each layer a table of keys and one of values, in which every sequence
/// has room for the same number of positions.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Positions held, by sequence.
    lengths: Vec<usize>,
    /// Positions there is room for in each sequence.
    capacity: usize,
}

/// Keys and values of one layer, each `[sequences * capacity, n_kv_heads * head_dim]`.
#[derive(Clone, Debug)]
struct LayerCache<B: Backend> {
    tables: [Tensor<B, 2>; 2],
}

/// Where the rows of a step go: made once for all layers.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    /// First row in the table, first row of the step, number of rows.
    spans: Vec<[usize; 3]>,
    /// The rows of each sequence's keys after the step.
    pub(crate) keys: Arc<[Range<usize>]>,
}

impl Writes {
    /// Writes `rows` into a table, and returns it.
    fn apply<B: Backend>(&self, table: &mut Tensor<B, 2>, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        let [count, width] = rows.dims();
        // The only handle, so that the backend can write in place.
        let mut all = std::mem::replace(table, rows.clone());
        for &[to, from, n] in &self.spans {
            let rows = if n == count { rows.clone() } else { rows.clone().slice([from..from + n, 0..width]) };
            all = all.slice_assign([to..to + n, 0..width], rows);
        }
        *table = all.clone();
        all
    }
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for so many sequences, with room for `capacity` positions in each.
    pub fn new(n_layers: usize, width: usize, sequences: usize, capacity: usize, device: &B::Device) -> Self {
        let capacity = capacity.next_multiple_of(BLOCK);
        let table = || Tensor::zeros([sequences * capacity, width], device);
        let layers = (0..n_layers).map(|_| LayerCache { tables: [table(), table()] }).collect();
        Self { layers, lengths: vec![0; sequences], capacity }
    }

    /// Positions held of a sequence.
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Makes room for `counts[i]` more positions of sequence `active[i]`, and says where they go.
    pub(crate) fn begin(&mut self, active: &[usize], counts: &[usize]) -> Writes {
        let needed = active.iter().zip(counts).map(|(&s, n)| self.lengths[s] + n).max().unwrap_or(0);
        if needed > self.capacity {
            // Half as much again, so that a long text is not copied for every block.
            self.grow(needed.max(self.capacity + self.capacity / 2).next_multiple_of(BLOCK));
        }
        let mut from = 0;
        let mut spans = Vec::with_capacity(active.len());
        for (&sequence, &count) in active.iter().zip(counts) {
            spans.push([sequence * self.capacity + self.lengths[sequence], from, count]);
            from += count;
            self.lengths[sequence] += count;
        }
        let rows = |&s: &usize| s * self.capacity..s * self.capacity + self.lengths[s];
        Writes { spans, keys: active.iter().map(rows).collect() }
    }

    /// Writes the step's keys and values of a layer, and returns its tables.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        writes: &Writes,
        rows: [Tensor<B, 2>; 2],
    ) -> [Tensor<B, 2>; 2] {
        let [keys, values] = &mut self.layers[layer].tables;
        let [new_keys, new_values] = rows;
        [writes.apply(keys, new_keys), writes.apply(values, new_values)]
    }

    fn grow(&mut self, capacity: usize) {
        let sequences = self.lengths.len();
        for layer in &mut self.layers {
            for table in &mut layer.tables {
                let [_, width] = table.dims();
                let old = table.clone().reshape([sequences, self.capacity, width]);
                let room = [sequences, capacity - self.capacity, width];
                let room = Tensor::zeros(room, (&old.device(), old.dtype()));
                *table = Tensor::cat(vec![old, room], 1).reshape([sequences * capacity, width]);
            }
        }
        self.capacity = capacity;
    }
}
