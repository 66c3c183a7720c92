//! Tucker2 of a stack: initialization by HOSVD, iteration by HOOI.

use faer::{Mat, MatRef, Scale};

use super::{Tucker2, check_stack, parameters};
use crate::error::{FactorError, Result};
use crate::matrix::{check_rank, check_tolerance, product, stack_cols};
use crate::qr;
use crate::scalar::Scalar;
use crate::svd::left;
use crate::truncation::{Truncation, TruncationReport, tails};

/// Options of [`tucker2`].
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `max_iterations` | 25 | HOOI sweeps after the HOSVD start | ≥ 0 |
/// | `tolerance` | 1e-6 | stop when a sweep lowers the relative error by less than this fraction of it | ≥ 0 |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tucker2Options {
    /// Largest number of sweeps; 0 keeps the HOSVD.
    pub max_iterations: usize,
    /// Relative improvement below which the iteration has converged.
    pub tolerance: f64,
}

impl Default for Tucker2Options {
    fn default() -> Self {
        Self { max_iterations: 25, tolerance: 1e-6 }
    }
}

/// A Tucker2 decomposition with its convergence history.
#[derive(Debug, Clone, PartialEq)]
pub struct Tucker2Fit<T: Scalar> {
    /// The factors; `L` has orthonormal columns and `R` orthonormal rows.
    pub factors: Tucker2<T>,
    /// Larger rank, error and parameter counts.
    pub report: TruncationReport,
    /// Relative error of the HOSVD and after every sweep: nonincreasing up to rounding.
    pub errors: Vec<f64>,
    /// Whether the last sweep improved by less than the tolerance.
    pub converged: bool,
}

/// Tucker2 of a stack of matrices of shape `m × n`.
///
/// # Algorithm
/// `L` and `R` start as leading singular vectors of the two unfoldings (HOSVD; De Lathauwer, De Moor,
/// Vandewalle 2000) and are refined in turn (HOOI, same authors), each step by orthogonal iteration towards
/// the optimum for the other side's current value: products only, and no step raises the error.
///
/// # Truncation
/// `Rank(r)` takes `r` on both sides, as far as the shape admits; an error or energy target is divided
/// equally between the two sides, and met; a parameter budget is spent at the largest common error of the two
/// sides that fits it. [`tucker2_with_ranks`] takes two explicit ranks.
///
/// # Error bound
/// `‖A − Â‖² ≤` the sum of both dropped tails, at most twice the optimum squared; sweeps only lower it.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`] for slices of
/// different shapes, [`FactorError::InvalidOption`], and those of the [`Truncation`].
///
/// # Complexity
/// `O(S·m·n·(m + n))` for the start, `O(S·m·n·(p + q))` for a sweep.
///
/// ```
/// use lowrank_factor::{Mat, Truncation, tucker};
/// let slice = |s: usize| Mat::from_fn(6, 5, move |i, j| (1 + i) as f64 * (1 + j) as f64 * (1 + s) as f64);
/// let stack = [slice(0), slice(1), slice(2)];
/// let views: Vec<_> = stack.iter().map(|a| a.as_ref()).collect();
/// let fit = tucker::tucker2(&views, &Truncation::RelativeError(1e-9), &Default::default())?;
/// assert_eq!(fit.factors.ranks(), (1, 1));
/// assert_eq!(fit.report.parameters_after, 6 + 3 + 5);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn tucker2<T: Scalar>(
    stack: &[MatRef<'_, T>],
    truncation: &Truncation,
    options: &Tucker2Options,
) -> Result<Tucker2Fit<T>> {
    truncation.validate()?;
    let start = Hosvd::new(stack, options)?;
    let ranks = start.resolve(truncation)?;
    start.iterate(ranks, options)
}

/// [`tucker2`] with the two ranks given: `p` for `L`, `q` for `R`.
///
/// # Errors
/// As [`tucker2`]; [`FactorError::RankOutOfRange`] unless `1 ≤ p ≤ min(m, S·n)` and `1 ≤ q ≤ min(n, S·m)`.
pub fn tucker2_with_ranks<T: Scalar>(
    stack: &[MatRef<'_, T>],
    (p, q): (usize, usize),
    options: &Tucker2Options,
) -> Result<Tucker2Fit<T>> {
    let start = Hosvd::new(stack, options)?;
    check_rank(p, start.left.1.len())?;
    check_rank(q, start.right.1.len())?;
    start.iterate((p, q), options)
}

/// Singular vectors and squared values of both unfoldings.
struct Hosvd<'a, 'b, T: Scalar> {
    stack: &'a [MatRef<'b, T>],
    shape: (usize, usize),
    left: (Mat<T>, Vec<f64>),
    right: (Mat<T>, Vec<f64>),
}

