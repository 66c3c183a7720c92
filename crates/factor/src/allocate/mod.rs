//! Exactly optimal ranks for many matrices under one budget.
//!
//! The squared error of a truncated decomposition is the sum of the dropped squared values, so the loss
//! of a set of matrices is additive and the choice of ranks is a multiple-choice knapsack.
//!
//! # Algorithm
//! Spending the budget on the largest loss per parameter is optimal only when no budget is left over or
//! all costs are equal. Here that greedy choice on the convex hulls gives a Lagrange multiplier, a lower
//! bound and a first solution. Options whose reduced cost exceeds the gap between the two are eliminated
//! (Nauss 1978), and dynamic programming with dominance over the remaining few (Pisinger 1995) finds the
//! optimum. If the costs share a divisor, it is the unit of the budget.

mod knapsack;

use self::knapsack::{Choice, solve};
use crate::error::{FactorError, Result};
use crate::scalar::Scalar;
use crate::spectrum::check_spectrum;

/// One matrix in a [`allocate_ranks`] problem.
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `weight` | 1 | factor of the matrix's squared loss | ≥ 0, finite |
/// | `min_rank` | 1 | smallest rank (rounded up to a multiple) | ≥ 1 |
/// | `max_rank` | length of the spectrum | largest rank | ≥ `min_rank` |
/// | `multiple` | 1 | ranks are multiples of this | ≥ 1 |
/// | `dense_cost` | none | cost of leaving the matrix as it is, with no loss | any |
#[derive(Debug, Clone, PartialEq)]
pub struct RankItem {
    /// Squared singular values, nonincreasing.
    squared: Vec<f64>,
    cost_per_rank: u64,
    weight: f64,
    min_rank: usize,
    max_rank: usize,
    multiple: usize,
    dense_cost: Option<u64>,
    /// Whether a rank `r` costs `r²` less.
    is_pivoted: bool,
}

impl RankItem {
    /// A matrix with these singular values (nonincreasing), for which each rank costs `cost_per_rank`
    /// parameters or bytes: `m + n` for an `m × n` matrix in two factors.
    ///
    /// # Errors
    /// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::Negative`],
    /// [`FactorError::NotSorted`], [`FactorError::InvalidOption`] for a cost of 0.
    pub fn new<T: Scalar>(singular_values: &[T], cost_per_rank: u64) -> Result<Self> {
        let values: Vec<f64> = singular_values.iter().map(|value| value.widen()).collect();
        check_spectrum(&values)?;
        Self::from_squared(values.iter().map(|value| value * value).collect(), cost_per_rank)
    }

    /// Like [`RankItem::new`], from squared values such as the eigenvalues of a
    /// [`Whitened`](crate::whitened::Whitened) decomposition.
    ///
    /// # Errors
    /// As [`RankItem::new`].
    pub fn from_squared(squared: Vec<f64>, cost_per_rank: u64) -> Result<Self> {
        check_spectrum(&squared)?;
        if cost_per_rank == 0 {
            return Err(FactorError::InvalidOption {
                option: "cost_per_rank",
                rule: "at least 1",
                value: 0.0,
            });
        }
        let max_rank = squared.len();
        Ok(Self {
            squared,
            cost_per_rank,
            weight: 1.0,
            min_rank: 1,
            max_rank,
            multiple: 1,
            dense_cost: None,
            is_pivoted: false,
        })
    }

