//! Randomized SVD with QR-normalized power iterations.

use faer::{Mat, MatRef};

use super::{Svd, thin};
use crate::error::{FactorError, Result};
use crate::matrix::{check_rank, norm_squared, product, unscale};
use crate::products::MatrixProducts;
use crate::qr;
use crate::random::NormalSource;
use crate::scalar::Scalar;

/// Options of [`randomized`].
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `oversampling` | 10 | extra columns of the test matrix | ≥ 0 |
/// | `power_iterations` | 4 | products with `A·Aᵀ` that sharpen the subspace | ≥ 0 |
/// | `seed` | 0 | seed of the test matrix | any |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomizedOptions {
    /// Columns of the test matrix beyond the rank.
    pub oversampling: usize,
    /// Number of power iterations.
    pub power_iterations: usize,
    /// Seed of the test matrix; equal seeds give equal results.
    pub seed: u64,
}

impl Default for RandomizedOptions {
    fn default() -> Self {
        Self { oversampling: 10, power_iterations: 4, seed: 0 }
    }
}

/// A randomized decomposition with estimates of its quality.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomizedSvd<T: Scalar> {
    svd: Svd<T>,
    residual: f64,
    last_gain: f64,
}

/// Largest relative gain in the squared residual from the last half-step at which the subspace counts
/// as settled.
const SETTLED: f64 = 0.01;

/// Multiple of ε below which a squared relative residual is not computed as a difference of norms:
/// rounding changes these by a few ε, and so by at most some thousandths of the residual.
const RESOLUTION: f64 = 1000.0;

impl<T: Scalar> RandomizedSvd<T> {
    /// The decomposition, with the requested number of triplets.
    pub fn svd(&self) -> &Svd<T> {
        &self.svd
    }

    /// The decomposition alone, by value.
    pub fn into_svd(self) -> Svd<T> {
        self.svd
    }

    /// `‖A − U·diag(s)·Vᵀ‖_F / ‖A‖_F`. It is computed as `‖A − APPᵀ‖² = ‖A‖² − ‖AP‖²` without another pass
    /// over the matrix, unless that difference would be lost in rounding (below about `30·√ε`); one more
    /// product then gives it exactly.
    pub fn residual(&self) -> f64 {
        self.residual
    }

    /// Relative reduction of the squared residual by the last half-step of the iteration. A large value
    /// indicates that more power iterations would help.
    pub fn last_gain(&self) -> f64 {
        self.last_gain
    }

    /// Whether the subspace had settled: the last half-step gained less than 1 % of the squared residual,
    /// or there is nothing left to gain. If not, the residual may exceed the optimum noticeably; use an exact
    /// decomposition or more power iterations.
    pub fn is_settled(&self) -> bool {
        self.residual <= 64.0 * T::EPSILON || self.last_gain <= SETTLED
    }
}