impl<'a, 'b, T: Scalar> Hosvd<'a, 'b, T> {
    fn new(stack: &'a [MatRef<'b, T>], options: &Tucker2Options) -> Result<Self> {
        check_tolerance(options.tolerance)?;
        let shape = check_stack(stack)?;
        let squared = |values: Vec<T>| values.iter().map(|s| s.widen().powi(2)).collect();
        let (u, s) = left(stack_cols(stack, shape.0).as_ref());
        let transposed: Vec<_> = stack.iter().map(|a| a.transpose()).collect();
        let (v, t) = left(stack_cols(&transposed, shape.1).as_ref());
        Ok(Self { stack, shape, left: (u, squared(s)), right: (v, squared(t)) })
    }

    fn resolve(&self, truncation: &Truncation) -> Result<(usize, usize)> {
        let (a, b) = (&self.left.1, &self.right.1);
        match *truncation {
            Truncation::Rank(rank) => {
                check_rank(rank, a.len().max(b.len()))?;
                Ok((rank.min(a.len()), rank.min(b.len())))
            }
            Truncation::Parameters(budget) => self.within(budget),
            Truncation::RelativeError(_) | Truncation::Energy(_) => {
                let (tails_a, tails_b) = (tails(a, 0.0), tails(b, 0.0));
                let allowed = truncation.allowed(tails_a[0]) / 2.0;
                Ok((first_within(&tails_a, allowed), first_within(&tails_b, allowed)))
            }
        }
    }

    /// Ranks at the largest common tail that fits the budget.
    fn within(&self, budget: usize) -> Result<(usize, usize)> {
        let cost = |ranks| parameters(self.shape, self.stack.len(), ranks);
        if cost((1, 1)) > budget {
            return Err(FactorError::BudgetTooSmall { budget: budget as u64, minimum: cost((1, 1)) as u64 });
        }
        let (a, b) = (tails(&self.left.1, 0.0), tails(&self.right.1, 0.0));
        let (mut p, mut q) = (1, 1);
        loop {
            // The side with the larger tail grows first; if it cannot, the other one still may.
            let grow_left = cost((p + 1, q)) <= budget && p < self.left.1.len();
            let grow_right = cost((p, q + 1)) <= budget && q < self.right.1.len();
            match (grow_left, grow_right) {
                (true, true) if a[p] >= b[q] => p += 1,
                (_, true) => q += 1,
                (true, false) => p += 1,
                (false, false) => return Ok((p, q)),
            }
        }
    }

    fn iterate(self, (p, q): (usize, usize), options: &Tucker2Options) -> Result<Tucker2Fit<T>> {
        let mut u = self.left.0.subcols(0, p).to_owned();
        let mut v = self.right.0.subcols(0, q).to_owned();
        let mut factors = assemble(self.stack, &u, &v);
        let mut errors = vec![factors.error_of(self.stack)?];
        let mut converged = false;
        for _ in 0..options.max_iterations {
            let parts: Vec<Mat<T>> = self.stack.iter().map(|a| product(*a, v.as_ref())).collect();
            u = improved(&parts, u);
            let parts: Vec<Mat<T>> = self.stack.iter().map(|a| product(a.transpose(), u.as_ref())).collect();
            v = improved(&parts, v);
            factors = assemble(self.stack, &u, &v);
            let (before, after) = (errors[errors.len() - 1], factors.error_of(self.stack)?);
            errors.push(after);
            converged = before - after <= options.tolerance * before;
            if converged {
                break;
            }
        }
        let report = TruncationReport {
            rank: p.max(q),
            relative_error: errors[errors.len() - 1],
            parameters_before: self.stack.len() * self.shape.0 * self.shape.1,
            parameters_after: factors.parameters(),
        };
        Ok(Tucker2Fit { factors, report, errors, converged })
    }
}

fn first_within(tails: &[f64], allowed: f64) -> usize {
    tails.iter().position(|&tail| tail <= allowed).unwrap_or(tails.len() - 1).max(1)
}

/// A basis with as many columns as `basis` that captures more of the parts side by side: two steps of
/// orthogonal iteration with `G = Σ P·Pᵀ`. No step decreases `tr(UᵀGU)`, since `G` has no negative
/// eigenvalue. If the parts have fewer columns than that, the basis is kept: it already spans them.
fn improved<T: Scalar>(parts: &[Mat<T>], mut basis: Mat<T>) -> Mat<T> {
    if parts.iter().map(Mat::ncols).sum::<usize>() < basis.ncols() {
        return basis;
    }
    for _ in 0..2 {
        let images: Vec<Mat<T>> = parts.iter().map(|p| product(p.transpose(), basis.as_ref())).collect();
        let largest = images.iter().map(|image| image.norm_max().widen()).fold(0.0, f64::max);
        let mut next = Mat::zeros(basis.nrows(), basis.ncols());
        for (part, image) in parts.iter().zip(&images) {
            next += product(part.as_ref(), scaled(image, largest).as_ref());
        }
        let largest = next.norm_max().widen();
        if largest == 0.0 {
            break;
        }
        basis = qr::basis(scaled(&next, largest).as_ref());
    }
    basis
}

/// The matrix over its largest magnitude, or over a given one: its squares neither overflow nor underflow.
fn scaled<T: Scalar>(a: &Mat<T>, largest: f64) -> Mat<T> {
    let factor = if largest > 0.0 { largest.recip() } else { 0.0 };
    a * Scale(T::of(factor))
}

/// Cores `UᵀA_sV` for orthonormal `U` (m × p) and `V` (n × q).
fn assemble<T: Scalar>(stack: &[MatRef<'_, T>], u: &Mat<T>, v: &Mat<T>) -> Tucker2<T> {
    let cores = stack.iter().map(|a| product(product(u.transpose(), *a).as_ref(), v.as_ref())).collect();
    Tucker2::from_parts(u.clone(), cores, v.transpose().to_owned())
}
