//! The rule of each step: gradients of its arguments from that of its output.

use burn::tensor::ops::{FloatTensor, IntTensor};

use super::step::Rule;
use crate::kernels::{AttentionGrads, AttentionTensors, Kernels, NormState};
use crate::spec::{AttentionSpec, Dropout, Gate, LoraSpec, NormSpec, RopeSpec};
use crate::weight::Weight;

/// What the gradients of a linear step need: x if w is tracked, and w if x is.
#[derive(Clone, Debug)]
pub(super) struct LinearState<T> {
    pub(super) x: Option<T>,
    pub(super) w: Option<Weight<T>>,
}

pub(super) fn linear_state<B: Kernels>(
    [x_tracked, w_tracked, bias_tracked]: [bool; 3],
    x: &FloatTensor<B>,
    w: &Weight<FloatTensor<B>>,
) -> Option<LinearState<FloatTensor<B>>> {
    (x_tracked || w_tracked || bias_tracked)
        .then(|| LinearState { x: w_tracked.then(|| x.clone()), w: x_tracked.then(|| w.clone()) })
}

#[derive(Debug)]
pub(super) struct Linear;

impl<B: Kernels> Rule<B, 3> for Linear {
    type State = LinearState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        [
            state.w.map(|w| B::linear_input_grad(dy.clone(), w)),
            state.x.map(|x| B::linear_weight_grad(x, dy.clone())),
            needed[2].then(|| B::sum_rows(dy)),
        ]
    }
}

/// What the gradients of a linear step with an adapter need, each if one of them does.
#[derive(Clone, Debug)]
pub(super) struct LoraState<T> {
    pub(super) x: Option<T>,
    pub(super) w: Option<Weight<T>>,
    /// `dropout(x)·a`.
    pub(super) h: Option<T>,
    pub(super) a: Option<T>,
    pub(super) b: Option<T>,
    pub(super) spec: LoraSpec,
}

#[derive(Debug)]
pub(super) struct Lora;

impl<B: Kernels> Rule<B, 5> for Lora {
    type State = LoraState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        let [_, w_needed, bias_needed, a_needed, _] = needed;
        let (x, w, a, spec) = (state.x.clone(), state.w.clone(), state.a.clone(), state.spec);
        let bias = bias_needed.then(|| B::sum_rows(dy.clone()));
        let d_w = x.filter(|_| w_needed).map(|x| B::linear_weight_grad(x, dy.clone()));
        let FactorGrads { d_a, d_b, dh } = factor_grads::<B>(state, &dy, a_needed);
        let d_x = match (w, a, dh) {
            (Some(w), Some(a), Some(dh)) => Some(B::lora_input_grad(dy, w, dh, a, spec)),
            _ => None,
        };
        [d_x, d_w, bias, d_a, d_b]
    }
}

/// Gradients of the factors of an adapter, and of `dropout(x)·a`.
struct FactorGrads<T> {
    d_a: Option<T>,
    d_b: Option<T>,
    dh: Option<T>,
}

fn factor_grads<B: Kernels>(
    state: LoraState<FloatTensor<B>>,
    dy: &FloatTensor<B>,
    a_needed: bool,
) -> FactorGrads<FloatTensor<B>> {
    let LoraState { x, h, b, spec, .. } = state;
    let scale = |tensor| B::float_mul_scalar(tensor, spec.scale.into());
    let d_b = h.map(|h| scale(B::linear_weight_grad(h, dy.clone())));
    let dh = b.map(|b| B::linear_input_grad(dy.clone(), Weight::Float(scale(b))));
    let d_a = x.filter(|_| a_needed).zip(dh.clone()).map(|(x, dh)| {
        let x = match spec.dropout {
            Some(dropout) => B::dropout_forward(x, dropout),
            None => x,
        };
        B::linear_weight_grad(x, dh)
    });
    FactorGrads { d_a, d_b, dh }
}

/// An adapter whose base product is a separate operation.
#[derive(Debug)]
pub(super) struct AddLora;

impl<B: Kernels> Rule<B, 4> for AddLora {
    type State = LoraState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 4]) -> [Option<FloatTensor<B>>; 4] {
        let (a, spec) = (state.a.clone(), state.spec);
        let FactorGrads { d_a, d_b, dh } = factor_grads::<B>(state, &dy, needed[2]);
        let d_x = a.zip(dh).map(|(a, dh)| {
            let dx = B::linear_input_grad(dh, Weight::Float(a));
            match spec.dropout {
                Some(dropout) => B::dropout_forward(dx, dropout),
                None => dx,
            }
        });
        [needed[0].then_some(dy), d_x, d_a, d_b]
    }
}

#[derive(Debug)]
pub(super) struct LinearGelu;

impl<B: Kernels> Rule<B, 3> for LinearGelu {
    /// The linear step's state and the GELU's slope.
    type State = (LinearState<FloatTensor<B>>, FloatTensor<B>);

    fn grads(
        (state, slope): Self::State,
        dy: FloatTensor<B>,
        needed: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        match state {
            LinearState { x: None, w: Some(w) } if !needed[2] => {
                [Some(B::linear_sloped_input_grad(dy, slope, w)), None, None]
            }
            state => <Linear as Rule<B, 3>>::grads(state, B::product(dy, slope), needed),
        }
    }
}

/// An elementwise function whose slope was kept.
#[derive(Debug)]
pub(super) struct Elementwise;

impl<B: Kernels> Rule<B, 1> for Elementwise {
    type State = FloatTensor<B>;

    fn grads(slope: Self::State, dy: FloatTensor<B>, _needed: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::product(dy, slope))]
    }
}

