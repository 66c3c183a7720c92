//! Adaptive randomized SVD: grows in blocks until an error or energy target is met.

use faer::{Accum, Mat, MatRef};

use super::Svd;
use super::randomized::{project, uncaptured};
use crate::error::{FactorError, Result};
use crate::matrix::{norm_squared, product, product_into, stack_cols, unscale};
use crate::products::MatrixProducts;
use crate::qr;
use crate::random::NormalSource;
use crate::scalar::Scalar;
use crate::truncation::{Truncation, tails};

/// Options of [`adaptive`].
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `block` | 32 | columns added at a time | ≥ 1 |
/// | `power_iterations` | 2 | power iterations per block | ≥ 0 |
/// | `max_rank` | none | give up beyond this rank | ≥ 1 |
/// | `seed` | 0 | seed of the test matrices | any |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveOptions {
    /// Columns per block.
    pub block: usize,
    /// Power iterations per block.
    pub power_iterations: usize,
    /// Largest rank to try; `min(m, n)` if `None`.
    pub max_rank: Option<usize>,
    /// Seed of the test matrices.
    pub seed: u64,
}

impl Default for AdaptiveOptions {
    fn default() -> Self {
        Self { block: 32, power_iterations: 2, max_rank: None, seed: 0 }
    }
}

/// Decomposition of the smallest rank found to meet a relative error or energy target.
///
/// # Algorithm
/// randQB_EI (Yu, Gu, Li 2018): blocks of a QB factorization, each orthogonalized against those before
/// it, with the residual tracked as `‖A‖² − ‖B‖²`; below about `30·√ε`, where that difference is lost in
/// rounding, the residual is formed explicitly. The SVD of `B` then drops what the target does not need.
///
/// # Error bound
/// `‖A − U·diag(s)·Vᵀ‖_F` is at most the target, as measured and not in expectation. The rank may slightly
/// exceed the optimal one.
///
/// # Errors
/// [`FactorError::InvalidOption`] for a block of 0, a maximum of 0 or a truncation by rank or parameters,
/// [`FactorError::ErrorOutOfRange`], [`FactorError::EnergyOutOfRange`],
/// [`FactorError::TargetNotReached`] at `max_rank`, and those of the products.
///
/// # Complexity
/// `2·q + 2` products per block and `O((m + n)·r²)` on the host for a final rank `r`.
///
/// ```
/// use lowrank_factor::{HostMatrix, Mat, Truncation, svd};
/// let a = Mat::from_fn(100, 80, |i, j| ((i % 3) * (j % 2)) as f64 + 1.0);
/// let target = Truncation::RelativeError(1e-6);
/// let svd = svd::adaptive(&HostMatrix::new(a.as_ref())?, &target, &svd::AdaptiveOptions::default())?;
/// assert_eq!(svd.rank(), 2);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn adaptive<A: MatrixProducts>(
    a: &A,
    target: &Truncation,
    options: &AdaptiveOptions,
) -> Result<Svd<A::Scalar>> {
    let requested = options.validate(target)?;
    let full = a.nrows().min(a.ncols());
    let max_rank = options.max_rank.map_or(full, |rank| rank.min(full));
    let total = a.norm_squared()?;
    let mut source = NormalSource::new(options.seed);
    let mut qb = Blocks::new(a.nrows(), a.ncols());
    let allowed = target.allowed(total);
    loop {
        let width = options.block.min(max_rank - qb.width());
        let q = next_block(a, &qb, source.matrix(a.ncols(), width), options.power_iterations)?;
        let b = a.multiply_transposed(q.as_ref())?; // [n, width]
        qb.push(q, b);
        let captured = norm_squared(qb.b.as_ref());
        let left = uncaptured(a, total, captured, (qb.q.as_ref(), qb.b.as_ref()))?;
        if left <= allowed {
            return finish(a, total, left, &qb, target);
        }
        if qb.width() == max_rank {
            let reached = crate::matrix::ratio(left, total);
            return Err(FactorError::TargetNotReached { requested, reached });
        }
    }
}

