//! The fused operations as free functions over burn tensors.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorPrimitive};

use crate::kernels::{AdamWState, AdamWStep, AttentionTensors, HeadTensors, Kernels, LoraWeights};
use crate::spec::{AdamW, AttentionSpec, Dropout, Gate, Gelu, LoraSpec, NormSpec, RopeSpec, SampleSpec};
use crate::weight::Weight;

/// `x·w + bias`.
///
/// # Shapes
/// - x: `[tokens, d_input]`, w: `[d_input, d_output]`, bias: `[d_output]`
/// - output: `[tokens, d_output]`
#[track_caller]
pub fn linear<B: Kernels>(x: Tensor<B, 2>, w: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    linear_of(x, Weight::Float(w), bias)
}

#[track_caller]
pub(crate) fn linear_of<B: Kernels>(
    x: Tensor<B, 2>,
    w: Weight<Tensor<B, 2>>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    check_linear("linear", &x, w.dims(), bias.as_ref());
    wrap(B::linear_forward(unwrap(x), w.map(unwrap), bias.map(unwrap)))
}

#[track_caller]
pub(crate) fn rows_of<B: Kernels>(w: Weight<Tensor<B, 2>>, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    wrap(B::weight_rows(w.map(unwrap), rows.into_primitive()))
}

/// `gelu(x·w + bias)` in one pass.
///
/// # Shapes
/// - x: `[tokens, d_input]`, w: `[d_input, d_output]`, bias: `[d_output]`
/// - output: `[tokens, d_output]`
#[track_caller]
pub fn linear_gelu<B: Kernels>(
    x: Tensor<B, 2>,
    w: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    kind: Gelu,
) -> Tensor<B, 2> {
    linear_gelu_of(x, Weight::Float(w), bias, kind)
}

#[track_caller]
pub(crate) fn linear_gelu_of<B: Kernels>(
    x: Tensor<B, 2>,
    w: Weight<Tensor<B, 2>>,
    bias: Option<Tensor<B, 1>>,
    kind: Gelu,
) -> Tensor<B, 2> {
    check_linear("linear_gelu", &x, w.dims(), bias.as_ref());
    wrap(B::linear_gelu_forward(unwrap(x), w.map(unwrap), bias.map(unwrap), kind))
}

/// A linear step with a low-rank adapter (LoRA, Hu et al. 2021): `x·w + bias + scale·dropout(x)·a·b`.
///
/// Neither the adapter's output nor its part of the input's gradient is ever materialized as a tensor.
///
/// # Shapes
/// - x: `[tokens, d_input]`, w: `[d_input, d_output]`, bias: `[d_output]`
/// - a: `[d_input, rank]`, b: `[rank, d_output]`
/// - output: `[tokens, d_output]`
#[track_caller]
pub fn linear_lora<B: Kernels>(
    x: Tensor<B, 2>,
    weights: LoraWeights<Tensor<B, 2>>,
    bias: Option<Tensor<B, 1>>,
    spec: LoraSpec,
) -> Tensor<B, 2> {
    let LoraWeights { w, a, b } = weights;
    linear_lora_of(x, Weight::Float(w), [a, b], bias, spec)
}

#[track_caller]
pub(crate) fn linear_lora_of<B: Kernels>(
    x: Tensor<B, 2>,
    w: Weight<Tensor<B, 2>>,
    [a, b]: [Tensor<B, 2>; 2],
    bias: Option<Tensor<B, 1>>,
    spec: LoraSpec,
) -> Tensor<B, 2> {
    check_linear("linear_lora", &x, w.dims(), bias.as_ref());
    check_factors("linear_lora", w.dims(), [&a, &b]);
    wrap(B::lora_forward(unwrap(x), w.map(unwrap), [a, b].map(unwrap), bias.map(unwrap), spec).0)
}

