//! The trait [`Kernels`]: the fused operations on tensor primitives, each with a composed default.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::composed;
use crate::spec::{AdamW, AttentionSpec, Dropout, Gate, Gelu, LoraSpec, NormSpec, RopeSpec, SampleSpec};
use crate::weight::Weight;

/// What the backward pass of a norm needs.
#[derive(Clone, Debug)]
pub struct NormState<T> {
    /// The normalized input, before gamma and beta: `[tokens, d_model]`.
    pub x_hat: T,
    /// One over the standard deviation (or root mean square) of each row: `[tokens, 1]`.
    pub inv_std: T,
}

/// The frozen or trained weight of a linear step and the factors of a low-rank adapter beside it.
#[derive(Clone, Debug)]
pub struct LoraWeights<T> {
    /// The weight, `[d_input, d_output]`.
    pub w: T,
    /// The first factor, `[d_input, rank]`.
    pub a: T,
    /// The second factor, `[rank, d_output]`.
    pub b: T,
}

/// The tensors of a head: its logits are `x·w + bias + h·b`.
#[derive(Clone, Debug)]
pub struct HeadTensors<T> {
    /// The input, `[rows, d_model]`.
    pub x: T,
    /// The weight, `[d_model, vocab]`.
    pub w: Weight<T>,
    /// The bias, `[vocab]`.
    pub bias: Option<T>,
    /// The two sides of a low-rank update, `[rows, rank]` and `[rank, vocab]`.
    pub update: Option<[T; 2]>,
}

/// The tensors of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTensors<T> {
    /// The queries, `[queries, n_heads * head_dim]`.
    pub q: T,
    /// The keys, `[keys, n_kv_heads * head_dim]`.
    pub k: T,
    /// The values, like the keys.
    pub v: T,
    /// What is added to the scaled scores by query and distance, `[n_heads, queries, buckets]`.
    pub by_query: Option<T>,
    /// What is added to them by key and distance, `[n_heads, keys, buckets]`.
    pub by_key: Option<T>,
}

impl<T> AttentionTensors<T> {
    /// Without terms by distance.
    pub const fn new(q: T, k: T, v: T) -> Self {
        Self { q, k, v, by_query: None, by_key: None }
    }

    /// All of them, in the order of the fields.
    pub(crate) const fn all(&self) -> [Option<&T>; 5] {
        [Some(&self.q), Some(&self.k), Some(&self.v), self.by_query.as_ref(), self.by_key.as_ref()]
    }

    /// The same of other tensors.
    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> AttentionTensors<U> {
        AttentionTensors {
            q: f(self.q),
            k: f(self.k),
            v: f(self.v),
            by_query: self.by_query.map(&mut f),
            by_key: self.by_key.map(f),
        }
    }
}

/// Gradients of an attention's arguments, in the order of [`AttentionTensors`]; `None` where not asked for.
pub type AttentionGrads<T> = [Option<T>; 5];

/// The state of AdamW for one parameter.
#[derive(Clone, Debug)]
pub struct AdamWState<T> {
    /// Mean of the gradients.
    pub mean: T,
    /// Mean of their squares.
    pub square: T,
}

impl<T> AdamWState<T> {
    /// The same of other tensors.
    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> AdamWState<U> {
        AdamWState { mean: f(self.mean), square: f(self.square) }
    }
}

/// A parameter, and what its step of AdamW takes.
#[derive(Clone, Debug)]
pub struct AdamWStep<T> {
    /// The parameter.
    pub param: T,
    /// Its gradient. Without one it moves by its moments, as with a gradient of zero.
    pub grad: Option<T>,
    /// Its state.
    pub state: AdamWState<T>,
    /// The hyper-parameters of the step, which can differ from one parameter to the other.
    pub options: AdamW,
}

impl<T> AdamWStep<T> {
    /// The same of other tensors.
    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> AdamWStep<U> {
        let Self { param, grad, state, options } = self;
        AdamWStep { param: f(param), grad: grad.map(&mut f), state: state.map(f), options }
    }
}

