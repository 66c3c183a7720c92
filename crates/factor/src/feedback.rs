//! Error feedback: the rounding errors of some columns of a weight are compensated in the columns not rounded
//! yet.
//!
//! For a weight `W` `[d_output, d_input]` whose inputs have the Gram matrix `H`, the loss of an approximation
//! `Q` is `tr((W − Q)·H·(W − Q)ᵀ)`. With `H = R·Rᵀ`, `R` upper triangular, it is the sum over blocks of
//! columns of `‖(W' − Q)·R_bb‖²`, where `W'` are the columns of `W` after the feedback of all previous
//! blocks: the remaining columns are changed by `−(W' − Q)·R_bb·U_b,rest` with `U = R⁻¹`. This is Optimal
//! Brain Surgeon (Hassibi & Stork 1993) in the order and the triangular form of GPTQ (Frantar et al. 2023),
//! one block of columns at a time.

use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, MatRef, Side};

use crate::error::{FactorError, Result};
use crate::matrix::{check, parallelism};

/// The triangular factors of a Gram matrix.
///
/// ```
/// use lowrank_factor::{Feedback, Mat};
/// let gram = Mat::from_fn(2, 2, |i, j| if i == j { 2.0 } else { 1.0 });
/// let feedback = Feedback::new(gram.as_ref(), 0.0)?;
/// // The first column is rounded from 0.4 to 0: the second compensates half of the loss.
/// let mut rest = Mat::from_fn(1, 2, |_, _| 0.4f32);
/// let error = Mat::from_fn(1, 1, |_, _| 0.4f32);
/// feedback.spread(&mut rest, error.as_ref(), 0);
/// assert!((rest[(0, 1)] - 0.6).abs() < 1e-6);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Feedback {
    /// `R`, upper triangular.
    root: Mat<f32>,
    /// `R⁻¹`.
    inverse: Mat<f32>,
}

