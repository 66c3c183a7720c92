//! A choice between the exact and the randomized decompositions by shape and truncation.

use faer::MatRef;

use super::{AdaptiveOptions, RandomizedOptions, Svd, adaptive, exact, randomized};
use crate::error::{FactorError, Result};
use crate::products::{HostMatrix, MatrixProducts};
use crate::scalar::Scalar;
use crate::truncation::Truncation;

/// Which method produced a decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SvdMethod {
    /// [`svd::exact`](super::exact).
    Exact,
    /// [`svd::randomized`](super::randomized).
    Randomized,
    /// [`svd::adaptive`](super::adaptive).
    Adaptive,
}

/// A decomposition and the method that computed it.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoSvd<T: Scalar> {
    /// Enough triplets for the truncation.
    pub svd: Svd<T>,
    /// The method of the result.
    pub method: SvdMethod,
}

/// Below this smaller side an exact decomposition takes milliseconds, and there is nothing to gain.
const SMALL_SIDE: usize = 128;
/// Largest fraction of the smaller side at which sampling beats the exact decomposition.
const RANDOMIZED_SHARE: f64 = 0.35;
/// The adaptive method needs more work per triplet: it is abandoned at this fraction of the smaller side.
const ADAPTIVE_SHARE: f64 = 0.15;

/// Enough triplets for a truncation, by the method that suits the shape.
///
/// *Rank or parameters*: randomized where `rank + 10` is at most 0.35 of the smaller side and that side at
/// least 128, else exact. *Error or energy*: adaptive up to 0.15 of the smaller side, then exact. A
/// randomized result that is not settled ([`RandomizedSvd::is_settled`](super::RandomizedSvd::is_settled))
/// is discarded for the exact one.
///
/// # Errors
/// Those of the [`Truncation`] and of [`svd::exact`](super::exact).
///
/// ```
/// use lowrank_factor::{Mat, SigmaPlacement, Truncation, svd};
/// let a = Mat::from_fn(40, 30, |i, j| (i as f64 - j as f64).cos());
/// let truncation = Truncation::Energy(0.999);
/// let fit = svd::auto(a.as_ref(), &truncation, 0)?.svd.low_rank(&truncation, SigmaPlacement::Left)?;
/// assert_eq!(fit.report.rank, 2); // cos(i − j) = cos i·cos j + sin i·sin j
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn auto<T: Scalar>(a: MatRef<'_, T>, truncation: &Truncation, seed: u64) -> Result<AutoSvd<T>> {
    match sampled(a.shape(), truncation, seed, || HostMatrix::new(a))? {
        Some(found) => Ok(found),
        None => Ok(AutoSvd { svd: exact(a)?, method: SvdMethod::Exact }),
    }
}

/// The randomized decomposition that [`auto`] would choose for a matrix of this shape; `None` where the exact one is the
/// better choice. `held` returns the matrix, wherever its products are computed, and is called only if it is sampled.
///
/// # Errors
/// Those of the [`Truncation`], of `held` and of the products.
///
/// ```
/// use lowrank_factor::{HostMatrix, Mat, Truncation, svd};
/// let a = Mat::from_fn(200, 150, |i, j| 1.0 / (i + j + 1) as f32);
/// let rank = |rank| svd::sampled(a.shape(), &Truncation::Rank(rank), 0, || HostMatrix::new(a.as_ref()));
/// assert_eq!(rank(8)?.map(|found| found.svd.rank()), Some(8));
/// assert!(rank(100)?.is_none());
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn sampled<A: MatrixProducts>(
    (m, n): (usize, usize),
    truncation: &Truncation,
    seed: u64,
    held: impl FnOnce() -> Result<A>,
) -> Result<Option<AutoSvd<A::Scalar>>> {
    truncation.validate()?;
    let side = m.min(n);
    match *truncation {
        _ if side < SMALL_SIDE => Ok(None),
        Truncation::Rank(rank) => by_rank(held, side, rank, seed),
        Truncation::Parameters(budget) => by_rank(held, side, (budget / (m + n)).min(side), seed),
        Truncation::RelativeError(_) | Truncation::Energy(_) => by_error(&held()?, side, truncation, seed),
    }
}

fn by_rank<A: MatrixProducts>(
    held: impl FnOnce() -> Result<A>,
    side: usize,
    rank: usize,
    seed: u64,
) -> Result<Option<AutoSvd<A::Scalar>>> {
    let options = RandomizedOptions { seed, ..Default::default() };
    if rank == 0 || (rank + options.oversampling) as f64 > RANDOMIZED_SHARE * side as f64 {
        return Ok(None);
    }
    let fit = randomized(&held()?, rank, &options)?;
    let settled = fit.is_settled();
    Ok(settled.then(|| AutoSvd { svd: fit.into_svd(), method: SvdMethod::Randomized }))
}

fn by_error<A: MatrixProducts>(
    held: &A,
    side: usize,
    truncation: &Truncation,
    seed: u64,
) -> Result<Option<AutoSvd<A::Scalar>>> {
    let max_rank = ((ADAPTIVE_SHARE * side as f64) as usize).max(1);
    let options = AdaptiveOptions { seed, max_rank: Some(max_rank), ..Default::default() };
    match adaptive(held, truncation, &options) {
        Ok(svd) => Ok(Some(AutoSvd { svd, method: SvdMethod::Adaptive })),
        Err(FactorError::TargetNotReached { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
