//! One factor shared by several matrices, with an individual second factor each.

use faer::{Mat, MatRef};

use crate::error::{FactorError, Result};
use crate::matrix::{Balanced, check, product, ratio, stack_rows};
use crate::scalar::Scalar;
use crate::svd;
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

/// The factor that the matrices share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedSide {
    /// `A_s ≈ L·R_s`: one basis of the column spaces; the matrices have equal numbers of rows.
    Left,
    /// `A_s ≈ L_s·R`: one basis of the row spaces; the matrices have equal numbers of columns.
    Right,
}

/// Matrices that share one factor.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedBasis<T: Scalar> {
    side: SharedSide,
    /// Shape `m × r` (left, orthonormal columns) or `r × n` (right, orthonormal rows).
    shared: Mat<T>,
    /// Shapes `r × n_s` (left) or `m_s × r` (right).
    own: Vec<Mat<T>>,
}

impl<T: Scalar> SharedBasis<T> {
    /// Which factor is shared.
    pub fn side(&self) -> SharedSide {
        self.side
    }

    /// The shared factor, shape `m × r` (left) or `r × n` (right).
    pub fn shared(&self) -> MatRef<'_, T> {
        self.shared.as_ref()
    }

    /// The individual factors, shapes `r × n_s` (left) or `m_s × r` (right).
    pub fn own(&self) -> &[Mat<T>] {
        &self.own
    }

    /// `(shared, own)`.
    pub fn into_parts(self) -> (Mat<T>, Vec<Mat<T>>) {
        (self.shared, self.own)
    }

    /// Dimension `r` of the shared basis.
    pub fn rank(&self) -> usize {
        self.shared.nrows().min(self.shared.ncols())
    }

    /// Number of entries in all factors.
    pub fn parameters(&self) -> usize {
        let size = |a: &Mat<T>| a.nrows() * a.ncols();
        size(&self.shared) + self.own.iter().map(size).sum::<usize>()
    }

    /// One matrix, as the product of its two factors.
    ///
    /// # Errors
    /// [`FactorError::IndexOutOfRange`].
    pub fn reconstruct(&self, index: usize) -> Result<Mat<T>> {
        let len = self.own.len();
        let own = self.own.get(index).ok_or(FactorError::IndexOutOfRange { index, len })?;
        Ok(match self.side {
            SharedSide::Left => product(self.shared(), own.as_ref()),
            SharedSide::Right => product(own.as_ref(), self.shared()),
        })
    }
}

/// The best shared basis of several matrices, in the sense of `Σ‖A_s − Â_s‖²_F`.
///
/// # Algorithm
/// Exact SVD of the matrices stacked along the side they share (Eckart–Young for the stack).
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`] if the sides that
/// must agree do not, and those of the [`Truncation`].
///
/// # Complexity
/// `O(N·n²)` for a stack of shape `N × n`.
///
/// ```
/// use lowrank_factor::{Mat, Truncation, tucker::{SharedSide, shared_basis}};
/// let row = |j: usize| (j as f64).cos();
/// let a = Mat::from_fn(4, 6, |i, j| (i + 1) as f64 * row(j));
/// let b = Mat::from_fn(3, 6, |i, j| (i as f64 - 2.5) * row(j));
/// let fit = shared_basis(&[a.as_ref(), b.as_ref()], SharedSide::Right, &Truncation::Rank(1))?;
/// assert!(fit.report.relative_error < 1e-12);
/// assert_eq!(fit.report.parameters_after, 6 + 4 + 3);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn shared_basis<T: Scalar>(
    matrices: &[MatRef<'_, T>],
    side: SharedSide,
    truncation: &Truncation,
) -> Result<Approximation<SharedBasis<T>>> {
    let oriented: Vec<MatRef<'_, T>> = match side {
        SharedSide::Right => matrices.to_vec(),
        SharedSide::Left => matrices.iter().map(|a| a.transpose()).collect(),
    };
    let first = oriented.first().ok_or(FactorError::Empty { what: "stack", rows: 0, cols: 0 })?;
    let n = first.ncols();
    for a in &oriented {
        check(*a, "slice")?;
        if a.ncols() != n {
            return Err(FactorError::ShapeMismatch {
                what: "shared side",
                expected: vec![n],
                got: vec![a.ncols()],
            });
        }
    }
    let stacked = stack_rows(&oriented, n);
    let balanced = Balanced::new(stacked.as_ref(), "stack")?;
    let (v, s) = svd::left(balanced.view().transpose());
    let squared: Vec<f64> = s.iter().map(|s| s.widen().powi(2)).collect();
    let rows = stacked.nrows();
    let rank = truncation.resolve(&squared, 0.0, |r| r * (rows + n))?;
    let basis = v.subcols(0, rank);
    let own = oriented.iter().map(|a| product(*a, basis));
    let tails = tails(&squared, 0.0);
    let report = TruncationReport {
        rank,
        relative_error: ratio(tails[rank], tails[0]),
        parameters_before: rows * n,
        parameters_after: rank * (rows + n),
    };
    let factors = match side {
        SharedSide::Right => SharedBasis { side, shared: basis.transpose().to_owned(), own: own.collect() },
        SharedSide::Left => SharedBasis {
            side,
            shared: basis.to_owned(),
            own: own.map(|a| a.transpose().to_owned()).collect(),
        },
    };
    Ok(Approximation { factors, report })
}
