//! The singular values of a matrix and their summaries.

mod curve;
mod elementwise;

use faer::MatRef;

pub use self::curve::{ErrorCurve, ErrorPoint};
pub use self::elementwise::{ElementwiseError, elementwise_errors};
use crate::error::{FactorError, Result};
use crate::matrix::{check_slice, ratio};
use crate::scalar::Scalar;
use crate::svd::singular_values;
use crate::truncation::tails;

/// Singular values of an `m × n` matrix, with derived summaries.
///
/// ```
/// use lowrank_factor::{Mat, Spectrum};
/// let a = Mat::from_fn(4, 3, |i, j| if i == j { [4.0, 2.0, 0.0][i] } else { 0.0_f64 });
/// let spectrum = Spectrum::of(a.as_ref())?;
/// assert_eq!(spectrum.numerical_rank(), 2);
/// assert_eq!(spectrum.stable_rank(), 1.25); // (16 + 4) / 16
/// assert_eq!(spectrum.condition_number(), f64::INFINITY);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Nonincreasing, length `min(m, n)`.
    values: Vec<f64>,
    rows: usize,
    cols: usize,
    /// ε of the element type of the computation.
    epsilon: f64,
}

impl Spectrum {
    /// Computes the singular values of a matrix.
    ///
    /// # Errors
    /// As [`singular_values`].
    pub fn of<T: Scalar>(a: MatRef<'_, T>) -> Result<Self> {
        Self::new(&singular_values(a)?, a.nrows(), a.ncols())
    }

    /// Creates the spectrum from known singular values.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] unless there are `min(m, n)` of them, [`FactorError::NonFinite`],
    /// [`FactorError::Negative`], [`FactorError::NotSorted`], [`FactorError::Empty`].
    pub fn new<T: Scalar>(values: &[T], rows: usize, cols: usize) -> Result<Self> {
        check_slice(values, "spectrum")?;
        if values.len() != rows.min(cols) {
            return Err(FactorError::ShapeMismatch {
                what: "spectrum",
                expected: vec![rows.min(cols)],
                got: vec![values.len()],
            });
        }
        let values: Vec<f64> = values.iter().map(|value| value.widen()).collect();
        check_spectrum(&values)?;
        Ok(Self { values, rows, cols, epsilon: T::EPSILON })
    }

    /// Singular values, nonincreasing, length `min(m, n)`.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Shape `(m, n)` of the matrix.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Spectral norm `σ₁`.
    pub fn spectral_norm(&self) -> f64 {
        self.values[0]
    }

    /// Frobenius norm.
    pub fn frobenius_norm(&self) -> f64 {
        self.spectral_norm() * self.scaled().iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// Singular values above the usual cut-off `max(m, n)·ε·σ₁` (that of numpy and Matlab), with the ε of
    /// the element type the values were computed in.
    pub fn numerical_rank(&self) -> usize {
        self.rank_above(self.rows.max(self.cols) as f64 * self.epsilon)
    }

    /// Singular values above `cutoff · σ₁`.
    pub fn rank_above(&self, cutoff: f64) -> usize {
        self.values.iter().filter(|&&value| value > cutoff * self.values[0]).count()
    }

    /// `‖A‖²_F / σ₁²`, between 1 and the rank; 0 for a zero matrix.
    pub fn stable_rank(&self) -> f64 {
        self.scaled().iter().map(|x| x * x).sum()
    }

    /// `exp` of the entropy of `σᵢ / Σσ` (Roy, Vetterli 2007); 0 for a zero matrix.
    pub fn effective_rank(&self) -> f64 {
        let scaled = self.scaled();
        let total: f64 = scaled.iter().sum();
        if total == 0.0 {
            return 0.0;
        }
        let shares = scaled.iter().map(|x| x / total).filter(|&share| share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }

    /// `σ₁ / σ_min`, infinite for a singular matrix.
    pub fn condition_number(&self) -> f64 {
        let last = self.values[self.values.len() - 1];
        if last > 0.0 { self.values[0] / last } else { f64::INFINITY }
    }

    /// Fraction of `‖A‖²_F` in the first `r` values, for `r = 0 ..= k` (length `k + 1`); all 1 for a zero
    /// matrix.
    pub fn energy_curve(&self) -> Vec<f64> {
        self.error_curve().iter().map(|error| 1.0 - error * error).collect()
    }

    /// Relative Frobenius error of the best approximation of rank `r`, for `r = 0 ..= k` (length `k + 1`).
    pub fn error_curve(&self) -> Vec<f64> {
        let squared: Vec<f64> = self.scaled().iter().map(|x| x * x).collect();
        let tails = tails(&squared, 0.0);
        tails.iter().map(|&tail| ratio(tail, tails[0])).collect()
    }

    /// The values divided by the largest, so that their squares stay in range.
    fn scaled(&self) -> Vec<f64> {
        let top = self.values[0];
        self.values.iter().map(|value| if top > 0.0 { value / top } else { 0.0 }).collect()
    }
}

/// Refuses negative, unsorted or non-finite values.
pub(crate) fn check_spectrum(values: &[f64]) -> Result<()> {
    check_slice(values, "spectrum")?;
    if let Some(index) = values.iter().position(|&value| value < 0.0) {
        return Err(FactorError::Negative { what: "spectrum", index, value: values[index] });
    }
    match values.windows(2).position(|pair| pair[1] > pair[0]) {
        Some(index) => Err(FactorError::NotSorted { index: index + 1 }),
        None => Ok(()),
    }
}
