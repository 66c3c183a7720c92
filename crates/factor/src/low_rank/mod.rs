//! Low-rank matrices `A ≈ L·R`.

mod arithmetic;
mod least_squares;

use faer::{Mat, MatRef};

pub use self::least_squares::{AlternatingOptions, AlternatingReport};
use crate::error::{FactorError, Result};
use crate::matrix::{check, check_shape, product, relative_error, to_row_major};
use crate::scalar::Scalar;

/// Placement of the singular values when `U·diag(s)·Vᵀ` becomes `L·R`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SigmaPlacement {
    /// `L = U·diag(s)`, `R = Vᵀ`: the rows of `R` are orthonormal.
    Left,
    /// `L = U`, `R = diag(s)·Vᵀ`: the columns of `L` are orthonormal.
    Right,
    /// `√s` on both sides: the factors have equal norms, which suits training and low precision.
    #[default]
    Split,
}

impl SigmaPlacement {
    /// Scales for the columns of `U` and `V`.
    pub(crate) fn split<T: Scalar>(self, s: &[T]) -> (Vec<T>, Vec<T>) {
        let one = || vec![T::of(1.0); s.len()];
        match self {
            Self::Left => (s.to_vec(), one()),
            Self::Right => (one(), s.to_vec()),
            Self::Split => {
                let root: Vec<T> = s.iter().map(|s| T::of(s.widen().sqrt())).collect();
                (root.clone(), root)
            }
        }
    }
}

/// A matrix of shape `m × n` as the product `L·R` with `L` m × r and `R` r × n.
///
/// ```
/// use lowrank_factor::{LowRank, Mat, SigmaPlacement, Truncation, svd};
/// let a = Mat::from_fn(6, 5, |i, j| (i + 1) as f64 * (j + 1) as f64);
/// let fit = svd::exact(a.as_ref())?.low_rank(&Truncation::RelativeError(1e-10), SigmaPlacement::Split)?;
/// assert_eq!(fit.report.rank, 1);
/// assert_eq!(fit.report.parameters_after, 11);
/// assert!(fit.factors.relative_error(a.as_ref())? < 1e-14);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank<T: Scalar> {
    /// Shape `m × r`.
    left: Mat<T>,
    /// Shape `r × n`.
    right: Mat<T>,
}

impl<T: Scalar> LowRank<T> {
    /// Creates the matrix from its two factors.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the inner dimensions differ, [`FactorError::Empty`],
    /// [`FactorError::NonFinite`].
    pub fn new(left: Mat<T>, right: Mat<T>) -> Result<Self> {
        check(left.as_ref(), "left factor")?;
        check(right.as_ref(), "right factor")?;
        if left.ncols() != right.nrows() {
            return Err(FactorError::ShapeMismatch {
                what: "right factor",
                expected: vec![left.ncols(), right.ncols()],
                got: vec![right.nrows(), right.ncols()],
            });
        }
        Ok(Self { left, right })
    }

    /// Factors known to match.
    pub(crate) fn from_parts(left: Mat<T>, right: Mat<T>) -> Self {
        Self { left, right }
    }

    /// `L`, shape `m × r`.
    pub fn left(&self) -> MatRef<'_, T> {
        self.left.as_ref()
    }

    /// `R`, shape `r × n`.
    pub fn right(&self) -> MatRef<'_, T> {
        self.right.as_ref()
    }

    /// `(L, R)`.
    pub fn into_parts(self) -> (Mat<T>, Mat<T>) {
        (self.left, self.right)
    }

    /// `(L, R)` as row-major vectors.
    pub fn to_row_major(&self) -> (Vec<T>, Vec<T>) {
        (to_row_major(self.left()), to_row_major(self.right()))
    }

    /// Shape `(m, n)` of the product.
    pub fn shape(&self) -> (usize, usize) {
        (self.left.nrows(), self.right.ncols())
    }

    /// Inner dimension `r`, which may exceed the rank of the product.
    pub fn rank(&self) -> usize {
        self.left.ncols()
    }

    /// Number of entries in both factors, `r·(m + n)`.
    pub fn parameters(&self) -> usize {
        self.rank() * (self.left.nrows() + self.right.ncols())
    }

    /// `L·R`, shape `m × n`.
    pub fn reconstruct(&self) -> Mat<T> {
        product(self.left(), self.right())
    }

    /// `X·(L·R)` without forming the product.
    ///
    /// # Shapes
    /// `x` batch × m, result batch × n.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`].
    pub fn multiply_batch(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        check_shape("batch", x, (x.nrows(), self.left.nrows()))?;
        Ok(product(product(x, self.left()).as_ref(), self.right()))
    }

    /// `(L·R)ᵀ = Rᵀ·Lᵀ`.
    pub fn transpose(&self) -> Self {
        Self { left: self.right.transpose().to_owned(), right: self.left.transpose().to_owned() }
    }

    /// `‖A − L·R‖ / ‖A‖` in the Frobenius norm.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`].
    pub fn relative_error(&self, a: MatRef<'_, T>) -> Result<f64> {
        check_shape("matrix", a, self.shape())?;
        relative_error(a, self.reconstruct().as_ref())
    }
}
