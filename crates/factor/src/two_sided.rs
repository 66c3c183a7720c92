//! Low-rank approximation weighted on both sides: by the inputs of a linear map and by the gradients of its outputs.
//!
//! For a weight `W` `[m, n]` whose columns face the inputs, `A = E[x·xᵀ]` `[n, n]` over inputs and `B =
//! E[g·gᵀ]` `[m, m]` over gradients of a loss with respect to outputs, [`TwoSided`] minimizes `‖B^½·(W −
//! Ŵ)·A^½‖²_F`, the second-order change of the loss where the curvature of the layer is `A ⊗ B` (Martens,
//! Grosse 2015).
//!
//! # Algorithm
//! With any roots `B = F·Fᵀ`, `A = G·Gᵀ` and `Fᵀ·W·G = U·S·Vᵀ`, the best rank-k solution is `Ŵ =
//! F⁻ᵀ·U_k·U_kᵀ·Fᵀ·W = W·G·V_k·V_kᵀ·G⁻¹`: only the root of the shorter side is needed, as a Cholesky factor,
//! with the eigenvectors of `Fᵀ·(W·A·Wᵀ)·F` or `Gᵀ·(Wᵀ·B·W)·G`. The squared loss is the sum of the dropped
//! eigenvalues. All in `f64`.
//!
//! Both matrices are shrunk towards multiples of the identity, `A_λ = (1 − λ)·A + λ·tr(A)/n·I`, since they
//! are estimated from few samples and the root must exist (Ledoit, Wolf 2004); [`TwoSided::loss`] on held-out
//! samples serves to choose `λ`.

use faer::{Mat, MatRef, Par};

use crate::dense::{Dense, symmetric_eigen};
use crate::error::{FactorError, Result};
use crate::matrix::{check, check_rank, check_shape, product};
use crate::scalar::Scalar;
use crate::subspace::{Subspace, SubspaceSide};

/// The problem of one weight, reduced to its shorter side `s = min(m, n)`.
///
/// ```
/// use lowrank_factor::{Mat, Truncation, two_sided::TwoSided};
/// let w = Mat::from_fn(3, 4, |i, j| ((i + 1) * (j + 2)) as f64 + f64::from(u8::from(i == j)));
/// let (inputs, outputs) = (Mat::identity(4, 4), Mat::identity(3, 3));
/// // Without weights it is the truncated SVD.
/// let best = TwoSided::new(w.as_ref(), inputs.as_ref(), outputs.as_ref())?.solve(0.01)?;
/// let fit = best.subspace::<f64>()?.low_rank(w.as_ref(), &Truncation::Rank(1))?;
/// let svd = lowrank_factor::svd::exact(w.as_ref())?;
/// assert!((fit.factors.relative_error(w.as_ref())? - svd.error_curve()[1]).abs() < 1e-12);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TwoSided {
    side: SubspaceSide,
    /// Weighting of the shorter side, `B` or `A`, shape `[s, s]`.
    own: Mat<f64>,
    /// The weight with the other side's weighting, `W·A·Wᵀ` or `Wᵀ·B·W`, shape `[s, s]`.
    other: Mat<f64>,
    /// The same, weighted by the identity: `W·Wᵀ` or `Wᵀ·W`.
    plain: Mat<f64>,
    /// Mean of the diagonals of both weightings.
    own_mean: f64,
    other_mean: f64,
}

/// The solutions of every rank.
#[derive(Debug, Clone)]
pub struct TwoSidedFactors {
    side: SubspaceSide,
    /// `F⁻ᵀ·U`, shape `[s, s]`.
    inverse: Mat<f64>,
    /// `F·U`, shape `[s, s]`.
    forward: Mat<f64>,
    /// Nonincreasing, length `s`.
    squared: Vec<f64>,
}