/// Adds a low-rank adapter to the output of a base that is not one matrix: `y + scale·dropout(x)·a·b`.
///
/// For a base of two factors, a tensor train, a sum of forms: compute `y` in whatever way, and add the adapter in place.
///
/// # Shapes
/// - y, output: `[tokens, d_output]`, x: `[tokens, d_input]`
/// - factors: `[d_input, rank]` and `[rank, d_output]`
#[track_caller]
pub fn add_lora<B: Kernels>(
    y: Tensor<B, 2>,
    x: Tensor<B, 2>,
    [a, b]: [Tensor<B, 2>; 2],
    spec: LoraSpec,
) -> Tensor<B, 2> {
    let ([rows, d_output], [x_rows, d_input]) = (y.dims(), x.dims());
    assert!(rows == x_rows, "add_lora: y is {:?}, x {:?}", y.dims(), x.dims());
    check_factors("add_lora", [d_input, d_output], [&a, &b]);
    wrap(B::add_lora_forward(unwrap(y), unwrap(x), [unwrap(a), unwrap(b)], spec).0)
}

/// The Gaussian error linear unit (Hendrycks & Gimpel 2016), elementwise.
pub fn gelu<B: Kernels>(x: Tensor<B, 2>, kind: Gelu) -> Tensor<B, 2> {
    wrap(B::gelu_forward(unwrap(x), kind))
}

/// Layer norm (Ba et al. 2016) of `dropout(x) + residual` over the last dimension.
///
/// # Shapes
/// - x, residual, output: `[tokens, d_model]`
/// - gamma, beta: `[d_model]`
#[track_caller]
pub fn layer_norm<B: Kernels>(
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    gamma: Tensor<B, 1>,
    beta: Option<Tensor<B, 1>>,
    eps: f64,
    dropout: Option<Dropout>,
) -> Tensor<B, 2> {
    let [tokens, d_model] = x.dims();
    if let Some(residual) = &residual {
        let got = residual.dims();
        assert!(got == [tokens, d_model], "layer_norm: residual is {got:?}, x [{tokens}, {d_model}]");
    }
    check_vector("layer_norm: gamma", &gamma, d_model);
    if let Some(beta) = &beta {
        check_vector("layer_norm: beta", beta, d_model);
    }
    wrap(B::norm_forward(
        unwrap(x),
        residual.map(unwrap),
        unwrap(gamma),
        beta.map(unwrap),
        dropout,
        NormSpec { centered: true, eps },
    ))
}

/// RMS norm (Zhang & Sennrich 2019) over the last dimension.
///
/// # Shapes
/// - x, output: `[tokens, d_model]`
/// - gamma: `[d_model]`
#[track_caller]
pub fn rms_norm<B: Kernels>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    check_vector("rms_norm: gamma", &gamma, x.dims()[1]);
    let spec = NormSpec { centered: false, eps };
    wrap(B::norm_forward(unwrap(x), None, unwrap(gamma), None, None, spec))
}

/// Dropout with a counter-based mask (see [`Dropout`]).
pub fn dropout<B: Kernels>(x: Tensor<B, 2>, d: Dropout) -> Tensor<B, 2> {
    wrap(B::dropout_forward(unwrap(x), d))
}

/// Scaled dot-product attention over packed sequences, without padding.
///
/// # Shapes
/// - q: `[queries, n_heads * head_dim]`
/// - k, v: `[keys, n_kv_heads * head_dim]`
/// - output: as q
#[track_caller]
pub fn attention<B: Kernels>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    spec: &AttentionSpec,
) -> Tensor<B, 2> {
    relative_attention(q, k, v, [None, None], spec)
}

/// Attention with terms that depend on the distance of query and key: the scaled score of query `i` and key `j` of a head
/// gets `by_query[head, i, b] + by_key[head, j, b]` added, where `b` is the bucket of `j - i` in `spec.distances`.
///
/// T5's bias is a term by query that is the same for all of them; DeBERTa's disentangled attention (He et al. 2021) has both.
///
/// # Shapes
/// - q, k, v, output: as in [`attention`]
/// - by_query: `[n_heads, queries, buckets]`, by_key: `[n_heads, keys, buckets]`
#[track_caller]
pub fn relative_attention<B: Kernels>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    [by_query, by_key]: [Option<Tensor<B, 3>>; 2],
    spec: &AttentionSpec,
) -> Tensor<B, 2> {
    spec.check(q.dims(), k.dims(), v.dims());
    spec.check_terms([&by_query, &by_key].map(|terms| terms.as_ref().map(Tensor::dims)), k.dims()[0]);
    let tensors = AttentionTensors {
        by_query: by_query.map(unwrap),
        by_key: by_key.map(unwrap),
        ..AttentionTensors::new(unwrap(q), unwrap(k), unwrap(v))
    };
    wrap(B::attention_forward(tensors, spec))
}

