//! Activation-aware low-rank approximation: weighted by a diagonal or by a Gram matrix.
//!
//! A layer's error matters where its inputs live. For a weight `A` of shape `m × n` whose *columns* face
//! the inputs (PyTorch's `[out, in]`; pass the transposed view for the other layout), these functions
//! minimize `‖(A − Â)·F‖_F` with `F = diag(w)` (ASVD; Fisher weights) or `F·Fᵀ = G = Σ x·xᵀ` over
//! calibration inputs `x`.
//!
//! # Algorithm
//! The best rank-k solution is `Â = U_k·U_kᵀ·A` with the leading left singular vectors `U_k` of `A·F`
//! (eigenvectors of `A·G·Aᵀ`). Neither `F⁻¹` nor a Cholesky factor is formed, so zero weights, singular
//! Gram matrices and fewer samples than channels need no regularization. The squared loss is exactly the
//! sum of the dropped eigenvalues; spectra of several layers are therefore comparable and feed
//! [`allocate_ranks`](crate::allocate_ranks) directly.

use faer::{Mat, MatRef};

use crate::dense::symmetric_eigen;
use crate::error::{FactorError, Result};
use crate::low_rank::LowRank;
use crate::matrix::{Balanced, check, check_shape, check_slice, parallelism, product, ratio, scale_columns};
use crate::scalar::Scalar;
use crate::subspace::{Subspace, SubspaceSide};
use crate::svd;
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

/// A weighted decomposition, ready to be truncated at any rank.
///
/// ```
/// use lowrank_factor::{Mat, Truncation, whitened};
/// // Only the first input channel is ever active: rank 1 is exact where it matters.
/// let a = Mat::from_fn(3, 3, |i, j| ((i + 1) * (j + 2)) as f64 + f64::from(u8::from(i == j)));
/// let x = Mat::from_fn(5, 3, |i, j| if j == 0 { i as f64 + 1.0 } else { 0.0 });
/// let gram = x.transpose() * &x;
/// let fit = whitened::by_gram(a.as_ref(), gram.as_ref())?.low_rank(&Truncation::Rank(1))?;
/// assert!(fit.report.relative_error < 1e-7);
/// let y = &x * fit.factors.reconstruct().transpose() - &x * a.transpose();
/// assert!(y.norm_max() < 1e-12);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Whitened<'a, T: Scalar> {
    a: MatRef<'a, T>,
    /// Shape `m × k`, orthonormal columns.
    basis: Mat<T>,
    /// Squared weighted singular values, nonincreasing, length `k = min(m, n)`.
    squared: Vec<f64>,
}

impl<T: Scalar> Whitened<'_, T> {
    /// Squared singular values of `A·F`, nonincreasing, length `min(m, n)`: dropping number `i` adds
    /// `squared()[i]` to the squared weighted error.
    pub fn squared(&self) -> &[f64] {
        &self.squared
    }

    /// Orthonormal basis whose first `k` columns span the best output space of rank `k`, shape `m × k`.
    pub fn basis(&self) -> MatRef<'_, T> {
        self.basis.as_ref()
    }

    /// The basis and its spectrum without the matrix; the errors that a [`Subspace`] reports are then
    /// weighted.
    ///
    /// # Errors
    /// None that the decomposition has not checked already.
    pub fn into_subspace(self) -> Result<Subspace<T>> {
        Subspace::new(SubspaceSide::Left, self.basis, self.squared)
    }

    /// The best approximation in the weighted norm: `L = U_k`, `R = U_kᵀ·A`. The report's error is the
    /// weighted one, `‖(A − Â)·F‖ / ‖A·F‖`.
    ///
    /// # Errors
    /// Those of the [`Truncation`], [`FactorError::Overflow`] if the product leaves the element type.
    pub fn low_rank(&self, truncation: &Truncation) -> Result<Approximation<LowRank<T>>> {
        let (m, n) = self.a.shape();
        let rank = truncation.resolve(&self.squared, 0.0, |r| r * (m + n))?;
        let left = self.basis.subcols(0, rank).to_owned();
        let right = product(left.transpose(), self.a);
        let tails = tails(&self.squared, 0.0);
        let report = TruncationReport {
            rank,
            relative_error: ratio(tails[rank], tails[0]),
            parameters_before: m * n,
            parameters_after: rank * (m + n),
        };
        let factors =
            LowRank::new(left, right).map_err(|_| FactorError::Overflow { what: "projected matrix" })?;
        Ok(Approximation { factors, report })
    }
}

/// Weighted by a diagonal: minimizes `‖(A − Â)·diag(w)‖_F`.
///
/// # Shapes
/// `a` m × n, `weights` length n, at least zero.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`],
/// [`FactorError::Negative`], [`FactorError::Overflow`].
///
/// # Complexity
/// One exact SVD, without the right vectors if `m ≤ n`.
pub fn by_diagonal<'a, T: Scalar>(a: MatRef<'a, T>, weights: &[T]) -> Result<Whitened<'a, T>> {
    check(a, "matrix")?;
    check_slice(weights, "weights")?;
    if weights.len() != a.ncols() {
        return Err(FactorError::ShapeMismatch {
            what: "weights",
            expected: vec![a.ncols()],
            got: vec![weights.len()],
        });
    }
    if let Some(index) = weights.iter().position(|w| w.widen() < 0.0) {
        return Err(FactorError::Negative { what: "weights", index, value: weights[index].widen() });
    }
    let mut weighted = widen(a);
    let weights: Vec<f64> = weights.iter().map(|w| w.widen()).collect();
    scale_columns(weighted.as_mut(), &weights);
    left(a, weighted.as_ref())
}

