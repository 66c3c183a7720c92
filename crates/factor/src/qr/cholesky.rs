//! CholeskyQR and CholeskyQR2, which refuse what they cannot do accurately.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatRef, Par};

use crate::matrix::parallelism;
use crate::scalar::Scalar;

/// `(Q, R)` of a tall matrix, or nothing if it is too ill-conditioned for the method.
pub(super) fn qr<T: Scalar>(a: MatRef<'_, T>) -> Option<(Mat<T>, Mat<T>)> {
    let (m, n) = a.shape();
    let par = parallelism(m * n * n);
    let first = lower_factor(gram(a, par), 4.0 * T::EPSILON)?;
    let mut q = a.to_owned();
    solve_lower_triangular_in_place(first.as_ref(), q.as_mut().transpose_mut(), par);
    let again = gram(q.as_ref(), par);
    // Within 1/2 of the identity the second pass is orthonormal to a small multiple of ε.
    if !(distance_to_identity(&again) <= 0.5) {
        return None;
    }
    let second = lower_factor(again, 0.1)?;
    solve_lower_triangular_in_place(second.as_ref(), q.as_mut().transpose_mut(), par);
    let mut r = Mat::zeros(n, n);
    triangular::matmul(
        r.as_mut(),
        BlockStructure::TriangularUpper,
        Accum::Replace,
        second.transpose(),
        BlockStructure::TriangularUpper,
        first.transpose(),
        BlockStructure::TriangularUpper,
        T::of(1.0),
        par,
    );
    Some((q, r))
}

/// One pass: spans the same space, with a Gram matrix near the identity but not to rounding.
pub(super) fn single_pass<T: Scalar>(a: MatRef<'_, T>) -> Option<Mat<T>> {
    let par = parallelism(a.nrows() * a.ncols() * a.ncols());
    let factor = lower_factor(gram(a, par), 1e4 * T::EPSILON)?;
    let mut q = a.to_owned();
    solve_lower_triangular_in_place(factor.as_ref(), q.as_mut().transpose_mut(), par);
    Some(q)
}

/// Lower triangle of `AᵀA`; the strict upper triangle is zero.
fn gram<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Mat<T> {
    let mut out = Mat::zeros(a.ncols(), a.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        a.transpose(),
        BlockStructure::Rectangular,
        a,
        BlockStructure::Rectangular,
        T::of(1.0),
        par,
    );
    out
}

/// Cholesky factor, refused when the squared ratio of its extreme pivots is under `floor`.
fn lower_factor<T: Scalar>(mut gram: Mat<T>, floor: f64) -> Option<Mat<T>> {
    let n = gram.ncols();
    let par = parallelism(n * n * n / 3);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<T>(n, par, Default::default()));
    cholesky_in_place(gram.as_mut(), Default::default(), par, MemStack::new(&mut memory), Default::default())
        .ok()?;
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
