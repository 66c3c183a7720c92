//! Factors of a unit: the cost of each form, and the factors themselves.

use lowrank_factor::matrix::to_row_major;
use lowrank_factor::truncation::break_even_rank;
use lowrank_factor::tt::{TtMatrix, TtShape};
use lowrank_factor::tucker::{SharedSide, Tucker2Options, shared_basis, tucker2, tucker2_with_ranks};
use lowrank_factor::{MatRef, Subspace, Truncation, subspace, whitened};
use lowrank_spec::names::{WeightPart, expert_of};

use crate::allocate;
use crate::error::{CompressError, Result, at};
use crate::method::{Method, Sides};
use crate::products::{Products, leading};
use crate::rounding::{of_product, with_rounding};
use crate::sided;
use crate::statistics::Weighting;
use crate::unit::{Choice, Form, Unit};

/// One tensor of a factored module, in the file's layout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factor {
    /// Suffix after the module's path.
    pub(crate) suffix: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The result of factoring a unit: the tensors of each of its weights, and the relative error in the method's
/// norm.
#[derive(Clone, Debug)]
pub(crate) struct Fitted {
    pub(crate) factors: Vec<Vec<Factor>>,
    pub(crate) error: f64,
    /// The subspace from which low-rank factors were computed.
    pub(crate) kept: Option<Kept>,
}

impl Fitted {
    /// Adds the rounding of the factors to the error; `stored` are the factors as they will be read.
    pub(crate) fn round(&mut self, stored: &[Vec<Vec<f32>>]) {
        self.error = with_rounding(self.error, &self.factors, stored, self.kept.as_ref());
    }

    /// The same for a pair that is stored as another pair of the same product.
    pub(crate) fn round_product(&mut self, stored: &[Vec<Vec<f32>>]) {
        if let ([factors], [stored], Some(kept)) = (self.factors.as_slice(), stored, &self.kept) {
            self.error = (self.error * self.error + of_product(factors, stored, kept)).sqrt();
        }
    }
}

/// The losses of the ranks of one form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Curve {
    /// Rank `r` loses the sum of `squared[r..]`, times `weight`.
    PerRank { form: Form, squared: Vec<f64>, weight: f64 },
    /// Only one choice is known.
    Point { choice: Choice, loss: f64 },
}

/// Analysis of a unit before its ranks are chosen.
#[derive(Clone, Debug)]
pub(crate) struct Analysis {
    pub(crate) curves: Vec<Curve>,
    /// Squared norm in the method's norm.
    pub(crate) total: f64,
    /// Importance of a loss of 1 relative to the losses of other units.
    pub(crate) importance: f64,
    /// Subspace of the low-rank form, up to the rank at which it stops saving parameters unless that does not
    /// matter.
    pub(crate) kept: Option<Kept>,
    /// Shrinkage of the weightings, if there are any.
    pub(crate) shrinkage: Option<f64>,
}

/// A subspace, and the diagonals of the weightings under which it was computed.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) subspace: Subspace<f32>,
    /// Length `d_input`; empty for an unweighted side.
    pub(crate) inputs: Vec<f32>,
    /// Length `d_output`; empty for an unweighted side.
    pub(crate) outputs: Vec<f32>,
}

impl Kept {
    fn plain(subspace: Subspace<f32>) -> Self {
        Self { subspace, inputs: Vec::new(), outputs: Vec::new() }
    }
}

impl Analysis {
    /// Losses are relative to the unit's own norm until [`effects`](crate::Calibrator::effect) are known: the
    /// outputs of layers differ by orders of magnitude, and the norms that follow make their relative errors
    /// matter.
    pub(crate) fn new(curves: Vec<Curve>, total: f64, kept: Option<Kept>) -> Self {
        let importance = if total > 0.0 { total.recip() } else { 0.0 };
        Self { curves, total, importance, kept, shrinkage: None }
    }

    /// The losses of low rank under a method: two-sided losses are already in units of the model's loss.
    pub(crate) fn low_rank(method: Method, squared: Vec<f64>, kept: Option<Kept>) -> Self {
        let total = squared.iter().sum();
        let curves = vec![Curve::PerRank { form: Form::LowRank, squared, weight: 1.0 }];
        let made = Self::new(curves, total, kept);
        if method == Method::TwoSided { Self { importance: 1.0, ..made } } else { made }
    }

    /// Restricts a unit to one choice: its losses cannot be compared with those of others.
    pub(crate) fn pin(&mut self, choice: Choice) {
        self.curves = vec![Curve::Point { choice, loss: 0.0 }];
    }

