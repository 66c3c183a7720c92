//! Divide and conquer for the SVD of a bidiagonal matrix (Gu, Eisenstat 1995).
//!
//! A lower bidiagonal `B` of shape `(m + 1) × m` without its column `k` splits into two matrices of the same
//! kind. Their decompositions turn `B` into a diagonal matrix with one full row, whose singular values are
//! the roots of a secular equation and whose vectors follow from these; almost all of the work is then in
//! matrix products. Everything else is done in `f64` for all element types.

use core::ops::Range;

use faer::reborrow::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

use super::secular::{Roots, solve};
use crate::matrix::product;
use crate::scalar::Scalar;

/// From this size on the two halves run on two threads.
const PARALLEL: usize = 64;

/// SVD `B = U·diag(s)·Vᵀ` of the square lower bidiagonal matrix with `diagonal` (n) and, below it, `off` (n − 1):
/// `(U, s, V)`, `s` nonincreasing.
pub(super) fn svd<T: Scalar>(diagonal: &[f64], off: &[f64]) -> (Mat<T>, Vec<f64>, Mat<T>) {
    let n = diagonal.len();
    let (mut u, mut v) = (Mat::zeros(n + 1, n + 1), Mat::zeros(n, n));
    let (s, order) = decompose(diagonal, off, u.as_mut(), Some(v.as_mut()));
    (sorted(&u, &order), s, sorted(&v, &order))
}

/// Only `(U, s)`.
pub(super) fn left<T: Scalar>(diagonal: &[f64], off: &[f64]) -> (Mat<T>, Vec<f64>) {
    let n = diagonal.len();
    let mut u = Mat::zeros(n + 1, n + 1);
    let (s, order) = decompose(diagonal, off, u.as_mut(), None);
    (sorted(&u, &order), s)
}

/// Only the singular values.
pub(super) fn values<T: Scalar>(diagonal: &[f64], off: &[f64]) -> Vec<f64> {
    let mut ends = Mat::<T>::zeros(2, diagonal.len() + 1);
    decompose(diagonal, off, ends.as_mut(), None).0
}

/// The leading rows of the columns of `a` in the given order, one row per column.
fn sorted<T: Scalar>(a: &Mat<T>, order: &[usize]) -> Mat<T> {
    let mut out = Mat::zeros(order.len(), order.len());
    for (j, &from) in order.iter().enumerate() {
        out.col_as_slice_mut(j).copy_from_slice(&a.col_as_slice(from)[..order.len()]);
    }
    out
}

/// Singular values, nonincreasing, and the indices of their columns.
fn decompose<T: Scalar>(
    diagonal: &[f64],
    off: &[f64],
    u: MatMut<'_, T>,
    v: Option<MatMut<'_, T>>,
) -> (Vec<f64>, Vec<usize>) {
    let n = diagonal.len();
    let max = diagonal.iter().chain(off).fold(0.0, |max: f64, x| max.max(x.abs()));
    if max == 0.0 {
        [Some(u), v].into_iter().flatten().for_each(|a| a.diagonal_mut().fill(T::of(1.0)));
        return (vec![0.0; n], (0..n).collect());
    }
    let diagonal: Vec<f64> = diagonal.iter().map(|x| x / max).collect();
    // A zero last entry makes the matrix one row longer than wide.
    let off: Vec<f64> = off.iter().map(|x| x / max).chain([0.0]).collect();
    let (mut s, mut order) = (vec![0.0; n], vec![0; n]);
    let ends = u.nrows() <= n;
    Block { u, v, s: &mut s, order: &mut order, ends }.conquer(&diagonal, &off);
    order.reverse();
    (order.iter().map(|&i| s[i] * max).collect(), order)
}

/// Storage for the decomposition of `m` neighbouring columns.
struct Block<'a, T> {
    /// Shape `(m + 1) × (m + 1)`, or only its first and last row. The last column spans the null space of
    /// `Bᵀ`.
    u: MatMut<'a, T>,
    /// Shape `m × m`, if wanted; requires all of `u`.
    v: Option<MatMut<'a, T>>,
    /// Singular values in the order of the columns.
    s: &'a mut [f64],
    /// Indices of the singular values in increasing order.
    order: &'a mut [usize],
    /// Whether `u` holds only its first and last row.
    ends: bool,
}

