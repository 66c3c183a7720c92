//! Sums, multiples and re-truncation of low-rank matrices, without forming the dense matrix.

use super::{LowRank, SigmaPlacement};
use crate::error::{FactorError, Result};
use crate::matrix::{product, stack_cols, stack_rows};
use crate::qr::thin_qr;
use crate::scalar::Scalar;
use crate::svd::{self, Svd};
use crate::truncation::{Approximation, Truncation};

impl<T: Scalar> LowRank<T> {
    /// `self + other` with concatenated factors: the inner dimension is the sum of both.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`].
    pub fn add(&self, other: &Self) -> Result<Self> {
        if self.shape() != other.shape() {
            let ((m, n), (p, q)) = (self.shape(), other.shape());
            return Err(FactorError::ShapeMismatch {
                what: "summand",
                expected: vec![m, n],
                got: vec![p, q],
            });
        }
        let (m, n) = self.shape();
        Ok(Self::from_parts(
            stack_cols(&[self.left(), other.left()], m),
            stack_rows(&[self.right(), other.right()], n),
        ))
    }

    /// `factor · self`; the left side takes the factor.
    ///
    /// # Errors
    /// [`FactorError::NonFinite`] if the factor, or a product with it, is not finite.
    pub fn scale(&self, factor: T) -> Result<Self> {
        let left =
            faer::Mat::from_fn(self.left.nrows(), self.left.ncols(), |i, j| self.left[(i, j)] * factor);
        Self::new(left, self.right.clone())
    }

    /// The same product with equal norms of column `i` of `L` and row `i` of `R`, which suits training and
    /// half precision.
    pub fn balanced(mut self) -> Self {
        for i in 0..self.rank() {
            let norm = |values: &mut dyn Iterator<Item = &T>| {
                values.map(|x| x.widen() * x.widen()).sum::<f64>().sqrt()
            };
            let left = norm(&mut self.left.col(i).iter());
            let right = norm(&mut self.right.row(i).iter());
            let factor = (right / left).sqrt();
            if factor.is_finite() && factor > 0.0 {
                self.left.col_mut(i).iter_mut().for_each(|x| *x = T::of(x.widen() * factor));
                self.right.row_mut(i).iter_mut().for_each(|x| *x = T::of(x.widen() / factor));
            }
        }
        self
    }

    /// Singular value decomposition of `L·R` from its factors.
    ///
    /// # Algorithm
    /// QR of `L` and of `Rᵀ`, then the SVD of the small product of both triangles.
    ///
    /// # Errors
    /// As [`svd::exact`].
    ///
    /// # Complexity
    /// `O((m + n)·r² + r³)`.
    pub fn svd(&self) -> Result<Svd<T>> {
        let (q_left, r_left) = thin_qr(self.left())?;
        let (q_right, r_right) = thin_qr(self.right().transpose())?;
        let core = product(r_left.as_ref(), r_right.transpose());
        let (u, s, v) = svd::exact(core.as_ref())?.into_parts();
        Ok(Svd::from_parts(
            product(q_left.as_ref(), u.as_ref()),
            s,
            product(q_right.as_ref(), v.as_ref()),
            0.0,
        ))
    }

    /// The best approximation of `L·R` under a truncation. In the report, `parameters_before` counts the
    /// given factors, not the dense matrix.
    ///
    /// # Errors
    /// Those of [`LowRank::svd`] and of the [`Truncation`].
    ///
    /// ```
    /// use lowrank_factor::{LowRank, Mat, SigmaPlacement, Truncation};
    /// let column = |i: usize, _| i as f64 + 1.0;
    /// let one = LowRank::new(Mat::from_fn(8, 1, column), Mat::from_fn(1, 5, |_, j| column(j, 0)))?;
    /// let twice = one.add(&one)?; // inner dimension 2, rank 1
    /// let again = twice.recompress(&Truncation::RelativeError(1e-9), SigmaPlacement::Split)?;
    /// assert_eq!((again.report.rank, again.report.parameters_before), (1, 26));
    /// # Ok::<(), lowrank_factor::FactorError>(())
    /// ```
    pub fn recompress(&self, truncation: &Truncation, sigma: SigmaPlacement) -> Result<Approximation<Self>> {
        let mut fit = self.svd()?.low_rank(truncation, sigma)?;
        fit.report.parameters_before = self.parameters();
        Ok(fit)
    }
}
