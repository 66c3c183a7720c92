//! Rank allocation: optimality against brute force, bounds, bad input.

use lowrank_factor::{FactorError, RankAllocation, RankChoice, RankItem, allocate_ranks};
use proptest::prelude::*;

use crate::common::noise;

/// One item in the terms of the brute force: (rank or dense, cost, loss).
#[derive(Debug, Clone)]
struct Case {
    values: Vec<f64>,
    cost: u64,
    weight: f64,
    range: (usize, usize),
    multiple: usize,
    dense: Option<u64>,
}

impl Case {
    fn plain(values: &[f64], cost: u64) -> Self {
        let values = values.to_vec();
        Self { range: (1, values.len()), values, cost, weight: 1.0, multiple: 1, dense: None }
    }

    fn item(&self) -> RankItem {
        let item = RankItem::new(&self.values, self.cost).unwrap();
        let item =
            item.with_weight(self.weight).with_range(self.range.0, self.range.1).with_multiple(self.multiple);
        match self.dense {
            Some(cost) => item.with_dense_cost(cost),
            None => item,
        }
    }

    fn options(&self) -> Vec<(RankChoice, u64, f64)> {
        let mut out = Vec::new();
        for rank in self.range.0..=self.range.1 {
            if rank % self.multiple == 0 {
                let loss: f64 = self.values[rank..].iter().map(|s| s * s).sum();
                out.push((RankChoice::Rank(rank), rank as u64 * self.cost, self.weight * loss));
            }
        }
        out.extend(self.dense.map(|cost| (RankChoice::Dense, cost, 0.0)));
        out
    }
}

/// Least loss within the budget by trying everything.
fn brute_force(cases: &[Case], budget: u64) -> Option<f64> {
    let Some((first, rest)) = cases.split_first() else { return Some(0.0) };
    let tried = first.options().into_iter().filter(|&(_, cost, _)| cost <= budget);
    tried.filter_map(|(_, cost, loss)| Some(loss + brute_force(rest, budget - cost)?)).min_by(f64::total_cmp)
}

/// The result is feasible, says what it costs, and nothing is better.
#[track_caller]
fn check(cases: &[Case], budget: u64) {
    let items: Vec<RankItem> = cases.iter().map(Case::item).collect();
    let got = allocate_ranks(&items, budget);
    let Some(best) = brute_force(cases, budget) else {
        assert!(matches!(got, Err(FactorError::BudgetTooSmall { .. })), "{got:?}");
        return;
    };
    let RankAllocation { choices, cost, loss } = got.unwrap();
    let mut sums = (0, 0.0);
    for (case, choice) in cases.iter().zip(&choices) {
        let options = case.options();
        let (_, cost, loss) =
            options.iter().find(|(option, ..)| option == choice).expect("an admissible choice");
        sums = (sums.0 + cost, sums.1 + loss);
    }
    assert!(cost <= budget && cost == sums.0, "cost {cost}, budget {budget}");
    let total: f64 = cases.iter().map(|c| c.weight * c.values.iter().map(|s| s * s).sum::<f64>()).sum();
    assert!((loss - sums.1).abs() <= 1e-12 * total);
    assert!(
        (loss - best).abs() <= 1e-12 * total,
        "loss {loss}, but {best} is possible: {cases:?} at {budget}"
    );
}

#[test]
fn loss_per_parameter_is_not_enough() {
    // Greedy takes the best ratio first (9/10 of item 2) and then has no room for item 1's two ranks.
    let cases = [Case::plain(&[3.0, 2.9, 2.8], 6), Case::plain(&[3.1, 3.05], 11)];
    (17..=45).for_each(|budget| check(&cases, budget));
}

#[test]
fn bounds_multiples_and_dense_are_kept() {
    let mut cases = vec![Case::plain(&[5.0, 4.0, 3.0, 2.0, 1.0, 0.5], 7); 3];
    cases[0].range = (2, 5);
    cases[1].multiple = 2;
    cases[1].weight = 3.0;
    cases[2].dense = Some(20);
    (0..=130).for_each(|budget| check(&cases, budget));
}

#[test]
fn unlimited_budgets_lose_nothing() {
    let items = [RankItem::new(&[2.0, 1.0], 5).unwrap(), RankItem::new(&[1.0, 0.0, 0.0], 3).unwrap()];
    let best = allocate_ranks(&items, u64::MAX).unwrap();
    // Zeros are not paid for.
    assert_eq!(best.choices, [RankChoice::Rank(2), RankChoice::Rank(1)]);
    assert_eq!((best.cost, best.loss), (13, 0.0));
}

#[test]
fn the_budget_error_names_the_minimum() {
    let items = [RankItem::new(&[2.0, 1.0], 5).unwrap().with_range(2, 2), RankItem::new(&[1.0], 3).unwrap()];
    assert_eq!(allocate_ranks(&items, 12), Err(FactorError::BudgetTooSmall { budget: 12, minimum: 13 }));
    assert!(allocate_ranks(&items, 13).is_ok());
}

