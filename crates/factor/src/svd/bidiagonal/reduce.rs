//! Reduction of a matrix to bidiagonal form by reflections from both sides.

use faer::reborrow::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::sweep::{ALIGNED, sweep};
use crate::matrix::product_into;
use crate::pass::Step;
use crate::qr::reflector::{Reflection, Reflector};
use crate::scalar::Scalar;

/// Columns reduced before the rest of the matrix is updated.
const PANEL: usize = 16;

/// Reflections that are applied together.
const TOGETHER: usize = 48;

/// `A = P·B·Qᵀ` with an upper bidiagonal `B`.
pub(super) struct Reduced<T> {
    /// Diagonal of `B`, length n.
    pub(super) diagonal: Vec<f64>,
    /// Superdiagonal of `B`, length n − 1.
    pub(super) off: Vec<f64>,
    /// `P`.
    pub(super) left: Reflections<T>,
    /// `Q`.
    pub(super) right: Reflections<T>,
}

/// A product of reflections, the first one leftmost.
pub(super) struct Reflections<T> {
    /// Reflection `j` is column `j` from row `j + offset` on, where it is 1; the entries above it do not belong to it.
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
            let mut v = Mat::zeros(rows - first, taus.len());
            for j in 0..taus.len() {
                v.col_as_slice_mut(j)[j..]
                    .copy_from_slice(&self.vectors.col_as_slice(start + j)[first + j..]);
            }
            Reflector::new(first, v, taus).apply(c.as_mut().subrows_mut(first, rows - first));
        }
    }
}

/// Reduces a matrix with `m ≥ n ≥ 1`.
///
/// # Algorithm
/// Panels whose reflections are applied to the rest of the matrix at once (Dongarra, Hammarling, Sorensen
/// 1989, LAPACK's `gebrd`), with both matrix-vector products of a step made in one pass.
pub(super) fn reduce<T: Scalar>(a: Mat<T>) -> Reduced<T> {
    let (m, n) = a.shape();
    let (mut diagonal, mut off) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut left_taus, mut right_taus) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let mut panel = Panel {
        a,
        right: Mat::zeros(n, n),
        x: Mat::zeros(m, PANEL),
        y: Mat::zeros(n, PANEL),
        start: 0,
        column: Mat::zeros(m + ALIGNED, 1),
        row: Mat::zeros(n, 1),
        sums: Vec::new(),
    };
    for k in 0..n {
        if k == panel.start + PANEL {
            panel.update_rest(k);
            panel.start = k;
        }
        let reflection = panel.reflect_column(k);
        diagonal.push(reflection.beta.widen());
        left_taus.push(reflection.tau);
        if k + 1 < n {
            panel.multiply(k, reflection.tau);
            let reflection = panel.reflect_row(k);
            off.push(reflection.beta.widen());
            right_taus.push(reflection.tau);
            panel.complete(k, &reflection);
        }
    }
    let left = Reflections { vectors: panel.a, taus: left_taus, offset: 0 };
    Reduced { diagonal, off, left, right: Reflections { vectors: panel.right, taus: right_taus, offset: 1 } }
}

/// The matrix during the reduction: the part below and right of row and column `k` is `A − U·Yᵀ − X·Vᵀ`, with
/// the reflections `U` and `V` computed since column `start`.
struct Panel<T> {
    /// `A`, with the vectors of the left reflections in its columns.
    a: Mat<T>,
    /// The vectors of the right reflections, as columns.
    right: Mat<T>,
    x: Mat<T>,
    y: Mat<T>,
    start: usize,
    /// Workspace for a column, a row, and sums of columns.
    column: Mat<T>,
    row: Mat<T>,
    sums: Vec<Vec<T>>,
}

impl<T: Scalar> Panel<T> {
    /// Updates column `k` and reflects it to a multiple of the first unit vector.
    fn reflect_column(&mut self, k: usize) -> Reflection<T> {
        let (c, below) = (k - self.start, self.a.nrows() - k);
        let mut current = self.column.as_mut().subrows_mut(0, below);
        current.copy_from(self.a.as_ref().submatrix(k, k, below, 1));
        let u = self.a.as_ref().submatrix(k, self.start, below, c);
        add(current.as_mut(), -1.0, u, self.y.as_ref().submatrix(k, 0, 1, c).transpose());
        let v = self.right.as_ref().submatrix(k, self.start, 1, c);
        add(current.as_mut(), -1.0, self.x.as_ref().submatrix(k, 0, below, c), v.transpose());
        Reflection::of(current.as_ref().col(0), self.a.as_mut().col_mut(k).subrows_mut(k, below))
    }

