//! Blocked Householder QR without a rank threshold: unconditionally orthonormal.

use faer::{Accum, Mat, MatMut, MatRef};

use super::reflector::{Reflection, Reflector};
use crate::matrix::{product, product_into};
use crate::scalar::Scalar;

/// Columns per block reflector.
const PANEL: usize = 32;

/// `(Q, R)` of a tall matrix.
pub(super) fn qr<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Mat<T>) {
    let (m, n) = a.shape();
    let mut work = a.to_owned();
    let mut reflectors = Vec::with_capacity(n.div_ceil(PANEL));
    for start in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - start);
        let (panel, trailing) = work.as_mut().subrows_mut(start, m - start).split_at_col_mut(start + width);
        let reflector = factor_panel(panel.subcols_mut(start, width), start);
        if trailing.ncols() > 0 {
            reflector.apply_transposed(trailing);
        }
        reflectors.push(reflector);
    }
    let r = Mat::from_fn(n, n, |i, j| if i <= j { work[(i, j)] } else { T::default() });
    drop(work);
    let mut q = Mat::identity(m, n);
    for reflector in reflectors.iter().rev() {
        let start = reflector.start;
        reflector.apply(q.as_mut().submatrix_mut(start, start, m - start, n - start));
    }
    (q, r)
}

/// Reduces a panel to triangular form; the part below its diagonal is not written back.
fn factor_panel<T: Scalar>(mut panel: MatMut<'_, T>, start: usize) -> Reflector<T> {
    let (m, width) = (panel.nrows(), panel.ncols());
    let mut v = Mat::zeros(m, width);
    let mut taus = vec![T::default(); width];
    for j in 0..width {
        let Reflection { beta, tau, .. } = Reflection::of(
            panel.as_ref().col(j).subrows(j, m - j),
            v.as_mut().col_mut(j).subrows_mut(j, m - j),
        );
        panel[(j, j)] = beta;
        taus[j] = tau;
        if tau != T::default() && j + 1 < width {
            let v = v.as_ref().submatrix(j, j, m - j, 1);
            let rest = panel.as_mut().submatrix_mut(j, j + 1, m - j, width - j - 1);
            let dots = product(v.transpose(), rest.as_ref());
            product_into(rest, Accum::Add, v, dots.as_ref(), -tau);
        }
    }
    Reflector::new(start, v, &taus)
}
