//! Seeded normal test matrices, identical on every platform.

use faer::Mat;
use lowrank_spec::rng;

use crate::scalar::Scalar;

/// A stream of independent standard normal numbers.
#[derive(Debug, Clone)]
pub(crate) struct NormalSource(rng::NormalSource);

impl NormalSource {
    pub(crate) fn new(seed: u64) -> Self {
        Self(rng::NormalSource::new(seed))
    }

    /// Matrix of the next numbers, filled column by column.
    pub(crate) fn matrix<T: Scalar>(&mut self, rows: usize, cols: usize) -> Mat<T> {
        Mat::from_fn(rows, cols, |_, _| T::of(self.0.normal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_repeat_and_differ() {
        let first = |seed| NormalSource::new(seed).matrix::<f64>(5, 3);
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
