//! Exact thin SVD and singular values.

use faer::{Mat, MatRef, Par};

use super::{Svd, jacobi};
use crate::error::{FactorError, Result};
use crate::matrix::{Balanced, norm_squared, product, sum_of_squares};
use crate::qr;
use crate::scalar::Scalar;

/// From this ratio of the sides on, a QR decomposition first is faster than reducing the whole matrix.
const QR_FIRST: f64 = 1.5;

/// From this ratio on there is room for faer's left vectors, whose work space takes `4·n²` numbers more.
const BOTH_FROM: f64 = 2.1;

/// From this size on a reduction is faster on all threads than on one.
const PARALLEL: usize = 400;

/// Thin SVD `A = U·diag(s)·Vᵀ` of an `m × n` matrix: `U` m × k, `V` n × k, `k = min(m, n)`.
///
/// # Algorithm
/// Bidiagonalisation and divide and conquer (Gu, Eisenstat 1995) in faer for `s` and `V`, then the QR of
/// `A·V` for `U`; a matrix more than 1.5 times as long as wide is first reduced by the QR of [`crate::qr`].
/// Should these iterations not converge, one-sided Jacobi rotations do. Signs follow the rule of [`Svd`].
///
/// # Error bound
/// `‖A − U·diag(s)·Vᵀ‖ ≤ c·ε·‖A‖` and `|sᵢ − σᵢ| ≤ c·ε·σ₁` with a modest `c` that grows like
/// `√max(m, n)`.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::NoConvergence`],
/// [`FactorError::Overflow`] if the largest singular value does not fit the element type.
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
    let (u, mut s, v) = thin(balanced.view())?;
    balanced.restore(&mut s)?;
    Ok(Svd::from_parts(u, s, v, 0.0))
}

/// Singular values alone, in nonincreasing order: shape `min(m, n)`.
///
/// # Errors
/// As [`exact`].
///
/// # Complexity
/// `O(m·n·k)`, about a third of the time of [`exact`].
pub fn singular_values<T: Scalar>(a: MatRef<'_, T>) -> Result<Vec<T>> {
    let balanced = Balanced::new(a, "matrix")?;
    let mut s = values(balanced.view())?;
    balanced.restore(&mut s)?;
    Ok(s)
}

/// `(U, s, V)` of a finite, balanced matrix, signs unspecified.
pub(crate) fn thin<T: Scalar>(a: MatRef<'_, T>) -> Result<(Mat<T>, Vec<T>, Mat<T>)> {
    let (m, n) = a.shape();
    if m < n {
        let (v, s, u) = thin(a.transpose())?;
        return Ok((u, s, v));
    }
    if n == 1 {
        return Ok(column(a));
    }
    if (m as f64) < QR_FIRST * n as f64 {
        return both_sides(a);
    }
    let (q, r) = qr::factor(a);
    let has_room = m as f64 >= BOTH_FROM * n as f64;
    let (inner, s, v) = match has_room.then(|| at_once(r.as_ref())).flatten() {
        Some(found) => found,
        None => both_sides(r.as_ref())?,
    };
    drop(r);
    Ok((product(q.as_ref(), inner.as_ref()), s, v))
}

/// SVD of a square matrix with faer's own left vectors, if its iterations converge.
fn at_once<T: Scalar>(a: MatRef<'_, T>) -> Option<(Mat<T>, Vec<T>, Mat<T>)> {
    let (mut u, mut v) = (Mat::zeros(a.nrows(), a.ncols()), Mat::zeros(a.ncols(), a.ncols()));
    let s = iterate(a, Some(&mut u), Some(&mut v))?;
    Some((u, s, v))
}