impl Feedback {
    /// Factors a Gram matrix `[n, n]` after adding `damping` times its mean to its diagonal; a channel that
    /// was never active needs some damping.
    ///
    /// # Errors
    /// [`FactorError::NonFinite`] and [`FactorError::Empty`]; [`FactorError::InvalidOption`] for a matrix
    /// that is not positive definite at this damping.
    pub fn new(gram: MatRef<'_, f64>, damping: f64) -> Result<Self> {
        check(gram, "Gram matrix")?;
        let n = gram.nrows();
        let mean = (0..n).map(|i| gram[(i, i)]).sum::<f64>() / n as f64;
        let singular = || FactorError::InvalidOption {
            option: "damping",
            rule: "larger: the matrix is singular",
            value: damping,
        };
        // In reverse order, a lower factor is an upper one, and so is its inverse.
        let reversed = Mat::from_fn(n, n, |i, j| {
            let [i, j] = [n - 1 - i, n - 1 - j];
            gram[(i, j)] + if i == j { damping * mean } else { 0.0 }
        });
        let lower = reversed.llt(Side::Lower).map_err(|_| singular())?;
        drop(reversed);
        let mut inverse = Mat::<f64>::identity(n, n);
        solve_lower_triangular_in_place(lower.L(), inverse.as_mut(), parallelism(n * n * n / 3));
        let upper = |lower: MatRef<'_, f64>| {
            Mat::from_fn(n, n, |i, j| if i <= j { lower[(n - 1 - i, n - 1 - j)] as f32 } else { 0.0 })
        };
        Ok(Self { root: upper(lower.L()), inverse: upper(inverse.as_ref()) })
    }

    /// The weight of an error in each of the columns `first..first + len` if the columns after them
    /// compensate it: the diagonal of `R_bb·R_bbᵀ`.
    pub fn weights(&self, first: usize, len: usize) -> Vec<f32> {
        let row = |i: usize| (i..first + len).map(|j| self.root[(i, j)].powi(2)).sum();
        (first..first + len).map(row).collect()
    }

    /// The factors of the feedback inside the columns `first..first + len`: an error `e` in column `first + i` changes
    /// column `first + j` after it by `−e` times entry `(i, j)`; the other entries are zero.
    pub fn within(&self, first: usize, len: usize) -> Mat<f32> {
        let entry = |i: usize, j: usize| self.root[(i, i)] * self.inverse[(i, j)];
        Mat::from_fn(len, len, |i, j| if i < j { entry(first + i, first + j) } else { 0.0 })
    }

    /// The loss of each row of an `error` `[rows, len]` in the columns from `first` on if the columns after them
    /// compensate it.
    pub fn losses(&self, error: MatRef<'_, f32>, first: usize) -> Vec<f64> {
        let scaled = error * self.root.submatrix(first, first, error.ncols(), error.ncols());
        let row = |i: usize| (0..scaled.ncols()).map(|j| f64::from(scaled[(i, j)]).powi(2)).sum();
        (0..scaled.nrows()).map(row).collect()
    }

    /// Changes the columns after `first + len` of `rest` `[rows, n]` by the feedback of an `error` `[rows,
    /// len]` in the columns from `first` on.
    pub fn spread(&self, rest: &mut Mat<f32>, error: MatRef<'_, f32>, first: usize) {
        let (n, len) = (self.root.nrows(), error.ncols());
        let after = first + len;
        if after < n {
            let scaled = error * self.root.submatrix(first, first, len, len);
            let change = &scaled * self.inverse.submatrix(first, after, len, n - after);
            let mut rest = rest.subcols_mut(after, n - after);
            rest -= &change;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut state = seed;
        Mat::from_fn(rows, columns, |_, _| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
        })
    }

    fn loss(error: &Mat<f64>, gram: &Mat<f64>) -> f64 {
        let product = error * gram;
        (0..error.nrows())
            .map(|i| (0..error.ncols()).map(|j| product[(i, j)] * error[(i, j)]).sum::<f64>())
            .sum()
    }

    /// The losses of the blocks sum to that of the whole, which is smaller than that of rounding without
    /// feedback.
    #[test]
    fn losses_of_blocks_are_the_loss_of_the_whole() {
        let (n, rows, len) = (24, 10, 4);
        let inputs = random(60, n, 3);
        // Strongly correlated channels.
        let inputs = Mat::from_fn(60, n, |i, j| inputs[(i, j)] + inputs[(i, j / 6)]);
        let gram = inputs.transpose() * &inputs;
        let weight = random(rows, n, 5);
        let feedback = Feedback::new(gram.as_ref(), 0.0).unwrap();
        let round = |x: f32| (x * 4.0).round() / 4.0;
        let mut rest = Mat::from_fn(rows, n, |i, j| weight[(i, j)] as f32);
        let mut rounded = Mat::<f64>::zeros(rows, n);
        let mut sum = 0.0;
        for first in (0..n).step_by(len) {
            let error = Mat::from_fn(rows, len, |i, j| rest[(i, first + j)] - round(rest[(i, first + j)]));
            for (i, j) in (0..rows).flat_map(|i| (0..len).map(move |j| (i, j))) {
                rounded[(i, first + j)] = f64::from(round(rest[(i, first + j)]));
            }
            let scaled = &error * feedback.root.submatrix(first, first, len, len);
            sum += scaled.col_iter().flat_map(|c| c.iter()).map(|&x| f64::from(x).powi(2)).sum::<f64>();
            feedback.spread(&mut rest, error.as_ref(), first);
        }
        let whole = loss(&(&weight - &rounded), &gram);
        assert!((sum - whole).abs() < 1e-3 * whole, "{sum}, {whole}");
        let plain = Mat::from_fn(rows, n, |i, j| weight[(i, j)] - f64::from(round(weight[(i, j)] as f32)));
        assert!(whole < 0.8 * loss(&plain, &gram), "{whole}, {}", loss(&plain, &gram));
    }

    /// Rounding column by column, the factors inside a block give the loss of the whole as `spread` does.
    #[test]
    fn feedback_inside_a_block_is_that_of_its_columns() {
        let n = 12;
        let inputs = random(40, n, 8);
        let gram = inputs.transpose() * &inputs;
        let feedback = Feedback::new(gram.as_ref(), 0.0).unwrap();
        let weight = random(1, n, 9);
        let mut by_spread = Mat::from_fn(1, n, |_, j| weight[(0, j)] as f32);
        let mut inside: Vec<f32> = (0..n).map(|j| weight[(0, j)] as f32).collect();
        let factors = feedback.within(0, n);
        let mut error = Mat::<f32>::zeros(1, n);
        for j in 0..n {
            let e = inside[j] - (inside[j] * 4.0).round() / 4.0;
            let column = Mat::from_fn(1, 1, |_, _| e);
            feedback.spread(&mut by_spread, column.as_ref(), j);
            (j + 1..n).for_each(|k| inside[k] -= e * factors[(j, k)]);
            if j + 1 < n {
                assert!((inside[j + 1] - by_spread[(0, j + 1)]).abs() < 1e-4);
            }
            error[(0, j)] = weight[(0, j)] as f32 - (inside[j] - e);
        }
        let wide = Mat::from_fn(1, n, |_, j| f64::from(error[(0, j)]));
        let (found, expected) = (feedback.losses(error.as_ref(), 0)[0], loss(&wide, &gram));
        assert!((found - expected).abs() < 1e-4 * expected, "{found}, {expected}");
    }

    #[test]
    fn weights_are_those_of_the_last_columns() {
        let gram = Mat::from_fn(3, 3, |i, j| if i == j { 2.0 } else { 1.0 });
        let feedback = Feedback::new(gram.as_ref(), 0.0).unwrap();
        // The last column has its weight in the matrix; with two columns after it, its Schur complement, 4/3.
        assert!((feedback.weights(2, 1)[0] - 2.0).abs() < 1e-6);
        assert!((feedback.weights(0, 1)[0] - 4.0 / 3.0).abs() < 1e-6);
        assert!((feedback.weights(0, 3)[0] - 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_channel_without_inputs_needs_damping() {
        let gram = Mat::from_fn(2, 2, |i, j| f64::from(u8::from(i == 0 && j == 0)));
        assert!(Feedback::new(gram.as_ref(), 0.0).is_err());
        assert!(Feedback::new(gram.as_ref(), 0.01).is_ok());
        assert!(Feedback::new(Mat::from_fn(1, 1, |_, _| f64::NAN).as_ref(), 0.1).is_err());
    }
}
