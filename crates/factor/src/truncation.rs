//! The number of components to keep: one [`Truncation`] for every method, resolved in one place.

use crate::error::{FactorError, Result};
use crate::matrix::{check_rank, ratio};

/// Criterion for the number of components of an approximation.
///
/// | Variant | Keeps the fewest components such that | Range |
/// |---|---|---|
/// | `Rank(r)` | exactly `r` (for several ranks: at most `r` each) | `1 ..=` the largest rank of the shape |
/// | `RelativeError(ε)` | `‖A − Â‖_F ≤ ε·‖A‖_F` | `[0, 1)` |
/// | `Energy(e)` | `‖Â‖²_F ≥ e·‖A‖²_F`, that is `ε = √(1 − e)` | `(0, 1]` |
/// | `Parameters(p)` | *(the most components such that)* the factors hold at most `p` numbers | ≥ the cost of rank 1 |
///
/// At least one component is always kept, so that a zero matrix factors into rank 1 with error 0.
/// `RelativeError(0.0)` and `Energy(1.0)` keep every singular value that is not exactly zero, rounding
/// noise included; for the numerical rank use [`Spectrum::numerical_rank`](crate::Spectrum::numerical_rank).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Truncation {
    /// Number of components.
    Rank(usize),
    /// Largest relative error in the Frobenius norm (or in the weighted norm of a weighted method).
    RelativeError(f64),
    /// Fraction of the squared Frobenius norm to keep.
    Energy(f64),
    /// Largest number of parameters of the factors.
    Parameters(usize),
}

impl Truncation {
    /// Checks the range of the value, independently of a shape.
    ///
    /// # Errors
    /// [`FactorError::RankOutOfRange`] for rank 0, [`FactorError::ErrorOutOfRange`],
    /// [`FactorError::EnergyOutOfRange`].
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Rank(0) => Err(FactorError::RankOutOfRange { rank: 0, max: usize::MAX }),
            Self::RelativeError(value) if !(0.0..1.0).contains(&value) => {
                Err(FactorError::ErrorOutOfRange { value })
            }
            Self::Energy(value) if !(value > 0.0 && value <= 1.0) => {
                Err(FactorError::EnergyOutOfRange { value })
            }
            _ => Ok(()),
        }
    }

    /// The relative error to which `RelativeError` and `Energy` correspond.
    pub(crate) fn relative_error(&self) -> Option<f64> {
        match *self {
            Self::RelativeError(value) => Some(value),
            Self::Energy(value) => Some((1.0 - value).max(0.0).sqrt()),
            Self::Rank(_) | Self::Parameters(_) => None,
        }
    }

    /// Number of components to keep from a decomposition with the given squared values.
    ///
    /// `outside` is the squared norm not covered by the values, `parameters(r)` is the cost of rank
    /// `r`, which must not decrease.
    pub(crate) fn resolve(
        &self,
        squared: &[f64],
        outside: f64,
        parameters: impl Fn(usize) -> usize,
    ) -> Result<usize> {
        self.validate()?;
        let max = squared.len();
        match *self {
            Self::Rank(rank) => check_rank(rank, max).map(|()| rank),
            Self::Parameters(budget) => {
                let rank = (1..=max).take_while(|&rank| parameters(rank) <= budget).count();
                if rank == 0 {
                    let minimum = parameters(1) as u64;
                    return Err(FactorError::BudgetTooSmall { budget: budget as u64, minimum });
                }
                Ok(rank)
            }
            Self::RelativeError(_) | Self::Energy(_) => {
                let tails = tails(squared, outside);
                let allowed = self.allowed(tails[0]);
                let found = tails.iter().position(|&tail| tail <= allowed);
                found.map(|rank| rank.max(1)).ok_or_else(|| FactorError::TargetNotReached {
                    requested: self.relative_error().unwrap_or_default(),
                    reached: ratio(outside, tails[0]),
                })
            }
        }
    }

    /// Largest squared error that `RelativeError` or `Energy` allows for a squared norm of `total`.
    pub(crate) fn allowed(&self, total: f64) -> f64 {
        match *self {
            Self::RelativeError(value) => value * value * total,
            // An energy computed as a ratio of sums must give back its rank; 1 means all values.
            Self::Energy(value) if value < 1.0 => (1.0 - value + 4.0 * f64::EPSILON) * total,
            Self::Energy(_) => 0.0,
            Self::Rank(_) | Self::Parameters(_) => f64::INFINITY,
        }
    }
}

/// `tails[r]` is the squared error of keeping the first `r` values, for `r` in `0 ..= len`.
pub(crate) fn tails(squared: &[f64], outside: f64) -> Vec<f64> {
    let mut tails = vec![outside; squared.len() + 1];
    for r in (0..squared.len()).rev() {
        tails[r] = tails[r + 1] + squared[r];
    }
    tails
}