    /// Drops the large parts.
    pub(crate) fn forget_vectors(&mut self) {
        self.kept = None;
    }
}

/// Criterion for the forms that are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) method: Method,
    pub(crate) sides: Sides,
    pub(crate) tt_order: usize,
    /// Remaining fraction of the parameters at which forms are compared.
    pub(crate) share: f64,
    /// Relative error to meet instead.
    pub(crate) truncation: Option<Truncation>,
    /// Whether ranks beyond the one at which factors save parameters may be chosen.
    pub(crate) always_factor: bool,
    /// Place of large products.
    pub(crate) products: Option<&'a dyn Products>,
}

/// The subspace of one weight `[d_output, d_input]` under a weighting, and the shrinkage if there is one:
/// `known`, or chosen here. If a rank is given, no more vectors are needed.
fn low_rank_subspace(
    rules: &Rules<'_>,
    unit: &Unit,
    a: MatRef<'_, f32>,
    weighting: &Weighting,
    known: Option<f64>,
    rank: Option<usize>,
) -> Result<(Kept, Option<f64>)> {
    let path = unit.weights[0].site.path.as_str();
    let fail = |e| at(path)(e);
    let plain = || -> Result<(Kept, Option<f64>)> {
        Ok((Kept::plain(leading(a, rank, rules.products).map_err(fail)?), None))
    };
    let diagonal = |weights: Vec<f32>| -> Result<Kept> {
        let subspace = whitened::by_diagonal(a, &weights).and_then(|w| w.into_subspace()).map_err(fail)?;
        let inputs = weights.into_iter().map(|weight| weight * weight).collect();
        Ok(Kept { subspace, inputs, outputs: Vec::new() })
    };
    match (rules.method, weighting) {
        (Method::Whitened | Method::Auto, Weighting::Inputs(inputs)) => {
            let gram = inputs.gram.as_ref();
            let subspace = whitened::by_gram(a, gram).and_then(|w| w.into_subspace()).map_err(fail)?;
            let inputs = (0..gram.nrows()).map(|i| gram[(i, i)] as f32).collect();
            Ok((Kept { subspace, inputs, outputs: Vec::new() }, None))
        }
        (Method::Asvd, Weighting::Inputs(inputs)) => {
            let rows = inputs.rows.max(1) as f64;
            Ok((diagonal(inputs.magnitude.iter().map(|m| (m / rows).sqrt() as f32).collect())?, None))
        }
        (Method::Fwsvd | Method::Whitened | Method::Asvd, Weighting::Channels(weights)) => {
            Ok((diagonal(weights.clone())?, None))
        }
        (Method::TwoSided, Weighting::Both { sums, held_out, .. }) => {
            let form = Form::LowRank;
            let rank = allocate::rank_at_share(unit, rules.share, &form, unit.max_rank(&form));
            let (kept, shrinkage) = sided::subspace(a, sums, held_out.as_ref(), known, rank).map_err(fail)?;
            Ok((kept, Some(shrinkage)))
        }
        // No token of the calibration text reached this expert.
        (_, Weighting::None) if expert_of(path).is_some() => plain(),
        (method, _) if method.needs_inputs() || method.needs_gradients() => {
            Err(CompressError::Input(format!(
                "'{path}': calibration has no statistics of it, which {} needs; leave it out with --exclude, or \
                 compress it by svd",
                method.name()
            )))
        }
        _ => plain(),
    }
}

/// The forms of a unit with the losses of their ranks. `values` are those of
/// [`Weight::read`](crate::Weight::read).
pub(crate) fn analyse(
    rules: &Rules<'_>,
    unit: &Unit,
    values: &[Vec<f32>],
    weightings: &[Weighting],
    known: Option<f64>,
) -> Result<Analysis> {
    let views = views(unit, values)?;
    match rules.method {
        Method::Shared => analyse_shared(rules, unit, &views),
        Method::Tt => {
            let curve = train_curve(rules, unit, views[0])?;
            Ok(Analysis::new(vec![curve], squared_norm(views[0]), None))
        }
        method => {
            let (mut kept, shrinkage) =
                low_rank_subspace(rules, unit, views[0], &weightings[0], known, None)?;
            let squared = kept.subspace.squared().to_vec();
            let [d_input, d_output] = unit.shape();
            // The vectors beyond it are needed only for ranks that save no parameters.
            if !rules.always_factor {
                let last = match unit.bytes {
                    Some(bytes) => unit.rank_within(&Form::LowRank, bytes.dense - 1),
                    None if unit.pivots => d_input.min(d_output),
                    None => break_even_rank(d_output, d_input),
                };
                kept.subspace = kept.subspace.shortened(last);
            }
            let mut made = Analysis::low_rank(method, squared, Some(kept));
            made.shrinkage = shrinkage;
            if let Weighting::Both { share, .. } = &weightings[0] {
                made.importance *= share;
            }
            if method == Method::Auto {
                let mut train = train_curve(rules, unit, views[0])?;
                if let Weighting::Inputs(inputs) = &weightings[0] {
                    train = weighted(rules, unit, views[0], train, inputs.gram.as_ref())?;
                }
                made.curves.push(train);
            }
            Ok(made)
        }
    }
}