/// Attention with a sink in each head (Xiao et al. 2024; gpt-oss): a learned logit that takes part in the softmax of every
/// query and has no value, so that the probabilities of the keys sum up to less than one.
///
/// A sink of -∞ gives [`attention`]. Neither `spec.scale` nor `spec.softcap` applies to sinks, and none is dropped.
///
/// # Shapes
/// - q, k, v, output: as in [`attention`]
/// - sinks: `[n_heads]`
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use lowrank_kernels::{AttentionSpec, sink_attention};
///
/// let device = Default::default();
/// let [q, k, v] = std::array::from_fn(|_| Tensor::<Flex, 2>::ones([3, 2 * 4], &device));
/// // Equal scores of 2: with a sink of the same size, three keys share three quarters of the probability.
/// let sinks = Tensor::from_data([2.0, f32::NEG_INFINITY], &device);
/// let y = sink_attention(q, k, v, sinks, &AttentionSpec::encoder([3], 2, 4));
/// let [of_sink, without] = [0, 4].map(|at| y.clone().slice([0..1, at..at + 1]).into_scalar());
/// assert!((of_sink - 0.75).abs() < 1e-6 && (without - 1.0).abs() < 1e-6);
/// # }
/// ```
#[track_caller]
pub fn sink_attention<B: Kernels>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    sinks: Tensor<B, 1>,
    spec: &AttentionSpec,
) -> Tensor<B, 2> {
    spec.check(q.dims(), k.dims(), v.dims());
    spec.check_terms([None, None], k.dims()[0]);
    check_vector("sink_attention: sinks", &sinks, spec.n_heads);
    let tensors = AttentionTensors::new(unwrap(q), unwrap(k), unwrap(v));
    wrap(B::sink_attention_forward(tensors, unwrap(sinks), spec))
}

/// Mean over rows of the cross-entropy of `softmax(logits)` and the target class.
///
/// # Shapes
/// - logits: `[rows, classes]`, targets: `[rows]` with values below `classes`
/// - output: `[1]`
#[track_caller]
pub fn cross_entropy<B: Kernels>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let rows = logits.dims()[0];
    cross_entropy_sum(logits, targets, None).div_scalar(rows as f64)
}

/// Sum over rows of the cross-entropy of `softmax(logits)` and the target class, each times the row's weight.
///
/// A row of weight zero is ignored: its target may be anything, such as -100. The weights are constants: no gradient
/// goes to them.
///
/// # Shapes
/// - logits: `[rows, classes]`, targets: `[rows]` with values below `classes`, weights: `[rows]`
/// - output: `[1]`
#[track_caller]
pub fn cross_entropy_sum<B: Kernels>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    weights: Option<Tensor<B, 1>>,
) -> Tensor<B, 1> {
    check_targets("cross_entropy", logits.dims()[0], &targets, weights.as_ref());
    wrap(B::cross_entropy_forward(unwrap(logits), targets.into_primitive(), weights.map(unwrap)))
}

/// The head of a language model as [`linear_cross_entropy`] takes it.
#[derive(Clone, Debug)]
pub struct Head<B: Backend> {
    /// Shape `[d_model, vocab]`, in f32, f16, bf16 or blocks. A table `[vocab, d_model]`, tied or as PyTorch stores a
    /// linear layer, is given as `table.transpose()`, a view that copies nothing.
    pub weight: Weight<Tensor<B, 2>>,
    /// Shape `[vocab]`.
    pub bias: Option<Tensor<B, 1>>,
    /// A LoRA on the head: factors `[d_model, rank]` and `[rank, vocab]`.
    pub lora: Option<([Tensor<B, 2>; 2], LoraSpec)>,
    /// Caps logits: `cap·tanh(logit / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
}

