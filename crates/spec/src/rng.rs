//! Every random number of the lowrank crates: seeded, counter-based, the same on every platform and backend.
//!
//! The meaning of a seed (a shuffle, a mask, an initial value, a generated data set) must not change with a
//! dependency's version, so SplitMix64 is implemented here: Steele, Lea and Flood, "Fast splittable
//! pseudorandom number generators", OOPSLA 2014. Initial values of tensors come from ChaCha8, one stream per
//! tensor name.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// The increment of the state: 2⁶⁴ / φ, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64.
///
/// ```
/// use lowrank_spec::rng::SplitMix64;
/// let mut rng = SplitMix64::new(1_234_567);
/// assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317); // the reference implementation's first output
/// ```
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator whose state is `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator for one purpose of a seed: `keys` (an epoch, a task, …) are mixed into the state one by one, so
    /// that neighbouring keys give unrelated sequences.
    pub fn keyed(seed: u64, keys: &[u64]) -> Self {
        let state = keys
            .iter()
            .fold(split_mix(seed), |state, &key| finalize(state.wrapping_add(GOLDEN) ^ split_mix(key)));
        Self { state }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        finalize(self.state)
    }

    /// Uniform in `(0, 1]` with 53 bits, so that its logarithm is finite.
    pub fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A uniform integer below `bound`; 0 when `bound` is 0. Unbiased: Lemire's multiplication with rejection.
    pub fn below(&mut self, bound: u64) -> u64 {
        let threshold = if bound == 0 { 0 } else { bound.wrapping_neg() % bound };
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A uniform index below `len`; 0 when `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Fisher–Yates shuffle, from the last element down.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// Independent standard normal numbers: SplitMix64 with the Box–Muller transform on top.
#[derive(Debug, Clone)]
pub struct NormalSource {
    uniform: SplitMix64,
    spare: Option<f64>,
}

impl NormalSource {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { uniform: SplitMix64::new(seed), spare: None }
    }

    /// The next number.
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * self.uniform.unit().ln()).sqrt();
        let (sin, cos) = (core::f64::consts::TAU * self.uniform.unit()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

/// The finalizer of SplitMix64 (Stafford's mix 13).
const fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The first output of SplitMix64 from the state `seed`: a hash of 64 bits.
pub const fn split_mix(seed: u64) -> u64 {
    finalize(seed.wrapping_add(GOLDEN))
}

/// A seed for stream number `stream` of `seed`: the output number `stream` of SplitMix64.
pub const fn mix(seed: u64, stream: u64) -> u64 {
    finalize(seed.wrapping_add(stream.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The generator for the tensor called `key`: a separate stream, so that values do not depend on the order in
/// which tensors are created.
fn tensor_rng(seed: u64, key: &str) -> ChaCha8Rng {
    // FNV-1a over the key.
    let hash =
        key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ChaCha8Rng::seed_from_u64(mix(seed, hash))
}

/// Uniform in `(0, 1]` with 24 bits, computed from integers only.
fn unit24(rng: &mut ChaCha8Rng) -> f64 {
    f64::from((rng.random::<u32>() >> 8) + 1) / f64::from(1u32 << 24)
}

/// `n` values uniform in `[-bound, bound]` for the tensor called `key`.
pub fn uniform_values(seed: u64, key: &str, n: usize, bound: f64) -> Vec<f32> {
    let mut rng = tensor_rng(seed, key);
    (0..n).map(|_| ((2.0 * unit24(&mut rng) - 1.0) * bound) as f32).collect()
}

/// `n` normal values with mean 0 and standard deviation `std` (Box–Muller) for the tensor called `key`.
pub fn normal_values(seed: u64, key: &str, n: usize, std: f64) -> Vec<f32> {
    let mut rng = tensor_rng(seed, key);
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let radius = (-2.0 * unit24(&mut rng).ln()).sqrt() * std;
        let (sin, cos) = (core::f64::consts::TAU * unit24(&mut rng)).sin_cos();
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_reference_implementation() {
        let mut rng = SplitMix64::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        assert_eq!(
            got,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let mut rng = SplitMix64::new(7);
        let mut counts = [0usize; 6];
        for _ in 0..6_000 {
            counts[rng.index(6)] += 1;
        }
        // Six standard deviations of a binomial(6000, 1/6).
        assert!(counts.iter().all(|c| c.abs_diff(1_000) < 174), "{counts:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_pinned() {
        let mut items: Vec<u32> = (0..8).collect();
        SplitMix64::new(42).shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..8).collect::<Vec<_>>());
        let mut again: Vec<u32> = (0..8).collect();
        SplitMix64::new(42).shuffle(&mut again);
        assert_eq!(items, again);
    }

    #[test]
    fn keys_separate_sequences() {
        let first = |keys: &[u64]| SplitMix64::keyed(3, keys).next_u64();
        let all = [first(&[]), first(&[0]), first(&[1]), first(&[0, 0]), first(&[0, 1]), first(&[1, 0])];
        let mut unique = all.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn normal_has_the_moments_asked_for() {
        let values = normal_values(7, "w", 100_000, 0.5);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let var = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors: 5·0.5/√n and 5·σ²·√(2/n).
        assert!(mean.abs() < 5.0 * 0.5 / 1e5_f64.sqrt(), "mean {mean}");
        assert!((var - 0.25).abs() < 5.0 * 0.25 * (2e-5_f64).sqrt(), "variance {var}");
    }

    #[test]
    fn uniform_stays_in_its_bounds_and_fills_them() {
        let values = uniform_values(7, "w", 10_000, 0.25);
        assert!(values.iter().all(|v| v.abs() <= 0.25));
        assert!(values.iter().any(|&v| v > 0.24) && values.iter().any(|&v| v < -0.24));
    }

    #[test]
    fn keys_and_seeds_give_streams_of_their_own() {
        assert_eq!(normal_values(1, "a", 5, 1.0), normal_values(1, "a", 5, 1.0));
        assert_ne!(normal_values(1, "a", 5, 1.0), normal_values(1, "b", 5, 1.0));
        assert_ne!(normal_values(1, "a", 5, 1.0), normal_values(2, "a", 5, 1.0));
    }

    #[test]
    fn the_normal_source_has_the_moments_of_the_standard_normal() {
        let count = 40_000_usize;
        let mut source = NormalSource::new(7);
        let sample: Vec<f64> = (0..count).map(|_| source.normal()).collect();
        let mean = sample.iter().sum::<f64>() / count as f64;
        let variance = sample.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
        // Five standard deviations of the two estimators.
        assert!(mean.abs() < 5.0 / (count as f64).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / count as f64).sqrt(), "{variance}");
    }

    #[test]
    fn mix_counts_through_the_outputs_of_the_generator() {
        let mut rng = SplitMix64::new(99);
        assert_eq!([mix(99, 0), mix(99, 1), mix(99, 2)], [rng.next_u64(), rng.next_u64(), rng.next_u64()]);
        assert_eq!(split_mix(99), mix(99, 0));
    }
}