impl TwoSided {
    /// Reduces the problem.
    ///
    /// # Shapes
    /// `a` `[m, n]`, `inputs` `[n, n]`, `outputs` `[m, m]`, both symmetric; only their lower triangles are
    /// read.
    ///
    /// # Errors
    /// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`].
    ///
    /// # Complexity
    /// `O(m·n·(m + n))`.
    pub fn new<T: Scalar>(
        a: MatRef<'_, T>,
        inputs: MatRef<'_, f64>,
        outputs: MatRef<'_, f64>,
    ) -> Result<Self> {
        let (m, n) = a.shape();
        check(a, "matrix")?;
        check_shape("Gram matrix of the inputs", inputs, (n, n))?;
        check_shape("Gram matrix of the output gradients", outputs, (m, m))?;
        check(inputs, "Gram matrix of the inputs")?;
        check(outputs, "Gram matrix of the output gradients")?;
        let wide = Mat::from_fn(m, n, |i, j| a[(i, j)].widen());
        let (side, w, own, other) = if m <= n {
            (SubspaceSide::Left, wide.as_ref(), outputs, inputs)
        } else {
            (SubspaceSide::Right, wide.transpose(), inputs, outputs)
        };
        let (own, weighting) = (mirrored(own), mirrored(other));
        let through = product(w, weighting.as_ref());
        Ok(Self {
            side,
            other: product(through.as_ref(), w.transpose()),
            plain: product(w, w.transpose()),
            own_mean: mean_diagonal(own.as_ref()),
            other_mean: mean_diagonal(weighting.as_ref()),
            own,
        })
    }

    /// The sum of this problem and another one of the same weight, whose samples count for `share` of the
    /// total.
    pub fn pooled(&self, with: &Self, share: f64) -> Self {
        let mix = |x: &Mat<f64>, y: &Mat<f64>| {
            Mat::from_fn(x.nrows(), x.ncols(), |i, j| (1.0 - share) * x[(i, j)] + share * y[(i, j)])
        };
        Self {
            side: self.side,
            own: mix(&self.own, &with.own),
            other: mix(&self.other, &with.other),
            plain: self.plain.clone(),
            own_mean: (1.0 - share) * self.own_mean + share * with.own_mean,
            other_mean: (1.0 - share) * self.other_mean + share * with.other_mean,
        }
    }

    /// The best solutions of every rank under a shrinkage `λ` in `(0, 1]`.
    ///
    /// # Errors
    /// [`FactorError::InvalidOption`] for a shrinkage out of range, [`FactorError::NoConvergence`].
    pub fn solve(&self, shrinkage: f64) -> Result<TwoSidedFactors> {
        if !(shrinkage > 0.0 && shrinkage <= 1.0) {
            let rule = "more than 0 and at most 1";
            return Err(FactorError::InvalidOption { option: "shrinkage", rule, value: shrinkage });
        }
        let s = self.own.nrows();
        // A side without samples has equal weight in all directions.
        let mean = |mean: f64| if mean > 0.0 { mean } else { 1.0 };
        let (own_mean, other_mean) = (mean(self.own_mean), mean(self.other_mean));
        let mut root = Mat::from_fn(s, s, |i, j| {
            let identity = if i == j { shrinkage * own_mean } else { 0.0 };
            if i >= j { (1.0 - shrinkage) * self.own[(i, j)] + identity } else { 0.0 }
        });
        f64::cholesky(root.as_mut(), Par::Seq)
            .ok_or(FactorError::NoConvergence { algorithm: "Cholesky factorization of a Gram matrix" })?;
        zero_upper(&mut root);
        let other = Mat::from_fn(s, s, |i, j| {
            (1.0 - shrinkage) * self.other[(i, j)] + shrinkage * other_mean * self.plain[(i, j)]
        });
        let through = product(root.transpose(), other.as_ref());
        let weighted = product(through.as_ref(), root.as_ref());
        // One thread on every machine, so that the result is always the same.
        let (values, vectors) = if s == 1 {
            (vec![weighted[(0, 0)]], Mat::identity(1, 1))
        } else {
            symmetric_eigen(weighted.as_ref(), Par::Seq)
                .ok_or(FactorError::NoConvergence { algorithm: "symmetric eigenvalue decomposition" })?
        };
        let vectors = vectors.as_ref().reverse_cols().to_owned();
        let squared = values.into_iter().rev().map(|value| value.max(0.0)).collect();
        let forward = product(root.as_ref(), vectors.as_ref());
        let mut inverse = vectors;
        // Fᵀ is upper triangular; with rows and columns reversed it is lower triangular.
        f64::solve_lower(
            root.transpose().reverse_rows_and_cols(),
            inverse.as_mut().reverse_rows_mut(),
            Par::Seq,
        );
        Ok(TwoSidedFactors { side: self.side, inverse, forward, squared })
    }

