//! Units of weights that are factored together, and the forms they can take.

use lowrank_factor::tt::TtShape;
use lowrank_spec::representation::Representation;

use crate::weights::Weight;

/// Weights that are factored together: one, or all of a kind if they share factors.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) weights: Vec<Weight>,
    /// Whether factors of one weight are stored with pivots.
    pub(crate) pivots: bool,
    /// The costs of one weight in bytes, if a budget counts these instead of parameters.
    pub(crate) bytes: Option<Bytes>,
}

/// Bytes of a weight as it will be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    /// As dense floats.
    pub(crate) dense: u64,
    /// For each rank of [`Form::LowRank`].
    pub(crate) per_rank: u64,
}

impl Unit {
    /// Elements of all weights.
    pub(crate) fn numel(&self) -> u64 {
        self.weights.iter().map(|w| w.numel() as u64).sum()
    }

    /// The cost of leaving the weights dense: parameters or bytes.
    pub(crate) fn dense_cost(&self) -> u64 {
        self.bytes.map_or_else(|| self.numel(), |bytes| bytes.dense)
    }

    /// The cost of a choice: parameters or bytes.
    pub(crate) fn cost_of(&self, choice: &Choice) -> u64 {
        match (self.bytes, choice) {
            (Some(bytes), Choice::Dense) => bytes.dense,
            (Some(bytes), Choice::Rank(Form::LowRank, rank)) => bytes.per_rank * *rank as u64,
            _ => choice.parameters(self),
        }
    }

    /// `[d_input, d_output]` of each of them.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.weights[0].shape()
    }

    /// The transformer layer in the order in which layers are run, if the unit lies in one.
    pub(crate) fn layer(&self) -> Option<usize> {
        if self.weights.len() == 1 { self.weights[0].step } else { None }
    }

    /// The kind of its weights: the path without the number of the layer.
    pub(crate) fn kind(&self) -> String {
        self.weights[0].site.kind()
    }

    /// The name for messages and progress.
    pub(crate) fn name(&self) -> String {
        match self.weights.as_slice() {
            [one] => one.site.path.clone(),
            many => format!("{} ({} layers)", many[0].site.kind(), many.len()),
        }
    }

    /// Largest rank of a form.
    pub(crate) fn max_rank(&self, form: &Form) -> usize {
        let ([d_input, d_output], s) = (self.shape(), self.weights.len());
        match form {
            Form::LowRank => d_input.min(d_output),
            Form::SharedA => d_input.min(s * d_output),
            Form::SharedB => d_output.min(s * d_input),
            Form::TensorTrain(shape) => {
                let modes = modes(shape);
                let left: usize = modes[..1].iter().product();
                left.min(modes[1..].iter().product())
            }
            Form::Tucker => d_input.max(d_output),
        }
    }

    /// Whether a rank `r` of a form saves `r²` parameters.
    pub(crate) fn is_pivoted(&self, form: &Form) -> bool {
        self.pivots && *form == Form::LowRank
    }

    /// Parameters (or bytes) of a form at a rank, if it has one rank.
    pub(crate) fn cost(&self, form: &Form, rank: usize) -> Option<u64> {
        let saved = if self.is_pivoted(form) { (rank * rank) as u64 } else { 0 };
        Some((self.cost_per_rank(form)? * rank as u64).saturating_sub(saved))
    }

    /// The largest rank of a form that costs at most `most`, at least 1.
    pub(crate) fn rank_within(&self, form: &Form, most: u64) -> usize {
        let (mut low, mut high) = (1, self.max_rank(form).max(1));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.cost(form, middle).is_some_and(|cost| cost <= most) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// Parameters (or bytes) per rank of a form, if they are proportional to the rank; without what pivots save.
    pub(crate) fn cost_per_rank(&self, form: &Form) -> Option<u64> {
        let ([d_input, d_output], s) = (self.shape(), self.weights.len());
        match form {
            Form::LowRank => Some(self.bytes.map_or((d_input + d_output) as u64, |bytes| bytes.per_rank)),
            Form::SharedA => Some((d_input + s * d_output) as u64),
            Form::SharedB => Some((d_output + s * d_input) as u64),
            Form::TensorTrain(shape) if shape.order() == 2 => Some(modes(shape).iter().sum::<usize>() as u64),
            Form::TensorTrain(_) | Form::Tucker => None,
        }
    }
}