impl<T: Scalar> Block<'_, T> {
    fn conquer(mut self, diagonal: &[f64], off: &[f64]) {
        match diagonal.len() {
            0 => self.u.fill(T::of(1.0)),
            1 => self.column(diagonal[0], off[0]),
            m => {
                let k = m / 2;
                let (above, below) = self.split(k);
                let above = || above.conquer(&diagonal[..k], &off[..k]);
                let below = || below.conquer(&diagonal[k + 1..], &off[k + 1..]);
                if m < PARALLEL {
                    above();
                    below();
                } else {
                    rayon::join(above, below);
                }
                self.merge(k, diagonal[k], off[k]);
            }
        }
    }

    /// The matrix `(a, b)ᵀ`.
    fn column(&mut self, a: f64, b: f64) {
        let length = a.hypot(b);
        let (cosine, sine) = if length > 0.0 { (a / length, b / length) } else { (1.0, 0.0) };
        for (place, value) in [((0, 0), cosine), ((1, 0), sine), ((0, 1), -sine), ((1, 1), cosine)] {
            self.u[place] = T::of(value);
        }
        if let Some(v) = &mut self.v {
            v[(0, 0)] = T::of(1.0);
        }
        self.s[0] = length;
        self.order[0] = 0;
    }

    /// The storage above and below column `k`, whose own entries stay between them.
    fn split(&mut self, k: usize) -> (Block<'_, T>, Block<'_, T>) {
        let m = self.s.len();
        let (s1, s2) = self.s.split_at_mut(k);
        let (order1, order2) = self.order.split_at_mut(k);
        let (u1, u2) = if self.ends {
            self.u.rb_mut().split_at_col_mut(k + 1)
        } else {
            let (u1, _, _, u2) = self.u.rb_mut().split_at_mut(k + 1, k + 1);
            (u1, u2)
        };
        let (v1, v2) = match &mut self.v {
            Some(v) => {
                v[(k, k)] = T::of(1.0);
                let (v1, _, _, rest) = v.rb_mut().split_at_mut(k, k);
                (Some(v1), Some(rest.submatrix_mut(1, 1, m - k - 1, m - k - 1)))
            }
            None => (None, None),
        };
        let ends = self.ends;
        let below = Block { u: u2, v: v2, s: &mut s2[1..], order: &mut order2[1..], ends };
        (Block { u: u1, v: v1, s: s1, order: order1, ends }, below)
    }

    /// Puts column `k`, with `alpha` on the diagonal and `beta` below it, between two decomposed blocks.
    fn merge(&mut self, k: usize, alpha: f64, beta: f64) {
        let mut z = self.full_row(k, alpha, beta);
        let max = self.s.iter().fold(alpha.abs().max(beta.abs()), |max, s| max.max(*s));
        // The whole matrix has entries up to 1; the square is far below its rounding.
        let tolerance = (8.0 * T::EPSILON * max).max(T::EPSILON * T::EPSILON);
        let mut candidates: Vec<usize> = self.order[..k].to_vec();
        candidates.extend(self.order[k + 1..].iter().map(|&j| j + k + 1));
        candidates.sort_by(|&i, &j| self.s[i].total_cmp(&self.s[j]));
        let active = self.deflate(k, &candidates, &mut z, tolerance);

        let poles: Vec<f64> = active.iter().map(|a| a.pole).collect();
        let z: Vec<f64> = active.iter().map(|a| z[a.column]).collect();
        let roots = solve(&poles, &z, (T::EPSILON * 1e-4).max(16.0 * f64::EPSILON));
        self.vectors(k, &active, &roots);
        for (a, &value) in active.iter().zip(&roots.values) {
            self.s[a.column] = value;
        }
        self.order.iter_mut().enumerate().for_each(|(i, place)| *place = i);
        let s = &*self.s;
        self.order.sort_by(|&i, &j| s[i].total_cmp(&s[j]));
    }

    /// Column `k` in the bases of the blocks, as the row of an otherwise diagonal matrix; its own entry is
    /// composed of the null vectors of both blocks.
    fn full_row(&mut self, k: usize, alpha: f64, beta: f64) -> Vec<f64> {
        let m = self.s.len();
        let (last, first) = if self.ends { (1, 0) } else { (k, k + 1) };
        let mut z: Vec<f64> =
            (0..=m)
                .map(|j| {
                    if j <= k { alpha * self.u[(last, j)].widen() } else { beta * self.u[(first, j)].widen() }
                })
                .collect();
        if self.ends {
            // The last row of one block and the first row of the other are now inner rows.
            (0..=k).for_each(|j| self.u[(last, j)] = T::default());
            (k + 1..=m).for_each(|j| self.u[(first, j)] = T::default());
        }
        let (x, y) = (z[k], z[m]);
        let length = x.hypot(y);
        if length > 0.0 {
            rotate(self.u.rb_mut(), (k, m), (x / length, y / length));
        }
        z[k] = length;
        z.truncate(m);
        z
    }

    /// Deflates columns that are already decomposed to within `tolerance`; returns the rest, with increasing
    /// poles.
    fn deflate(&mut self, k: usize, candidates: &[usize], z: &mut [f64], tolerance: f64) -> Vec<Active> {
        let mut active = vec![Active { column: k, pole: 0.0, above: true, below: true }];
        for &j in candidates {
            if z[j].abs() <= tolerance {
                continue;
            }
            let pole = self.s[j];
            if pole <= tolerance {
                let length = z[k].hypot(z[j]);
                rotate(self.u.rb_mut(), (k, j), (z[k] / length, z[j] / length));
                (z[k], self.s[j]) = (length, 0.0);
                continue;
            }
            let mut next = Active { column: j, pole, above: j < k, below: j > k };
            if let Some(near) = active.pop_if(|a| a.column != k && pole - a.pole <= tolerance) {
                let i = near.column;
                let length = z[i].hypot(z[j]);
                let angle = (z[j] / length, z[i] / length);
                rotate(self.u.rb_mut(), (j, i), angle);
                if let Some(v) = &mut self.v {
                    rotate(v.rb_mut(), (j, i), angle);
                }
                z[j] = length;
                next.above |= near.above;
                next.below |= near.below;
            }
            active.push(next);
        }
        z[k] = z[k].max(tolerance);
        active
    }

    /// Multiplies the columns of both blocks by the vectors of the matrix with the full row.
    fn vectors(&mut self, k: usize, active: &[Active], roots: &Roots) {
        let m = self.s.len();
        let rows: [Range<usize>; 2] = if self.ends { [0..1, 1..2] } else { [0..k + 1, k + 1..m + 1] };
        for (rows, below) in rows.into_iter().zip([false, true]) {
            // A column without entries in these rows adds nothing to them.
            let terms: Vec<usize> = (0..active.len())
                .filter(|&i| if below { active[i].below } else { active[i].above })
                .collect();
            let mut weights = roots.left::<T>(&terms);
            transform(self.u.rb_mut().subrows_mut(rows.start, rows.len()), active, &terms, weights.as_ref());
            if let Some(v) = &mut self.v {
                let rows = if below { k + 1..m } else { 0..k };
                roots.turn_right(&terms, &mut weights);
                let v = v.rb_mut().subrows_mut(rows.start, rows.len());
                // Only the column's own index, which is in neither block, has an entry at its pole.
                transform(v, active, &terms[1..], weights.as_ref().subrows(1, terms.len() - 1));
            }
        }
        if let Some(v) = &mut self.v {
            for (a, &head) in active.iter().zip(&roots.right_heads()) {
                v[(k, a.column)] = T::of(head);
            }
        }
    }
}

