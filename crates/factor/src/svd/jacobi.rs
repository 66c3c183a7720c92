//! One-sided Jacobi SVD: the last resort where faer's iterations do not converge.
//!
//! It is slower by a large factor, but has no case in which it fails. faer's implicit QR iteration can run
//! out of steps on singular matrices whose zeros came out as rounding noise.

use faer::{Mat, MatRef};

use crate::matrix::sum_of_squares;
use crate::qr;
use crate::scalar::Scalar;

/// Sweeps after which only rounding is left to rotate; seven to ten are usual.
const MAX_SWEEPS: usize = 60;

/// Singular values and right singular vectors of a finite, balanced matrix with `m ≥ n`, computed in
/// `f64`.
///
/// # Algorithm
/// Hestenes 1958, on the transposed triangle of a QR decomposition, which speeds up convergence
/// (Drmač, Veselić 2008).
pub(super) fn right<T: Scalar>(a: MatRef<'_, T>) -> (Vec<T>, Mat<T>) {
    let wide = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].widen());
    // The columns of Rᵀ·W, with W made of rotations, become those of V·diag(s).
    let mut columns = qr::factor(wide.as_ref()).1.transpose().to_owned();
    for _ in 0..MAX_SWEEPS {
        if !sweep(&mut columns) {
            break;
        }
    }
    let n = columns.ncols();
    let norms: Vec<f64> = (0..n).map(|j| sum_of_squares(columns.col_as_slice(j)).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let unit = |i: usize, j: usize| {
        let norm = norms[order[j]];
        if norm > f64::NEGLIGIBLE { columns[(i, order[j])] / norm } else { 0.0 }
    };
    let v = complete(&Mat::from_fn(n, n, unit));
    let s = order.iter().map(|&j| T::of(norms[j])).collect();
    (s, Mat::from_fn(n, n, |i, j| T::of(v[(i, j)])))
}

/// Rotates every pair of columns that is not orthogonal to rounding; false if there was none.
fn sweep(columns: &mut Mat<f64>) -> bool {
    let n = columns.ncols();
    let mut rotated = false;
    for p in 0..n {
        for q in p + 1..n {
            let (x, y) = (columns.col_as_slice(p), columns.col_as_slice(q));
            let (alpha, beta) = (sum_of_squares(x), sum_of_squares(y));
            let gamma: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            let bound = f64::EPSILON * (columns.nrows() as f64).sqrt() * (alpha * beta).sqrt();
            if gamma.abs() <= bound.max(f64::MIN_POSITIVE) {
                continue;
            }
            rotated = true;
            let zeta = (beta - alpha) / (2.0 * gamma);
            let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
            let cosine = tangent.hypot(1.0).recip();
            rotate(columns, (p, q), (cosine, cosine * tangent));
        }
    }
    rotated
}

fn rotate(matrix: &mut Mat<f64>, (p, q): (usize, usize), (cosine, sine): (f64, f64)) {
    for i in 0..matrix.nrows() {
        let (x, y) = (matrix[(i, p)], matrix[(i, q)]);
        matrix[(i, p)] = cosine * x - sine * y;
        matrix[(i, q)] = sine * x + cosine * y;
    }
}

/// Orthonormal columns in place of those that are zero.
fn complete(v: &Mat<f64>) -> Mat<f64> {
    let (q, r) = qr::factor(v.as_ref());
    Mat::from_fn(v.nrows(), v.ncols(), |i, j| if r[(j, j)] < 0.0 { -q[(i, j)] } else { q[(i, j)] })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::matrix::product;
    use crate::random::NormalSource;

    #[rstest]
    #[case::random(NormalSource::new(1).matrix(40, 25))]
    #[case::zeros(Mat::zeros(7, 4))]
    #[case::ones(Mat::ones(30, 20))]
    #[case::identity(Mat::identity(12, 12))]
    #[case::column(NormalSource::new(2).matrix(9, 1))]
    #[case::graded(Mat::from_fn(30, 15, |i, j| 10_f64.powi(-(j as i32)) * ((i * (j + 1)) as f64).sin()))]
    #[case::deficient(Mat::from_fn(24, 16, |i, j| ((i * (j / 3)) % 5) as f64))]
    fn laws_hold(#[case] a: Mat<f64>) {
        let (m, n) = (a.nrows(), a.ncols());
        let (s, v) = right(a.as_ref());
        let tolerance = 16.0 * f64::EPSILON * (m as f64).sqrt();
        assert!(s.windows(2).all(|pair| pair[0] >= pair[1]) && s[n - 1] >= 0.0);
        let off = product(v.transpose(), v.as_ref()) - Mat::<f64>::identity(n, n);
        assert!(off.norm_max() <= tolerance, "{:e}", off.norm_max());
        // AV = UΣ: orthogonal columns with norms s.
        let us = product(a.as_ref(), v.as_ref());
        let gram = product(us.transpose(), us.as_ref());
        let off = Mat::from_fn(n, n, |i, j| gram[(i, j)] - if i == j { s[i] * s[i] } else { 0.0 });
        assert!(off.norm_max() <= tolerance * s[0] * s[0], "{:e}", off.norm_max());
        let known = crate::svd::singular_values(a.as_ref()).unwrap();
        assert!(s.iter().zip(&known).all(|(x, y)| (x - y).abs() <= tolerance * s[0]));
    }
}