impl<B: Backend> Head<B> {
    /// A head without bias, adapter and cap.
    pub fn new(weight: impl Into<Weight<Tensor<B, 2>>>) -> Self {
        Self { weight: weight.into(), bias: None, lora: None, soft_cap: None }
    }
}

/// Sum over rows of the cross-entropy of a head's logits and the target token, each times the row's weight:
/// `cross_entropy_sum(linear(x, w, bias), targets, weights)` without the logits, of which only some rows exist at a time.
///
/// The gradients are computed together with the loss, those of the tracked tensors among x, weight, bias and the
/// LoRA's factors: a frozen head costs one more product with its weight, a trained one two. A row of weight zero is
/// ignored and costs nothing; its target may be anything, such as -100. The weights are constants. Divide by the sum
/// of the weights for a mean.
///
/// # Shapes
/// - x: `[rows, d_model]`, targets: `[rows]` with values below `vocab`, weights: `[rows]`
/// - output: `[1]`
///
/// # Memory
/// Logits of about 32 MiB (or of 64 rows, 256 where a GPU multiplies by blocks, if these are more), and the gradients.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Distribution, Int, Tensor};
/// use burn_autodiff::Autodiff;
/// use burn_flex::Flex;
/// use lowrank_kernels::{Head, linear_cross_entropy};
///
/// type B = Autodiff<Flex>;
/// let device = Default::default();
/// let x = Tensor::<B, 2>::random([5, 16], Distribution::Default, &device).require_grad();
/// let table = Tensor::<B, 2>::random([100, 16], Distribution::Default, &device);
/// let targets = Tensor::<B, 1, Int>::from_data([4, 99, -100, 0, 7], &device);
/// let weights = Tensor::<B, 1>::from_data([1.0, 1.0, 0.0, 1.0, 0.5], &device);
/// let loss = linear_cross_entropy(x.clone(), Head::new(table.transpose()), targets, Some(weights)) / 3.5;
/// let grads = loss.backward();
/// assert_eq!(x.grad(&grads).unwrap().dims(), [5, 16]);
/// # }
/// ```
#[track_caller]
pub fn linear_cross_entropy<B: Kernels>(
    x: Tensor<B, 2>,
    head: Head<B>,
    targets: Tensor<B, 1, Int>,
    weights: Option<Tensor<B, 1>>,
) -> Tensor<B, 1> {
    const NAME: &str = "linear_cross_entropy";
    let Head { weight, bias, lora, soft_cap } = head;
    check_linear(NAME, &x, weight.dims(), bias.as_ref());
    check_targets(NAME, x.dims()[0], &targets, weights.as_ref());
    assert!(
        soft_cap.is_none_or(|cap| cap > 0.0),
        "{NAME}: a soft cap of {soft_cap:?}; expected a positive one"
    );
    let update = lora.map(|([a, b], spec)| {
        check_factors(NAME, weight.dims(), [&a, &b]);
        let x = match spec.dropout {
            Some(d) => dropout(x.clone(), d),
            None => x.clone(),
        };
        [unwrap(linear(x, a, None).mul_scalar(spec.scale)), unwrap(b)]
    });
    let tensors = HeadTensors { x: unwrap(x), w: weight.map(unwrap), bias: bias.map(unwrap), update };
    wrap(B::head_loss_forward(tensors, targets.into_primitive(), weights.map(unwrap), soft_cap))
}

/// `a + b`: a residual connection.
///
/// # Shapes
/// - a, b, output: `[tokens, d]`
#[track_caller]
pub fn add<B: Kernels>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    assert!(a.dims() == b.dims(), "add: the terms are {:?} and {:?}", a.dims(), b.dims());
    wrap(B::add(unwrap(a), unwrap(b)))
}