/// A column that takes part in a merge.
struct Active {
    column: usize,
    pole: f64,
    /// Whether it has entries in the rows of the first block, and of the second.
    above: bool,
    below: bool,
}

/// Replaces the active columns of `a` by the products of the columns selected by `terms` with the columns
/// of `weights`.
fn transform<T: Scalar>(mut a: MatMut<'_, T>, active: &[Active], terms: &[usize], weights: MatRef<'_, T>) {
    if a.nrows() == 0 {
        return;
    }
    let mut gathered = Mat::zeros(a.nrows(), terms.len());
    for (j, &term) in terms.iter().enumerate() {
        gathered.as_mut().col_mut(j).copy_from(a.rb_mut().col_mut(active[term].column));
    }
    let out = product(gathered.as_ref(), weights);
    for (j, active) in active.iter().enumerate() {
        a.rb_mut().col_mut(active.column).copy_from(out.col(j));
    }
}

/// Turns columns `(x, y)` into `(c·x + s·y, c·y − s·x)`.
fn rotate<T: Scalar>(mut a: MatMut<'_, T>, (x, y): (usize, usize), (cosine, sine): (f64, f64)) {
    let (cosine, sine) = (T::of(cosine), T::of(sine));
    for i in 0..a.nrows() {
        let (p, q) = (a[(i, x)], a[(i, y)]);
        a[(i, x)] = cosine * p + sine * q;
        a[(i, y)] = cosine * q - sine * p;
    }
}