    /// The next column of `Y`, `τ·(A − U·Yᵀ − X·Vᵀ)ᵀ·u`, row `k` after this reflection, and the product
    /// of that row and `A`.
    fn multiply(&mut self, k: usize, tau: T) {
        let (m, n) = self.a.shape();
        let (c, below, beside) = (k - self.start, m - k, n - k - 1);
        // Contributions of the panel: to the product with u, and to row k.
        let mut taken = Mat::zeros(beside, 2);
        let (past, u) = self.a.as_ref().submatrix(k, self.start, below, c + 1).split_at_col(c);
        let sides = [
            (past, self.y.as_ref().submatrix(k + 1, 0, beside, c)),
            (
                self.x.as_ref().submatrix(k, 0, below, c),
                self.right.as_ref().submatrix(k + 1, self.start, beside, c),
            ),
        ];
        for (left, right) in sides {
            let mut weights = Mat::zeros(c, 2);
            add(weights.as_mut().subcols_mut(0, 1), 1.0, left.transpose(), u);
            weights.as_mut().col_mut(1).copy_from(left.row(0).transpose());
            add(taken.as_mut(), 1.0, right, weights.as_ref());
        }
        let y = &mut self.y.col_as_slice_mut(c)[k + 1..];
        y.copy_from_slice(taken.col_as_slice(0));
        let row = &mut self.row.col_as_slice_mut(0)[..beside];
        row.copy_from_slice(taken.col_as_slice(1));
        // From a row at which all columns are aligned; the vector is zero above its own first element.
        let top = k / ALIGNED * ALIGNED;
        let u = &mut self.column.col_as_slice_mut(0)[..m - top];
        u[..k - top].fill(T::default());
        u[k - top..].copy_from_slice(&self.a.col_as_slice(k)[k..]);
        sweep(Step { a: &self.a, top, left: k + 1, head: k, u, tau }, y, row, &mut self.sums);
    }

    /// Reflects row `k`, which [`Panel::multiply`] has updated.
    fn reflect_row(&mut self, k: usize) -> Reflection<T> {
        let beside = self.a.ncols() - k - 1;
        let v = self.right.as_mut().col_mut(k).subrows_mut(k + 1, beside);
        Reflection::of(self.row.col(0).subrows(0, beside), v)
    }

    /// The next column of `X`, `τ·(A − U·Yᵀ − X·Vᵀ)·v`.
    fn complete(&mut self, k: usize, reflection: &Reflection<T>) {
        let (m, n) = self.a.shape();
        let (c, below, beside) = (k - self.start, m - k - 1, n - k - 1);
        let (known, mut x) = self.x.as_mut().submatrix_mut(k + 1, 0, below, c + 1).split_at_col_mut(c);
        // A·v from A·row: v is the row with β subtracted from its head, scaled.
        let sum = &self.sums[0][self.sums[0].len() - below..];
        let neighbour = &self.a.col_as_slice(k + 1)[k + 1..];
        for ((x, &sum), &a) in x.rb_mut().col_mut(0).iter_mut().zip(sum).zip(neighbour) {
            *x = (sum - reflection.beta * a) * reflection.scale;
        }
        let (v_past, v) = self.right.as_ref().submatrix(k + 1, self.start, beside, c + 1).split_at_col(c);
        let u = self.a.as_ref().submatrix(k + 1, self.start, below, c + 1);
        let y = self.y.as_ref().submatrix(k + 1, 0, beside, c + 1);
        for (left, right) in [(u, y), (known.as_ref(), v_past)] {
            let mut weights = Mat::zeros(left.ncols(), 1);
            add(weights.as_mut(), 1.0, right.transpose(), v);
            add(x.rb_mut(), -1.0, left, weights.as_ref());
        }
        x.col_mut(0).iter_mut().for_each(|x| *x *= reflection.tau);
    }

    /// Applies the reflections of the panel to the part below and right of `end`.
    fn update_rest(&mut self, end: usize) {
        let (m, n) = self.a.shape();
        let width = end - self.start;
        let (panel, mut rest) = self.a.as_mut().subrows_mut(end, m - end).split_at_col_mut(end);
        let u = panel.as_ref().subcols(self.start, width);
        let x = self.x.as_ref().submatrix(end, 0, m - end, width);
        let y = self.y.as_ref().submatrix(end, 0, n - end, width);
        let v = self.right.as_ref().submatrix(end, self.start, n - end, width);
        for (left, right) in [(u, y), (x, v)] {
            product_into(rest.rb_mut(), Accum::Add, left, right.transpose(), T::of(-1.0));
        }
    }
}

/// `C ← C + α·A·B` for a thin operand, on this thread.
fn add<T: Scalar>(c: MatMut<'_, T>, alpha: f64, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    if a.ncols() > 0 && c.nrows() > 0 {
        T::gemm(c, Accum::Add, a, b, T::of(alpha), Par::Seq);
    }
}
