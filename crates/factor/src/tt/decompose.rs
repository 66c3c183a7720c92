//! TT-SVD.

use super::core::{Core, flat_product, view};
use super::shape::DimFactors;
use super::train::TensorTrain;
use crate::error::{FactorError, Result};
use crate::matrix::{balance, check_rank, check_slice, ratio, sum_of_squares, to_row_major};
use crate::scalar::Scalar;
use crate::svd;
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

/// Tensor train of a dense tensor in row-major order.
///
/// # Algorithm
/// TT-SVD (Oseledets 2011, algorithm 1): truncated SVDs of the unfoldings in sequence, each dropping
/// at most `δ = ε·‖X‖ / √(d − 1)`.
///
/// # Truncation
/// `Rank(r)` bounds every rank by `r`; a parameter budget grows the ranks with the largest dropped tail
/// first, from the spectra of all unfoldings; [`tt_svd_with_ranks`] takes explicit ranks.
///
/// # Error bound
/// Relative error at most `ε`; exact at the true ranks; at given ranks at most `√(d − 1)` times the best.
/// The report's error is the actual one, not the bound.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::ShapeMismatch`] if the modes do not
/// multiply to the length, and those of the [`Truncation`].
///
/// # Complexity
/// `O(N·r·(n_1 + r))` for `N` elements, dominated by the first unfoldings.
///
/// ```
/// use lowrank_factor::{Truncation, tt};
/// // sin(x + y + z) has all ranks 2.
/// let x: Vec<f64> = (0..6 * 7 * 8).map(|i| ((i / 56 + i / 8 % 7 + i % 8) as f64).sin()).collect();
/// let fit = tt::tt_svd(&x, &[6, 7, 8], &Truncation::RelativeError(1e-10))?;
/// assert_eq!(fit.factors.ranks(), [2, 2]);
/// assert!(fit.factors.relative_error(&x)? < 1e-13);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn tt_svd<T: Scalar>(
    values: &[T],
    modes: &[usize],
    truncation: &Truncation,
) -> Result<Approximation<TensorTrain<T>>> {
    truncation.validate()?;
    check_tensor(values, modes)?;
    let caps = largest_ranks(modes);
    match *truncation {
        Truncation::Rank(rank) => {
            check_rank(rank, caps.iter().copied().max().unwrap_or(1))?;
            sweep(values, modes, Cut::Ranks(&caps.iter().map(|&cap| cap.min(rank)).collect::<Vec<_>>()))
        }
        Truncation::RelativeError(_) | Truncation::Energy(_) => sweep(values, modes, Cut::Error(truncation)),
        Truncation::Parameters(budget) => {
            let mut spectra = Vec::with_capacity(caps.len());
            let mut rows = 1;
            for mode in &modes[..modes.len() - 1] {
                rows *= mode;
                let unfolding = view(values, rows)?;
                let squared: Vec<f64> =
                    svd::singular_values(unfolding)?.iter().map(|s| s.widen().powi(2)).collect();
                spectra.push(tails(&squared, 0.0));
            }
            sweep(values, modes, Cut::Ranks(&ranks_within(&spectra, modes, budget)?))
        }
    }
}

/// [`tt_svd`] with all `d − 1` ranks given.
///
/// # Errors
/// As [`tt_svd`]; [`FactorError::RankOutOfRange`] unless rank `k` is between 1 and the smaller of
/// `n_1·…·n_k` and `n_{k+1}·…·n_d`.
pub fn tt_svd_with_ranks<T: Scalar>(
    values: &[T],
    modes: &[usize],
    ranks: &[usize],
) -> Result<Approximation<TensorTrain<T>>> {
    check_tensor(values, modes)?;
    let caps = largest_ranks(modes);
    if ranks.len() != caps.len() {
        return Err(FactorError::ShapeMismatch {
            what: "ranks",
            expected: vec![caps.len()],
            got: vec![ranks.len()],
        });
    }
    ranks.iter().zip(&caps).try_for_each(|(&rank, &cap)| check_rank(rank, cap))?;
    sweep(values, modes, Cut::Ranks(ranks))
}

/// Tensor train of a vector, split into the factors of its length and padded with zeros: the first
/// `factors.len()` elements of the dense result are the vector.
///
/// # Errors
/// As [`tt_svd`].
pub fn tt_svd_vector<T: Scalar>(
    values: &[T],
    factors: &DimFactors,
    truncation: &Truncation,
) -> Result<Approximation<TensorTrain<T>>> {
    check_slice(values, "vector")?;
    if values.len() != factors.len() {
        return Err(FactorError::ShapeMismatch {
            what: "vector",
            expected: vec![factors.len()],
            got: vec![values.len()],
        });
    }
    let mut padded = values.to_vec();
    padded.resize(factors.padded(), T::default());
    let mut fit = tt_svd(&padded, factors.factors(), truncation)?;
    fit.report.parameters_before = values.len();
    Ok(fit)
}