/// The factors of a choice. `kept` is the stored analysis, if there is one.
pub(crate) fn factor(
    rules: &Rules<'_>,
    unit: &Unit,
    values: &[Vec<f32>],
    choice: &Choice,
    kept: Option<&Kept>,
    weightings: &[Weighting],
) -> Result<Fitted> {
    let views = views(unit, values)?;
    let path = unit.weights[0].site.path.as_str();
    let fail = |e| at(path)(e);
    match choice {
        Choice::Dense => Err(CompressError::Input(format!("'{path}' is left dense and has no factors"))),
        Choice::Rank(Form::LowRank | Form::Tucker, rank) => {
            let kept = match kept.filter(|kept| kept.subspace.basis().ncols() >= *rank) {
                Some(kept) => kept.clone(),
                None => low_rank_subspace(rules, unit, views[0], &weightings[0], None, Some(*rank))?.0,
            };
            let fit = kept.subspace.low_rank(views[0], &Truncation::Rank(*rank)).map_err(fail)?;
            let (left, right) = fit.factors.to_row_major(); // [out, r], [r, in]
            let [d_input, d_output] = unit.shape();
            let factors = vec![a_factor(right, *rank, d_input), b_factor(left, d_output, *rank)];
            Ok(Fitted { factors: vec![factors], error: fit.report.relative_error, kept: Some(kept) })
        }
        Choice::Rank(form @ (Form::SharedA | Form::SharedB), rank) => {
            shared_factors(unit, &views, form, *rank)
        }
        Choice::Rank(Form::TensorTrain(shape), rank) => train_factors(unit, views[0], shape, &[*rank]),
        Choice::Train(shape, ranks) => train_factors(unit, views[0], shape, ranks),
        Choice::Tucker([of_a, of_b]) => {
            let fit = tucker2_with_ranks(&views, (*of_b, *of_a), &Tucker2Options::default()).map_err(fail)?;
            let error = fit.report.relative_error;
            let (left, cores, right) = fit.factors.into_parts(); // [out, r_b], [r_b, r_a], [r_a, in]
            let [d_input, d_output] = unit.shape();
            let mut outer = vec![
                a_factor(to_row_major(right.as_ref()), *of_a, d_input),
                b_factor(to_row_major(left.as_ref()), d_output, *of_b),
            ];
            let factors = cores.iter().map(|core| {
                let mut own = std::mem::take(&mut outer);
                own.push(Factor {
                    suffix: WeightPart::FactorC.suffix(),
                    shape: vec![*of_b, *of_a],
                    values: to_row_major(core.as_ref()),
                });
                own
            });
            Ok(Fitted { factors: factors.collect(), error, kept: None })
        }
    }
}

/// The tensors that a choice will write for each weight, without their values and before pivots are taken out.
pub(crate) fn planned(unit: &Unit, choice: &Choice) -> Vec<Vec<(String, Vec<usize>)>> {
    use lowrank_spec::representation::Representation;
    let [d_input, d_output] = unit.shape();
    let of = |representation: Representation| match representation {
        Representation::LowRank { ranks, a_of, b_of, .. } => {
            let (first, last) = (ranks[0], ranks[ranks.len() - 1]);
            let mut tensors = Vec::new();
            if a_of.is_none() {
                tensors.push((WeightPart::FactorA.suffix(), vec![first, d_input]));
            }
            if b_of.is_none() {
                tensors.push((WeightPart::FactorB.suffix(), vec![d_output, last]));
            }
            if ranks.len() == 2 {
                tensors.push((WeightPart::FactorC.suffix(), vec![last, first]));
            }
            tensors
        }
        Representation::TensorTrain { cores } => {
            cores.iter().enumerate().map(|(k, core)| (WeightPart::Core(k).suffix(), core.to_vec())).collect()
        }
        // A dense weight is copied, and sums are written by the quantizing methods.
        Representation::Dense | Representation::Sum { .. } => Vec::new(),
    };
    choice.representations(unit).into_iter().map(of).collect()
}

