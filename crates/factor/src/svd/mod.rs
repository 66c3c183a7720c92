//! Singular value decompositions: exact, randomized, adaptive, and a choice between them.

mod adaptive;
mod auto;
mod bidiagonal;
mod exact;
mod randomized;

use faer::reborrow::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

pub use self::adaptive::{AdaptiveOptions, adaptive};
pub use self::auto::{AutoSvd, SvdMethod, auto, sampled};
pub use self::exact::{exact, singular_values};
pub(crate) use self::exact::{left, right, thin};
pub use self::randomized::{RandomizedOptions, RandomizedSvd, randomized};
use crate::error::Result;
use crate::low_rank::{LowRank, SigmaPlacement};
use crate::matrix::{check_rank, product, ratio, scale_columns};
use crate::scalar::Scalar;
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

/// Thin singular value decomposition `A ≈ U·diag(s)·Vᵀ` of an `m × n` matrix with `k ≤ min(m, n)`
/// triplets.
///
/// *Order*: `s` is nonincreasing and at least zero. *Sign*: in every column of `U` the entry of largest
/// magnitude is positive (the first one among those equal to within `√ε`), which makes the vectors of
/// simple singular values repeatable between methods and machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd<T: Scalar> {
    /// Shape `m × k`, orthonormal columns.
    u: Mat<T>,
    /// Length `k`.
    s: Vec<T>,
    /// Shape `n × k`, orthonormal columns.
    v: Mat<T>,
    /// Relative squared norm outside the stored triplets: `‖A − U·diag(s)·Vᵀ‖² / ‖A‖²`.
    outside: f64,
}

impl<T: Scalar> Svd<T> {
    /// Fixes the signs; `outside` is the squared *relative* residual of all triplets.
    pub(crate) fn from_parts(mut u: Mat<T>, s: Vec<T>, mut v: Mat<T>, outside: f64) -> Self {
        fix_signs(u.as_mut(), v.as_mut());
        Self { u, s, v, outside: outside.max(0.0) }
    }

    /// Left singular vectors, shape `m × k`.
    pub fn u(&self) -> MatRef<'_, T> {
        self.u.as_ref()
    }

    /// Singular values, nonincreasing, length `k`.
    pub fn s(&self) -> &[T] {
        &self.s
    }

    /// Right singular vectors, shape `n × k`.
    pub fn v(&self) -> MatRef<'_, T> {
        self.v.as_ref()
    }

    /// `(U, s, V)`.
    pub fn into_parts(self) -> (Mat<T>, Vec<T>, Mat<T>) {
        (self.u, self.s, self.v)
    }

    /// Shape `(m, n)` of the decomposed matrix.
    pub fn shape(&self) -> (usize, usize) {
        (self.u.nrows(), self.v.nrows())
    }

    /// Number of triplets `k`.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// `U·diag(s)·Vᵀ`, shape `m × n`.
    pub fn reconstruct(&self) -> Mat<T> {
        let mut us = self.u.clone();
        scale_columns(us.as_mut(), &self.s);
        product(us.as_ref(), self.v.transpose())
    }

    /// Relative Frobenius error of the first `r` triplets, for `r = 0 ..= k` (length `k + 1`).
    pub fn error_curve(&self) -> Vec<f64> {
        let (squared, outside) = self.squared();
        let tails = tails(&squared, outside);
        tails.iter().map(|&tail| ratio(tail, tails[0])).collect()
    }

    /// The leading `rank` triplets.
    ///
    /// # Errors
    /// [`FactorError::RankOutOfRange`](crate::FactorError::RankOutOfRange).
    pub fn leading(&self, rank: usize) -> Result<Self> {
        check_rank(rank, self.rank())?;
        Ok(Self {
            u: self.u.subcols(0, rank).to_owned(),
            s: self.s[..rank].to_vec(),
            v: self.v.subcols(0, rank).to_owned(),
            outside: self.error_curve()[rank].powi(2),
        })
    }

    /// Best low-rank approximation `A ≈ L·R` among the stored triplets (Eckart–Young: optimal
    /// if the decomposition is exact).
    ///
    /// # Errors
    /// Those of the [`Truncation`];
    /// [`FactorError::TargetNotReached`](crate::FactorError::TargetNotReached) if a randomized
    /// decomposition holds too few triplets for the requested error.
    pub fn low_rank(
        &self,
        truncation: &Truncation,
        sigma: SigmaPlacement,
    ) -> Result<Approximation<LowRank<T>>> {
        let (m, n) = self.shape();
        let (squared, outside) = self.squared();
        let rank = truncation.resolve(&squared, outside, |r| r * (m + n))?;
        let tails = tails(&squared, outside);
        let (left, right) = sigma.split(&self.s[..rank]);
        let mut l = self.u.subcols(0, rank).to_owned();
        let mut r = self.v.subcols(0, rank).to_owned();
        scale_columns(l.as_mut(), &left);
        scale_columns(r.as_mut(), &right);
        let report = TruncationReport {
            rank,
            relative_error: ratio(tails[rank], tails[0]),
            parameters_before: m * n,
            parameters_after: rank * (m + n),
        };
        Ok(Approximation { factors: LowRank::from_parts(l, r.transpose().to_owned()), report })
    }

    /// The squared norm outside the stored triplets.
    pub(crate) fn outside_squared(&self) -> f64 {
        let top = self.s.first().map_or(0.0, |s| s.widen());
        self.squared().1 * top * top
    }

    /// Squared singular values divided by the largest, and the squared residual in the same unit.
    fn squared(&self) -> (Vec<f64>, f64) {
        let top = self.s.first().map_or(0.0, |s| s.widen());
        if top == 0.0 {
            return (vec![0.0; self.s.len()], 0.0);
        }
        let squared: Vec<f64> = self.s.iter().map(|s| (s.widen() / top).powi(2)).collect();
        let inside: f64 = squared.iter().sum();
        (squared, inside * self.outside / (1.0 - self.outside).max(f64::MIN_POSITIVE))
    }
}

/// Flips pairs of columns so that the largest entry of every column of `u` is positive.
fn fix_signs<T: Scalar>(mut u: MatMut<'_, T>, mut v: MatMut<'_, T>) {
    let slack = T::of(1.0 - T::EPSILON.sqrt());
    for j in 0..u.ncols() {
        let column = u.as_ref().col(j);
        let max = column.iter().map(|x| x.magnitude()).fold(T::default(), |a, b| if b > a { b } else { a });
        let leader = column.iter().find(|x| x.magnitude() >= max * slack);
        if leader.is_some_and(|&x| x < T::default()) {
            u.rb_mut().col_mut(j).iter_mut().for_each(|x| *x = -*x);
            v.rb_mut().col_mut(j).iter_mut().for_each(|x| *x = -*x);
        }
    }
}
