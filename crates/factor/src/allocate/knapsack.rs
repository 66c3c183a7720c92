//! Exact multiple-choice knapsack with few classes and many, nearly convex choices.

use crate::error::{FactorError, Result};

/// One way to treat one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    /// The rank, or `None` for leaving it dense.
    pub(super) rank: Option<usize>,
    pub(super) cost: u64,
    pub(super) loss: f64,
}

/// One choice for each class, with the least total loss within the budget.
pub(super) fn solve(classes: &[Vec<Choice>], budget: u64) -> Result<Vec<Choice>> {
    let classes: Vec<Vec<Choice>> = classes.iter().map(|class| undominated(class)).collect();
    let total = |pick: fn(&[Choice]) -> Choice| {
        classes.iter().try_fold(0_u64, |sum, class| sum.checked_add(pick(class).cost))
    };
    let minimum = total(|class| class[0]).ok_or(FactorError::Overflow { what: "total cost" })?;
    if minimum > budget {
        return Err(FactorError::BudgetTooSmall { budget, minimum });
    }
    if total(|class| class[class.len() - 1]).is_some_and(|most| most <= budget) {
        return Ok(classes.iter().map(|class| class[class.len() - 1]).collect());
    }
    let problem = Problem::new(&classes, budget - minimum);
    let picked = problem.solve();
    Ok(picked.iter().zip(&classes).map(|(&option, class)| class[option]).collect())
}

/// Choices in order of cost, each with less loss than all before it.
fn undominated(class: &[Choice]) -> Vec<Choice> {
    let mut sorted = class.to_vec();
    sorted.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
    let mut kept: Vec<Choice> = Vec::with_capacity(sorted.len());
    for choice in sorted {
        if kept.last().is_none_or(|last| choice.loss < last.loss) {
            kept.push(choice);
        }
    }
    kept
}

/// A choice with its cost relative to the cheapest of its class, in common units.
#[derive(Clone, Copy)]
struct Point {
    cost: u64,
    loss: f64,
}

/// Fraction of the gap between bound and incumbent that is searched first, and its growth factor.
const FIRST_LIMIT: f64 = 1e-6;
const LIMIT_GROWTH: f64 = 4.0;

struct Problem {
    classes: Vec<Vec<Point>>,
    /// Budget beyond the cheapest choices, in units.
    slack: u64,
}

/// A step between neighbouring corners of a convex hull.
struct Step {
    class: usize,
    to: usize,
    cost: u64,
    /// Loss saved per unit of cost.
    slope: f64,
}

impl Problem {
    fn new(classes: &[Vec<Choice>], slack: u64) -> Self {
        let offsets = classes.iter().flat_map(|class| class.iter().map(|choice| choice.cost - class[0].cost));
        let unit = offsets.fold(0, gcd).max(1);
        let points = |class: &Vec<Choice>| {
            let cost = |choice: &Choice| (choice.cost - class[0].cost) / unit;
            class.iter().map(|choice| Point { cost: cost(choice), loss: choice.loss }).collect()
        };
        Self { classes: classes.iter().map(points).collect(), slack: slack / unit }
    }

    /// Index of the chosen option of every class.
    fn solve(&self) -> Vec<usize> {
        let (incumbent, multiplier) = self.greedy();
        let reduced = self.reduced(multiplier);
        // Total loss = bound + Σ reduced costs + multiplier · unspent budget, for every solution.
        let (spent, excess) = incumbent.iter().enumerate().fold((0, 0.0), |(spent, excess), (j, &option)| {
            (spent + self.classes[j][option].cost, excess + reduced[j][option])
        });
        let gap = excess + multiplier * (self.slack - spent) as f64;
        let scale = self.classes.iter().map(|class| class[0].loss).sum::<f64>()
            + multiplier * self.classes.iter().map(|class| class[class.len() - 1].cost).sum::<u64>() as f64;
        let tolerance = 1e-13 * scale;
        if gap <= tolerance {
            return incumbent;
        }
        // The best solution found within a limit is optimal, since every better one lies within it too. The
        // optimum is much closer to the bound than the incumbent, and near the bound there are few states.
        let mut limit = gap * FIRST_LIMIT;
        loop {
            let search = Search { problem: self, reduced: &reduced, multiplier, limit: limit + tolerance };
            match search.run() {
                Some(found) if self.loss(&found) < self.loss(&incumbent) => return found,
                Some(_) => return incumbent,
                None if limit >= gap => return incumbent,
                None => limit = (LIMIT_GROWTH * limit).min(gap),
            }
        }
    }

    fn loss(&self, options: &[usize]) -> f64 {
        options.iter().zip(&self.classes).map(|(&option, class)| class[option].loss).sum()
    }