/// Approximate peak memory of factoring a unit, in bytes.
pub(crate) fn bytes(rules: &Rules<'_>, unit: &Unit, is_weighted: bool) -> u64 {
    let [d_input, d_output] = unit.shape().map(|d| d as u64);
    let (numel, short) = (unit.numel(), d_input.min(d_output));
    match rules.method {
        // Values, a contiguous copy, and an exact decomposition of it.
        Method::Shared | Method::Tt => 4 * (2 * numel + 4 * (numel + short * short)),
        // Both Gram matrices twice (held-out texts, their sum), the short side's problem of each.
        Method::TwoSided => {
            4 * numel + 8 * (3 * numel + 3 * d_input * d_input + 3 * d_output * d_output + 12 * short * short)
        }
        // The same in f64, with the statistics of the inputs.
        _ if is_weighted => 4 * numel + 8 * (4 * numel + 3 * d_input * d_input + 4 * short * short),
        Method::Auto => 4 * (3 * numel + 4 * (numel + short * short)),
        // Values, a copy, factors; one side of an exact decomposition.
        _ => 4 * (3 * numel + 4 * short * short),
    }
}

fn views<'a>(unit: &Unit, values: &'a [Vec<f32>]) -> Result<Vec<MatRef<'a, f32>>> {
    unit.weights.iter().zip(values).map(|(weight, values)| weight.view(values)).collect()
}

fn a_factor(values: Vec<f32>, rank: usize, d_input: usize) -> Factor {
    Factor { suffix: WeightPart::FactorA.suffix(), shape: vec![rank, d_input], values }
}

fn b_factor(values: Vec<f32>, d_output: usize, rank: usize) -> Factor {
    Factor { suffix: WeightPart::FactorB.suffix(), shape: vec![d_output, rank], values }
}

/// `‖A‖²_F` in `f64`.
fn squared_norm(a: MatRef<'_, f32>) -> f64 {
    let column = |j: usize| a.col(j).iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    (0..a.ncols()).map(column).sum()
}

/// `tr(E·G·Eᵀ)` for `E = A − Â`.
fn weighted_loss(a: MatRef<'_, f32>, approximation: MatRef<'_, f32>, gram: MatRef<'_, f64>) -> f64 {
    let error = lowrank_factor::Mat::from_fn(a.nrows(), a.ncols(), |i, j| {
        f64::from(a[(i, j)]) - f64::from(approximation[(i, j)])
    });
    let product = &error * gram;
    let row = |i: usize| (0..a.ncols()).map(|j| error[(i, j)] * product[(i, j)]).sum::<f64>();
    (0..a.nrows()).map(row).sum()
}

pub(crate) fn tt_shape(rules: &Rules<'_>, unit: &Unit) -> Result<TtShape> {
    let [d_input, d_output] = unit.shape();
    TtShape::balanced(d_input, d_output, rules.tt_order).map_err(at(&unit.name()))
}

/// The losses of a tensor train of one weight; `a` is `[d_output, d_input]`.
fn train_curve(rules: &Rules<'_>, unit: &Unit, a: MatRef<'_, f32>) -> Result<Curve> {
    let name = unit.name();
    let shape = tt_shape(rules, unit)?;
    if shape.order() == 2 {
        let squared = TtMatrix::unfolding_spectra(a.transpose(), &shape).map_err(at(&name))?.remove(0);
        return Ok(Curve::PerRank { form: Form::TensorTrain(shape), squared, weight: 1.0 });
    }
    let budget = Truncation::Parameters((unit.numel() as f64 * rules.share) as usize);
    let truncation = rules.truncation.unwrap_or(budget);
    let fit = TtMatrix::from_dense(a.transpose(), &shape, &truncation).map_err(at(&name))?;
    let loss = fit.report.relative_error.powi(2) * squared_norm(a);
    Ok(Curve::Point { choice: Choice::Train(shape, fit.factors.ranks()), loss })
}

