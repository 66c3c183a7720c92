//! Thin QR: `A = Q·R` with orthonormal `Q` (m × k), upper-triangular or trapezoidal `R` (k × n),
//! `k = min(m, n)`.
//!
//! # Algorithm
//! CholeskyQR2 (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015): `R` from the Cholesky factor of `AᵀA`, done
//! twice, so that almost all work is in matrix products. It loses orthogonality when `κ(A)²·ε` approaches 1;
//! the Gram matrix of the first `Q`, which the second pass needs anyway, reveals this, and blocked
//! Householder reflections (Schreiber, Van Loan 1989) take over.
//!
//! faer's own QR is not used: it treats a column as dependent once its remainder falls below
//! `16·m·ε` of its norm, which for `f32` and thousands of rows is a backward error of half a per cent.

mod cholesky;
mod householder;
pub(crate) mod reflector;

use faer::{Mat, MatRef};

use self::cholesky::TwoPasses;
use crate::error::Result;
use crate::matrix::{Balanced, parallelism, product, stack_cols, unscale};
use crate::scalar::Scalar;

/// Thin QR of an `m × n` matrix: `(Q, R)` of shapes `m × k` and `k × n`, `k = min(m, n)`.
///
/// `QᵀQ = I` and `‖A − QR‖ ≤ c·ε·‖A‖` hold for every input, rank-deficient ones included (there the
/// columns of `Q` beyond the rank are an arbitrary orthonormal completion). The signs of the diagonal of
/// `R` are not specified.
///
/// # Errors
/// [`FactorError::Empty`](crate::FactorError::Empty),
/// [`FactorError::NonFinite`](crate::FactorError::NonFinite),
/// [`FactorError::Overflow`](crate::FactorError::Overflow) if `R` leaves the element type.
///
/// # Complexity
/// `O(m·n·k)`.
///
/// ```
/// use lowrank_factor::{Mat, qr::thin_qr};
/// let a = Mat::from_fn(4, 2, |i, j| (i * 2 + j) as f64);
/// let (q, r) = thin_qr(a.as_ref())?;
/// assert!((&q * &r - &a).norm_max() < 1e-13);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn thin_qr<T: Scalar>(a: MatRef<'_, T>) -> Result<(Mat<T>, Mat<T>)> {
    let balanced = Balanced::new(a, "matrix")?;
    let (q, mut r) = factor(balanced.view());
    for j in 0..r.ncols() {
        unscale(r.col_as_slice_mut(j), balanced.scale)?;
    }
    Ok((q, r))
}

/// [`thin_qr`] of a finite, balanced matrix.
pub(crate) fn factor<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Mat<T>) {
    let (m, n) = a.shape();
    if m < n {
        let (q, square) = factor(a.subcols(0, m));
        let rest = product(q.transpose(), a.subcols(m, n - m));
        return (q, stack_cols(&[square.as_ref(), rest.as_ref()], m));
    }
    cholesky::qr(a).unwrap_or_else(|| householder::qr(a))
}

/// `R` alone of a tall matrix.
pub(crate) fn triangle<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    cholesky::two_passes(a).map_or_else(|| householder::qr(a).1, |passes| passes.r)
}

/// `R` of a tall matrix, and the result of `small` multiplied by `Q`, which is not formed if that can be
/// avoided.
pub(crate) fn through_triangle<T: Scalar, R>(
    a: MatRef<'_, T>,
    small: impl FnOnce(Mat<T>) -> (Mat<T>, R),
) -> (Mat<T>, R) {
    match cholesky::two_passes(a) {
        Some(TwoPasses { first, lower, r }) => {
            let (mut inner, rest) = small(r);
            let par = parallelism(inner.nrows() * inner.nrows() * inner.ncols());
            // Reversed, the transpose of a lower triangular matrix is lower triangular too.
            let upper = lower.transpose().reverse_rows_and_cols();
            T::solve_lower(upper, inner.as_mut().reverse_rows_mut(), par);
            (product(first.as_ref(), inner.as_ref()), rest)
        }
        None => {
            let (q, r) = householder::qr(a);
            let (inner, rest) = small(r);
            (product(q.as_ref(), inner.as_ref()), rest)
        }
    }
}

/// Orthonormal basis of the column space of a tall matrix (`m ≥ n`), orthonormal to rounding.
pub(crate) fn basis<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    factor(a).0
}