#[derive(Clone, Debug)]
pub(super) struct NormRuleState<T> {
    /// Absent if beta alone is tracked.
    pub(super) norm: Option<NormState<T>>,
    /// Present if the input is tracked.
    pub(super) gamma: Option<T>,
    pub(super) dropout: Option<Dropout>,
    pub(super) spec: NormSpec,
}

#[derive(Debug)]
pub(super) struct Norm;

impl<B: Kernels> Rule<B, 4> for Norm {
    type State = NormRuleState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 4]) -> [Option<FloatTensor<B>>; 4] {
        let [x_needed, residual_needed, gamma_needed, beta_needed] = needed;
        let beta = beta_needed.then(|| B::sum_rows(dy.clone()));
        let Some(norm) = state.norm else {
            return [None, None, None, beta];
        };
        let gamma = gamma_needed.then(|| B::norm_gamma_grad(dy.clone(), norm.x_hat.clone()));
        let sum = state.gamma.map(|gamma| B::norm_input_grad(dy, norm, gamma, state.spec));
        let residual = if residual_needed { sum.clone() } else { None };
        let x = match (sum, state.dropout) {
            (Some(sum), Some(dropout)) if x_needed => Some(B::dropout_forward(sum, dropout)),
            (sum, _) => sum,
        };
        [x, residual, gamma, beta]
    }
}

#[derive(Debug)]
pub(super) struct DropoutRule;

impl<B: Kernels> Rule<B, 1> for DropoutRule {
    type State = Dropout;

    fn grads(dropout: Dropout, dy: FloatTensor<B>, _needed: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::dropout_forward(dy, dropout))]
    }
}

#[derive(Clone, Debug)]
pub(super) struct AttentionState<T> {
    pub(super) tensors: AttentionTensors<T>,
    pub(super) y: T,
    pub(super) log_sums: T,
    pub(super) spec: AttentionSpec,
}

#[derive(Debug)]
pub(super) struct Attention;

impl<B: Kernels> Rule<B, 5> for Attention {
    type State = AttentionState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 5]) -> AttentionGrads<FloatTensor<B>> {
        let AttentionState { tensors, y, log_sums, spec } = state;
        B::attention_grads(tensors, y, log_sums, dy, &spec, needed)
    }
}

#[derive(Clone, Debug)]
pub(super) struct SinkAttentionState<T> {
    /// Present if one of them is tracked.
    pub(super) tensors: Option<AttentionTensors<T>>,
    /// Present if they are tracked.
    pub(super) sinks: Option<T>,
    pub(super) y: T,
    pub(super) log_sums: T,
    pub(super) spec: AttentionSpec,
}

#[derive(Debug)]
pub(super) struct SinkAttention;

impl<B: Kernels> Rule<B, 6> for SinkAttention {
    type State = SinkAttentionState<FloatTensor<B>>;

    fn grads(state: Self::State, dy: FloatTensor<B>, needed: [bool; 6]) -> [Option<FloatTensor<B>>; 6] {
        let SinkAttentionState { tensors, sinks, y, log_sums, spec } = state;
        let sinks = sinks.map(|sinks| B::sinks_grad(sinks, y.clone(), log_sums.clone(), dy.clone()));
        let [needed @ .., _] = needed;
        let [q, k, v, by_query, by_key] = match tensors {
            Some(tensors) => B::attention_grads(tensors, y, log_sums, dy, &spec, needed),
            None => [const { None }; 5],
        };
        [q, k, v, by_query, by_key, sinks]
    }
}

#[derive(Debug)]
pub(super) struct CrossEntropy;

impl<B: Kernels> Rule<B, 1> for CrossEntropy {
    /// Logits, targets, weights, and the logarithms of the softmax denominators.
    type State = (FloatTensor<B>, IntTensor<B>, Option<FloatTensor<B>>, FloatTensor<B>);

    fn grads(
        (logits, targets, weights, log_sums): Self::State,
        dy: FloatTensor<B>,
        _needed: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::cross_entropy_grad(logits, targets, weights, log_sums, dy))]
    }
}

/// The gradients are computed together with the loss, from logits that nothing keeps.
#[derive(Debug)]
pub(super) struct HeadLoss;

impl<B: Kernels> Rule<B, 5> for HeadLoss {
    /// The gradients for an upstream gradient of 1.
    type State = [Option<FloatTensor<B>>; 5];

    fn grads(grads: Self::State, dy: FloatTensor<B>, _needed: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        grads.map(|grad| grad.map(|grad| B::scaled_by(grad, dy.clone())))
    }
}

#[derive(Debug)]
pub(super) struct Add;

impl<B: Kernels> Rule<B, 2> for Add {
    type State = ();

    fn grads((): Self::State, dy: FloatTensor<B>, _needed: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        [Some(dy.clone()), Some(dy)]
    }
}

#[derive(Debug)]
pub(super) struct Gated;

impl<B: Kernels> Rule<B, 2> for Gated {
    /// The gate and up.
    type State = (FloatTensor<B>, FloatTensor<B>, Gate);

    fn grads(state: Self::State, dy: FloatTensor<B>, _needed: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        let (gate, up, kind) = state;
        B::gated_grads(gate, up, dy, kind).map(Some)
    }
}

#[derive(Debug)]
pub(super) struct Rope;

impl<B: Kernels> Rule<B, 1> for Rope {
    /// Cosines, sines, and what was done with them.
    type State = (FloatTensor<B>, FloatTensor<B>, RopeSpec, bool);

    fn grads(
        (cos, sin, spec, inverse): Self::State,
        dy: FloatTensor<B>,
        _needed: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::rope_forward(dy, cos, sin, spec, !inverse))]
    }
}
