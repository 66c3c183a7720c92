//! Reduction of a matrix to two diagonals by reflections from both sides.

use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::sweep::{ALIGNED, Step, sweep};
use crate::matrix::product_into;
use crate::qr::reflector::{Reflection, Reflector};
use crate::scalar::Scalar;

/// Columns reduced before the rest of the matrix is brought up to date.
const PANEL: usize = 16;

/// Reflections that are applied together.
const TOGETHER: usize = 48;

/// `A = P·B·Qᵀ` with an upper bidiagonal `B`.
pub(super) struct Reduced<T> {
    /// Diagonal of `B`, length n.
    pub(super) diagonal: Vec<f64>,
    /// What is above it, length n − 1.
    pub(super) off: Vec<f64>,
    /// `P`.
    pub(super) left: Reflections<T>,
    /// `Q`.
    pub(super) right: Reflections<T>,
}

/// A product of reflections, the first one leftmost.
pub(super) struct Reflections<T> {
    /// Reflection `j` is column `j` from row `j + offset` on, where it is 1; what is above is no part of it.
    vectors: Mat<T>,
    taus: Vec<T>,
    offset: usize,
}

impl<T: Scalar> Reflections<T> {
    /// Applies them to `c` from the left.
    pub(super) fn apply(&self, mut c: MatMut<'_, T>) {
        let rows = c.nrows();
        for start in (0..self.taus.len()).step_by(TOGETHER).rev() {
            let taus = &self.taus[start..self.taus.len().min(start + TOGETHER)];
            let first = start + self.offset;
            let part = self.vectors.as_ref().submatrix(first, start, rows - first, taus.len());
            let v = Mat::from_fn(
                part.nrows(),
                part.ncols(),
                |i, j| if i < j { T::default() } else { part[(i, j)] },
            );
            Reflector::new(first, v, taus).apply(c.as_mut().subrows_mut(first, rows - first));
        }
    }
}

