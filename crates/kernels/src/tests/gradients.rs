//! Backward rules: by finite differences in double precision, and the kernels against those.

use burn::tensor::{Int, Tensor};
use burn_autodiff::Autodiff;

use super::{Exact, assert_close, on_backends, random, tensor, values};
use crate::kernels::{Kernels, LoraWeights};
use crate::ops::{
    add, add_lora, attention, cross_entropy, dropout, gated, gelu, layer_norm, linear, linear_gelu,
    linear_lora, relative_attention, rms_norm, rope, sink_attention,
};
use crate::spec::{Alibi, AttentionSpec, Distances, Dropout, Gate, Gelu, LoraSpec, RopeSpec};

/// A function of some matrices with one row for vectors, whose output is weighted and summed up.
pub(super) trait Case {
    fn shapes(&self) -> Vec<[usize; 2]>;
    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2>;
}

fn loss<B: Kernels>(case: &impl Case, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 1> {
    let y = case.run(arguments);
    let weights = random::<B, 2>(y.dims(), 99);
    (y * weights).sum()
}

fn arguments<B: Kernels>(case: &impl Case) -> Vec<Tensor<B, 2>> {
    case.shapes().into_iter().enumerate().map(|(i, shape)| random(shape, i as u64 + 1)).collect()
}

/// Gradients of the tracked arguments.
fn gradients<B: Kernels>(case: &impl Case, tracked: &[bool]) -> Vec<Option<Vec<f64>>> {
    let arguments: Vec<_> = arguments::<Autodiff<B>>(case)
        .into_iter()
        .zip(tracked)
        .map(|(argument, &tracked)| argument.set_require_grad(tracked))
        .collect();
    let grads = loss(case, arguments.clone()).backward();
    arguments.iter().map(|argument| argument.grad(&grads).map(values)).collect()
}

pub(super) fn check_case(case: &impl Case) {
    let shapes = case.shapes();
    let exact = gradients::<Exact>(case, &vec![true; shapes.len()]);
    for (i, shape) in shapes.iter().enumerate() {
        let exact = exact[i].as_ref().unwrap();
        for element in (0..exact.len()).step_by(exact.len().div_ceil(25).max(1)) {
            let step = 1e-5;
            let at = |offset: f64| {
                let mut arguments = arguments::<Exact>(case);
                let mut moved = values(arguments[i].clone());
                moved[element] += offset;
                arguments[i] = tensor(moved, *shape);
                values(loss(case, arguments))[0]
            };
            let difference = (at(step) - at(-step)) / (2.0 * step);
            // The second-order error is about step² = 1e-10, the rounding error 1e-16·|loss| / step.
            let error = (difference - exact[element]).abs();
            assert!(
                error < 1e-7 * exact[element].abs().max(1.0),
                "argument {i}, element {element}: {difference}, {}",
                exact[element]
            );
        }
    }
    fn check<B: Kernels>(case: &impl Case, exact: &[Option<Vec<f64>>]) {
        // Any subset of the arguments may be tracked.
        for set in 1..1_u32 << exact.len() {
            let tracked: Vec<bool> = (0..exact.len()).map(|i| set & 1 << i != 0).collect();
            for (i, (got, exact)) in gradients::<B>(case, &tracked).iter().zip(exact).enumerate() {
                assert_eq!(got.is_some(), tracked[i], "argument {i} of {tracked:?}");
                if let (Some(got), Some(exact)) = (got, exact) {
                    // Up to a hundred terms of size one, through a division by a deviation of a half.
                    assert_close(
                        got,
                        exact,
                        1e2 * f64::from(f32::EPSILON),
                        &format!("argument {i} of {tracked:?}"),
                    );
                }
            }
        }
    }
    on_backends!(check(case, &exact));
    check::<Exact>(case, &exact);
}

pub(super) fn vector<B: Kernels>(matrix: Tensor<B, 2>) -> Tensor<B, 1> {
    matrix.squeeze_dim(0)
}

struct Linear {
    gelu: Option<Gelu>,
    with_bias: bool,
}

impl Case for Linear {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let mut shapes = vec![[9, 20], [20, 35]];
        if self.with_bias {
            shapes.push([1, 35]);
        }
        shapes
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let bias = self.with_bias.then(|| vector(arguments.remove(2)));
        let (w, x) = (arguments.remove(1), arguments.remove(0));
        match self.gelu {
            Some(kind) => linear_gelu(x, w, bias, kind),
            None => linear(x, w, bias),
        }
    }
}

#[test]
fn linear_steps() {
    for gelu in [None, Some(Gelu::Erf), Some(Gelu::Tanh)] {
        for with_bias in [false, true] {
            check_case(&Linear { gelu, with_bias });
        }
    }
}

struct Activation(Gelu);

impl Case for Activation {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[7, 21]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        gelu(arguments.remove(0) * 4.0, self.0)
    }
}

#[test]
fn gelus() {
    check_case(&Activation(Gelu::Erf));
    check_case(&Activation(Gelu::Tanh));
}

struct LayerNorm {
    with_residual: bool,
    with_beta: bool,
    dropout: Option<Dropout>,
}

