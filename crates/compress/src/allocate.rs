//! A form and its ranks for every unit.

use lowrank_factor::{FactorError, RankChoice, RankItem, Truncation, allocate_ranks};

use crate::amount::{Allocation, Sizes};
use crate::error::{CompressError, Result, at};
use crate::fit::{Analysis, Curve};
use crate::unit::{Choice, Form, Unit};

/// Criterion for the ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Parameters (or bytes) that may remain over all units, and the ratio given by the user.
    Budget { budget: i64, ratio: f64, allocation: Allocation, sizes: Sizes },
    /// Each unit on its own.
    Each(Truncation),
}

/// The choices with the least loss. A unit that would not shrink stays dense unless `always` is set.
pub(crate) fn choose(
    units: &[Unit],
    analyses: &[Analysis],
    goal: Goal,
    share: f64,
    always: bool,
) -> Result<Vec<Choice>> {
    match goal {
        Goal::Each(truncation) => units
            .iter()
            .zip(analyses)
            .map(|(unit, analysis)| Ok(keep_if_smaller(unit, meet(unit, analysis, &truncation)?, always)))
            .collect(),
        Goal::Budget { budget, ratio, allocation, sizes } => {
            let best: Vec<&Curve> = units.iter().zip(analyses).map(|(u, a)| best(u, a, share)).collect();
            check_budget(units, &best, budget, ratio, &sizes)?;
            match allocation {
                Allocation::Uniform => Ok(units
                    .iter()
                    .zip(best)
                    .map(|(unit, curve)| keep_if_smaller(unit, at_share(unit, curve, share), always))
                    .collect()),
                Allocation::Budget => {
                    let importances: Vec<f64> = analyses.iter().map(|analysis| analysis.importance).collect();
                    optimal(units, &best, &importances, budget as u64)
                }
            }
        }
    }
}

/// The choice for a given rank.
pub(crate) fn at_rank(unit: &Unit, form: &Form, rank: usize, always: bool) -> Choice {
    let choice = match form {
        Form::Tucker => {
            let [d_input, d_output] = unit.shape();
            let all = unit.weights.len();
            Choice::Tucker([rank.min(d_input).min(all * d_output), rank.min(d_output).min(all * d_input)])
        }
        Form::TensorTrain(shape) if shape.order() > 2 => {
            Choice::Train(shape.clone(), capped_ranks(shape, rank))
        }
        form => Choice::Rank(form.clone(), rank.min(unit.max_rank(form))),
    };
    keep_if_smaller(unit, choice, always)
}

/// The choice for a fraction of the unit's cost, in a form whose cost is proportional to its rank.
pub(crate) fn low_rank_at_share(unit: &Unit, share: f64, always: bool) -> Choice {
    let form = Form::LowRank;
    let rank = rank_at_share(unit, share, &form, unit.max_rank(&form));
    keep_if_smaller(unit, Choice::Rank(form, rank), always)
}

/// The rank of a form for a fraction of the unit's cost.
pub(crate) fn rank_at_share(unit: &Unit, share: f64, form: &Form, max: usize) -> usize {
    // Rounding must not cost a rank if the exact product is an integer.
    let most = (unit.dense_cost() as f64 * share + 1e-6).floor() as u64;
    unit.rank_within(form, most).min(max)
}

fn keep_if_smaller(unit: &Unit, choice: Choice, always: bool) -> Choice {
    if always || unit.cost_of(&choice) < unit.dense_cost() { choice } else { Choice::Dense }
}

/// `rank` for every inner rank, as far as the shape admits.
fn capped_ranks(shape: &lowrank_factor::tt::TtShape, rank: usize) -> Vec<usize> {
    let modes: Vec<usize> =
        shape.rows().factors().iter().zip(shape.cols().factors()).map(|(m, n)| m * n).collect();
    (1..modes.len())
        .map(|k| {
            let side = |part: &[usize]| part.iter().fold(1usize, |all, &mode| all.saturating_mul(mode));
            rank.min(side(&modes[..k])).min(side(&modes[k..]))
        })
        .collect()
}