/// SVD of a nearly square matrix, `m ≥ n`: the right vectors by iteration, the left ones from them.
///
/// faer's own left vectors would cost another `4·n²` numbers of memory.
fn both_sides<T: Scalar>(a: MatRef<'_, T>) -> Result<(Mat<T>, Vec<T>, Mat<T>)> {
    let mut v = Mat::zeros(a.ncols(), a.ncols());
    let s = reduce(a, Some(&mut v))?;
    // Columns of A·V are orthogonal up to ε·σ₁ and decrease, so the triangle of their QR is diagonal up
    // to ε·σ₁: its Q is U, with a backward error of that size. Unit columns have the same Q, and are
    // well conditioned unless A is singular.
    let mut us = product(a, v.as_ref());
    for j in 0..us.ncols() {
        let column = us.col_as_slice_mut(j);
        let norm = sum_of_squares(column).sqrt();
        if norm > T::NEGLIGIBLE {
            column.iter_mut().for_each(|x| *x = T::of(x.widen() / norm));
        }
    }
    let (mut u, r) = qr::factor(us.as_ref());
    for j in 0..r.ncols() {
        if r[(j, j)] < T::default() {
            u.col_as_slice_mut(j).iter_mut().for_each(|x| *x = -*x);
        }
    }
    Ok((u, s, v))
}

/// Singular values of a finite, balanced matrix.
fn values<T: Scalar>(a: MatRef<'_, T>) -> Result<Vec<T>> {
    let (m, n) = a.shape();
    if m < n {
        return values(a.transpose());
    }
    if n == 1 {
        return Ok(vec![T::of(norm_squared(a).sqrt())]);
    }
    if (m as f64) < QR_FIRST * n as f64 { reduce(a, None) } else { reduce(qr::factor(a).1.as_ref(), None) }
}

/// Left singular vectors (m × k) and singular values of a finite, balanced matrix: for a wide one the
/// other side is never formed.
pub(crate) fn left<T: Scalar>(a: MatRef<'_, T>) -> Result<(Mat<T>, Vec<T>)> {
    let (m, n) = a.shape();
    if m > 1 && n as f64 >= QR_FIRST * m as f64 {
        let (_, r) = qr::factor(a.transpose());
        let (u, s, _) = thin(r.transpose())?;
        return Ok((u, s));
    }
    let (u, s, _) = thin(a)?;
    Ok((u, s))
}

/// SVD of an `m × 1` matrix.
fn column<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Vec<T>, Mat<T>) {
    let norm = norm_squared(a).sqrt();
    let u = if norm > 0.0 {
        Mat::from_fn(a.nrows(), 1, |i, _| T::of(a[(i, 0)].widen() / norm))
    } else {
        Mat::identity(a.nrows(), 1)
    };
    (u, vec![T::of(norm)], Mat::identity(1, 1))
}

/// Singular values of a matrix with `m ≥ n ≥ 2`, and its right singular vectors if there is a place for
/// them.
fn reduce<T: Scalar>(a: MatRef<'_, T>, mut right: Option<&mut Mat<T>>) -> Result<Vec<T>> {
    if let Some(s) = iterate(a, None, right.as_deref_mut()) {
        return Ok(s);
    }
    let (s, v) = jacobi::right(a);
    if !is_finite(&s) {
        return Err(FactorError::NoConvergence { algorithm: "singular value decomposition" });
    }
    if let Some(right) = right {
        *right = v;
    }
    Ok(s)
}

/// As [`reduce`], also for left vectors, by faer's iterations alone; nothing where none of them converges.
fn iterate<T: Scalar>(
    a: MatRef<'_, T>,
    mut left: Option<&mut Mat<T>>,
    mut right: Option<&mut Mat<T>>,
) -> Option<Vec<T>> {
    // A reduction to two diagonals is a long chain of small steps, each of which threads would have to meet at.
    let par = if a.ncols() < PARALLEL { Par::Seq } else { Par::rayon(0) };
    // Where the iteration switches from divide and conquer to implicit QR. Either may fail to converge on
    // a singular matrix, but hardly both.
    [None, Some(usize::MAX), Some(8)].into_iter().find_map(|switch| {
        T::svd(a, left.as_deref_mut().map(Mat::as_mut), right.as_deref_mut().map(Mat::as_mut), switch, par)
            .filter(|s| is_finite(s))
    })
}

fn is_finite<T: Scalar>(values: &[T]) -> bool {
    values.iter().all(|value| value.widen().is_finite())
}