/// Truncation of a sweep.
#[derive(Clone, Copy)]
enum Cut<'a> {
    /// To a relative error or an energy, shared equally by the bonds.
    Error(&'a Truncation),
    /// To these ranks, as far as the unfoldings admit.
    Ranks(&'a [usize]),
}

fn sweep<T: Scalar>(values: &[T], modes: &[usize], cut: Cut<'_>) -> Result<Approximation<TensorTrain<T>>> {
    let max_abs = values.iter().map(|x| x.magnitude().widen()).fold(0.0, f64::max);
    let scale = balance(max_abs, T::SAFE);
    let mut rest: Vec<T> = values.iter().map(|x| T::of(x.widen() * scale)).collect();
    let total = sum_of_squares(&rest);
    let bonds = modes.len() - 1;
    let mut cores = Vec::with_capacity(modes.len());
    let (mut rank, mut dropped) = (1, 0.0);
    for k in 0..bonds {
        let unfolding = view(&rest, rank * modes[k])?;
        let (u, s) = svd::left(unfolding);
        let squared: Vec<f64> = s.iter().map(|s| s.widen().powi(2)).collect();
        let tails = tails(&squared, 0.0);
        let keep = match cut {
            Cut::Ranks(ranks) => ranks[k].min(s.len()),
            Cut::Error(truncation) => {
                let allowed = truncation.allowed(total) / bonds as f64;
                tails.iter().position(|&tail| tail <= allowed).unwrap_or(s.len()).max(1)
            }
        };
        dropped += tails[keep];
        let u = u.subcols(0, keep);
        let next = flat_product(u.transpose(), unfolding); // [keep, n_{k+1}·…·n_d]
        cores.push(Core::from_parts([rank, modes[k], keep], to_row_major(u)));
        (rest, rank) = (next, keep);
    }
    rest.iter_mut().for_each(|x| *x = T::of(x.widen() / scale));
    cores.push(Core::from_parts([rank, modes[bonds], 1], rest));
    let factors = TensorTrain::from_parts(cores);
    let report = TruncationReport {
        rank: factors.ranks().into_iter().max().unwrap_or(1),
        relative_error: ratio(dropped, total),
        parameters_before: values.len(),
        parameters_after: factors.parameters(),
    };
    Ok(Approximation { factors, report })
}

fn check_tensor<T: Scalar>(values: &[T], modes: &[usize]) -> Result<()> {
    check_slice(values, "tensor")?;
    let len = modes.iter().try_fold(1_usize, |len, &mode| len.checked_mul(mode));
    if modes.is_empty() || len != Some(values.len()) {
        return Err(FactorError::ShapeMismatch {
            what: "tensor",
            expected: modes.to_vec(),
            got: vec![values.len()],
        });
    }
    Ok(())
}

/// Largest rank of every bond: the smaller side of its unfolding.
fn largest_ranks(modes: &[usize]) -> Vec<usize> {
    let total: usize = modes.iter().product();
    let mut left = 1;
    let bonds = &modes[..modes.len() - 1];
    bonds
        .iter()
        .map(|mode| {
            left *= mode;
            left.min(total / left)
        })
        .collect()
}

/// Number of entries of cores with the given modes and inner ranks.
fn parameters(modes: &[usize], ranks: &[usize]) -> usize {
    let at = |k: usize| ranks.get(k).copied().unwrap_or(1);
    let left = |k: usize| if k == 0 { 1 } else { at(k - 1) };
    modes.iter().enumerate().map(|(k, mode)| left(k) * mode * at(k)).sum()
}

/// Ranks within a budget, grown one by one where the dropped tail is largest.
pub(super) fn ranks_within(spectra: &[Vec<f64>], modes: &[usize], budget: usize) -> Result<Vec<usize>> {
    let mut ranks = vec![1; spectra.len()];
    let minimum = parameters(modes, &ranks);
    if minimum > budget {
        return Err(FactorError::BudgetTooSmall { budget: budget as u64, minimum: minimum as u64 });
    }
    loop {
        let can_grow = |k: usize| {
            let (rank, mut grown) = (ranks[k] + 1, ranks.clone());
            grown[k] = rank;
            let left = if k == 0 { 1 } else { ranks[k - 1] };
            let right = ranks.get(k + 1).copied().unwrap_or(1);
            // A rank above the limit of its neighbours would be reduced again by the sweep.
            rank < spectra[k].len()
                && rank <= left * modes[k]
                && rank <= modes[k + 1] * right
                && parameters(modes, &grown) <= budget
        };
        let open = (0..ranks.len()).filter(|&k| spectra[k][ranks[k]] > 0.0 && can_grow(k));
        let next = open.max_by(|&a, &b| spectra[a][ranks[a]].total_cmp(&spectra[b][ranks[b]]));
        match next {
            Some(k) => ranks[k] += 1,
            None => return Ok(ranks),
        }
    }
}
