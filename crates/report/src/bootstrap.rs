//! Comparison of two methods by a paired bootstrap over seeds.

use lowrank_spec::rng::SplitMix64;

/// Number of resamples drawn if there are too many to enumerate.
const RESAMPLES: usize = 10_000;
/// Fraction of the resamples inside the interval.
const CONFIDENCE: f64 = 0.95;
/// Seed of the resamples.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The mean of paired differences, with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedInterval {
    /// Mean difference.
    pub mean: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// The fraction of the resamples whose mean is above 0, counting half of those with 0.
    pub above: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// The percentile bootstrap of the mean of `differences`, one per seed.
///
/// *Method*: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13. Up to five pairs all resamples
/// are enumerated; beyond, 10,000 are drawn with a fixed seed, so that a report is reproducible. With
/// a few seeds the interval is too narrow for its nominal level: two pairs give only four resamples.
///
/// `None` for fewer than two pairs, or if one is not finite.
pub fn paired_bootstrap(differences: &[f64]) -> Option<PairedInterval> {
    let pairs = differences.len();
    if pairs < 2 || differences.iter().any(|difference| !difference.is_finite()) {
        return None;
    }
    let mean_of = |picks: &mut dyn FnMut() -> usize| {
        (0..pairs).map(|_| differences[picks()]).sum::<f64>() / pairs as f64
    };
    let mut means: Vec<f64> = if pairs <= 5 {
        let all = pairs.pow(pairs as u32);
        let resample = |number: usize| {
            let mut rest = number;
            mean_of(&mut || {
                let pick = rest % pairs;
                rest /= pairs;
                pick
            })
        };
        (0..all).map(resample).collect()
    } else {
        let mut random = SplitMix64::new(SEED);
        (0..RESAMPLES).map(|_| mean_of(&mut || (random.next_u64() % pairs as u64) as usize)).collect()
    };
    means.sort_by(f64::total_cmp);
    // Resamples outside the interval at each end.
    let outside = (means.len() as f64 * (1.0 - CONFIDENCE) / 2.0).floor() as usize;
    let part = |passes: fn(&&f64) -> bool| means.iter().filter(passes).count() as f64 / means.len() as f64;
    Some(PairedInterval {
        mean: differences.iter().sum::<f64>() / pairs as f64,
        low: means[outside],
        high: means[means.len() - 1 - outside],
        above: part(|mean| **mean > 0.0) + part(|mean| **mean == 0.0) / 2.0,
        pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pairs_by_hand() {
        // The four resamples of 1 and 3 have the means 1, 2, 2, 3.
        let expect = PairedInterval { mean: 2.0, low: 1.0, high: 3.0, above: 1.0, pairs: 2 };
        assert_eq!(paired_bootstrap(&[1.0, 3.0]), Some(expect));
        // −1, 0, 0, 1.
        let even = paired_bootstrap(&[-1.0, 1.0]).unwrap();
        assert_eq!((even.mean, even.low, even.high, even.above), (0.0, -1.0, 1.0, 0.5));
    }

    #[test]
    fn no_more_lies_outside_than_may() {
        // Of 27 resamples one has the mean 1, that is 3.7 %: it belongs to the interval.
        let interval = paired_bootstrap(&[1.0, -5.0, -5.0]).unwrap();
        assert_eq!((interval.low, interval.high), (-5.0, 1.0));
    }

    #[test]
    fn equal_differences_leave_no_doubt() {
        for count in [2, 5, 6, 20] {
            let interval = paired_bootstrap(&vec![0.5; count]).unwrap();
            assert_eq!((interval.low, interval.high, interval.above), (0.5, 0.5, 1.0));
        }
    }

    #[test]
    fn the_interval_is_as_wide_as_theory_has_it() {
        // 400 draws of a uniform distribution on 0..1, as ranks: the mean's standard error is 1/√(12·400).
        let values: Vec<f64> = (0..400).map(|rank| (f64::from(rank) + 0.5) / 400.0).collect();
        let interval = paired_bootstrap(&values).unwrap();
        let error = (1.0_f64 / 12.0 / 400.0).sqrt();
        // A quantile of 10,000 resamples is off by about 2.5 % of the interval's half width; four of those.
        let slack = 0.1 * 1.96 * error;
        assert!((interval.low - (0.5 - 1.96 * error)).abs() < slack, "{interval:?}");
        assert!((interval.high - (0.5 + 1.96 * error)).abs() < slack, "{interval:?}");
        assert_eq!(paired_bootstrap(&values), Some(interval), "it can be repeated");
    }

    #[test]
    fn one_pair_says_nothing() {
        assert_eq!(paired_bootstrap(&[1.0]), None);
        assert_eq!(paired_bootstrap(&[]), None);
        assert_eq!(paired_bootstrap(&[1.0, f64::NAN]), None);
    }
}