/// The curve of a tensor train in the norm of the inputs, from a single point of it.
fn weighted(
    rules: &Rules<'_>,
    unit: &Unit,
    a: MatRef<'_, f32>,
    curve: Curve,
    gram: MatRef<'_, f64>,
) -> Result<Curve> {
    let name = unit.name();
    let loss = |shape: &TtShape, ranks: &[usize]| -> Result<f64> {
        let fit = TtMatrix::from_dense_with_ranks(a.transpose(), shape, ranks).map_err(at(&name))?;
        let dense = fit.factors.to_dense().map_err(at(&name))?;
        Ok(weighted_loss(a, dense.transpose(), gram))
    };
    Ok(match curve {
        Curve::PerRank { form: Form::TensorTrain(shape), squared, .. } => {
            let form = Form::TensorTrain(shape.clone());
            let cost = unit.cost_per_rank(&form).unwrap_or(1);
            let rank = ((unit.numel() as f64 * rules.share) as u64 / cost).clamp(1, squared.len() as u64);
            let plain: f64 = squared[rank as usize..].iter().sum();
            let found = loss(&shape, &[rank as usize])?;
            let weight = if plain > 0.0 { found / plain } else { 1.0 };
            Curve::PerRank { form, squared, weight }
        }
        Curve::Point { choice: Choice::Train(shape, ranks), .. } => {
            let loss = loss(&shape, &ranks)?;
            Curve::Point { choice: Choice::Train(shape, ranks), loss }
        }
        other => other,
    })
}

fn train_factors(unit: &Unit, a: MatRef<'_, f32>, shape: &TtShape, ranks: &[usize]) -> Result<Fitted> {
    let fit = TtMatrix::from_dense_with_ranks(a.transpose(), shape, ranks).map_err(at(&unit.name()))?;
    let shapes = fit.factors.core_shapes();
    let cores = fit.factors.train().cores().iter().zip(shapes).enumerate();
    let factors = cores.map(|(k, (core, shape))| Factor {
        suffix: WeightPart::Core(k).suffix(),
        shape: shape.to_vec(),
        values: core.data().to_vec(),
    });
    Ok(Fitted { factors: vec![factors.collect()], error: fit.report.relative_error, kept: None })
}

/// Curves of the shared forms of weights `[d_output, d_input]`.
fn analyse_shared(rules: &Rules<'_>, unit: &Unit, views: &[MatRef<'_, f32>]) -> Result<Analysis> {
    let fail = |e| at(&unit.name())(e);
    let total = views.iter().map(|a| squared_norm(*a)).sum();
    let mut curves = Vec::new();
    if rules.sides != Sides::Both {
        for (form, side) in [(Form::SharedA, SharedSide::Right), (Form::SharedB, SharedSide::Left)] {
            let stacked = stack(views, side);
            let squared = subspace::leading(stacked.as_ref()).map_err(fail)?.squared().to_vec();
            curves.push(Curve::PerRank { form, squared, weight: 1.0 });
        }
    }
    if rules.sides != Sides::One {
        let budget = Truncation::Parameters((unit.numel() as f64 * rules.share) as usize);
        let truncation = rules.truncation.unwrap_or(budget);
        let fit = tucker2(views, &truncation, &Tucker2Options::default()).map_err(fail)?;
        let (of_b, of_a) = fit.factors.ranks();
        let loss = fit.report.relative_error.powi(2) * total;
        curves.push(Curve::Point { choice: Choice::Tucker([of_a, of_b]), loss });
    }
    Ok(Analysis::new(curves, total, None))
}

/// The weights stacked vertically (shared input side) or the transposed weights stacked vertically.
fn stack(views: &[MatRef<'_, f32>], side: SharedSide) -> lowrank_factor::Mat<f32> {
    let oriented: Vec<MatRef<'_, f32>> = match side {
        SharedSide::Right => views.to_vec(),
        SharedSide::Left => views.iter().map(|a| a.transpose()).collect(),
    };
    let (rows, columns) = oriented[0].shape();
    lowrank_factor::Mat::from_fn(rows * views.len(), columns, |i, j| oriented[i / rows][(i % rows, j)])
}

fn shared_factors(unit: &Unit, views: &[MatRef<'_, f32>], form: &Form, rank: usize) -> Result<Fitted> {
    let side = if *form == Form::SharedA { SharedSide::Right } else { SharedSide::Left };
    let fit = shared_basis(views, side, &Truncation::Rank(rank)).map_err(at(&unit.name()))?;
    let [d_input, d_output] = unit.shape();
    let (shared, own) = fit.factors.into_parts();
    let shared = to_row_major(shared.as_ref());
    let mut first = vec![match side {
        SharedSide::Right => a_factor(shared, rank, d_input),
        SharedSide::Left => b_factor(shared, d_output, rank),
    }];
    let factors = own.iter().map(|own| {
        let mut tensors = std::mem::take(&mut first);
        let values = to_row_major(own.as_ref());
        tensors.push(match side {
            SharedSide::Right => b_factor(values, d_output, rank),
            SharedSide::Left => a_factor(values, rank, d_input),
        });
        tensors
    });
    Ok(Fitted { factors: factors.collect(), error: fit.report.relative_error, kept: None })
}