    /// Follows the convex hulls, steepest step first. Returns a feasible solution and the slope of the
    /// first step that does not fit, which is the multiplier of the linear relaxation.
    fn greedy(&self) -> (Vec<usize>, f64) {
        let mut steps: Vec<Step> =
            self.classes.iter().enumerate().flat_map(|(class, points)| hull(class, points)).collect();
        // Stable, so that equal slopes keep the steps of one class in order.
        steps.sort_by(|a, b| b.slope.total_cmp(&a.slope));
        let mut options = vec![0; self.classes.len()];
        let mut blocked = vec![false; self.classes.len()];
        let (mut left, mut multiplier) = (self.slack, None);
        for step in steps {
            if blocked[step.class] {
                continue;
            }
            if step.cost <= left {
                left -= step.cost;
                options[step.class] = step.to;
            } else {
                blocked[step.class] = true;
                multiplier.get_or_insert(step.slope);
                left -= self.stretch(step.class, &mut options[step.class], left);
            }
        }
        (options, multiplier.unwrap_or(0.0))
    }

    /// Moves a class to its dearest option within `left` units, on the hull or not; returns the cost.
    fn stretch(&self, class: usize, option: &mut usize, left: u64) -> u64 {
        let points = &self.classes[class];
        let before = points[*option].cost;
        *option = points.partition_point(|point| point.cost <= before + left) - 1;
        points[*option].cost - before
    }

    /// Distance of each option from the best of its class at a given price of cost.
    fn reduced(&self, multiplier: f64) -> Vec<Vec<f64>> {
        let price = |point: &Point| point.loss + multiplier * point.cost as f64;
        let class = |points: &Vec<Point>| {
            let best = points.iter().map(price).fold(f64::INFINITY, f64::min);
            points.iter().map(|point| price(point) - best).collect()
        };
        self.classes.iter().map(class).collect()
    }
}

/// Steps along the lower convex hull, steepest first.
fn hull(class: usize, points: &[Point]) -> Vec<Step> {
    let slope =
        |a: usize, b: usize| (points[a].loss - points[b].loss) / (points[b].cost - points[a].cost) as f64;
    let mut corners: Vec<usize> = vec![0];
    for next in 1..points.len() {
        while let [.., before, last] = corners[..] {
            // Collinear points are kept: they are cheaper steps at the same price.
            if slope(before, last) >= slope(last, next) {
                break;
            }
            corners.pop();
        }
        corners.push(next);
    }
    let step = |pair: &[usize]| Step {
        class,
        to: pair[1],
        cost: points[pair[1]].cost - points[pair[0]].cost,
        slope: slope(pair[0], pair[1]),
    };
    corners.windows(2).map(step).collect()
}

/// Dynamic programme over the options whose reduced cost does not rule them out.
struct Search<'a> {
    problem: &'a Problem,
    reduced: &'a [Vec<f64>],
    multiplier: f64,
    /// A solution better than the incumbent has reduced costs and unspent budget that sum to at most this.
    limit: f64,
}

/// A partial solution over the classes so far.
#[derive(Clone, Copy)]
struct State {
    cost: u64,
    loss: f64,
    reduced: f64,
    parent: usize,
    option: usize,
}

impl Search<'_> {
    fn run(&self) -> Option<Vec<usize>> {
        let classes = &self.problem.classes;
        let open = |j: usize| {
            let reduced = &self.reduced[j];
            (0..reduced.len()).filter(|&option| reduced[option] <= self.limit).collect::<Vec<_>>()
        };
        let options: Vec<Vec<usize>> = (0..classes.len()).map(open).collect();
        // Least and most that the classes from j on can cost.
        let mut least = vec![0; classes.len() + 1];
        let mut most = vec![0; classes.len() + 1];
        for j in (0..classes.len()).rev() {
            least[j] = least[j + 1] + classes[j][*options[j].first()?].cost;
            most[j] = most[j + 1] + classes[j][*options[j].last()?].cost;
        }
        let root = State { cost: 0, loss: 0.0, reduced: 0.0, parent: 0, option: 0 };
        let mut layers: Vec<Vec<State>> = vec![vec![root]];
        for j in 0..classes.len() {
            let mut next = Vec::new();
            for (parent, state) in layers[j].iter().enumerate() {
                for &option in &options[j] {
                    let point = classes[j][option];
                    let cost = state.cost + point.cost;
                    let reduced = state.reduced + self.reduced[j][option];
                    let unspent = self.problem.slack.saturating_sub(cost + most[j + 1]);
                    if cost + least[j + 1] <= self.problem.slack
                        && reduced + self.multiplier * unspent as f64 <= self.limit
                    {
                        next.push(State { cost, loss: state.loss + point.loss, reduced, parent, option });
                    }
                }
            }
            layers.push(pareto(next));
        }
        // Losses fall along a Pareto front, so its last state is the best.
        let mut index = layers.last()?.len().checked_sub(1)?;
        let mut picked = vec![0; classes.len()];
        for j in (0..classes.len()).rev() {
            let state = layers[j + 1][index];
            (picked[j], index) = (state.option, state.parent);
        }
        Some(picked)
    }
}

/// States in order of cost, each with less loss than all before it.
fn pareto(mut states: Vec<State>) -> Vec<State> {
    states.sort_unstable_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
    let mut best = f64::INFINITY;
    states.retain(|state| {
        let better = state.loss < best;
        best = best.min(state.loss);
        better
    });
    states
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
