//! CholeskyQR and CholeskyQR2, which refuse what they cannot do accurately.

use faer::{Mat, MatRef};

use crate::matrix::parallelism;
use crate::scalar::Scalar;

/// `(Q, R)` of a tall matrix, or nothing if it is too ill-conditioned for the method.
pub(super) fn qr<T: Scalar>(a: MatRef<'_, T>) -> Option<(Mat<T>, Mat<T>)> {
    let (m, n) = a.shape();
    let par = parallelism(m * n * n);
    let first = lower_factor(T::gram(a, par), 4.0 * T::EPSILON)?;
    let mut q = a.to_owned();
    T::solve_lower(first.as_ref(), q.as_mut().transpose_mut(), par);
    let again = T::gram(q.as_ref(), par);
    // Within 1/2 of the identity the second pass is orthonormal to a small multiple of ε.
    let distance = distance_to_identity(&again);
    if distance.is_nan() || distance > 0.5 {
        return None;
    }
    let second = lower_factor(again, 0.1)?;
    T::solve_lower(second.as_ref(), q.as_mut().transpose_mut(), par);
    let r = T::upper_product(second.transpose(), first.transpose(), par);
    Some((q, r))
}

/// One pass: spans the same space, with a Gram matrix near the identity but not to rounding.
pub(super) fn single_pass<T: Scalar>(a: MatRef<'_, T>) -> Option<Mat<T>> {
    let par = parallelism(a.nrows() * a.ncols() * a.ncols());
    let factor = lower_factor(T::gram(a, par), 1e4 * T::EPSILON)?;
    let mut q = a.to_owned();
    T::solve_lower(factor.as_ref(), q.as_mut().transpose_mut(), par);
    Some(q)
}

/// Cholesky factor, refused when the squared ratio of its extreme pivots is under `floor`.
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

/// Frobenius distance of the symmetric matrix in the lower triangle to the identity.
fn distance_to_identity<T: Scalar>(lower: &Mat<T>) -> f64 {
    let mut total = 0.0;
    for j in 0..lower.ncols() {
        total += (lower[(j, j)].widen() - 1.0).powi(2);
        total += (j + 1..lower.nrows()).map(|i| 2.0 * lower[(i, j)].widen().powi(2)).sum::<f64>();
    }
    total.sqrt()
}