impl Case for LayerNorm {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let mut shapes = vec![[6, 37], [1, 37]];
        shapes.extend(self.with_residual.then_some([6, 37]));
        shapes.extend(self.with_beta.then_some([1, 37]));
        shapes
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().unwrap();
        let (x, gamma) = (next(), vector(next()));
        let residual = self.with_residual.then(&mut next);
        let beta = self.with_beta.then(|| vector(next()));
        layer_norm(x, residual, gamma, beta, 1e-5, self.dropout)
    }
}

#[test]
fn layer_norms() {
    for with_residual in [false, true] {
        for with_beta in [false, true] {
            for dropout in [None, Some(Dropout { p: 0.3, seed: 4 })] {
                check_case(&LayerNorm { with_residual, with_beta, dropout });
            }
        }
    }
}

struct RmsNorm;

impl Case for RmsNorm {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[6, 37], [1, 37]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let gamma = vector(arguments.remove(1));
        rms_norm(arguments.remove(0), gamma, 1e-6)
    }
}

#[test]
fn rms_norms() {
    check_case(&RmsNorm);
}

struct Drop;

impl Case for Drop {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[8, 30]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        dropout(arguments.remove(0), Dropout { p: 0.5, seed: 8 })
    }
}

#[test]
fn dropouts() {
    check_case(&Drop);
}

struct Attention(AttentionSpec);

impl Case for Attention {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = self.0;
        let keys = [self.0.keys.end(), n_kv_heads * head_dim];
        vec![[self.0.queries.n_tokens(), n_heads * head_dim], keys, keys]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (v, k, q) = (arguments.remove(2), arguments.remove(1), arguments.remove(0));
        attention(q, k, v, &self.0)
    }
}

struct RelativeAttention {
    spec: AttentionSpec,
    by_query: bool,
    by_key: bool,
}

impl RelativeAttention {
    /// Shapes of the terms by query and by key.
    fn terms(&self) -> [Option<[usize; 3]>; 2] {
        let n = self.spec.distances.as_ref().map_or(0, Distances::n_buckets);
        let shape = |rows| [self.spec.n_heads, rows, n];
        [
            self.by_query.then(|| shape(self.spec.queries.n_tokens())),
            self.by_key.then(|| shape(self.spec.keys.end())),
        ]
    }
}

impl Case for RelativeAttention {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let mut shapes = Attention(self.spec.clone()).shapes();
        shapes.extend(self.terms().into_iter().flatten().map(|[heads, rows, n]| [heads * rows, n]));
        shapes
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let mut arguments = arguments.into_iter();
        let [q, k, v] = std::array::from_fn(|_| arguments.next().unwrap());
        let terms = self.terms().map(|shape| shape.map(|shape| arguments.next().unwrap().reshape(shape)));
        relative_attention(q, k, v, terms, &self.spec)
    }
}

#[test]
fn relative_attentions() {
    let bucket = |d: isize| (d + 3).clamp(0, 5) as u32;
    let distances = Some(Distances::new(9, bucket));
    let with = |spec: AttentionSpec, by_query, by_key| {
        let spec = AttentionSpec { distances: distances.clone(), ..spec };
        check_case(&RelativeAttention { spec, by_query, by_key });
    };
    let dropout = Some(Dropout { p: 0.25, seed: 6 });
    with(AttentionSpec::encoder([5, 9], 2, 8), true, true);
    with(AttentionSpec { dropout, ..AttentionSpec::encoder([5, 9], 2, 8) }, true, false);
    with(AttentionSpec { window: Some(3), ..AttentionSpec::encoder([5, 9], 2, 8) }, false, true);
    let first =
        AttentionSpec { queries: [1, 1].into(), queries_first: true, ..AttentionSpec::encoder([7, 4], 2, 8) };
    with(first, true, true);
    with(AttentionSpec::decoder([7, 4], 4, 2, 8), true, true);
}

#[test]
fn attentions() {
    let dropout = Some(Dropout { p: 0.25, seed: 6 });
    check_case(&Attention(AttentionSpec::encoder([5, 9], 2, 16)));
    check_case(&Attention(AttentionSpec { dropout, ..AttentionSpec::encoder([5, 9], 2, 8) }));
    check_case(&Attention(AttentionSpec::decoder([7, 4], 4, 2, 8)));
    check_case(&Attention(AttentionSpec { window: Some(3), ..AttentionSpec::decoder([12], 2, 1, 8) }));
    check_case(&Attention(AttentionSpec { softcap: Some(1.5), ..AttentionSpec::decoder([7, 4], 4, 2, 8) }));
    check_case(&Attention(AttentionSpec {
        softcap: Some(0.8),
        alibi: Some(Alibi { slopes: [0.5, 0.125].into(), rounded: None }),
        window: Some(5),
        dropout,
        ..AttentionSpec::decoder([9], 2, 1, 8)
    }));
    check_case(&Attention(AttentionSpec::cross([7, 2], [3, 9], 2, 8)));
    check_case(&Attention(AttentionSpec { dropout, ..AttentionSpec::cross([4, 1], [2, 1], 2, 16) }));
    check_case(&Attention(AttentionSpec {
        queries: [2, 4].into(),
        ..AttentionSpec::decoder([7, 4], 2, 2, 8)
    }));
    check_case(&Attention(AttentionSpec {
        queries: [2, 3].into(),
        queries_first: true,
        window: Some(3),
        ..AttentionSpec::encoder([7, 4], 2, 8)
    }));
}

