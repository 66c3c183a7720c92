//! Blocked Householder QR without a rank threshold: unconditionally orthonormal.

use faer::{Accum, Mat, MatMut, MatRef};

use crate::matrix::{product, product_into};
use crate::scalar::Scalar;

/// Columns per block reflector.
const PANEL: usize = 32;

/// Product of up to [`PANEL`] reflections, `I − V·T·Vᵀ` on the rows from `start` on.
struct Reflector<T> {
    start: usize,
    /// Shape `(m − start) × b`, unit lower trapezoidal.
    v: Mat<T>,
    /// Shape `b × b`, upper triangular.
    t: Mat<T>,
}

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
            apply(&reflector, trailing, true);
        }
        reflectors.push(reflector);
    }
    let r = Mat::from_fn(n, n, |i, j| if i <= j { work[(i, j)] } else { T::default() });
    drop(work);
    let mut q = Mat::identity(m, n);
    for reflector in reflectors.iter().rev() {
        let start = reflector.start;
        apply(reflector, q.as_mut().submatrix_mut(start, start, m - start, n - start), false);
    }
    (q, r)
}

/// `C ← (I − V·T·Vᵀ)·C`, or with `T` transposed.
fn apply<T: Scalar>(reflector: &Reflector<T>, c: MatMut<'_, T>, transposed: bool) {
    let inner = product(reflector.v.transpose(), c.as_ref());
    let t = if transposed { reflector.t.transpose() } else { reflector.t.as_ref() };
    let inner = product(t, inner.as_ref());
    product_into(c, Accum::Add, reflector.v.as_ref(), inner.as_ref(), T::of(-1.0));
}

/// Reduces a panel to triangular form; what lies below its diagonal is not written back.
fn factor_panel<T: Scalar>(mut panel: MatMut<'_, T>, start: usize) -> Reflector<T> {
    let (m, width) = (panel.nrows(), panel.ncols());
    let mut v = Mat::zeros(m, width);
    let mut taus = vec![T::default(); width];
    for j in 0..width {
        let (beta, tau) =
            reflection(panel.as_ref().col(j).subrows(j, m - j), v.as_mut().col_mut(j).subrows_mut(j, m - j));
        panel[(j, j)] = beta;
        taus[j] = tau;
        if tau != T::default() && j + 1 < width {
            let v = v.as_ref().submatrix(j, j, m - j, 1);
            let rest = panel.as_mut().submatrix_mut(j, j + 1, m - j, width - j - 1);
            let dots = product(v.transpose(), rest.as_ref());
            product_into(rest, Accum::Add, v, dots.as_ref(), -tau);
        }
    }
    let gram = product(v.transpose(), v.as_ref());
    let mut t = Mat::<T>::zeros(width, width);
    for j in 0..width {
        t[(j, j)] = taus[j];
        for i in 0..j {
            let sum: T = (i..j).map(|k| t[(i, k)] * gram[(k, j)]).sum();
            t[(i, j)] = -taus[j] * sum;
        }
    }
    Reflector { start, v, t }
}

/// Reflection `I − τ·v·vᵀ` with `v₀ = 1` that maps `x` to `(β, 0, …, 0)`; returns `(β, τ)`.
fn reflection<T: Scalar>(x: faer::ColRef<'_, T>, mut v: faer::ColMut<'_, T>) -> (T, T) {
    let zero = T::default();
    let head = x[0];
    let entries = || (1..x.nrows()).map(|i| x[i].widen());
    let max = entries().fold(0.0, |max: f64, x| max.max(x.abs()));
    v[0] = T::of(1.0);
    // Far below rounding in a balanced matrix, and its reciprocal would overflow.
    if max <= T::NEGLIGIBLE {
        return (head, zero);
    }
    // Scaled, because remainders of remainders may be too small to square.
    let tail = max * entries().map(|x| (x / max).powi(2)).sum::<f64>().sqrt();
    // The sign opposite to the head's avoids cancellation in `head − β`.
    let length = T::of(head.widen().hypot(tail));
    let beta = if head < zero { length } else { -length };
    let scale = T::of(1.0) / (head - beta);
    for i in 1..x.nrows() {
        v[i] = x[i] * scale;
    }
    (beta, (beta - head) / beta)
}