/// A gated activation, `act(gate) ∘ up`: SwiGLU (Llama) or GEGLU (Gemma, ModernBERT) (Shazeer 2020).
///
/// # Shapes
/// - gate, up, output: `[tokens, d_ffn]`
#[track_caller]
pub fn gated<B: Kernels>(gate: Tensor<B, 2>, up: Tensor<B, 2>, kind: Gate) -> Tensor<B, 2> {
    assert!(gate.dims() == up.dims(), "gated: gate is {:?}, up {:?}", gate.dims(), up.dims());
    wrap(B::gated_forward(unwrap(gate), unwrap(up), kind))
}

/// Rotary position embedding (Su et al. 2021), with the angles of each token's position.
///
/// `cos` and `sin` are constants: no gradient goes to them.
///
/// # Shapes
/// - x, output: `[tokens, n_heads * head_dim]`
/// - cos, sin: `[tokens, rotary_dim / 2]`
#[track_caller]
pub fn rope<B: Kernels>(
    x: Tensor<B, 2>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    spec: RopeSpec,
) -> Tensor<B, 2> {
    let [tokens, width] = x.dims();
    let RopeSpec { n_heads, rotary_dim, .. } = spec;
    assert!(
        n_heads > 0
            && width.is_multiple_of(n_heads)
            && rotary_dim.is_multiple_of(2)
            && rotary_dim <= width / n_heads,
        "rope: {n_heads} heads in a width of {width}, of which {rotary_dim} elements are rotated"
    );
    let expected = [tokens, rotary_dim / 2];
    assert!(cos.dims() == expected && sin.dims() == expected, "rope: angles are not {expected:?}");
    wrap(B::rope_forward(unwrap(x), unwrap(cos), unwrap(sin), spec, false))
}

/// Copies rows into a table, such as a cache of keys; in place where the table has no other handle.
///
/// Each span is the first row in the table, the first of `rows`, and their number.
///
/// # Shapes
/// - table, output: `[n, width]`, rows: `[m, width]`
#[track_caller]
pub fn write_rows<B: Kernels>(table: Tensor<B, 2>, rows: Tensor<B, 2>, spans: &[[usize; 3]]) -> Tensor<B, 2> {
    let ([n, width], [m, row_width]) = (table.dims(), rows.dims());
    assert!(
        width == row_width
            && spans.iter().all(|&[to, from, count]| {
                to.checked_add(count).is_some_and(|end| end <= n)
                    && from.checked_add(count).is_some_and(|end| end <= m)
            }),
        "write_rows: spans {spans:?} of [{m}, {row_width}] into [{n}, {width}]"
    );
    wrap(B::write_rows(unwrap(table), unwrap(rows), spans))
}

/// Chooses a token for each row of logits on the device, -1 where no logit is finite. `None` where the backend leaves it to
/// the host, as CPUs do: the spec is then not asked for.
///
/// # Shapes
/// - logits: `[rows, vocab]`, with a row of the spec for each
/// - output: `[rows]`
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use lowrank_kernels::sample;
///
/// let logits = Tensor::<Flex, 2>::zeros([1, 3], &Default::default());
/// assert!(sample(&logits, || unreachable!()).is_none());
/// # }
/// ```
#[track_caller]
pub fn sample<B: Kernels>(
    logits: &Tensor<B, 2>,
    spec: impl FnOnce() -> SampleSpec,
) -> Option<Tensor<B, 1, Int>> {
    let [rows, _] = logits.dims();
    let checked = || {
        let spec = spec();
        spec.check(rows);
        spec
    };
    B::sample(&unwrap(logits.clone()), checked).map(Tensor::from_primitive)
}

