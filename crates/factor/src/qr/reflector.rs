//! Householder reflections, one by one and as blocks.

use faer::{Accum, ColMut, ColRef, Mat, MatMut, MatRef};

use crate::matrix::{product, product_into, sum_of_squares};
use crate::scalar::Scalar;

/// Product of reflections, `I − V·T·Vᵀ` on the rows from `start` on (Schreiber, Van Loan 1989).
pub(crate) struct Reflector<T> {
    pub(crate) start: usize,
    /// Shape `(m − start) × b`, unit lower trapezoidal.
    v: Mat<T>,
    /// Shape `b × b`, upper triangular.
    t: Mat<T>,
}

impl<T: Scalar> Reflector<T> {
    /// The product of `I − τⱼ·vⱼ·vⱼᵀ` over the columns of `v`.
    pub(crate) fn new(start: usize, v: Mat<T>, taus: &[T]) -> Self {
        let gram = product(v.transpose(), v.as_ref());
        let mut t = Mat::<T>::zeros(taus.len(), taus.len());
        for (j, &tau) in taus.iter().enumerate() {
            t[(j, j)] = tau;
            for i in 0..j {
                let sum: T = (i..j).map(|k| t[(i, k)] * gram[(k, j)]).sum();
                t[(i, j)] = -tau * sum;
            }
        }
        Self { start, v, t }
    }

    /// `C ← (I − V·T·Vᵀ)·C`.
    pub(crate) fn apply(&self, c: MatMut<'_, T>) {
        self.multiply(c, self.t.as_ref());
    }

    /// `C ← (I − V·Tᵀ·Vᵀ)·C`.
    pub(crate) fn apply_transposed(&self, c: MatMut<'_, T>) {
        self.multiply(c, self.t.transpose());
    }

    fn multiply(&self, c: MatMut<'_, T>, t: MatRef<'_, T>) {
        let inner = product(self.v.transpose(), c.as_ref());
        let inner = product(t, inner.as_ref());
        product_into(c, Accum::Add, self.v.as_ref(), inner.as_ref(), T::of(-1.0));
    }
}

/// Reflection `I − τ·v·vᵀ` with `v₀ = 1` that maps a vector to `(β, 0, …, 0)`.
pub(crate) struct Reflection<T> {
    pub(crate) beta: T,
    pub(crate) tau: T,
    /// Factor that turned the vector into `v`, except for its head, from which `β` was first subtracted.
    pub(crate) scale: T,
}

impl<T: Scalar> Reflection<T> {
    /// The reflection of a contiguous `x`; its `v` goes to `v`.
    pub(crate) fn of(x: ColRef<'_, T>, mut v: ColMut<'_, T>) -> Self {
        let zero = T::default();
        let head = x[0];
        let tail = norm(x.subrows(1, x.nrows() - 1));
        v[0] = T::of(1.0);
        // Far below rounding in a balanced matrix, and its reciprocal would overflow.
        if tail <= T::NEGLIGIBLE {
            (1..x.nrows()).for_each(|i| v[i] = zero);
            return Self { beta: head, tau: zero, scale: zero };
        }
        // The sign opposite to the head's avoids cancellation in `head − β`.
        let length = T::of(head.widen().hypot(tail));
        let beta = if head < zero { length } else { -length };
        let scale = T::of(1.0) / (head - beta);
        for i in 1..x.nrows() {
            v[i] = x[i] * scale;
        }
        Self { beta, tau: (beta - head) / beta, scale }
    }
}

fn norm<T: Scalar>(x: ColRef<'_, T>) -> f64 {
    let squared = match x.try_as_col_major() {
        Some(x) => sum_of_squares(x.as_slice()),
        None => x.iter().map(|x| x.widen() * x.widen()).sum(),
    };
    if squared > f64::MIN_POSITIVE / f64::EPSILON {
        return squared.sqrt();
    }
    // A remainder may be too small to square.
    let max = x.iter().fold(0.0, |max: f64, x| max.max(x.widen().abs()));
    if max == 0.0 { 0.0 } else { max * x.iter().map(|x| (x.widen() / max).powi(2)).sum::<f64>().sqrt() }
}