    /// The loss of a solution at a rank under these weightings, which may differ from those it was computed
    /// with.
    ///
    /// # Errors
    /// [`FactorError::RankOutOfRange`].
    pub fn loss(&self, factors: &TwoSidedFactors, rank: usize) -> Result<f64> {
        let s = self.own.nrows();
        check_rank(rank, factors.squared.len())?;
        let (inverse, forward) = (factors.inverse.subcols(0, rank), factors.forward.subcols(0, rank));
        // P·O·Pᵀ for P = I − inverse·forwardᵀ.
        let project = |x: MatRef<'_, f64>| {
            let kept = product(inverse, product(forward.transpose(), x).as_ref());
            Mat::from_fn(s, s, |i, j| x[(i, j)] - kept[(i, j)])
        };
        let once = project(self.other.as_ref());
        let missed = project(once.transpose());
        let column = |j: usize| (0..s).map(|i| self.own[(i, j)] * missed[(i, j)]).sum::<f64>();
        Ok((0..s).map(column).sum::<f64>().max(0.0))
    }
}

impl TwoSidedFactors {
    /// Squared weighted singular values, nonincreasing: dropping number `i` adds `squared()[i]` to the loss.
    pub fn squared(&self) -> &[f64] {
        &self.squared
    }

    /// The projections that give the factors of every rank.
    ///
    /// # Errors
    /// [`FactorError::NonFinite`] if they do not fit the element type.
    pub fn subspace<T: Scalar>(self) -> Result<Subspace<T>> {
        let narrow = |x: Mat<f64>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| T::of(x[(i, j)]));
        let (inverse, forward) = (narrow(self.inverse), narrow(self.forward));
        let (basis, dual) = match self.side {
            SubspaceSide::Left => (inverse, forward),
            SubspaceSide::Right => (forward, inverse),
        };
        Subspace::oblique(self.side, basis, dual, self.squared)
    }
}

fn mean_diagonal(a: MatRef<'_, f64>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, i)]).sum::<f64>() / a.nrows() as f64
}

/// The symmetric matrix given by a lower triangle.
fn mirrored(a: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i.max(j), i.min(j))])
}