    /// Sets the factor on the squared loss.
    pub fn with_weight(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the smallest and the largest rank.
    pub fn with_range(mut self, min_rank: usize, max_rank: usize) -> Self {
        (self.min_rank, self.max_rank) = (min_rank, max_rank);
        self
    }

    /// Restricts ranks to multiples of this number.
    pub fn with_multiple(mut self, multiple: usize) -> Self {
        self.multiple = multiple;
        self
    }

    /// Counts the factors as [pivoted](crate::pivoted): rank `r` costs `r²` less than `r` times the cost per rank.
    pub fn with_pivots(mut self) -> Self {
        self.is_pivoted = true;
        self
    }

    /// Allows leaving the matrix dense at this cost.
    pub fn with_dense_cost(mut self, cost: u64) -> Self {
        self.dense_cost = Some(cost);
        self
    }

    /// All admissible choices, with their costs and losses.
    fn choices(&self) -> Result<Vec<Choice>> {
        let invalid = |option, rule, value| Err(FactorError::InvalidOption { option, rule, value });
        if !(self.weight >= 0.0 && self.weight.is_finite()) {
            return invalid("weight", "finite and at least 0", self.weight);
        }
        if self.multiple == 0 {
            return invalid("multiple", "at least 1", 0.0);
        }
        for rank in [self.min_rank, self.max_rank] {
            crate::matrix::check_rank(rank, self.squared.len())?;
        }
        let tails = crate::truncation::tails(&self.squared, 0.0);
        let first = self.min_rank.next_multiple_of(self.multiple);
        let ranks = (first..=self.max_rank).step_by(self.multiple);
        let mut choices: Vec<Choice> = ranks
            .map(|rank| {
                let cost = (rank as u64).checked_mul(self.cost_per_rank);
                let cost = cost.ok_or(FactorError::Overflow { what: "cost of a rank" })?;
                let saved = if self.is_pivoted { (rank as u64).saturating_mul(rank as u64) } else { 0 };
                let cost = cost.saturating_sub(saved);
                Ok(Choice { rank: Some(rank), cost, loss: self.weight * tails[rank] })
            })
            .collect::<Result<_>>()?;
        choices.extend(self.dense_cost.map(|cost| Choice { rank: None, cost, loss: 0.0 }));
        if choices.is_empty() {
            return invalid("max_rank", "at least one multiple above min_rank", self.max_rank as f64);
        }
        Ok(choices)
    }
}

/// Choice for one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankChoice {
    /// Factor at this rank.
    Rank(usize),
    /// Leave it dense.
    Dense,
}

/// The best choice for every matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct RankAllocation {
    /// One choice per item, in the order of the items.
    pub choices: Vec<RankChoice>,
    /// Total cost, at most the budget.
    pub cost: u64,
    /// Total weighted squared loss.
    pub loss: f64,
}

/// The choices with the least total loss whose total cost is within the budget.
///
/// The result is optimal (up to the rounding of sums in `f64`), not a heuristic. No matrix gets a choice
/// that costs more without losing less.
///
/// # Errors
/// [`FactorError::Empty`] without items, [`FactorError::BudgetTooSmall`] below the sum of the cheapest
/// choices, [`FactorError::InvalidOption`], [`FactorError::RankOutOfRange`], [`FactorError::Overflow`].
///
/// # Complexity
/// `O(R log R)` for `R` ranks in all, plus the dynamic programme over the options near the optimum, whose
/// states are bounded by the number of distinct costs there.
///
/// ```
/// use lowrank_factor::{RankChoice, RankItem, allocate_ranks};
/// let items = [RankItem::new(&[4.0, 3.0, 1.0], 10)?, RankItem::new(&[5.0, 0.5], 6)?];
/// let best = allocate_ranks(&items, 27)?;
/// assert_eq!(best.choices, [RankChoice::Rank(2), RankChoice::Rank(1)]);
/// assert_eq!((best.cost, best.loss), (26, 1.25));
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn allocate_ranks(items: &[RankItem], budget: u64) -> Result<RankAllocation> {
    if items.is_empty() {
        return Err(FactorError::Empty { what: "items", rows: 0, cols: 0 });
    }
    let classes: Vec<Vec<Choice>> = items.iter().map(RankItem::choices).collect::<Result<_>>()?;
    let picked = solve(&classes, budget)?;
    Ok(RankAllocation {
        choices: picked
            .iter()
            .map(|choice| choice.rank.map_or(RankChoice::Dense, RankChoice::Rank))
            .collect(),
        cost: picked.iter().map(|choice| choice.cost).sum(),
        loss: picked.iter().map(|choice| choice.loss).sum(),
    })
}
