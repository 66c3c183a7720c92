//! Leading singular subspaces of the shorter side: sufficient for a truncation, and faster than an SVD.

use faer::{Mat, MatRef};

use crate::error::{FactorError, Result};
use crate::low_rank::LowRank;
use crate::matrix::{Balanced, check_shape, check_slice, product, ratio};
use crate::scalar::Scalar;
use crate::spectrum::check_spectrum;
use crate::svd::{self, Svd};
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

/// The side of the matrix on which a [`Subspace`] projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubspaceSide {
    /// `Â = U_k·U_kᵀ·A`, or `U_k·D_kᵀ·A` with a dual basis `D`.
    Left,
    /// `Â = A·V_k·V_kᵀ`, or `A·V_k·D_kᵀ` with a dual basis `D`.
    Right,
}

/// An orthonormal basis whose first `k` vectors span the best subspace of dimension `k`, for every `k` up to its
/// length; or, for norms weighted on that side, a basis with its dual, `DᵀU = I`.
#[derive(Debug, Clone, PartialEq)]
pub struct Subspace<T: Scalar> {
    side: SubspaceSide,
    /// Shape `m × l` (left) or `n × l` (right), orthonormal columns unless there is a dual basis.
    basis: Mat<T>,
    /// Same shape as `basis`.
    dual: Option<Mat<T>>,
    /// Squared (weighted) singular values, nonincreasing, at least `l` of them.
    squared: Vec<f64>,
}

impl<T: Scalar> Subspace<T> {
    /// Creates a subspace from a basis and its squared singular values: all `min(m, n)` of them, or at least
    /// as many as the basis has vectors.
    ///
    /// # Errors
    /// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::Negative`], [`FactorError::NotSorted`],
    /// [`FactorError::ShapeMismatch`] for fewer values than vectors.
    pub fn new(side: SubspaceSide, basis: Mat<T>, squared: Vec<f64>) -> Result<Self> {
        crate::matrix::check(basis.as_ref(), "basis")?;
        check_slice(&squared, "spectrum")?;
        check_spectrum(&squared)?;
        if squared.len() < basis.ncols() {
            let (expected, got) = (vec![basis.ncols()], vec![squared.len()]);
            return Err(FactorError::ShapeMismatch { what: "spectrum", expected, got });
        }
        Ok(Self { side, basis, dual: None, squared })
    }

    /// As [`Subspace::new`], for an oblique projection with a dual basis of the same shape.
    ///
    /// # Errors
    /// As [`Subspace::new`], and [`FactorError::ShapeMismatch`] for a dual basis of another shape.
    pub fn oblique(side: SubspaceSide, basis: Mat<T>, dual: Mat<T>, squared: Vec<f64>) -> Result<Self> {
        check_shape("dual basis", dual.as_ref(), basis.shape())?;
        crate::matrix::check(dual.as_ref(), "dual basis")?;
        Ok(Self { dual: Some(dual), ..Self::new(side, basis, squared)? })
    }

    /// The shorter side's subspace of a decomposition. What lies outside its triplets is added to the spectrum as equal
    /// values, so that the errors up to its rank are known; those beyond are not.
    ///
    /// # Errors
    /// [`FactorError::Overflow`] for squared values out of range.
    pub fn of_svd(svd: &Svd<T>) -> Result<Self> {
        let (m, n) = svd.shape();
        let mut squared: Vec<f64> = svd.s().iter().map(|s| s.widen() * s.widen()).collect();
        let last = squared.last().copied().unwrap_or_default();
        if !squared.first().is_some_and(|first| first.is_finite()) {
            return Err(FactorError::Overflow { what: "squared singular value" });
        }
        let [outside, unknown] = [svd.outside_squared(), (m.min(n) - squared.len()) as f64];
        // A randomized decomposition may end on a value a little below the mean of the rest.
        squared.resize(m.min(n), if unknown > 0.0 { (outside / unknown).min(last) } else { 0.0 });
        let (side, basis) =
            if m <= n { (SubspaceSide::Left, svd.u()) } else { (SubspaceSide::Right, svd.v()) };
        Self::new(side, basis.to_owned(), squared)
    }