/// Reduces a matrix with `m ≥ n ≥ 1`.
///
/// # Algorithm
/// Panels whose reflections are applied to the rest of the matrix at once (Dongarra, Hammarling, Sorensen
/// 1989, LAPACK's `gebrd`), with both matrix-vector products of a step made in one pass.
pub(super) fn reduce<T: Scalar>(mut a: Mat<T>) -> Reduced<T> {
    let (m, n) = a.shape();
    let zero = T::default();
    let mut right = Mat::zeros(n, n);
    let (mut diagonal, mut off) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut left_taus, mut right_taus) = (Vec::with_capacity(n), Vec::with_capacity(n));
    // The rest of the matrix is A − U·Yᵀ − X·Vᵀ with the panel's reflections U and V.
    let (mut x, mut y) = (Mat::zeros(m, PANEL), Mat::zeros(n, PANEL));
    let mut column = Mat::zeros(m + ALIGNED, 1);
    let mut row = Mat::zeros(n, 1);
    let mut known = Mat::zeros(n, 2);
    let mut sums = Vec::new();
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        for k in start..end {
            let (c, below, beside) = (k - start, m - k, n - k - 1);
            let mut current = column.as_mut().subrows_mut(0, below);
            current.copy_from(a.as_ref().submatrix(k, k, below, 1));
            let u = a.as_ref().submatrix(k, start, below, c);
            let v = right.as_ref().subcols(start, c);
            thin(current.as_mut(), -1.0, u, y.as_ref().submatrix(k, 0, 1, c).transpose());
            thin(current.as_mut(), -1.0, x.as_ref().submatrix(k, 0, below, c), v.subrows(k, 1).transpose());
            let found =
                Reflection::of(column.col(0).subrows(0, below), a.as_mut().col_mut(k).subrows_mut(k, below));
            diagonal.push(found.beta.widen());
            left_taus.push(found.tau);
            if beside == 0 {
                continue;
            }

            // Columns: what the panel takes from Aᵀu, and from row k.
            let (u, new) = a.as_ref().submatrix(k, start, below, c + 1).split_at_col(c);
            let both = |past: MatRef<'_, T>| {
                let mut both = Mat::zeros(c, 2);
                thin(both.as_mut().subcols_mut(0, 1), 1.0, past.transpose(), new);
                both.as_mut().col_mut(1).copy_from(past.row(0).transpose());
                both
            };
            let (from_u, from_x) = (both(u), both(x.as_ref().submatrix(k, 0, below, c)));
            let mut part = known.as_mut().subrows_mut(0, beside);
            part.fill(zero);
            thin(part.as_mut(), 1.0, y.as_ref().submatrix(k + 1, 0, beside, c), from_u.as_ref());
            thin(part.as_mut(), 1.0, v.subrows(k + 1, beside), from_x.as_ref());
            let y_new = &mut y.col_as_slice_mut(c)[k + 1..];
            y_new.copy_from_slice(&known.col_as_slice(0)[..beside]);
            let row_new = &mut row.col_as_slice_mut(0)[..beside];
            row_new.copy_from_slice(&known.col_as_slice(1)[..beside]);
            let first = k / ALIGNED * ALIGNED;
            let head = k - first;
            column.col_as_slice_mut(0)[..head].fill(zero);
            column.col_as_slice_mut(0)[head..m - first].copy_from_slice(&a.col_as_slice(k)[k..]);
            if let Some(matrix) = a.as_ref().submatrix(first, k + 1, m - first, beside).try_as_col_major() {
                let u = &column.col_as_slice(0)[..m - first];
                sweep(Step { matrix, u, head, tau: found.tau }, y_new, row_new, &mut sums);
            }

            let found = Reflection::of(
                row.col(0).subrows(0, beside),
                right.as_mut().col_mut(k).subrows_mut(k + 1, beside),
            );
            off.push(found.beta.widen());
            right_taus.push(found.tau);
            let x_new = &mut x.col_as_slice_mut(c)[k + 1..];
            // A·v from A·row: v is the row with β taken from its head, scaled.
            let neighbour = &a.col_as_slice(k + 1)[k + 1..];
            for ((x, &sum), &a) in x_new.iter_mut().zip(&sums[0][head + 1..]).zip(neighbour) {
                *x = (sum - found.beta * a) * found.scale;
            }
            let v_new = right.as_ref().submatrix(k + 1, k, beside, 1);
            let mut past = Mat::zeros(c + 1, 1);
            thin(past.as_mut(), 1.0, y.as_ref().submatrix(k + 1, 0, beside, c + 1).transpose(), v_new);
            let (known_x, x_new) = x.as_mut().subrows_mut(k + 1, below - 1).split_at_col_mut(c);
            let mut x_new = x_new.subcols_mut(0, 1);
            thin(x_new.as_mut(), -1.0, a.as_ref().submatrix(k + 1, start, below - 1, c + 1), past.as_ref());
            let v = right.as_ref().submatrix(k + 1, start, beside, c);
            let mut past = Mat::zeros(c, 1);
            thin(past.as_mut(), 1.0, v.transpose(), v_new);
            thin(x_new.as_mut(), -1.0, known_x.as_ref(), past.as_ref());
            x_new.col_mut(0).iter_mut().for_each(|x| *x *= found.tau);
        }
        if end < n {
            let width = end - start;
            let (panel, rest) = a.as_mut().subrows_mut(end, m - end).split_at_col_mut(end);
            let (y, x) =
                (y.as_ref().submatrix(end, 0, n - end, width), x.as_ref().submatrix(end, 0, m - end, width));
            let v = right.as_ref().submatrix(end, start, n - end, width);
            let mut rest = rest;
            let minus = T::of(-1.0);
            product_into(
                rest.as_mut(),
                Accum::Add,
                panel.as_ref().subcols(start, width),
                y.transpose(),
                minus,
            );
            product_into(rest, Accum::Add, x, v.transpose(), minus);
        }
    }
    let left = Reflections { vectors: a, taus: left_taus, offset: 0 };
    Reduced { diagonal, off, left, right: Reflections { vectors: right, taus: right_taus, offset: 1 } }
}

/// `C ← C + α·A·B` for a thin operand, on this thread.
fn thin<T: Scalar>(c: MatMut<'_, T>, alpha: f64, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    if a.ncols() > 0 && c.nrows() > 0 {
        T::gemm(c, Accum::Add, a, b, T::of(alpha), Par::Seq);
    }
}