#[test]
fn bad_items_are_refused() {
    assert!(matches!(allocate_ranks(&[], 10), Err(FactorError::Empty { .. })));
    assert!(matches!(RankItem::new::<f64>(&[], 1), Err(FactorError::Empty { .. })));
    assert!(matches!(RankItem::new(&[1.0, 2.0], 1), Err(FactorError::NotSorted { index: 1 })));
    assert!(matches!(RankItem::new(&[1.0, f64::NAN], 1), Err(FactorError::NonFinite { .. })));
    assert!(matches!(RankItem::new(&[-1.0], 1), Err(FactorError::Negative { .. })));
    assert!(matches!(RankItem::new(&[1.0], 0), Err(FactorError::InvalidOption { .. })));
    let item = || RankItem::new(&[3.0, 2.0, 1.0], 4).unwrap();
    let refused = |item: RankItem| allocate_ranks(&[item], 1000).unwrap_err();
    assert!(matches!(refused(item().with_range(0, 2)), FactorError::RankOutOfRange { rank: 0, max: 3 }));
    assert!(matches!(refused(item().with_range(1, 4)), FactorError::RankOutOfRange { rank: 4, max: 3 }));
    assert!(matches!(refused(item().with_multiple(0)), FactorError::InvalidOption { .. }));
    assert!(matches!(refused(item().with_multiple(4)), FactorError::InvalidOption { .. }));
    assert!(matches!(refused(item().with_range(3, 2)), FactorError::InvalidOption { .. }));
    assert!(matches!(refused(item().with_weight(-1.0)), FactorError::InvalidOption { .. }));
    assert!(matches!(refused(item().with_weight(f64::NAN)), FactorError::InvalidOption { .. }));
    let dear = RankItem::new(&[1.0, 0.5], u64::MAX).unwrap();
    assert!(matches!(refused(dear), FactorError::Overflow { .. }));
}

#[test]
fn equal_spectra_do_not_explode() {
    // Flat spectra tie everywhere: the worst case for pruning by reduced cost.
    let items: Vec<RankItem> = (0..200).map(|_| RankItem::new(&[1.0; 500], 1536).unwrap()).collect();
    let best = allocate_ranks(&items, 200 * 1536 * 123 + 700).unwrap();
    assert_eq!((best.cost, best.loss), (200 * 1536 * 123, 200.0 * 377.0));
}

/// A model-sized problem: 32 layers of 7 matrices with 1000 ranks in three sizes.
#[test]
fn model_sized_problems_are_solved() {
    let mut next = noise(3);
    let mut items = Vec::new();
    for layer in 0..32 {
        for kind in 0..7 {
            let (decay, scale) = (0.3 + 0.5 * next().abs(), 1.0 + f64::from(layer) * next().abs());
            let values: Vec<f64> = (1..=1000).map(|i| scale * f64::from(i).powf(-decay)).collect();
            let cost = [5120, 9472, 2816][kind % 3];
            items.push(
                RankItem::new(&values, cost)
                    .unwrap()
                    .with_multiple(if kind == 0 { 8 } else { 1 })
                    .with_range(8, 1000),
            );
        }
    }
    let full: u64 = 32 * 1000 * (5120 * 3 + 9472 * 2 + 2816 * 2);
    let mut last = f64::INFINITY;
    for budget in [full / 10, full / 3, full / 2, full - 1] {
        let best = allocate_ranks(&items, budget).unwrap();
        assert!(
            best.cost <= budget && best.cost + 9472 > budget,
            "the budget is used: {} of {budget}",
            best.cost
        );
        assert!(best.loss < last);
        last = best.loss;
    }
}

/// The same with leaving a matrix dense as a choice, which makes the losses non-convex in the cost.
#[test]
fn dense_choices_in_a_model_sized_problem() {
    let items: Vec<RankItem> = (0..224)
        .map(|i| {
            let (m, n) = [(2560, 2560), (2560, 6912)][i % 2];
            let decay = 0.2 + 0.002 * i as f64;
            let values: Vec<f64> = (1..=2560).map(|k| f64::from(k).powf(-decay)).collect();
            RankItem::new(&values, m + n)
                .unwrap()
                .with_dense_cost(m * n)
                .with_range(1, (m * n / (m + n)) as usize)
        })
        .collect();
    let full: u64 = 112 * 2560 * (2560 + 6912);
    for share in [0.3, 0.6, 0.8, 0.95] {
        let budget = (share * full as f64) as u64;
        let best = allocate_ranks(&items, budget).unwrap();
        assert!(best.cost <= budget && best.cost + 9472 > budget);
        assert!(best.choices.iter().any(|choice| matches!(choice, RankChoice::Rank(_))));
    }
}

prop_compose! {
    fn any_case()(
        len in 1..6_usize, seed: u64, cost in 1..9_u64, weight in 0..4_u32,
        low in 1..3_usize, high in 1..6_usize, multiple in 1..3_usize, dense in prop::option::of(1..30_u64),
    ) -> Case {
        let mut next = noise(seed);
        // Rounded values give ties and zeros.
        let mut values: Vec<f64> = (0..len).map(|_| (4.0 * next().abs()).round()).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        let range = (low.min(len), high.min(len).max(low.min(len)));
        let multiple = if range.0.next_multiple_of(multiple) <= range.1 { multiple } else { 1 };
        Case { values, cost, weight: f64::from(weight), range, multiple, dense }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_beats_the_allocation(cases in prop::collection::vec(any_case(), 1..5), budget in 0..90_u64) {
        check(&cases, budget);
    }
}
