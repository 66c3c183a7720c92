//! The innermost loop of the bidiagonal reduction: both products of a step in one read of the matrix.

use faer::Mat;
use pulp::{Simd, WithSimd};

/// Columns that are read together; they stay in the L1 cache between their two uses.
pub(crate) const TOGETHER: usize = 4;

/// The rows of a matrix from `top` and its columns from `left` on, and a vector to multiply them by.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a, T> {
    pub(crate) a: &'a Mat<T>,
    pub(crate) top: usize,
    pub(crate) left: usize,
    /// Row in which the vector begins; it is zero above.
    pub(crate) head: usize,
    /// Length `m − top`.
    pub(crate) u: &'a [T],
    pub(crate) tau: T,
}

/// Some columns of a [`Step`]: for every column `a` of them, `y ← τ·(aᵀu − y)`, `row ← a_head − row − y` and
/// `sum ← sum + row·a`.
pub struct Pass<'a, T> {
    pub(crate) step: Step<'a, T>,
    pub(crate) y: &'a mut [T],
    pub(crate) row: &'a mut [T],
    pub(crate) sum: &'a mut [T],
}

macro_rules! implement {
    ($($scalar:ident: $vector:ident, $split:ident, $split_mut:ident, $load:ident, $store:ident, $splat:ident,
        $mul_add:ident, $reduce:ident;)*) => {$(
        impl Pass<'_, $scalar> {
            #[inline(always)]
            fn group<S: Simd, const N: usize>(&mut self, simd: S, first: usize) {
                let Step { a, top, left, head, u, tau } = self.step;
                let (u, u_rest) = S::$split(u);
                let u_rest = simd.$load(u_rest);
                let (sum, sum_rest) = S::$split_mut(self.sum);
                let mut columns: [&[S::$vector]; N] = [&[]; N];
                let mut rests = [simd.$splat(0.0); N];
                let mut products = [simd.$splat(0.0); N];
                for n in 0..N {
                    let (column, rest) = S::$split(&a.col_as_slice(left + first + n)[top..]);
                    columns[n] = &column[..u.len()];
                    rests[n] = simd.$load(rest);
                    products[n] = simd.$mul_add(rests[n], u_rest, products[n]);
                }
                for (i, &u) in u.iter().enumerate() {
                    for n in 0..N {
                        products[n] = simd.$mul_add(columns[n][i], u, products[n]);
                    }
                }
                let mut factors = products;
                for n in 0..N {
                    let (y, row) = (&mut self.y[first + n], &mut self.row[first + n]);
                    *y = tau * (simd.$reduce(products[n]) - *y);
                    *row = a[(head, left + first + n)] - *row - *y;
                    factors[n] = simd.$splat(*row);
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let mut total = *sum;
                    for n in 0..N {
                        total = simd.$mul_add(columns[n][i], factors[n], total);
                    }
                    *sum = total;
                }
                let mut total = simd.$load(sum_rest);
                for n in 0..N {
                    total = simd.$mul_add(rests[n], factors[n], total);
                }
                simd.$store(sum_rest, total);
            }
        }

        impl WithSimd for Pass<'_, $scalar> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(mut self, simd: S) {
                let whole = self.y.len() / TOGETHER * TOGETHER;
                for first in (0..whole).step_by(TOGETHER) {
                    self.group::<S, TOGETHER>(simd, first);
                }
                for first in whole..self.y.len() {
                    self.group::<S, 1>(simd, first);
                }
            }
        }
    )*};
}

implement! {
    f32: f32s, as_simd_f32s, as_mut_simd_f32s, partial_load_f32s, partial_store_f32s, splat_f32s, mul_add_f32s,
        reduce_sum_f32s;
    f64: f64s, as_simd_f64s, as_mut_simd_f64s, partial_load_f64s, partial_store_f64s, splat_f64s, mul_add_f64s,
        reduce_sum_f64s;
}
