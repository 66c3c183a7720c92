//! Least-squares refits of one factor, and of both in turn.

use faer::{Mat, MatRef};

use super::LowRank;
use crate::error::{FactorError, Result};
use crate::matrix::{check, check_rank, check_shape, check_tolerance, product, scale_columns};
use crate::qr;
use crate::scalar::Scalar;
use crate::svd;

/// Options of [`LowRank::alternate`].
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `max_iterations` | 100 | sweeps over both factors | ≥ 1 |
/// | `tolerance` | 1e-6 | stop when a sweep lowers the relative error by less than this fraction of it | ≥ 0 |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlternatingOptions {
    /// Largest number of sweeps.
    pub max_iterations: usize,
    /// Relative improvement below which the iteration has converged.
    pub tolerance: f64,
}

impl Default for AlternatingOptions {
    fn default() -> Self {
        Self { max_iterations: 100, tolerance: 1e-6 }
    }
}

/// Result of [`LowRank::alternate`].
#[derive(Debug, Clone, PartialEq)]
pub struct AlternatingReport {
    /// Relative Frobenius error of the initial factors and after every sweep: nonincreasing up to rounding.
    pub errors: Vec<f64>,
    /// Whether the last sweep improved by less than the tolerance.
    pub converged: bool,
}

impl<T: Scalar> LowRank<T> {
    /// Replaces `R` by the minimizer of `‖A − L·R‖_F` for the current `L`: `R = L⁺·A`.
    ///
    /// This leaves the factors of a truncated SVD unchanged (Eckart–Young). Directions of `L` below
    /// the usual cut-off `max(m, r)·ε·σ₁` are ignored, so a rank-deficient `L` gives the minimum-norm
    /// solution.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`].
    pub fn refit_right(&self, a: MatRef<'_, T>) -> Result<Self> {
        check_shape("matrix", a, self.shape())?;
        check(a, "matrix")?;
        let (u, s, v) = svd::exact(self.left())?.into_parts();
        let cut = self.left.nrows().max(self.rank()) as f64 * T::EPSILON * s[0].widen();
        let inverse: Vec<T> =
            s.iter().map(|s| if s.widen() > cut { T::of(s.widen().recip()) } else { T::default() }).collect();
        let mut v = v;
        scale_columns(v.as_mut(), &inverse);
        let right = product(v.as_ref(), product(u.transpose(), a).as_ref());
        Self::new(self.left.clone(), right)
    }

    /// Replaces `L` by the minimizer of `‖A − L·R‖_F` for the current `R`.
    ///
    /// # Errors
    /// As [`LowRank::refit_right`].
    pub fn refit_left(&self, a: MatRef<'_, T>) -> Result<Self> {
        Ok(self.transpose().refit_right(a.transpose())?.transpose())
    }

    /// Alternating least squares: refits `R`, then `L`, until the error stagnates.
    ///
    /// # Algorithm
    /// Each refit works on an orthonormal basis of the fixed factor, which has the same minimum and
    /// stays accurate when a factor is ill-conditioned. The basis of a rank-deficient start is
    /// completed, so that the iteration escapes even from the zero matrix.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`],
    /// [`FactorError::RankOutOfRange`] if the inner dimension exceeds `min(m, n)`,
    /// [`FactorError::InvalidOption`].
    pub fn alternate(
        &self,
        a: MatRef<'_, T>,
        options: &AlternatingOptions,
    ) -> Result<(Self, AlternatingReport)> {
        options.validate()?;
        check_shape("matrix", a, self.shape())?;
        check(a, "matrix")?;
        check_rank(self.rank(), a.nrows().min(a.ncols()))?;
        let mut current = self.clone();
        let mut errors = vec![self.relative_error(a)?];
        for _ in 0..options.max_iterations {
            let next = sweep(&current, a)?;
            let (before, after) = (errors[errors.len() - 1], next.relative_error(a)?);
            errors.push(after);
            current = next;
            if before - after <= options.tolerance * before {
                return Ok((current, AlternatingReport { errors, converged: true }));
            }
        }
        Ok((current, AlternatingReport { errors, converged: false }))
    }
}

impl AlternatingOptions {
    fn validate(&self) -> Result<()> {
        if self.max_iterations == 0 {
            return Err(FactorError::InvalidOption {
                option: "max_iterations",
                rule: "at least 1",
                value: 0.0,
            });
        }
        check_tolerance(self.tolerance)
    }
}

/// One refit of both factors; the new right factor has orthonormal rows.
fn sweep<T: Scalar>(current: &LowRank<T>, a: MatRef<'_, T>) -> Result<LowRank<T>> {
    let basis = qr::thin_qr(current.left())?.0;
    let rows: Mat<T> = product(a.transpose(), basis.as_ref());
    let basis = qr::thin_qr(rows.as_ref())?.0;
    LowRank::new(product(a, basis.as_ref()), basis.transpose().to_owned())
}
