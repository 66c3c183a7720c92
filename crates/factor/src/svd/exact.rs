//! Exact thin SVD and singular values.

use faer::{Mat, MatRef};

use super::{Svd, bidiagonal};
use crate::error::Result;
use crate::matrix::Balanced;
use crate::qr;
use crate::scalar::Scalar;

/// From this ratio of the sides on, a preceding QR decomposition is faster than reducing the whole matrix.
const QR_FIRST: f64 = 1.5;

/// Thin SVD `A = U·diag(s)·Vᵀ` of an `m × n` matrix: `U` m × k, `V` n × k, `k = min(m, n)`.
///
/// # Algorithm
/// Reduction to bidiagonal form, with both matrix-vector products of a step computed in one pass over the
/// matrix (Howell, Demmel, Fulton, Hammarling, Marmol 2008), then divide and conquer (Gu, Eisenstat 1995); a
/// matrix more than 1.5 times as long as wide is first reduced by the QR of [`crate::qr`]. Signs follow the
/// rule of [`Svd`].
///
/// # Error bound
/// `‖A − U·diag(s)·Vᵀ‖ ≤ c·ε·‖A‖` and `|sᵢ − σᵢ| ≤ c·ε·σ₁` with a modest `c` that grows like
/// `√max(m, n)`.
///
/// # Errors
/// [`FactorError::Empty`](crate::FactorError::Empty), [`FactorError::NonFinite`](crate::FactorError::NonFinite),
/// [`FactorError::Overflow`](crate::FactorError::Overflow) if the largest singular value does not fit the element type.
///
/// # Complexity
/// `O(m·n·k)` time; at most `4·(m + n)·k` numbers beyond the input, the result included.
///
/// ```
/// use lowrank_factor::{Mat, svd};
/// let a = Mat::from_fn(3, 2, |i, j| if i == j { 2.0 - i as f64 } else { 0.0 });
/// let svd = svd::exact(a.as_ref())?;
/// assert!((svd.s()[0] - 2.0).abs() < 1e-15 && (svd.s()[1] - 1.0).abs() < 1e-15);
/// assert!((svd.reconstruct() - &a).norm_max() < 1e-15);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn exact<T: Scalar>(a: MatRef<'_, T>) -> Result<Svd<T>> {
    let balanced = Balanced::new(a, "matrix")?;
    let (u, mut s, v) = thin(balanced.view());
    balanced.restore(&mut s)?;
    Ok(Svd::from_parts(u, s, v, 0.0))
}

/// Singular values alone, in nonincreasing order: shape `min(m, n)`.
///
/// # Errors
/// As [`exact`].
///
/// # Complexity
/// `O(m·n·k)`, about 0.6 of the time of [`exact`].
pub fn singular_values<T: Scalar>(a: MatRef<'_, T>) -> Result<Vec<T>> {
    let balanced = Balanced::new(a, "matrix")?;
    let mut s = values(balanced.view());
    balanced.restore(&mut s)?;
    Ok(s)
}

/// `(U, s, V)` of a finite, balanced matrix, signs unspecified.
pub(crate) fn thin<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Vec<T>, Mat<T>) {
    let (m, n) = a.shape();
    if m < n {
        let (v, s, u) = thin(a.transpose());
        return (u, s, v);
    }
    if !is_long(a) {
        return bidiagonal::svd(a.to_owned());
    }
    let (u, (s, v)) = qr::through_triangle(a, |r| {
        let (u, s, v) = bidiagonal::svd(r);
        (u, (s, v))
    });
    (u, s, v)
}

/// Singular values of a finite, balanced matrix.
fn values<T: Scalar>(a: MatRef<'_, T>) -> Vec<T> {
    if a.nrows() < a.ncols() {
        return values(a.transpose());
    }
    bidiagonal::values(shortened(a))
}

/// Singular values and right singular vectors (n × n) of a finite, balanced matrix with `m ≥ n`, signs unspecified:
/// the other side's vectors are never formed.
pub(crate) fn right<T: Scalar>(a: MatRef<'_, T>) -> (Vec<T>, Mat<T>) {
    bidiagonal::right(shortened(a))
}

/// A matrix with the singular values and right vectors of a tall one: itself, or the `R` of its QR.
fn shortened<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    if is_long(a) { qr::triangle(a) } else { a.to_owned() }
}

fn is_long<T: Scalar>(a: MatRef<'_, T>) -> bool {
    a.nrows() as f64 >= QR_FIRST * a.ncols() as f64
}

/// Left singular vectors (m × k) and singular values of a finite, balanced matrix.
pub(crate) fn left<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Vec<T>) {
    if a.nrows() <= a.ncols() {
        let (s, u) = right(a.transpose());
        return (u, s);
    }
    let (u, s, _) = thin(a);
    (u, s)
}
