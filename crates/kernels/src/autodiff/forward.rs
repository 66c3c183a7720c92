//! The kernels over a graph: each runs on the backend below and records its rule.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::rules::{
    Add, AddLora, Attention, AttentionState, CrossEntropy, DropoutRule, Elementwise, Gated, HeadLoss, Linear,
    LinearGelu, Lora, LoraState, Norm, NormRuleState, Rope, SinkAttention, SinkAttentionState, linear_state,
};
use super::step::record;
use crate::composed;
use crate::kernels::{AdamWState, AdamWStep, AttentionTensors, HeadTensors, Kernels};
use crate::spec::{
    AdamW, AttentionSpec, Dropout, Gate, Gelu, Keys, LoraSpec, NormSpec, RopeSpec, SampleSpec,
};
use crate::weight::Weight;

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    const ON_HOST: bool = B::ON_HOST;
    const LOSS_WINDOW: usize = B::LOSS_WINDOW;

    fn linear_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        record::<Linear, B, C, 3>([Some(&x), w.float(), bias.as_ref()], |tracked| {
            let w = inner::<B, C, _>(&w, tracked);
            let state = linear_state::<B>(tracked, &x.primitive, &w);
            let bias = bias.as_ref().map(|bias| bias.primitive.clone());
            (B::linear_forward(x.primitive.clone(), w, bias), state)
        })
    }

    #[track_caller]
    fn weight_rows(w: Weight<FloatTensor<Self>>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        match w {
            // Floats may be tracked; burn has the rule.
            Weight::Float(_) => composed::weight_rows::<Self>(w, rows),
            Weight::Blocks(w) => Self::from_inner(B::weight_rows(Weight::Blocks(w), rows)),
        }
    }

    fn lora_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        [a, b]: [FloatTensor<Self>; 2],
        bias: Option<FloatTensor<Self>>,
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut h = None;
        let y =
            record::<Lora, B, C, 5>([Some(&x), w.float(), bias.as_ref(), Some(&a), Some(&b)], |tracked| {
                let [x_tracked, w_tracked, _, a_tracked, b_tracked] = tracked;
                let [x, a, b] = [&x, &a, &b].map(|tensor| tensor.primitive.clone());
                let w = inner::<B, C, _>(&w, tracked);
                let bias = bias.as_ref().map(|bias| bias.primitive.clone());
                let (y, down) = B::lora_forward(x.clone(), w.clone(), [a.clone(), b.clone()], bias, spec);
                h = Some(down.clone());
                let state = tracked.contains(&true).then(|| LoraState {
                    x: (w_tracked || a_tracked).then_some(x),
                    w: x_tracked.then_some(w),
                    h: b_tracked.then_some(down),
                    a: x_tracked.then_some(a),
                    b: (x_tracked || a_tracked).then_some(b),
                    spec,
                });
                (y, state)
            });
        // The intermediate product is of use to the rule alone.
        let h = h.unwrap_or_else(|| y.primitive.clone());
        (y, Self::from_inner(h))
    }

    fn add_lora_forward(
        mut y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        [a, b]: [FloatTensor<Self>; 2],
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut h = None;
        // The only handle of y goes to the step, which may then work in place; another tensor takes its place.
        let y_primitive = std::mem::replace(&mut y.primitive, b.primitive.clone());
        let sum = record::<AddLora, B, C, 4>([Some(&y), Some(&x), Some(&a), Some(&b)], |tracked| {
            let [_, x_tracked, a_tracked, b_tracked] = tracked;
            let [x, a, b] = [&x, &a, &b].map(|tensor| tensor.primitive.clone());
            let (sum, down) = B::add_lora_forward(y_primitive, x.clone(), [a.clone(), b.clone()], spec);
            h = Some(down.clone());
            let state = tracked.contains(&true).then(|| LoraState {
                x: a_tracked.then_some(x),
                w: None,
                h: b_tracked.then_some(down),
                a: x_tracked.then_some(a),
                b: (x_tracked || a_tracked).then_some(b),
                spec,
            });
            (sum, state)
        });
        let h = h.unwrap_or_else(|| sum.primitive.clone());
        (sum, Self::from_inner(h))
    }

    fn linear_gelu_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
        kind: Gelu,
    ) -> FloatTensor<Self> {
        record::<LinearGelu, B, C, 3>([Some(&x), w.float(), bias.as_ref()], |tracked| {
            let w = inner::<B, C, _>(&w, tracked);
            let state = linear_state::<B>(tracked, &x.primitive, &w);
            let bias = bias.as_ref().map(|bias| bias.primitive.clone());
            let x = x.primitive.clone();
            match state {
                Some(state) => {
                    let (y, slope) = B::linear_gelu_saving(x, w, bias, kind);
                    (y, Some((state, slope)))
                }
                None => (B::linear_gelu_forward(x, w, bias, kind), None),
            }
        })
    }

    fn gelu_forward(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
        record::<Elementwise, B, C, 1>([Some(&x)], |[tracked]| {
            if tracked {
                let (y, slope) = B::gelu_saving(x.primitive.clone(), kind);
                (y, Some(slope))
            } else {
                (B::gelu_forward(x.primitive.clone(), kind), None)
            }
        })
    }

    fn norm_forward(
        x: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        beta: Option<FloatTensor<Self>>,
        dropout: Option<Dropout>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let arguments = [Some(&x), residual.as_ref(), Some(&gamma), beta.as_ref()];
        record::<Norm, B, C, 4>(arguments, |[x_tracked, residual_tracked, gamma_tracked, beta_tracked]| {
            let residual = residual.as_ref().map(|residual| residual.primitive.clone());
            let beta = beta.as_ref().map(|beta| beta.primitive.clone());
            let (x, gamma) = (x.primitive.clone(), gamma.primitive.clone());
            let input_tracked = x_tracked || residual_tracked;
            if input_tracked || gamma_tracked {
                let (y, norm) = B::norm_saving(x, residual, gamma.clone(), beta, dropout, spec);
                let gamma = input_tracked.then_some(gamma);
                (y, Some(NormRuleState { norm: Some(norm), gamma, dropout, spec }))
            } else {
                let state = beta_tracked.then_some(NormRuleState { norm: None, gamma: None, dropout, spec });
                (B::norm_forward(x, residual, gamma, beta, dropout, spec), state)
            }
        })
    }

    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        record::<DropoutRule, B, C, 1>([Some(&x)], |[tracked]| {
            (B::dropout_forward(x.primitive.clone(), dropout), tracked.then_some(dropout))
        })
    }

    fn attention_forward(
        tensors: AttentionTensors<FloatTensor<Self>>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        record::<Attention, B, C, 5>(tensors.all(), |tracked| {
            let tensors = tensors.clone().map(|tensor| tensor.primitive);
            if tracked.contains(&true) {
                check_packed(spec);
                let (y, log_sums) = B::attention_saving(tensors.clone(), spec);
                (y.clone(), Some(AttentionState { tensors, y, log_sums, spec: spec.clone() }))
            } else {
                (B::attention_forward(tensors, spec), None)
            }
        })
    }

    fn sink_attention_forward(
        tensors: AttentionTensors<FloatTensor<Self>>,
        sinks: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        let [q, k, v, by_query, by_key] = tensors.all();
        record::<SinkAttention, B, C, 6>([q, k, v, by_query, by_key, Some(&sinks)], |tracked| {
            let tensors = tensors.clone().map(|tensor| tensor.primitive);
            let sinks = sinks.primitive.clone();
            if tracked.contains(&true) {
                check_packed(spec);
                let (y, log_sums) = B::sink_attention_saving(tensors.clone(), sinks.clone(), spec);
                let [others @ .., sinks_tracked] = tracked;
                let state = SinkAttentionState {
                    tensors: others.contains(&true).then_some(tensors),
                    sinks: sinks_tracked.then_some(sinks),
                    y: y.clone(),
                    log_sums,
                    spec: spec.clone(),
                };
                (y, Some(state))
            } else {
                (B::sink_attention_forward(tensors, sinks, spec), None)
            }
        })
    }

    fn cross_entropy_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        record::<CrossEntropy, B, C, 1>([Some(&logits)], |[tracked]| {
            let (logits, weights) = (logits.primitive.clone(), weights.map(|weights| weights.primitive));
            if tracked {
                let (loss, log_sums) =
                    B::cross_entropy_saving(logits.clone(), targets.clone(), weights.clone());
                (loss, Some((logits, targets, weights, log_sums)))
            } else {
                (B::cross_entropy_forward(logits, targets, weights), None)
            }
        })
    }

    fn head_loss_forward(
        head: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        soft_cap: Option<f32>,
    ) -> FloatTensor<Self> {
        let HeadTensors { x, w, bias, update } = head;
        let [h, b] = match update {
            Some([h, b]) => [Some(h), Some(b)],
            None => [None, None],
        };
        let arguments = [Some(&x), w.float(), bias.as_ref(), h.as_ref(), b.as_ref()];
        record::<HeadLoss, B, C, 5>(arguments, |tracked| {
            let head = HeadTensors {
                x: x.primitive.clone(),
                w: inner::<B, C, _>(&w, tracked),
                bias: bias.as_ref().map(|bias| bias.primitive.clone()),
                update: h.as_ref().zip(b.as_ref()).map(|(h, b)| [h.primitive.clone(), b.primitive.clone()]),
            };
            let weights = weights.map(|weights| weights.primitive);
            if tracked.contains(&true) {
                let (loss, grads) = B::head_loss_saving(head, targets, weights, soft_cap, tracked);
                (loss, Some(grads))
            } else {
                (B::head_loss_forward(head, targets, weights, soft_cap), None)
            }
        })
    }

    fn add(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Add, B, C, 2>([Some(&a), Some(&b)], |tracked| {
            (B::add(a.primitive.clone(), b.primitive.clone()), tracked.contains(&true).then_some(()))
        })
    }

    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        record::<Gated, B, C, 2>([Some(&gate), Some(&up)], |tracked| {
            let (gate, up) = (gate.primitive.clone(), up.primitive.clone());
            let state = tracked.contains(&true).then(|| (gate.clone(), up.clone(), kind));
            (B::gated_forward(gate, up, kind), state)
        })
    }

    fn rope_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        spec: RopeSpec,
        inverse: bool,
    ) -> FloatTensor<Self> {
        record::<Rope, B, C, 1>([Some(&x)], |[tracked]| {
            let (cos, sin) = (cos.primitive.clone(), sin.primitive.clone());
            let state = tracked.then(|| (cos.clone(), sin.clone(), spec, inverse));
            (B::rope_forward(x.primitive.clone(), cos, sin, spec, inverse), state)
        })
    }

    fn sample(logits: &FloatTensor<Self>, spec: impl FnOnce() -> SampleSpec) -> Option<IntTensor<Self>> {
        B::sample(&logits.primitive, spec)
    }

    fn adamw_update(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        state: AdamWState<FloatTensor<Self>>,
        options: &AdamW,
    ) -> (FloatTensor<Self>, AdamWState<FloatTensor<Self>>) {
        // A step of the optimizer is not differentiated.
        let state = state.map(|tensor| tensor.primitive);
        let (param, state) = B::adamw_update(param.primitive, grad.primitive, state, options);
        (Self::from_inner(param), state.map(Self::from_inner))
    }

    fn adamw_update_all(
        steps: Vec<AdamWStep<FloatTensor<Self>>>,
        clip: Option<FloatTensor<Self>>,
    ) -> Vec<(FloatTensor<Self>, AdamWState<FloatTensor<Self>>)> {
        let steps = steps.into_iter().map(|step| step.map(|tensor| tensor.primitive)).collect();
        let updated = B::adamw_update_all(steps, clip.map(|clip| clip.primitive)).into_iter();
        updated.map(|(param, state)| (Self::from_inner(param), state.map(Self::from_inner))).collect()
    }

    fn clip_factor(grads: Vec<FloatTensor<Self>>, max_norm: f64) -> Option<FloatTensor<Self>> {
        let grads = grads.into_iter().map(|grad| grad.primitive).collect();
        B::clip_factor(grads, max_norm).map(Self::from_inner)
    }
}

/// A weight on the backend below. A step that records gradients multiplies exactly.
fn inner<B: Kernels, C: CheckpointStrategy, const N: usize>(
    w: &Weight<FloatTensor<Autodiff<B, C>>>,
    tracked: [bool; N],
) -> Weight<FloatTensor<B>> {
    let w = w.clone().map(|w| w.primitive);
    if tracked.contains(&true) { w.exact() } else { w }
}

#[track_caller]
fn check_packed(spec: &AttentionSpec) {
    assert!(matches!(spec.keys, Keys::Packed(_)), "attention: keys in a cache have no gradient");
}