fn zero_upper(a: &mut Mat<f64>) {
    for j in 1..a.ncols() {
        a.as_mut().col_mut(j).subrows_mut(0, j).fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truncation::Truncation;
    use rstest::rstest;

    fn wave(m: usize, n: usize, seed: f64) -> Mat<f64> {
        Mat::from_fn(m, n, |i, j| ((i * 7 + 3) as f64 * (j as f64 + seed)).sin())
    }

    fn gram(n: usize, seed: f64) -> Mat<f64> {
        let x = wave(3 * n, n, seed);
        x.transpose() * &x
    }

    fn weighted(outputs: &Mat<f64>, error: &Mat<f64>, inputs: &Mat<f64>) -> f64 {
        let product = outputs * error * inputs;
        (0..error.ncols())
            .map(|j| (0..error.nrows()).map(|i| error[(i, j)] * product[(i, j)]).sum::<f64>())
            .sum()
    }

    #[rstest]
    #[case(5, 8)]
    #[case(8, 5)]
    #[case(6, 6)]
    #[case(1, 4)]
    #[case(4, 1)]
    fn the_loss_is_the_sum_of_what_is_dropped_and_no_other_subspace_is_better(
        #[case] m: usize,
        #[case] n: usize,
    ) {
        let (w, inputs, outputs) = (wave(m, n, 0.3), gram(n, 0.7), gram(m, 0.1));
        let shrunk = |gram: &Mat<f64>| {
            let mean = mean_diagonal(gram.as_ref());
            Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| {
                0.9 * gram[(i, j)] + if i == j { 0.1 * mean } else { 0.0 }
            })
        };
        let problem = TwoSided::new(w.as_ref(), inputs.as_ref(), outputs.as_ref()).unwrap();
        let best = problem.solve(0.1).unwrap();
        let plain = crate::svd::exact(w.as_ref()).unwrap();
        for rank in 1..=m.min(n) {
            let tail: f64 = best.squared()[rank..].iter().sum();
            let subspace = best.clone().subspace::<f64>().unwrap();
            let fit = subspace.low_rank(w.as_ref(), &Truncation::Rank(rank)).unwrap();
            let error = &w - fit.factors.reconstruct();
            let loss = weighted(&shrunk(&outputs), &error, &shrunk(&inputs));
            let total: f64 = best.squared().iter().sum();
            assert!((loss - tail).abs() < 1e-9 * total, "rank {rank}: {loss} beside {tail}");
            let svd = plain.low_rank(&Truncation::Rank(rank), Default::default()).unwrap();
            let error = &w - svd.factors.reconstruct();
            let of_svd = weighted(&shrunk(&outputs), &error, &shrunk(&inputs));
            assert!(tail <= of_svd + 1e-9 * total, "rank {rank}: {tail} beside the SVD's {of_svd}");
            // Without shrinkage, under the weightings themselves.
            let error = &w - fit.factors.reconstruct();
            let own = problem.loss(&best, rank).unwrap();
            let expected = weighted(&outputs, &error, &inputs);
            assert!((own - expected).abs() < 1e-8 * (1.0 + expected), "{own} beside {expected}");
        }
    }

    #[test]
    fn few_samples_want_more_shrinkage_than_many() {
        let (m, n) = (12, 16);
        let w = wave(m, n, 0.3);
        // Samples of a smooth covariance, by a fixed sequence.
        let mut state = 9u64;
        let mut samples = |rows: usize, width: usize| {
            let mut x = Mat::zeros(rows, width);
            for i in 0..rows {
                for j in 0..width {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let uniform = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
                    x[(i, j)] = uniform * (-0.2 * j as f64).exp();
                }
            }
            x.transpose() * &x * (1.0 / rows as f64)
        };
        let mut problem =
            |rows| TwoSided::new(w.as_ref(), samples(rows, n).as_ref(), samples(rows, m).as_ref()).unwrap();
        let (few, many, held_out) = (problem(8), problem(4000), problem(4000));
        let loss =
            |problem: &TwoSided, shrinkage| held_out.loss(&problem.solve(shrinkage).unwrap(), 6).unwrap();
        assert!(loss(&few, 0.1) < loss(&few, 1e-4), "few samples");
        assert!(loss(&many, 1e-4) < loss(&many, 0.5), "many samples");
        assert!(loss(&many, 1e-4) < loss(&few, 0.1));
    }

    #[test]
    fn bad_input_is_refused() {
        let w = wave(3, 4, 0.3);
        let (inputs, outputs) = (gram(4, 0.2), gram(3, 0.4));
        assert!(TwoSided::new(w.as_ref(), outputs.as_ref(), inputs.as_ref()).is_err());
        let problem = TwoSided::new(w.as_ref(), inputs.as_ref(), outputs.as_ref()).unwrap();
        for shrinkage in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(problem.solve(shrinkage).is_err());
        }
        // Without samples all directions have equal weight.
        let zero = TwoSided::new(w.as_ref(), Mat::zeros(4, 4).as_ref(), Mat::zeros(3, 3).as_ref()).unwrap();
        assert!(zero.solve(0.1).unwrap().squared()[0] > 0.0);
    }
}