/// Result of a truncation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TruncationReport {
    /// Components kept; the largest rank if there are several.
    pub rank: usize,
    /// Relative error in the norm of the method (Frobenius unless stated otherwise).
    pub relative_error: f64,
    /// Number of entries of the dense operand.
    pub parameters_before: usize,
    /// Number of entries of the factors.
    pub parameters_after: usize,
}

impl TruncationReport {
    /// Whether the factors are smaller than the operand they replace.
    pub fn pays(&self) -> bool {
        self.parameters_after < self.parameters_before
    }

    /// `parameters_after / parameters_before`.
    pub fn ratio(&self) -> f64 {
        self.parameters_after as f64 / self.parameters_before as f64
    }
}

/// Factors with the result of the truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct Approximation<F> {
    /// The factors.
    pub factors: F,
    /// Rank, error and parameter counts.
    pub report: TruncationReport,
}

/// Largest rank at which the factors of an `m × n` matrix have fewer entries than the matrix,
/// `r·(m + n) < m·n`; 0 if no rank qualifies.
///
/// ```
/// use lowrank_factor::truncation::break_even_rank;
/// assert_eq!(break_even_rank(768, 768), 383);
/// assert_eq!(break_even_rank(1, 100), 0);
/// ```
pub fn break_even_rank(rows: usize, cols: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows * cols).div_ceil(rows + cols).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Squared values 16, 9, 4, 1 and nothing outside: total 30.
    fn rank(truncation: Truncation) -> Result<usize> {
        truncation.resolve(&[16.0, 9.0, 4.0, 1.0], 0.0, |r| 10 * r)
    }

    #[rstest]
    #[case(Truncation::Rank(3), 3)]
    #[case(Truncation::RelativeError(0.0), 4)]
    // Errors by rank: √(14/30) = 0.683, √(5/30) = 0.408, √(1/30) = 0.183, 0.
    #[case(Truncation::RelativeError(0.69), 1)]
    #[case(Truncation::RelativeError(0.68), 2)]
    #[case(Truncation::RelativeError(0.2), 3)]
    #[case(Truncation::RelativeError(0.18), 4)]
    #[case(Truncation::RelativeError(0.99), 1)]
    #[case(Truncation::Energy(0.5), 1)]
    #[case(Truncation::Energy(25.0 / 30.0), 2)]
    #[case(Truncation::Energy(1.0), 4)]
    #[case(Truncation::Parameters(10), 1)]
    #[case(Truncation::Parameters(39), 3)]
    #[case(Truncation::Parameters(usize::MAX), 4)]
    fn resolves_by_hand(#[case] truncation: Truncation, #[case] expected: usize) {
        assert_eq!(rank(truncation), Ok(expected));
    }

    #[rstest]
    #[case(Truncation::Rank(0), FactorError::RankOutOfRange { rank: 0, max: usize::MAX })]
    #[case(Truncation::Rank(5), FactorError::RankOutOfRange { rank: 5, max: 4 })]
    #[case(Truncation::RelativeError(1.0), FactorError::ErrorOutOfRange { value: 1.0 })]
    #[case(Truncation::RelativeError(-0.1), FactorError::ErrorOutOfRange { value: -0.1 })]
    #[case(Truncation::Energy(0.0), FactorError::EnergyOutOfRange { value: 0.0 })]
    #[case(Truncation::Energy(1.1), FactorError::EnergyOutOfRange { value: 1.1 })]
    #[case(Truncation::Parameters(9), FactorError::BudgetTooSmall { budget: 9, minimum: 10 })]
    fn refuses(#[case] truncation: Truncation, #[case] expected: FactorError) {
        assert_eq!(rank(truncation), Err(expected));
    }

    #[test]
    fn not_a_number_is_out_of_range() {
        assert!(matches!(
            rank(Truncation::RelativeError(f64::NAN)),
            Err(FactorError::ErrorOutOfRange { value }) if value.is_nan()
        ));
        assert!(matches!(
            rank(Truncation::Energy(f64::NAN)),
            Err(FactorError::EnergyOutOfRange { value }) if value.is_nan()
        ));
    }

    #[test]
    fn what_lies_outside_limits_the_error() {
        let squared = [9.0, 4.0];
        let reached = Truncation::RelativeError(0.6).resolve(&squared, 3.0, |r| r);
        assert_eq!(reached, Ok(2));
        let missed = Truncation::RelativeError(0.4).resolve(&squared, 3.0, |r| r);
        assert_eq!(
            missed,
            Err(FactorError::TargetNotReached { requested: 0.4, reached: (3.0_f64 / 16.0).sqrt() })
        );
    }

    #[rstest]
    #[case(768, 768)]
    #[case(2560, 6912)]
    #[case(3, 5)]
    #[case(1, 9)]
    #[case(2, 2)]
    fn break_even_is_the_last_rank_that_pays(#[case] m: usize, #[case] n: usize) {
        let r = break_even_rank(m, n);
        assert!(r * (m + n) < m * n || r == 0);
        assert!((r + 1) * (m + n) >= m * n);
    }
}