/// The curve with the least loss at a fraction of the parameters.
fn best<'a>(unit: &Unit, analysis: &'a Analysis, share: f64) -> &'a Curve {
    let loss = |curve: &Curve| match curve {
        Curve::Point { loss, .. } => *loss,
        Curve::PerRank { form, squared, weight } => {
            let rank = rank_at_share(unit, share, form, squared.len());
            weight * squared[rank..].iter().sum::<f64>()
        }
    };
    let mut curves = analysis.curves.iter();
    let first = curves.next();
    let pick = curves.fold(first, |best, curve| match best {
        Some(best) if loss(best) <= loss(curve) => Some(best),
        _ => Some(curve),
    });
    pick.unwrap_or(&analysis.curves[0])
}

fn at_share(unit: &Unit, curve: &Curve, share: f64) -> Choice {
    match curve {
        Curve::Point { choice, .. } => choice.clone(),
        Curve::PerRank { form, squared, .. } => {
            Choice::Rank(form.clone(), rank_at_share(unit, share, form, squared.len()))
        }
    }
}

/// The cheapest choice that meets an error target.
fn meet(unit: &Unit, analysis: &Analysis, truncation: &Truncation) -> Result<Choice> {
    let allowed = match *truncation {
        Truncation::RelativeError(error) => error * error,
        Truncation::Energy(energy) => 1.0 - energy,
        _ => 0.0,
    } * analysis.total;
    let mut found: Option<(u64, Choice)> = None;
    for curve in &analysis.curves {
        let choice = match curve {
            Curve::Point { choice, .. } => choice.clone(),
            Curve::PerRank { form, squared, weight } => {
                let mut left: f64 = squared.iter().sum::<f64>() * weight;
                let mut rank = 0;
                while rank < squared.len() && (rank == 0 || left > allowed) {
                    left -= squared[rank] * weight;
                    rank += 1;
                }
                Choice::Rank(form.clone(), rank)
            }
        };
        let cost = unit.cost_of(&choice);
        if found.as_ref().is_none_or(|(best, _)| cost < *best) {
            found = Some((cost, choice));
        }
    }
    found.map(|(_, choice)| choice).ok_or_else(|| CompressError::Input("no form to choose from".into()))
}

/// Refuses a budget below the cheapest choices.
fn check_budget(units: &[Unit], best: &[&Curve], budget: i64, ratio: f64, sizes: &Sizes) -> Result<()> {
    let least = |(unit, curve): (&Unit, &&Curve)| match curve {
        Curve::Point { choice, .. } => unit.cost_of(choice).min(unit.dense_cost()),
        Curve::PerRank { form, .. } => unit.cost(form, 1).unwrap_or(1).min(unit.dense_cost()),
    };
    let minimum: u64 = units.iter().zip(best).map(least).sum();
    sizes.check(ratio, budget, minimum, units.iter().any(|unit| unit.bytes.is_some()))
}

/// Ranks with the least total loss within the budget, each loss times its unit's importance; points are
/// unchanged.
fn optimal(units: &[Unit], best: &[&Curve], importances: &[f64], budget: u64) -> Result<Vec<Choice>> {
    let mut left = budget;
    let mut items = Vec::new();
    for ((unit, curve), importance) in units.iter().zip(best).zip(importances) {
        match curve {
            Curve::Point { choice, .. } => left = left.saturating_sub(unit.cost_of(choice)),
            Curve::PerRank { form, squared, weight } => {
                let cost = unit.cost_per_rank(form).unwrap_or(1);
                let last = unit.rank_within(form, unit.dense_cost() - 1).min(squared.len());
                let item = RankItem::from_squared(squared.clone(), cost).map_err(at(&unit.name()))?;
                let item = item.with_weight(weight * importance).with_range(1, last);
                let item = if unit.is_pivoted(form) { item.with_pivots() } else { item };
                items.push(item.with_dense_cost(unit.dense_cost()));
            }
        }
    }
    let mut ranks = if items.is_empty() {
        Vec::new()
    } else {
        let fail = |e: FactorError| CompressError::Input(format!("ranks cannot be allocated: {e}"));
        allocate_ranks(&items, left).map_err(fail)?.choices
    }
    .into_iter();
    let choice = |(unit, curve): (&Unit, &&Curve)| match curve {
        Curve::Point { choice, .. } => keep_if_smaller(unit, choice.clone(), false),
        Curve::PerRank { form, .. } => match ranks.next() {
            Some(RankChoice::Rank(rank)) => keep_if_smaller(unit, Choice::Rank(form.clone(), rank), false),
            _ => Choice::Dense,
        },
    };
    Ok(units.iter().zip(best).map(choice).collect())
}