/// Basis that is well conditioned but not orthonormal to rounding (its Gram matrix is within about
/// `10⁻³` of the identity): sufficient between the products of a power iteration, at half the cost.
pub(crate) fn rough_basis<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    cholesky::single_pass(a).unwrap_or_else(|| basis(a))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::random::NormalSource;

    /// Orthonormality and backward error, both relative to ε.
    #[track_caller]
    fn check_qr<T: Scalar>(a: &Mat<T>, (q, r): &(Mat<T>, Mat<T>)) {
        let k = a.nrows().min(a.ncols());
        assert_eq!((q.nrows(), q.ncols(), r.nrows(), r.ncols()), (a.nrows(), k, k, a.ncols()));
        let tolerance = 16.0 * T::EPSILON * (a.nrows().max(a.ncols()) as f64).sqrt();
        let gram = product(q.transpose(), q.as_ref());
        for i in 0..k {
            for j in 0..k {
                let expected = f64::from(u8::from(i == j));
                assert!((gram[(i, j)].widen() - expected).abs() <= tolerance, "({i}, {j})");
            }
            (0..i).for_each(|j| assert_eq!(r[(i, j)], T::default(), "R is upper triangular"));
        }
        let scale = a.norm_max().widen().max(1.0) * (k as f64).sqrt();
        let back = product(q.as_ref(), r.as_ref());
        let worst = (back - a).norm_max().widen();
        assert!(worst <= tolerance * scale, "{worst:e} > {:e}", tolerance * scale);
    }

    fn graded<T: Scalar>(m: usize, n: usize, smallest: f64) -> Mat<T> {
        let mut source = NormalSource::new(3);
        let u = householder::qr(source.matrix::<f64>(m, n).as_ref()).0;
        let v = householder::qr(source.matrix::<f64>(n, n).as_ref()).0;
        let power = |j: usize| smallest.powf(j as f64 / (n.max(2) - 1) as f64);
        let us = Mat::from_fn(m, n, |i, j| u[(i, j)] * power(j));
        let a = product(us.as_ref(), v.transpose());
        Mat::from_fn(m, n, |i, j| T::of(a[(i, j)]))
    }

    #[rstest]
    fn laws_hold(
        #[values((1, 1), (7, 1), (1, 7), (40, 40), (200, 33), (33, 70), (513, 96))] shape: (usize, usize),
        #[values(1.0, 1e-3, 1e-7, 1e-14)] smallest: f64,
    ) {
        let (m, n) = shape;
        let k = m.min(n);
        let tall = graded::<f64>(m.max(n), k, smallest);
        let a = if m < n { tall.transpose().to_owned() } else { tall };
        check_qr(&a, &thin_qr(a.as_ref()).unwrap());
        let a = Mat::from_fn(m, n, |i, j| a[(i, j)] as f32);
        check_qr(&a, &thin_qr(a.as_ref()).unwrap());
    }

    #[rstest]
    #[case::zeros(Mat::zeros(9, 4))]
    #[case::ones(Mat::ones(80, 35))]
    #[case::identity(Mat::identity(50, 50))]
    #[case::duplicate_columns(Mat::from_fn(60, 40, |i, j| ((i * (j / 2)) % 7) as f32))]
    fn degenerate_inputs(#[case] a: Mat<f32>) {
        check_qr(&a, &thin_qr(a.as_ref()).unwrap());
    }

    #[test]
    fn both_paths_agree_on_what_is_orthonormal() {
        let a = NormalSource::new(5).matrix::<f32>(300, 70);
        check_qr(&a, &householder::qr(a.as_ref()));
        check_qr(&a, &cholesky::qr(a.as_ref()).unwrap());
        assert!(cholesky::qr(graded::<f32>(300, 70, 1e-6).as_ref()).is_none(), "must hand over");
        assert!(cholesky::qr(Mat::<f32>::zeros(30, 7).as_ref()).is_none(), "must hand over");
    }

    #[test]
    fn small_directions_of_an_f32_matrix_survive() {
        // Here faer's threshold loses the last direction altogether.
        let a = graded::<f32>(2000, 100, 1e-4);
        let (_, r) = thin_qr(a.as_ref()).unwrap();
        let smallest = *crate::svd::singular_values(r.as_ref()).unwrap().last().unwrap();
        assert!((f64::from(smallest) / 1e-4 - 1.0).abs() < 0.05, "{smallest:e}");
    }

    #[test]
    fn rough_bases_span_the_same_space() {
        let a = NormalSource::new(8).matrix::<f64>(120, 30);
        let q = rough_basis(a.as_ref());
        let exact = basis(a.as_ref());
        let inside = product(exact.as_ref(), product(exact.transpose(), q.as_ref()).as_ref());
        assert!((inside - &q).norm_max() < 1e-13);
    }
}
