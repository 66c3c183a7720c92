//! Seeded normal numbers for random test matrices.
//!
//! The generator is part of the crate so that a seed gives the same decomposition on every platform and
//! after every update of a dependency.

use faer::Mat;

use crate::scalar::Scalar;

/// SplitMix64 (Steele, Lea, Flood 2014) with the Box–Muller transform on top.
#[derive(Debug, Clone)]
pub(crate) struct NormalSource {
    state: u64,
    spare: Option<f64>,
}

impl NormalSource {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `(0, 1]`, so that its logarithm is finite.
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * self.unit().ln()).sqrt();
        let (sin, cos) = (core::f64::consts::TAU * self.unit()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Matrix of independent standard normal entries, filled column by column.
    pub(crate) fn matrix<T: Scalar>(&mut self, rows: usize, cols: usize) -> Mat<T> {
        Mat::from_fn(rows, cols, |_, _| T::of(self.normal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_standard_normal() {
        let count = 40_000_usize;
        let sample = NormalSource::new(7).matrix::<f64>(count, 1);
        let mean = (0..count).map(|i| sample[(i, 0)]).sum::<f64>() / count as f64;
        let variance = (0..count).map(|i| (sample[(i, 0)] - mean).powi(2)).sum::<f64>() / count as f64;
        // Five standard deviations of the two estimators.
        assert!(mean.abs() < 5.0 / (count as f64).sqrt(), "{mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / count as f64).sqrt(), "{variance}");
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let first = NormalSource::new(1).matrix::<f64>(5, 3);
        assert_eq!(first, NormalSource::new(1).matrix::<f64>(5, 3));
        assert_ne!(first, NormalSource::new(2).matrix::<f64>(5, 3));
    }
}
