//! Keys and values of the processed tokens, so that each is computed once.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use lowrank_kernels::{Kernels, write_rows};

use crate::config::DecoderConfig;
use crate::encoder::BatchDistances;

/// Number of positions by which the capacity of a sequence grows.
const BLOCK: usize = 64;

/// The cache of a batch of sequences: for each layer one table of keys and one of values, in which each
/// sequence has capacity for the positions that it needs.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Number of positions held, by sequence.
    lengths: Vec<usize>,
    /// Capacity of each sequence in positions.
    rooms: Vec<usize>,
    /// First row of each sequence.
    starts: Vec<usize>,
    /// Number of consecutive sequences that continue one prompt.
    beams: usize,
    /// The distances in sequences of at least the lengths held, in models with relative positions.
    distances: Option<BatchDistances<B>>,
}

/// Keys and values of one layer, each `[Σ rooms, n_kv_heads * head_dim]`.
#[derive(Clone, Debug)]
struct LayerCache<B: Backend> {
    tables: [Tensor<B, 2>; 2],
}

/// Destinations of the rows of a step: computed once for all layers.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    /// First row in the table, first row of the step, number of rows.
    spans: Vec<[usize; 3]>,
    /// The rows of each sequence's keys after the step.
    pub(crate) keys: Arc<[Range<usize>]>,
}

impl Writes {
    /// Writes `rows` into a table, and returns it.
    fn apply<B: Kernels>(&self, table: &mut Tensor<B, 2>, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        // The only handle, so that the table is written in place.
        let all = std::mem::replace(table, rows.clone());
        *table = write_rows(all, rows, &self.spans);
        table.clone()
    }
}

fn starts(rooms: &[usize]) -> Vec<usize> {
    rooms.iter().scan(0, |next, room| Some(std::mem::replace(next, *next + room))).collect()
}

impl<B: Backend> KvCache<B> {
    /// An empty cache with capacity for `capacities[i]` positions of sequence `i`.
    pub(crate) fn new(n_layers: usize, width: usize, capacities: &[usize], device: &B::Device) -> Self {
        let rooms: Vec<usize> = capacities.iter().map(|n| n.next_multiple_of(BLOCK)).collect();
        let rows = rooms.iter().sum();
        let table = || Tensor::zeros([rows, width], device);
        let layers = (0..n_layers).map(|_| LayerCache { tables: [table(), table()] }).collect();
        Self {
            layers,
            lengths: vec![0; rooms.len()],
            starts: starts(&rooms),
            rooms,
            beams: 1,
            distances: None,
        }
    }

    /// An empty cache of a decoder.
    pub(crate) fn of(config: &DecoderConfig, capacities: &[usize], device: &B::Device) -> Self {
        Self::new(config.n_layers, config.n_kv_heads * config.head_dim, capacities, device)
    }

    /// The same, of which `beams` consecutive sequences continue each prompt.
    pub(crate) fn with_beams(self, beams: usize) -> Self {
        Self { beams, ..self }
    }

    /// The prompt that each sequence continues.
    pub(crate) fn prompts_of(&self, sequences: &[usize]) -> Vec<usize> {
        sequences.iter().map(|sequence| sequence / self.beams).collect()
    }

    /// Number of positions held for a sequence.
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Forgets the positions of a sequence.
    pub(crate) fn clear(&mut self, sequence: usize) {
        self.lengths[sequence] = 0;
    }

    /// The distances in the sequences held; `make` gives those of sequences up to a length, which at least doubles so that
    /// all steps together cost no more than the last.
    pub(crate) fn distances(&mut self, make: impl FnOnce(usize) -> BatchDistances<B>) -> BatchDistances<B> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        match &self.distances {
            Some(known) if known.distances.longest() >= longest => known.clone(),
            _ => self.distances.insert(make(longest.max(BLOCK).next_power_of_two())).clone(),
        }
    }

    /// Reserves `counts[i]` more positions for sequence `active[i]`, and returns their destinations.
    pub(crate) fn begin(&mut self, active: &[usize], counts: &[usize]) -> Writes {
        let mut rooms = self.rooms.clone();
        for (&sequence, count) in active.iter().zip(counts) {
            let (needed, room) = (self.lengths[sequence] + count, rooms[sequence]);
            if needed > room {
                // Half as much again, so that a long text is not copied for every block.
                rooms[sequence] = needed.max(room + room / 2).next_multiple_of(BLOCK);
            }
        }
        if rooms != self.rooms {
            self.grow(rooms);
        }
        let mut from = 0;
        let mut spans = Vec::with_capacity(active.len());
        for (&sequence, &count) in active.iter().zip(counts) {
            spans.push([self.starts[sequence] + self.lengths[sequence], from, count]);
            from += count;
            self.lengths[sequence] += count;
        }
        let rows = |&s: &usize| self.starts[s]..self.starts[s] + self.lengths[s];
        Writes { spans, keys: active.iter().map(rows).collect() }
    }

    fn grow(&mut self, rooms: Vec<usize>) {
        for layer in &mut self.layers {
            for table in &mut layer.tables {
                let [_, width] = table.dims();
                let mut parts = Vec::with_capacity(2 * rooms.len());
                for ((&start, &old), &new) in self.starts.iter().zip(&self.rooms).zip(&rooms) {
                    if old > 0 {
                        parts.push(table.clone().narrow(0, start, old));
                    }
                    if new > old {
                        parts.push(Tensor::zeros([new - old, width], (&table.device(), table.dtype())));
                    }
                }
                *table = Tensor::cat(parts, 0);
            }
        }
        self.starts = starts(&rooms);
        self.rooms = rooms;
    }
}