    /// The dual basis of an oblique projection.
    pub fn dual(&self) -> Option<MatRef<'_, T>> {
        self.dual.as_ref().map(|dual| dual.as_ref())
    }

    /// The side it projects on.
    pub fn side(&self) -> SubspaceSide {
        self.side
    }

    /// The basis, shape `m × l` (left) or `n × l` (right).
    pub fn basis(&self) -> MatRef<'_, T> {
        self.basis.as_ref()
    }

    /// Squared singular values, nonincreasing: dropping number `i` adds `squared()[i]` to the squared error.
    pub fn squared(&self) -> &[f64] {
        &self.squared
    }

    /// The same with at most `len` basis vectors; the spectrum is not truncated.
    pub fn shortened(mut self, len: usize) -> Self {
        if len < self.basis.ncols() {
            self.basis = self.basis.subcols(0, len.max(1)).to_owned();
            self.dual = self.dual.map(|dual| dual.subcols(0, len.max(1)).to_owned());
        }
        self
    }

    /// The rank of a truncation for an `m × n` matrix, and its relative (weighted) error.
    ///
    /// # Errors
    /// Those of the [`Truncation`].
    pub fn resolve(&self, (m, n): (usize, usize), truncation: &Truncation) -> Result<(usize, f64)> {
        let rank = truncation.resolve(&self.squared, 0.0, |r| r * (m + n))?;
        let tails = tails(&self.squared, 0.0);
        Ok((rank, ratio(tails[rank], tails[0])))
    }

    /// The projection of `a`, the matrix from which the subspace was computed, as factors of equal norms.
    ///
    /// # Errors
    /// Those of the [`Truncation`], [`FactorError::RankOutOfRange`] past the basis, [`FactorError::ShapeMismatch`],
    /// [`FactorError::Overflow`].
    pub fn low_rank(&self, a: MatRef<'_, T>, truncation: &Truncation) -> Result<Approximation<LowRank<T>>> {
        let (m, n) = a.shape();
        let side = match self.side {
            SubspaceSide::Left => (self.basis.nrows(), n),
            SubspaceSide::Right => (m, self.basis.nrows()),
        };
        check_shape("matrix", a, side)?;
        let (rank, relative_error) = self.resolve((m, n), truncation)?;
        crate::matrix::check_rank(rank, self.basis.ncols())?;
        let basis = self.basis.subcols(0, rank);
        let dual = self.dual.as_ref().map_or(basis, |dual| dual.subcols(0, rank));
        let factors = match self.side {
            SubspaceSide::Left => LowRank::new(basis.to_owned(), product(dual.transpose(), a)),
            SubspaceSide::Right => LowRank::new(product(a, basis), dual.transpose().to_owned()),
        };
        let factors = factors.map_err(|_| FactorError::Overflow { what: "projected matrix" })?.balanced();
        let report = TruncationReport {
            rank,
            relative_error,
            parameters_before: m * n,
            parameters_after: rank * (m + n),
        };
        Ok(Approximation { factors, report })
    }
}

