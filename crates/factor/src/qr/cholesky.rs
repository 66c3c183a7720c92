//! CholeskyQR and CholeskyQR2, which refuse inputs that they cannot handle accurately.

use faer::{Mat, MatRef};

use crate::matrix::parallelism;
use crate::scalar::Scalar;

/// `A = Q₁·R₂⁻¹·R` of a tall matrix: the result of two passes before the second one touches the long side.
pub(super) struct TwoPasses<T> {
    /// Spans the columns of the matrix; its Gram matrix is within 1/2 of the identity.
    pub(super) first: Mat<T>,
    /// The transpose of `R₂`, the triangle that makes the columns of `first` orthonormal.
    pub(super) lower: Mat<T>,
    /// `R` of the whole decomposition.
    pub(super) r: Mat<T>,
}

/// The passes of a tall matrix, or `None` if it is too ill-conditioned for the method.
pub(super) fn two_passes<T: Scalar>(a: MatRef<'_, T>) -> Option<TwoPasses<T>> {
    let (m, n) = a.shape();
    let par = parallelism(m * n * n);
    let outer = lower_factor(T::gram(a, par), 4.0 * T::EPSILON)?;
    let mut first = a.to_owned();
    T::solve_lower(outer.as_ref(), first.as_mut().transpose_mut(), par);
    let again = T::gram(first.as_ref(), par);
    // Within 1/2 of the identity, the second pass gives columns orthonormal to a small multiple of ε.
    let distance = distance_to_identity(&again);
    if distance.is_nan() || distance > 0.5 {
        return None;
    }
    let lower = lower_factor(again, 0.1)?;
    let r = T::upper_product(lower.transpose(), outer.transpose(), par);
    Some(TwoPasses { first, lower, r })
}

/// `(Q, R)` of a tall matrix, or `None` if it is too ill-conditioned for the method.
pub(super) fn qr<T: Scalar>(a: MatRef<'_, T>) -> Option<(Mat<T>, Mat<T>)> {
    let TwoPasses { first: mut q, lower, r } = two_passes(a)?;
    let par = parallelism(q.nrows() * q.ncols() * q.ncols());
    T::solve_lower(lower.as_ref(), q.as_mut().transpose_mut(), par);
    Some((q, r))
}

/// One pass: a basis of the same space, whose Gram matrix is near the identity but not to rounding.
pub(super) fn single_pass<T: Scalar>(a: MatRef<'_, T>) -> Option<Mat<T>> {
    let par = parallelism(a.nrows() * a.ncols() * a.ncols());
    let factor = lower_factor(T::gram(a, par), 1e4 * T::EPSILON)?;
    let mut q = a.to_owned();
    T::solve_lower(factor.as_ref(), q.as_mut().transpose_mut(), par);
    Some(q)
}

/// Cholesky factor, refused if the squared ratio of its extreme pivots is below `floor`.
fn lower_factor<T: Scalar>(mut gram: Mat<T>, floor: f64) -> Option<Mat<T>> {
    let n = gram.ncols();
    T::cholesky(gram.as_mut(), parallelism(n * n * n / 3))?;
    let pivots = (0..n).map(|i| gram[(i, i)].widen());
    let (low, high) = pivots.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), pivot| {
        // A NaN pivot must not pass as "no smaller than".
        (if pivot >= low { low } else { pivot }, high.max(pivot))
    });
    let ratio = low / high;
    (high.is_finite() && ratio * ratio >= floor).then_some(gram)
}

/// Frobenius distance of the symmetric matrix in the lower triangle from the identity.
fn distance_to_identity<T: Scalar>(lower: &Mat<T>) -> f64 {
    let mut total = 0.0;
    for j in 0..lower.ncols() {
        total += (lower[(j, j)].widen() - 1.0).powi(2);
        total += (j + 1..lower.nrows()).map(|i| 2.0 * lower[(i, j)].widen().powi(2)).sum::<f64>();
    }
    total.sqrt()
}