impl<B: Kernels> KvCache<B> {
    /// Copies positions between sequences of equal capacity: each move `[sequence, source, first]` gives a sequence those of
    /// a source from position `first` on; the earlier ones must be equal. All sources are read before anything is written.
    pub(crate) fn rearrange(&mut self, moves: &[[usize; 3]]) {
        let moves: Vec<[usize; 3]> =
            moves.iter().copied().filter(|[sequence, source, _]| sequence != source).collect();
        let lengths: Vec<usize> = moves.iter().map(|&[_, source, _]| self.lengths[source]).collect();
        let mut spans = Vec::with_capacity(moves.len());
        let mut row = 0;
        for (&[sequence, source, first], length) in moves.iter().zip(&lengths) {
            debug_assert_eq!(self.rooms[sequence], self.rooms[source]);
            spans.push([self.starts[sequence] + first, row, length - first]);
            row += length - first;
        }
        if row > 0 {
            let writes = Writes { spans, keys: Arc::default() };
            for table in self.layers.iter_mut().flat_map(|layer| &mut layer.tables) {
                let parts = moves.iter().zip(&lengths).filter(|([.., first], length)| first < *length);
                let part = |(&[_, source, first], length): (&[usize; 3], &usize)| {
                    table.clone().narrow(0, self.starts[source] + first, length - first)
                };
                writes.apply(table, Tensor::cat(parts.map(part).collect(), 0));
            }
        }
        for ([sequence, ..], length) in moves.into_iter().zip(lengths) {
            self.lengths[sequence] = length;
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn distances_are_computed_for_twice_the_length_at_least() {
        let device = Default::default();
        let mut cache = KvCache::<Flex>::new(1, 1, &[1, 1], &device);
        let mut sizes = Vec::new();
        for _ in 0..300 {
            cache.begin(&[1], &[1]);
            let known = cache.distances(|longest| {
                sizes.push(longest);
                BatchDistances::of(longest, |_| 0, &device)
            });
            assert!(known.distances.longest() >= cache.length(1));
        }
        assert_eq!(sizes, [64, 128, 256, 512]);
    }

    #[test]
    fn positions_are_moved_between_sequences() {
        let device = Default::default();
        let mut cache = KvCache::<Flex>::new(1, 1, &[3, 3, 3], &device).with_beams(3);
        let rows =
            |values: &[f32]| Tensor::<Flex, 1>::from_floats(values, &device).reshape([values.len(), 1]);
        let writes = cache.begin(&[0], &[1]);
        cache.write(0, &writes, [rows(&[1.0]), rows(&[0.0])]);
        cache.rearrange(&[[0, 0, 0], [1, 0, 0], [2, 0, 0]]);
        let writes = cache.begin(&[0, 1, 2], &[2, 2, 2]);
        cache.write(0, &writes, [rows(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), rows(&[0.0; 6])]);
        // Sources are also destinations; the last one keeps its second position.
        cache.rearrange(&[[0, 1, 1], [1, 0, 1], [2, 0, 2]]);
        assert_eq!((0..3).map(|i| cache.length(i)).collect::<Vec<_>>(), [3, 3, 3]);
        let writes = cache.begin(&[2], &[1]);
        let table = cache.write(0, &writes, [rows(&[8.0]), rows(&[0.0])])[0].clone();
        let held: Vec<f32> = table.into_data().iter::<f32>().collect();
        assert_eq!(
            [&held[..3], &held[64..67], &held[128..132]],
            [&[1.0, 4.0, 5.0][..], &[1.0, 2.0, 3.0], &[1.0, 6.0, 3.0, 8.0]]
        );
        assert_eq!(cache.prompts_of(&[0, 2]), [0, 0]);
    }

    #[test]
    fn each_sequence_has_its_own_room() {
        let device = Default::default();
        let mut cache = KvCache::<Flex>::new(1, 1, &[3, 1000], &device);
        assert_eq!(cache.rooms.iter().sum::<usize>(), 64 + 1024);
        let rows = |n: usize, x: f32| Tensor::full([n, 1], x, &device);
        let writes = cache.begin(&[0, 1], &[3, 2]);
        let table = cache.write(0, &writes, [rows(5, 1.0), rows(5, 2.0)])[0].clone();
        assert_eq!(writes.keys[..], [0..3, 64..66]);
        assert_eq!(table.sum().into_scalar(), 5.0);
        // The first grows; the second moves with its contents.
        let writes = cache.begin(&[0], &[100]);
        let table = cache.write(0, &writes, [rows(100, 1.0), rows(100, 2.0)])[0].clone();
        assert_eq!(cache.rooms.iter().sum::<usize>(), 128 + 1024);
        let held: Vec<f32> = table.into_data().iter::<f32>().collect();
        assert!(held[..103].iter().chain(&held[128..130]).all(|&x| x == 1.0));
        assert_eq!(held.iter().sum::<f32>(), 105.0);
        assert_eq!(cache.begin(&[1], &[1]).keys[0], 128..131);
    }
}
