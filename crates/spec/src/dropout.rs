//! Dropout masks that are hashes of a seed and a place, and the streams that tell the places of a model apart.

use crate::rng::{mix, split_mix};

/// Counter-based dropout: whether an element is kept is a hash of the seed and its place, so the mask
/// is the same on every backend and in the forward and the backward pass, and is never stored.
///
/// Kept values are scaled by `1 / (1 - p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in `[0, 1)`.
    pub p: f32,
    /// Seed of the mask. Two steps with the same seed and shape drop the same elements.
    pub seed: u64,
}

impl Dropout {
    /// The mask of row `row`: a function from the column to whether the element is kept.
    ///
    /// In attention the row is `query * n_heads + head`, with `query` counted over the whole packed batch, and the
    /// column is the key's position in its own sequence.
    pub fn row_mask(self, row: u64) -> impl Fn(u32) -> bool {
        let key = self.row_key(row);
        let threshold = self.threshold();
        move |column| hash(key, column) >= threshold
    }

    /// Factor by which kept elements are multiplied.
    pub fn scale(self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// Hashes below this are dropped.
    pub fn threshold(self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0) as u32
    }

    /// The two words that tell one row's hashes from another's.
    pub fn row_key(self, row: u64) -> (u32, u32) {
        let key = split_mix(self.seed ^ split_mix(row));
        (key as u32, (key >> 32) as u32)
    }
}

/// A 32-bit mix in the manner of `lowbias32`, with a key word before each of its two rounds.
fn hash(key: (u32, u32), column: u32) -> u32 {
    let mut x = column.wrapping_add(key.0);
    x ^= x >> 16;
    x = x.wrapping_mul(HASH_FACTORS[0]).wrapping_add(key.1);
    x ^= x >> 15;
    x = x.wrapping_mul(HASH_FACTORS[1]);
    x ^ (x >> 16)
}

/// Multipliers of the two rounds of the hash, for vectorized versions of [`Dropout::row_mask`].
pub const HASH_FACTORS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

/// A location in a model with its own dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The sum of the embeddings.
    Embeddings,
    /// One of up to four places of a transformer layer.
    Layer {
        /// The layer, from 0 on.
        layer: usize,
        /// The place in it: 0 attention scores, 1 attention output, 2 feed-forward output, 3 inner values or relative
        /// positions.
        place: u64,
    },
    /// A convolution beside the first layer.
    Convolution,
    /// One of two places of a decoder layer's attention over an encoder's states: 0 scores, 1 output.
    Cross {
        /// The layer, counted with the encoder's.
        layer: usize,
        /// The place in it.
        place: u64,
    },
    /// A place outside of the layers of an encoder-decoder model: 0 the decoder's embeddings, 1 the encoder's states, 2 the
    /// decoder's.
    Outside(u64),
    /// A place of the task head.
    Head(u64),
    /// The input of an adapter.
    Adapter {
        /// Index of the site.
        site: usize,
        /// Which of the adapters that are summed there.
        member: usize,
    },
}

impl Stream {
    /// Number of the stream; no two places share one (models have fewer than 2²⁸ layers).
    const fn number(self) -> u64 {
        match self {
            Self::Embeddings => 0,
            Self::Layer { layer, place } => 1 + layer as u64 * 4 + place,
            Self::Head(place) => (1 << 30) + place,
            Self::Convolution => 1 << 31,
            Self::Cross { layer, place } => (1 << 31) + 1 + layer as u64 * 2 + place,
            Self::Outside(place) => (3 << 30) + place,
            Self::Adapter { site, member } => ((1 + member as u64) << 32) + site as u64,
        }
    }
}

/// How a forward pass runs: evaluation, or training with a seed for every random choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mode {
    seed: Option<u64>,
}

impl Mode {
    /// Evaluation: no dropout.
    pub const EVAL: Self = Self { seed: None };

    /// Training; `seed` is different for every step.
    pub const fn train(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    /// The dropout of one place in the model, `None` in evaluation or at `p = 0`.
    ///
    /// The same seed and stream give the same mask on every backend.
    pub fn dropout(self, p: f64, stream: Stream) -> Option<Dropout> {
        let seed = self.seed?;
        (p > 0.0).then(|| Dropout { p: p as f32, seed: mix(seed, stream.number()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluation_drops_nothing_and_streams_differ() {
        let streams = [
            Stream::Embeddings,
            Stream::Layer { layer: 0, place: 0 },
            Stream::Layer { layer: 0, place: 3 },
            Stream::Layer { layer: 1, place: 0 },
            Stream::Head(0),
            Stream::Head(1),
            Stream::Convolution,
            Stream::Cross { layer: 0, place: 0 },
            Stream::Cross { layer: 0, place: 1 },
            Stream::Cross { layer: 1, place: 0 },
            Stream::Outside(0),
            Stream::Outside(2),
            Stream::Adapter { site: 0, member: 0 },
            Stream::Adapter { site: 0, member: 1 },
            Stream::Adapter { site: 1, member: 0 },
        ];
        assert!(Mode::EVAL.dropout(0.5, Stream::Embeddings).is_none());
        assert!(Mode::train(3).dropout(0.0, Stream::Embeddings).is_none());
        let mut seeds: Vec<u64> =
            streams.iter().map(|&s| Mode::train(3).dropout(0.5, s).unwrap().seed).collect();
        assert_eq!(Mode::train(3).dropout(0.5, streams[2]).unwrap().seed, seeds[2]);
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), streams.len());
    }

    #[test]
    fn a_mask_keeps_its_share() {
        let dropout = Dropout { p: 0.25, seed: 5 };
        let kept = (0..100).map(|row| (0..1000).filter(|&c| dropout.row_mask(row)(c)).count()).sum::<usize>();
        // Six standard deviations of a binomial(100 000, 0.75).
        assert!(kept.abs_diff(75_000) < 822, "{kept}");
        assert!((dropout.scale() - 4.0 / 3.0).abs() < 1e-6);
    }
}