/// Weighted by a Gram matrix: minimizes `Σ ‖(A − Â)·x‖²` over the inputs `x` behind `G = Σ x·xᵀ`.
///
/// # Shapes
/// `a` m × n, `gram` n × n, symmetric positive semidefinite up to rounding; it may be accumulated in a wider
/// type than that of `a`, and should be: errors are those under `gram` as given, and the rounding of one summed in `f32`
/// counts for up to `√ε`, 3e-4 of the norm, even where the inputs span few directions.
///
/// # Algorithm
/// Eigenvectors of `A·G·Aᵀ` if `m ≤ n`; otherwise the eigenvectors of `G` give `F = E·√Λ`, and the SVD is
/// that of `A·F`. All of it is in `f64`, because Gram matrices of activations are ill-conditioned.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`],
/// [`FactorError::NotSymmetric`], [`FactorError::Negative`] for a negative diagonal or eigenvalue,
/// [`FactorError::NoConvergence`].
///
/// # Complexity
/// `O(m·n·(m + n) + min(m, n)³)`.
pub fn by_gram<'a, T: Scalar, G: Scalar>(a: MatRef<'a, T>, gram: MatRef<'_, G>) -> Result<Whitened<'a, T>> {
    check(a, "matrix")?;
    check(gram, "Gram matrix")?;
    let (m, n) = a.shape();
    check_shape("Gram matrix", gram, (n, n))?;
    let gram = symmetric(gram)?;
    let wide = widen(a);
    if m <= n {
        let weighted = product(wide.as_ref(), gram.as_ref());
        let weighted = product(weighted.as_ref(), wide.transpose());
        let (values, vectors) = eigen::<T>(weighted.as_ref(), "weighted Gram matrix")?;
        return Ok(Whitened { a, basis: narrow(vectors.as_ref()), squared: values });
    }
    let (values, mut vectors) = eigen::<T>(gram.as_ref(), "Gram matrix")?;
    let roots: Vec<f64> = values.iter().map(|value| value.sqrt()).collect();
    scale_columns(vectors.as_mut(), &roots);
    left(a, product(wide.as_ref(), vectors.as_ref()).as_ref())
}

/// The subspace of the weighted form of `a`.
fn left<'a, T: Scalar>(a: MatRef<'a, T>, weighted: MatRef<'_, f64>) -> Result<Whitened<'a, T>> {
    let balanced = Balanced::new(weighted, "weighted matrix")?;
    let (u, mut s) = svd::left(balanced.view());
    balanced.restore(&mut s)?;
    Ok(Whitened { a, basis: narrow(u.as_ref()), squared: s.iter().map(|s| s * s).collect() })
}

/// The symmetric part, after checking that the matrix is symmetric and has no negative diagonal entry.
fn symmetric<T: Scalar>(gram: MatRef<'_, T>) -> Result<Mat<f64>> {
    let n = gram.nrows();
    let diagonal = |i: usize| gram[(i, i)].widen();
    if let Some(index) = (0..n).find(|&i| diagonal(i) < 0.0) {
        return Err(FactorError::Negative { what: "Gram diagonal", index, value: diagonal(index) });
    }
    let top = (0..n).map(diagonal).fold(0.0, f64::max);
    for col in 0..n {
        for row in 0..col {
            let difference = (gram[(row, col)].widen() - gram[(col, row)].widen()).abs();
            // Sums in another order differ by far less than √ε of the largest diagonal entry.
            if difference > T::EPSILON.sqrt() * top {
                return Err(FactorError::NotSymmetric { what: "Gram matrix", row, col });
            }
        }
    }
    Ok(Mat::from_fn(n, n, |i, j| 0.5 * (gram[(i, j)].widen() + gram[(j, i)].widen())))
}

/// Eigenvalues in nonincreasing order, clamped at zero, with their vectors; `T` is the type in which the
/// matrix was accumulated.
fn eigen<T: Scalar>(a: MatRef<'_, f64>, what: &'static str) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = a.nrows();
    check(a, what).map_err(|_| FactorError::Overflow { what })?;
    if n == 1 {
        return Ok((vec![a[(0, 0)].max(0.0)], Mat::identity(1, 1)));
    }
    let (values, vectors) = symmetric_eigen(a, parallelism(n * n * n))
        .ok_or(FactorError::NoConvergence { algorithm: "symmetric eigenvalue decomposition" })?;
    let values: Vec<f64> = values.into_iter().rev().collect();
    // Rounding puts the zeros of a singular matrix within n·ε of zero on either side.
    let floor = -T::EPSILON.sqrt() * values[0].max(0.0);
    if let Some(index) = values.iter().position(|&value| value < floor) {
        return Err(FactorError::Negative { what, index, value: values[index] });
    }
    let values = values.into_iter().map(|value| value.max(0.0)).collect();
    Ok((values, vectors.reverse_cols().to_owned()))
}

fn widen<T: Scalar>(a: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].widen())
}

fn narrow<T: Scalar>(a: MatRef<'_, f64>) -> Mat<T> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| T::of(a[(i, j)]))
}