/// The leading singular subspace of the shorter side of a matrix.
///
/// # Algorithm
/// As in [`svd::exact`], without the vectors of the other side.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::Overflow`].
///
/// # Complexity
/// `O(m·n·k)` for `k = min(m, n)`, about two thirds of the time of [`svd::exact`].
///
/// ```
/// use lowrank_factor::{Mat, Truncation, subspace};
/// let a = Mat::from_fn(6, 4, |i, j| (i + 1) as f64 * (j + 1) as f64);
/// let fit = subspace::leading(a.as_ref())?.low_rank(a.as_ref(), &Truncation::Rank(1))?;
/// assert!(fit.factors.relative_error(a.as_ref())? < 1e-14);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn leading<T: Scalar>(a: MatRef<'_, T>) -> Result<Subspace<T>> {
    let balanced = Balanced::new(a, "matrix")?;
    let view = balanced.view();
    let (m, n) = view.shape();
    let (side, tall) =
        if m <= n { (SubspaceSide::Left, view.transpose()) } else { (SubspaceSide::Right, view) };
    let (s, basis) = svd::right(tall);
    let mut squared: Vec<f64> = s.iter().map(|s| s.widen() * s.widen()).collect();
    let scale = balanced.scale * balanced.scale;
    squared.iter_mut().for_each(|value| *value /= scale);
    if !squared[0].is_finite() {
        return Err(FactorError::Overflow { what: "squared singular value" });
    }
    Ok(Subspace { side, basis, dual: None, squared })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::truncation::break_even_rank;

    fn matrix(m: usize, n: usize, decay: f64) -> Mat<f32> {
        Mat::from_fn(m, n, |i, j| {
            let wave = |k: usize| ((i * (k + 3) + 1) as f64).sin() * ((j * (k + 2) + 2) as f64).cos();
            (0..m.min(n)).map(|k| (-decay * k as f64).exp() * wave(k)).sum::<f64>() as f32
        })
    }

    #[rstest]
    #[case(24, 24, 0.05)]
    #[case(40, 16, 0.05)]
    #[case(16, 40, 0.05)]
    // Values that fall by ten decades below the rounding of the first one's square.
    #[case(30, 30, 1.5)]
    #[case(1, 5, 0.0)]
    #[case(5, 1, 0.0)]
    fn the_projection_is_as_good_as_the_svd(#[case] m: usize, #[case] n: usize, #[case] decay: f64) {
        let a = matrix(m, n, decay);
        let fit = leading(a.as_ref()).unwrap();
        let exact = svd::exact(a.as_ref()).unwrap();
        let total: f64 = fit.squared().iter().sum();
        for rank in 1..=break_even_rank(m, n).max(1) {
            let low_rank = fit.low_rank(a.as_ref(), &Truncation::Rank(rank)).unwrap();
            let best = exact.error_curve()[rank];
            let error = low_rank.factors.relative_error(a.as_ref()).unwrap();
            // Rounding of the product itself, in addition to the optimal error.
            let slack = 2e-6;
            assert!(error <= best * 1.001 + slack, "rank {rank}: {error} against {best}");
            assert!((low_rank.report.relative_error - best).abs() <= 1e-3 * best + slack);
        }
        assert!((total.sqrt() / crate::matrix::frobenius_norm(a.as_ref()).unwrap() - 1.0).abs() < 1e-5);
    }

    #[rstest]
    #[case(60, 40)]
    #[case(40, 60)]
    fn some_triplets_give_the_errors_of_their_ranks(#[case] m: usize, #[case] n: usize) {
        let a = matrix(m, n, 0.05);
        let svd = svd::exact(a.as_ref()).unwrap();
        let (all, some) = (leading(a.as_ref()).unwrap(), Subspace::of_svd(&svd.leading(9).unwrap()).unwrap());
        assert_eq!((some.side(), some.basis().ncols(), some.squared().len()), (all.side(), 9, 40));
        for rank in 1..=9 {
            let [known, found] =
                [&all, &some].map(|of| of.low_rank(a.as_ref(), &Truncation::Rank(rank)).unwrap());
            let (known_error, error) = (known.report.relative_error, found.report.relative_error);
            assert!((error - known_error).abs() < 1e-5, "rank {rank}: {error} beside {known_error}");
            let measured = found.factors.relative_error(a.as_ref()).unwrap();
            assert!((measured - error).abs() < 1e-5, "rank {rank}: {measured}, said {error}");
        }
        let whole = Subspace::of_svd(&svd).unwrap();
        assert_eq!(whole.basis().ncols(), 40);
    }

    #[test]
    fn a_short_basis_knows_its_end() {
        let a = matrix(8, 8, 0.1);
        let fit = leading(a.as_ref()).unwrap().shortened(3);
        assert_eq!((fit.basis().ncols(), fit.squared().len()), (3, 8));
        assert!(fit.low_rank(a.as_ref(), &Truncation::Rank(3)).is_ok());
        let error = fit.low_rank(a.as_ref(), &Truncation::Rank(4)).unwrap_err();
        assert_eq!(error, FactorError::RankOutOfRange { rank: 4, max: 3 });
        assert!(Subspace::new(SubspaceSide::Left, Mat::<f32>::identity(3, 2), vec![1.0]).is_err());
    }

    #[test]
    fn extreme_magnitudes_keep_their_spectrum() {
        let a = Mat::from_fn(3, 3, |i, j| if i == j { 1e-25_f32 } else { 0.0 });
        let squared = leading(a.as_ref()).unwrap().squared().to_vec();
        assert!(squared.iter().all(|s| (s / 1e-50 - 1.0).abs() < 1e-5), "{squared:?}");
    }
}