impl AdaptiveOptions {
    fn validate(&self, target: &Truncation) -> Result<f64> {
        let invalid = |option, rule, value| Err(FactorError::InvalidOption { option, rule, value });
        target.validate()?;
        match target.relative_error() {
            _ if self.block == 0 => invalid("block", "at least 1", 0.0),
            _ if self.max_rank == Some(0) => invalid("max_rank", "at least 1", 0.0),
            None => invalid("target", "a relative error or an energy", f64::NAN),
            Some(requested) => Ok(requested),
        }
    }
}

/// The growing factorization `A ≈ Q·Bᵀ`.
struct Blocks<T: Scalar> {
    /// Shape `m × r`, orthonormal columns.
    q: Mat<T>,
    /// Shape `n × r`.
    b: Mat<T>,
}

impl<T: Scalar> Blocks<T> {
    fn new(m: usize, n: usize) -> Self {
        Self { q: Mat::zeros(m, 0), b: Mat::zeros(n, 0) }
    }

    fn width(&self) -> usize {
        self.q.ncols()
    }

    fn push(&mut self, q: Mat<T>, b: Mat<T>) {
        self.q = stack_cols(&[self.q.as_ref(), q.as_ref()], q.nrows());
        self.b = stack_cols(&[self.b.as_ref(), b.as_ref()], b.nrows());
    }

    /// Removes the component of `y` in the span of `Q`.
    fn deflate(&self, y: &mut Mat<T>) {
        if self.width() > 0 {
            let inside = product(self.q.transpose(), y.as_ref());
            product_into(y.as_mut(), Accum::Add, self.q.as_ref(), inside.as_ref(), T::of(-1.0));
        }
    }

    /// Orthonormal basis of `y` with the span of `Q` removed; two passes are enough (Kahan, Parlett).
    fn complement(&self, mut y: Mat<T>) -> Mat<T> {
        self.deflate(&mut y);
        let mut q = qr::basis(y.as_ref());
        self.deflate(&mut q);
        qr::basis(q.as_ref())
    }
}

/// Orthonormal block, orthogonal to the previous blocks and sharpened by power iterations.
fn next_block<A: MatrixProducts>(
    a: &A,
    qb: &Blocks<A::Scalar>,
    omega: Mat<A::Scalar>,
    power_iterations: usize,
) -> Result<Mat<A::Scalar>> {
    let mut y = a.multiply(omega.as_ref())?;
    for _ in 0..power_iterations {
        let q = qb.complement(y);
        let z = qr::basis(a.multiply_transposed(q.as_ref())?.as_ref());
        y = a.multiply(z.as_ref())?;
    }
    Ok(qb.complement(y))
}

/// SVD of `Q·Bᵀ`, which leaves `left` of the squared norm behind, truncated to the rank that the target
/// needs.
fn finish<A: MatrixProducts>(
    a: &A,
    total: f64,
    left: f64,
    qb: &Blocks<A::Scalar>,
    target: &Truncation,
) -> Result<Svd<A::Scalar>> {
    let (v, mut s, u) = project(qb.b.as_ref(), qb.q.as_ref());
    let squared: Vec<f64> = s.iter().map(|s| s.widen().powi(2)).collect();
    let tails = tails(&squared, left);
    let allowed = target.allowed(total);
    let rank = tails.iter().position(|&tail| tail <= allowed).unwrap_or(s.len()).max(1);
    s.truncate(rank);
    unscale(&mut s, a.scale())?;
    let cut = |x: MatRef<'_, A::Scalar>| x.subcols(0, rank).to_owned();
    let outside = if total > 0.0 { tails[rank] / total } else { 0.0 };
    Ok(Svd::from_parts(cut(u.as_ref()), s, cut(v.as_ref()), outside))
}