/// A backend with the fused steps of a transformer.
///
/// Each method has a default made of burn operations. `x`, `dy`, … are `[tokens, width]` matrices,
/// weights are `[d_input, d_output]`, and biases, gammas and betas vectors. A name ending in `_saving`
/// is a forward that also returns what its backward needs; one ending in `_grad` is part of a backward.
pub trait Kernels: Backend {
    /// Whether tensors are in the host's memory, so that work on the host reads them without a transfer.
    const ON_HOST: bool = true;
    /// The number of training steps whose losses may wait on the device to be read together. More than one where a read
    /// waits for the device, as on GPUs, so that it always has launches to work on.
    const LOSS_WINDOW: usize = 1;

    /// `x·w + bias`.
    fn linear_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        composed::linear::<Self>(x, w, bias)
    }

    /// Gradient of a linear step's input: `dy·wᵀ`.
    fn linear_input_grad(dy: FloatTensor<Self>, w: Weight<FloatTensor<Self>>) -> FloatTensor<Self> {
        composed::linear_input_grad::<Self>(dy, w)
    }

    /// Rows of a weight by their numbers, in f32: an embedding lookup.
    #[track_caller]
    fn weight_rows(w: Weight<FloatTensor<Self>>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        composed::weight_rows::<Self>(w, rows)
    }

    /// Gradient of a linear step's weight: `xᵀ·dy`.
    fn linear_weight_grad(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear_weight_grad::<Self>(x, dy)
    }

    /// `x·w + bias + scale·dropout(x)·a·b`, and `dropout(x)·a`, which the gradient of b needs.
    fn lora_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        factors: [FloatTensor<Self>; 2],
        bias: Option<FloatTensor<Self>>,
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::lora::<Self>(x, w, factors, bias, spec)
    }

    /// Gradient of the input of a linear step with an adapter: `dy·wᵀ + dropout(dh·aᵀ)`.
    ///
    /// `dh` is the gradient of `dropout(x)·a`.
    fn lora_input_grad(
        dy: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        dh: FloatTensor<Self>,
        a: FloatTensor<Self>,
        spec: LoraSpec,
    ) -> FloatTensor<Self> {
        composed::lora_input_grad::<Self>(composed::linear_input_grad::<Self>(dy, w), dh, a, spec)
    }

    /// `y + scale·dropout(x)·a·b`, and `dropout(x)·a`, which the gradient of b needs; in place where no one else has y.
    fn add_lora_forward(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        factors: [FloatTensor<Self>; 2],
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::add_lora::<Self>(y, x, factors, spec)
    }

    /// Sum over rows: the gradient of a bias or a beta.
    fn sum_rows(dy: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::sum_rows::<Self>(dy)
    }

    /// Elementwise product of two tensors of one shape.
    fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_mul(a, b)
    }

    /// Elementwise sum of two tensors of one shape.
    fn add(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(a, b)
    }

    /// `gelu(x·w + bias)`.
    fn linear_gelu_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
        kind: Gelu,
    ) -> FloatTensor<Self> {
        Self::gelu_forward(Self::linear_forward(x, w, bias), kind)
    }

    /// `gelu(x·w + bias)` and the slope of the GELU at `x·w + bias`.
    fn linear_gelu_saving(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
        kind: Gelu,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::gelu_saving(Self::linear_forward(x, w, bias), kind)
    }

    /// Gradient of the input of a linear step that an elementwise function of this slope follows:
    /// `(dy ∘ slope)·wᵀ`.
    fn linear_sloped_input_grad(
        dy: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        Self::linear_input_grad(Self::product(dy, slope), w)
    }

    /// `gelu(x)`.
    fn gelu_forward(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
        composed::gelu::<Self>(x, kind)
    }

    /// `gelu(x)` and its slope `gelu'(x)`.
    fn gelu_saving(x: FloatTensor<Self>, kind: Gelu) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::gelu_saving::<Self>(x, kind)
    }

    /// The norm of `dropout(x) + residual`, times gamma, plus beta.
    fn norm_forward(
        x: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        beta: Option<FloatTensor<Self>>,
        dropout: Option<Dropout>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        composed::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec).0
    }

    /// [`norm_forward`](Kernels::norm_forward) and what its backward needs.
    fn norm_saving(
        x: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        beta: Option<FloatTensor<Self>>,
        dropout: Option<Dropout>,
        spec: NormSpec,
    ) -> (FloatTensor<Self>, NormState<FloatTensor<Self>>) {
        composed::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec)
    }

    /// Gradient of `dropout(x) + residual`, the input of a norm.
    fn norm_input_grad(
        dy: FloatTensor<Self>,
        state: NormState<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        composed::norm_input_grad::<Self>(dy, state, gamma, spec)
    }

    /// Gradient of a norm's gamma: the sum over rows of `dy ∘ x_hat`.
    fn norm_gamma_grad(dy: FloatTensor<Self>, x_hat: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::sum_rows(Self::product(dy, x_hat))
    }

    /// Zeroes the dropped elements of `x` and scales the others. Its own gradient rule.
    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        composed::dropout::<Self>(x, dropout)
    }

    /// Scaled dot-product attention over packed sequences.
    fn attention_forward(
        tensors: AttentionTensors<FloatTensor<Self>>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        Self::attention_saving(tensors, spec).0
    }

    /// [`attention_forward`](Kernels::attention_forward) and the logarithm of each query's softmax denominator, `[queries, n_heads]`.
    fn attention_saving(
        tensors: AttentionTensors<FloatTensor<Self>>,
        spec: &AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::attention_saving::<Self>(tensors, spec)
    }

    /// Gradients of an attention from its arguments, its output, the `log_sums` of
    /// [`attention_saving`](Kernels::attention_saving), and the output's gradient `dy`.
    ///
    /// `needed` says which of the arguments' gradients are wanted.
    fn attention_grads(
        tensors: AttentionTensors<FloatTensor<Self>>,
        y: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        spec: &AttentionSpec,
        needed: [bool; 5],
    ) -> AttentionGrads<FloatTensor<Self>> {
        composed::attention_grads::<Self>(tensors, y, log_sums, dy, spec, needed)
    }

    /// [`attention_forward`](Kernels::attention_forward) with sinks, `[n_heads]`: logits that take part in the softmax of
    /// each query of their head and have no value.
    fn sink_attention_forward(
        tensors: AttentionTensors<FloatTensor<Self>>,
        sinks: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> FloatTensor<Self> {
        Self::sink_attention_saving(tensors, sinks, spec).0
    }

    /// [`sink_attention_forward`](Kernels::sink_attention_forward) and the logarithm of each query's softmax denominator,
    /// sink included, `[queries, n_heads]`: with both, [`attention_grads`](Kernels::attention_grads) gives the gradients of
    /// `tensors`.
    fn sink_attention_saving(
        tensors: AttentionTensors<FloatTensor<Self>>,
        sinks: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, log_sums) = Self::attention_saving(tensors, spec);
        composed::add_sinks::<Self>(y, log_sums, sinks)
    }

    /// Gradient of an attention's sinks from what [`sink_attention_saving`](Kernels::sink_attention_saving) returned, and
    /// the output's gradient `dy`.
    fn sinks_grad(
        sinks: FloatTensor<Self>,
        y: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::sinks_grad::<Self>(sinks, y, log_sums, dy)
    }

    /// Sum over rows of the cross-entropy of `softmax(logits)` and a target class, each times the row's weight, `[1]`.
    ///
    /// A row of weight zero counts for nothing, whatever its target and its logits are.
    fn cross_entropy_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        composed::cross_entropy_saving::<Self>(logits, targets, weights).0
    }

    /// [`cross_entropy_forward`](Kernels::cross_entropy_forward) and the logarithm of each row's softmax
    /// denominator, `[rows, 1]`.
    fn cross_entropy_saving(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::cross_entropy_saving::<Self>(logits, targets, weights)
    }

    /// Gradient of the logits of a cross-entropy: `(softmax(logits) - onehot(targets))·weights·dy`.
    fn cross_entropy_grad(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        log_sums: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::cross_entropy_grad::<Self>(logits, targets, weights, log_sums, dy)
    }

    /// [`cross_entropy_forward`](Kernels::cross_entropy_forward) of the logits of a head, of which only some rows
    /// exist at a time.
    fn head_loss_forward(
        head: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        soft_cap: Option<f32>,
    ) -> FloatTensor<Self> {
        Self::head_loss_saving(head, targets, weights, soft_cap, [false; 5]).0
    }

    /// [`head_loss_forward`](Kernels::head_loss_forward) and its gradients by the tensors of the head that are
    /// `needed`, in the order of [`HeadTensors`].
    fn head_loss_saving(
        head: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        soft_cap: Option<f32>,
        needed: [bool; 5],
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 5]) {
        composed::head_loss::<Self>(head, targets, weights, soft_cap, needed)
    }

    /// `x` of any shape times a factor of shape `[1]`.
    fn scaled_by(x: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::scaled_by::<Self>(x, factor)
    }

    /// `act(gate) ∘ up`.
    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        composed::gated::<Self>(gate, up, kind)
    }

    /// Gradients of the gate and of up from that of their [`gated_forward`](Kernels::gated_forward).
    fn gated_grads(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        kind: Gate,
    ) -> [FloatTensor<Self>; 2] {
        composed::gated_grads::<Self>(gate, up, dy, kind)
    }

    /// Rotates each head of `x` by angles whose cosines and sines are given, `[tokens, rotary_dim / 2]`;
    /// backwards if `inverse`, which is also the gradient's rule.
    fn rope_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        spec: RopeSpec,
        inverse: bool,
    ) -> FloatTensor<Self> {
        composed::rope::<Self>(x, cos, sin, spec, inverse)
    }

    /// Copies rows into a table of the same width, in place where no one else has it: each span is the first row in the
    /// table, the first of `rows`, and their number.
    fn write_rows(
        table: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        spans: &[[usize; 3]],
    ) -> FloatTensor<Self> {
        composed::write_rows::<Self>(table, rows, spans)
    }

    /// A token for each row of `logits`, `[rows, vocab]`, chosen on the device: `[rows]`, -1 where no logit is finite.
    ///
    /// `None` where the caller has to choose, as on CPUs; the spec is then not asked for.
    fn sample(_logits: &FloatTensor<Self>, _spec: impl FnOnce() -> SampleSpec) -> Option<IntTensor<Self>> {
        None
    }

    /// One step of AdamW on a parameter, a vector as all the others; in place where no one else has it.
    fn adamw_update(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        state: AdamWState<FloatTensor<Self>>,
        options: &AdamW,
    ) -> (FloatTensor<Self>, AdamWState<FloatTensor<Self>>) {
        composed::adamw::<Self>(param, grad, state, options)
    }

    /// [`adamw_update`](Kernels::adamw_update) of many parameters, whose gradients are multiplied by `clip`, shape `[1]`.
    fn adamw_update_all(
        steps: Vec<AdamWStep<FloatTensor<Self>>>,
        clip: Option<FloatTensor<Self>>,
    ) -> Vec<(FloatTensor<Self>, AdamWState<FloatTensor<Self>>)> {
        composed::adamw_all::<Self>(steps, clip)
    }

    /// What clips gradients to a joint norm: `min(1, max_norm / (norm + 1e-6))`, shape `[1]`; 1 where the norm is not a
    /// number. `None` for an empty list.
    fn clip_factor(grads: Vec<FloatTensor<Self>>, max_norm: f64) -> Option<FloatTensor<Self>> {
        composed::clip_factor::<Self>(grads, max_norm)
    }
}