/// One step of AdamW (Loshchilov & Hutter 2019) on one parameter, with decoupled weight decay and bias
/// correction. Returns the parameter and its state.
///
/// With `m` and `v` the means of the gradients and their squares, corrected for their start at zero:
/// `param·(1 - lr·weight_decay) - lr·m / (√v + eps)`.
///
/// The CPU kernels work in place on what no one else has.
///
/// # Shapes
/// - param, grad, state: all alike
#[track_caller]
pub fn adamw_step<B: Kernels, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    state: AdamWState<Tensor<B, D>>,
    options: &AdamW,
) -> (Tensor<B, D>, AdamWState<Tensor<B, D>>) {
    let shape = param.dims();
    let AdamWState { mean, square } = state;
    for got in [grad.dims(), mean.dims(), square.dims()] {
        assert!(got == shape, "adamw_step: {got:?} beside a parameter of {shape:?}");
    }
    let flat = |tensor: Tensor<B, D>| unwrap(tensor.reshape([shape.iter().product::<usize>()]));
    let state = AdamWState { mean: flat(mean), square: flat(square) };
    let (param, state) = B::adamw_update(flat(param), flat(grad), state, options);
    let full = |tensor| wrap::<B, 1>(tensor).reshape(shape);
    (full(param), AdamWState { mean: full(state.mean), square: full(state.square) })
}

/// [`adamw_step`] of many parameters as vectors, in few launches on GPUs. Gradients are multiplied by `clip`, the
/// [`clip_factor`] of all of them.
///
/// # Shapes
/// - each parameter, its gradient and state: all alike
/// - clip: `[1]`
#[track_caller]
pub fn adamw_steps<B: Kernels>(
    steps: Vec<AdamWStep<Tensor<B, 1>>>,
    clip: Option<Tensor<B, 1>>,
) -> Vec<(Tensor<B, 1>, AdamWState<Tensor<B, 1>>)> {
    for step in &steps {
        let [length] = step.param.dims();
        let AdamWState { mean, square } = &step.state;
        for vector in step.grad.iter().chain([mean, square]) {
            check_vector("adamw_steps: a gradient or moment", vector, length);
        }
    }
    if let Some(clip) = &clip {
        check_vector("adamw_steps: clip", clip, 1);
    }
    let steps = steps.into_iter().map(|step| step.map(unwrap)).collect();
    let updated = B::adamw_update_all(steps, clip.map(unwrap)).into_iter();
    updated.map(|(param, state)| (wrap(param), state.map(wrap))).collect()
}

/// What clips gradients to a joint norm of `max_norm`: `min(1, max_norm / (norm + 1e-6))`, as in PyTorch; 1 where the
/// norm is not a number. `None` for an empty list. On GPUs it stays on the device.
///
/// # Shapes
/// - output: `[1]`
pub fn clip_factor<B: Kernels>(grads: Vec<Tensor<B, 1>>, max_norm: f64) -> Option<Tensor<B, 1>> {
    B::clip_factor(grads.into_iter().map(unwrap).collect(), max_norm).map(wrap)
}

#[track_caller]
fn check_linear<B: Kernels>(name: &str, x: &Tensor<B, 2>, w: [usize; 2], bias: Option<&Tensor<B, 1>>) {
    let ([_, d_input], [w_input, d_output]) = (x.dims(), w);
    assert!(d_input == w_input, "{name}: x is {:?}, w {w:?}", x.dims());
    if let Some(bias) = bias {
        check_vector(name, bias, d_output);
    }
}

#[track_caller]
fn check_factors<B: Kernels>(name: &str, w: [usize; 2], [a, b]: [&Tensor<B, 2>; 2]) {
    let ([d_input, rank], [b_rank, d_output]) = (a.dims(), b.dims());
    assert!(
        [d_input, d_output] == w && rank == b_rank,
        "{name}: factors are {:?} and {:?}, w {w:?}",
        a.dims(),
        b.dims()
    );
}

#[track_caller]
fn check_targets<B: Kernels>(
    name: &str,
    rows: usize,
    targets: &Tensor<B, 1, Int>,
    weights: Option<&Tensor<B, 1>>,
) {
    let [n_targets] = targets.dims();
    assert!(rows == n_targets, "{name}: {rows} rows, {n_targets} targets");
    if let Some(weights) = weights {
        check_vector(&format!("{name}: weights"), weights, rows);
    }
}

#[track_caller]
fn check_vector<B: Kernels>(name: &str, vector: &Tensor<B, 1>, length: usize) {
    let [got] = vector.dims();
    assert!(got == length, "{name} has {got} elements, expected {length}");
}

fn wrap<B: Kernels, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn unwrap<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}
