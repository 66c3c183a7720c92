//! The pseudo-random numbers of this crate: SplitMix64, integers only, the same on every platform and for ever.
//!
//! What a seed stands for (a shuffle, a mask, a generated data set) must not change with a dependency's version, so
//! the generator is written out: Steele, Lea and Flood, «Fast splittable pseudorandom number generators», OOPSLA 2014.

/// The increment of the state: 2⁶⁴ / φ, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64.
///
/// ```
/// use lowrank_data::rng::SplitMix64;
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
        let state = keys.iter().fold(mix(seed.wrapping_add(GOLDEN)), |state, &key| {
            mix(state.wrapping_add(GOLDEN) ^ mix(key.wrapping_add(GOLDEN)))
        });
        Self { state }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
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

    /// Fisher and Yates's shuffle, from the last element down.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// The output function of SplitMix64 (Stafford's mix 13).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
}