/// The leading `rank` triplets of a matrix by randomized subspace iteration.
///
/// # Algorithm
/// Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1: `Y = (A·Aᵀ)^q·A·Ω` with a Gaussian `Ω` of
/// `rank + oversampling` columns, QR-normalized after every half-step. One more half-step, from the basis
/// `Q` of `Y` to the basis `P` of `AᵀQ`, shows whether the subspace has settled; the result is the exact SVD
/// of `A·P·Pᵀ`.
///
/// # Error bound
/// With `k = rank`, `p = oversampling ≥ 2` and `τ_k = ‖A − A_k‖_F`, in expectation
/// `‖A − Â‖²_F ≤ (2 + k / (p − 1))·τ_k²` after a single half-step, and every further one captures at
/// least as much. With the default options and a settled result
/// ([`RandomizedSvd::is_settled`]) the error was within 1 % of the optimum on every spectrum of the tests.
///
/// # Errors
/// [`FactorError::RankOutOfRange`] unless `1 ≤ rank ≤ min(m, n)`, [`FactorError::Overflow`], and those of the products.
///
/// # Complexity
/// `2·q + 3` products with blocks of `l = rank + p` columns, and `O((m + n)·l²·q)` on the host.
///
/// ```
/// use lowrank_factor::{HostMatrix, Mat, svd};
/// let a = Mat::from_fn(60, 40, |i, j| 1.0 / (i + j + 1) as f64);
/// let fit = svd::randomized(&HostMatrix::new(a.as_ref())?, 8, &svd::RandomizedOptions::default())?;
/// assert_eq!(fit.svd().rank(), 8);
/// assert!(fit.is_settled() && fit.residual() < 1e-5);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn randomized<A: MatrixProducts>(
    a: &A,
    rank: usize,
    options: &RandomizedOptions,
) -> Result<RandomizedSvd<A::Scalar>> {
    let max = a.nrows().min(a.ncols());
    check_rank(rank, max)?;
    let total = a.norm_squared()?;
    let width = rank.saturating_add(options.oversampling).min(max);
    let q = range(a, width, options)?;
    let previous = a.multiply_transposed(q.as_ref())?; // [n, width]
    let p = qr::basis(previous.as_ref());
    let projected = a.multiply(p.as_ref())?; // [m, width]
    let captured = norm_squared(projected.as_ref());
    let left = total - captured;
    let last_gain =
        if left > 0.0 { ((captured - norm_squared(previous.as_ref())) / left).max(0.0) } else { 0.0 };
    let (u, mut s, v) = project(projected.as_ref(), p.as_ref());
    let outside = tail(a, total, (projected.as_ref(), p.as_ref()), &s, rank)?;
    s.truncate(rank);
    unscale(&mut s, a.scale())?;
    let cut = |x: MatRef<'_, A::Scalar>| x.subcols(0, rank).to_owned();
    Ok(RandomizedSvd {
        residual: outside.sqrt(),
        svd: Svd::from_parts(cut(u.as_ref()), s, cut(v.as_ref()), outside),
        last_gain,
    })
}

/// Orthonormal `Q` (m × width) that spans `(A·Aᵀ)^q·A·Ω`.
fn range<A: MatrixProducts>(a: &A, width: usize, options: &RandomizedOptions) -> Result<Mat<A::Scalar>> {
    let omega = NormalSource::new(options.seed).matrix(a.ncols(), width);
    let mut y = a.multiply(omega.as_ref())?;
    for _ in 0..options.power_iterations {
        // Between products a basis need not be orthonormal to rounding, only well conditioned.
        let z = a.multiply_transposed(qr::rough_basis(y.as_ref()).as_ref())?;
        y = a.multiply(qr::rough_basis(z.as_ref()).as_ref())?;
    }
    Ok(qr::basis(y.as_ref()))
}

/// Singular triplets of `B·Pᵀ` for an orthonormal `P`, shapes `b` m × l, `p` n × l.
pub(super) fn project<T: Scalar>(b: MatRef<'_, T>, p: MatRef<'_, T>) -> (Mat<T>, Vec<T>, Mat<T>) {
    let (u, s, inner) = thin(b);
    (u, s, product(p, inner.as_ref()))
}

/// `‖A − L·Rᵀ‖²` for a projection `L·Rᵀ` of `A` with `‖L·Rᵀ‖² = captured`; needs a product only if it is
/// small.
pub(super) fn uncaptured<A: MatrixProducts>(
    a: &A,
    total: f64,
    captured: f64,
    (left, right): (MatRef<'_, A::Scalar>, MatRef<'_, A::Scalar>),
) -> Result<f64> {
    let free = total - captured;
    if free > RESOLUTION * A::Scalar::EPSILON * total { Ok(free) } else { a.residual_squared(left, right) }
}

/// Squared relative residual of the first `rank` triplets of `B·Pᵀ`, whose singular values are `s`.
fn tail<A: MatrixProducts>(
    a: &A,
    total: f64,
    (b, p): (MatRef<'_, A::Scalar>, MatRef<'_, A::Scalar>),
    s: &[A::Scalar],
    rank: usize,
) -> Result<f64> {
    if !total.is_finite() {
        return Err(FactorError::Overflow { what: "matrix norm" });
    }
    if total == 0.0 {
        return Ok(0.0);
    }
    let dropped: f64 = s[rank..].iter().map(|s| s.widen().powi(2)).sum();
    let captured = norm_squared(b);
    let free = total - captured + dropped;
    if free > RESOLUTION * A::Scalar::EPSILON * total {
        return Ok(free / total);
    }
    Ok((uncaptured(a, total, captured, (b, p))? + dropped) / total)
}