struct SinkAttention(AttentionSpec);

impl Case for SinkAttention {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let mut shapes = Attention(self.0.clone()).shapes();
        shapes.push([1, self.0.n_heads]);
        shapes
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [q, k, v, sinks]: [_; 4] = arguments.try_into().unwrap();
        sink_attention(q, k, v, vector(sinks) * 2.0 + 1.0, &self.0)
    }
}

#[test]
fn attentions_with_sinks() {
    let dropout = Some(Dropout { p: 0.25, seed: 6 });
    check_case(&SinkAttention(AttentionSpec::encoder([5, 0, 9], 3, 16)));
    check_case(&SinkAttention(AttentionSpec { dropout, ..AttentionSpec::encoder([5, 9], 2, 8) }));
    check_case(&SinkAttention(AttentionSpec::decoder([7, 4], 4, 2, 8)));
    check_case(&SinkAttention(AttentionSpec {
        window: Some(3),
        dropout,
        ..AttentionSpec::decoder([12], 4, 2, 8)
    }));
    check_case(&SinkAttention(AttentionSpec {
        softcap: Some(0.8),
        alibi: Some(Alibi { slopes: [0.5, 0.125].into(), rounded: None }),
        ..AttentionSpec::decoder([9], 2, 1, 8)
    }));
    check_case(&SinkAttention(AttentionSpec::cross([7, 2], [3, 9], 2, 8)));
    check_case(&SinkAttention(AttentionSpec {
        queries: [2, 4].into(),
        ..AttentionSpec::decoder([7, 4], 2, 2, 8)
    }));
}

struct CrossEntropy;

impl Case for CrossEntropy {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[6, 19]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let targets = Tensor::<B, 1, Int>::from_data([0, 18, 5, 3, 7, 7].as_slice(), &Default::default());
        cross_entropy(arguments.remove(0) * 3.0, targets).unsqueeze()
    }
}

#[test]
fn cross_entropies() {
    check_case(&CrossEntropy);
}

struct Lora {
    with_bias: bool,
    dropout: Option<Dropout>,
}

impl Case for Lora {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let mut shapes = vec![[9, 20], [20, 35], [20, 3], [3, 35]];
        shapes.extend(self.with_bias.then_some([1, 35]));
        shapes
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let bias = self.with_bias.then(|| vector(arguments.remove(4)));
        let (b, a, w) = (arguments.remove(3), arguments.remove(2), arguments.remove(1));
        let spec = LoraSpec { scale: 1.5, dropout: self.dropout };
        linear_lora(arguments.remove(0), LoraWeights { w, a, b }, bias, spec)
    }
}

#[test]
fn linear_steps_with_adapters() {
    check_case(&Lora { with_bias: false, dropout: None });
    check_case(&Lora { with_bias: true, dropout: Some(Dropout { p: 0.2, seed: 3 }) });
}

struct AddLora {
    dropout: Option<Dropout>,
}

impl Case for AddLora {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[9, 35], [9, 20], [20, 3], [3, 35]]
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [y, x, a, b]: [_; 4] = arguments.try_into().unwrap();
        add_lora(y, x, [a, b], LoraSpec { scale: 1.5, dropout: self.dropout })
    }
}

#[test]
fn adapters_beside_a_base() {
    check_case(&AddLora { dropout: None });
    check_case(&AddLora { dropout: Some(Dropout { p: 0.2, seed: 3 }) });
}

struct Add;

impl Case for Add {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[7, 19], [7, 19]]
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [a, b]: [_; 2] = arguments.try_into().unwrap();
        // The rule passes one gradient on twice.
        add(add(a.clone(), b), a * 2.0)
    }
}

#[test]
fn residual_connections() {
    check_case(&Add);
}

struct Gated(Gate);

impl Case for Gated {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[7, 19], [7, 19]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let up = arguments.remove(1);
        gated(arguments.remove(0) * 4.0, up, self.0)
    }
}

#[test]
fn gated_activations() {
    for gate in [Gate::Silu, Gate::Gelu(Gelu::Erf), Gate::Gelu(Gelu::Tanh)] {
        check_case(&Gated(gate));
    }
}

struct Rope(RopeSpec);

impl Case for Rope {
    fn shapes(&self) -> Vec<[usize; 2]> {
        vec![[5, 40]]
    }

    fn run<B: Kernels>(&self, mut arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let angles = random::<B, 2>([5, self.0.rotary_dim / 2], 50) * 3.0;
        rope(arguments.remove(0), angles.clone().cos(), angles.sin(), self.0)
    }
}

#[test]
fn rotary_embeddings() {
    for interleaved in [false, true] {
        for rotary_dim in [0, 8, 20] {
            check_case(&Rope(RopeSpec { n_heads: 2, rotary_dim, interleaved }));
        }
    }
}