/// The paired modes `m_k·n_k`.
fn modes(shape: &TtShape) -> Vec<usize> {
    shape.rows().factors().iter().zip(shape.cols().factors()).map(|(m, n)| m * n).collect()
}

/// A form for the weights of a unit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    /// `W = A·B` for one weight.
    LowRank,
    /// `W_s = A·B_s`: the input side is shared.
    SharedA,
    /// `W_s = A_s·B`: the output side is shared.
    SharedB,
    /// `W_s = A·C_s·B` (LoTR on the weights themselves).
    Tucker,
    /// A tensor train for one weight.
    TensorTrain(TtShape),
}

/// A form with its ranks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    /// Left unchanged.
    Dense,
    /// A form with one rank; this includes a tensor train of two cores.
    Rank(Form, usize),
    /// Both ranks of [`Form::Tucker`], `[of A, of B]`.
    Tucker([usize; 2]),
    /// All inner ranks of a tensor train.
    Train(TtShape, Vec<usize>),
}

impl Choice {
    /// How each weight of the unit is stored.
    pub(crate) fn representations(&self, unit: &Unit) -> Vec<Representation> {
        let owner = &unit.weights[0].site.path;
        let each = |one: &dyn Fn(Option<String>) -> Representation| {
            (0..unit.weights.len()).map(|i| one((i > 0).then(|| owner.clone()))).collect()
        };
        match self {
            Self::Dense => each(&|_| Representation::Dense),
            Self::Rank(Form::SharedA, rank) => each(&|of| Representation::LowRank {
                ranks: vec![*rank],
                a_of: of,
                b_of: None,
                pivots: false,
            }),
            Self::Rank(Form::SharedB, rank) => each(&|of| Representation::LowRank {
                ranks: vec![*rank],
                a_of: None,
                b_of: of,
                pivots: false,
            }),
            Self::Rank(Form::TensorTrain(shape), rank) => {
                each(&|_| Representation::TensorTrain { cores: core_shapes(shape, &[*rank]) })
            }
            // At full rank every row is a pivot, and the form is not defined.
            Self::Rank(Form::LowRank, rank) if unit.pivots && *rank < unit.shape()[1] => each(&|_| {
                Representation::LowRank { ranks: vec![*rank], a_of: None, b_of: None, pivots: true }
            }),
            Self::Rank(Form::LowRank | Form::Tucker, rank) => each(&|_| Representation::low_rank(*rank)),
            Self::Tucker(ranks) => each(&|of| Representation::LowRank {
                ranks: ranks.to_vec(),
                a_of: of.clone(),
                b_of: of,
                pivots: false,
            }),
            Self::Train(shape, ranks) => {
                each(&|_| Representation::TensorTrain { cores: core_shapes(shape, ranks) })
            }
        }
    }

    /// Parameters of all weights of the unit.
    pub(crate) fn parameters(&self, unit: &Unit) -> u64 {
        let of = unit.shape();
        self.representations(unit).iter().map(|r| r.parameters(of) as u64).sum()
    }
}

/// Shapes `[r_{k-1}, m_k, n_k, r_k]`.
fn core_shapes(shape: &TtShape, ranks: &[usize]) -> Vec<[usize; 4]> {
    let last = shape.order() - 1;
    let rank = |k: usize| if k == 0 || k > last { 1 } else { ranks[k - 1] };
    (0..=last).map(|k| [rank(k), shape.rows().factors()[k], shape.cols().factors()[k], rank(k + 1)]).collect()
}

/// Groups the weights: all of a kind and shape together if factors are shared, otherwise each alone.
pub(crate) fn units(weights: Vec<Weight>, is_shared: bool, pivots: bool) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for weight in weights {
        let same = |unit: &&mut Unit| {
            let first = &unit.weights[0];
            first.site.layer.is_some()
                && weight.site.layer.is_some()
                && first.site.kind() == weight.site.kind()
                && first.shape() == weight.shape()
        };
        match units.iter_mut().find(same).filter(|_| is_shared) {
            Some(unit) => unit.weights.push(weight),
            None => units.push(Unit { weights: vec![weight], pivots, bytes: None }),
        }
    }
    units
}
