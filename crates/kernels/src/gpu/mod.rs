//! GPUs: kernels written once in cubecl for all its runtimes (CUDA, Vulkan, Metal).
//!
//! They are for `f32`; other types, and what a kernel does not have, take the composed default. Products of matrices are
//! burn's. Quantized blocks are uploaded once and stay on the device as they are: kernels multiply few rows by them,
//! and burn many rows by one tile of their floats at a time.

#![allow(clippy::too_many_arguments, reason = "arguments of a launch")]
#![allow(
    clippy::assign_op_pattern,
    clippy::collapsible_if,
    clippy::eq_op,
    clippy::excessive_precision,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::needless_range_loop,
    clippy::unnecessary_cast,
    reason = "kernels are in cubecl's subset of Rust"
)]

mod attention;
pub(crate) mod blocks;
mod cache;
mod elementwise;
mod launch;
mod linear;
mod lora;
mod math;
mod optimizer;
mod packed;
mod rows;
mod sample;
pub(crate) mod upload;

use burn::tensor::TensorMetadata;
use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::composed;
use crate::kernels::{
    AdamWState, AdamWStep, AttentionGrads, AttentionTensors, HeadTensors, Kernels, NormState,
};
use crate::precision::Precision;
use crate::spec::{
    AdamW, AttentionSpec, Dropout, Gate, Gelu, Keys, LoraSpec, NormSpec, RopeSpec, SampleSpec,
};
use crate::weight::Weight;
use launch::{elements, fit, has_u64};

impl<R, F, I, T> Kernels for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    const ON_HOST: bool = false;
    const LOSS_WINDOW: usize = 16;

    fn linear_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        match product::<Self, R>(&x, &w, Precision::chosen()) {
            None => composed::linear::<Self>(x, w, bias),
            Some(y) => match bias {
                Some(bias) if elements(&y) > 0 => {
                    let width = elements(&bias);
                    Self::float_add(y, Self::float_reshape(bias, [1, width].into()))
                }
                _ => y,
            },
        }
    }

    fn linear_input_grad(dy: FloatTensor<Self>, w: Weight<FloatTensor<Self>>) -> FloatTensor<Self> {
        let transposed = match w {
            Weight::Float(w) => Weight::Float(Self::float_swap_dims(w, 0, 1)),
            Weight::Blocks(w) => Weight::Blocks(w.transpose()),
        };
        product::<Self, R>(&dy, &transposed, Precision::chosen().of_gradients())
            .unwrap_or_else(|| composed::linear::<Self>(dy, transposed, None))
    }

    fn linear_weight_grad(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let transposed = Self::float_swap_dims(x.clone(), 0, 1);
        linear::product(&transposed, &dy, Precision::chosen().of_gradients())
            .unwrap_or_else(|| composed::linear_weight_grad::<Self>(x, dy))
    }

    fn lora_forward(
        x: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        factors: [FloatTensor<Self>; 2],
        bias: Option<FloatTensor<Self>>,
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::add_lora_forward(Self::linear_forward(x.clone(), w, bias), x, factors, spec)
    }

    fn add_lora_forward(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        [a, b]: [FloatTensor<Self>; 2],
        spec: LoraSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if !fit([&y, &x, &a, &b]) || lora::is_wide(&b) {
            return composed::add_lora::<Self>(y, x, [a, b], spec);
        }
        let x = match spec.dropout {
            Some(dropout) => Self::dropout_forward(x, dropout),
            None => x,
        };
        let h = Self::linear_forward(x, Weight::Float(a), None);
        (lora::add_product(y, h.clone(), b, spec.scale, None), h)
    }

    fn lora_input_grad(
        dy: FloatTensor<Self>,
        w: Weight<FloatTensor<Self>>,
        dh: FloatTensor<Self>,
        a: FloatTensor<Self>,
        spec: LoraSpec,
    ) -> FloatTensor<Self> {
        let masks = spec.dropout.is_none() || has_u64(&dy);
        let base = Self::linear_input_grad(dy, w);
        let a_transposed = Self::float_swap_dims(a.clone(), 0, 1);
        if !(fit([&base, &dh, &a]) && masks) || lora::is_wide(&a_transposed) {
            return composed::lora_input_grad::<Self>(base, dh, a, spec);
        }
        lora::add_product(base, dh, a_transposed, 1.0, spec.dropout)
    }

    /// A number past the last row of blocks gives a row of zeros: the device cannot refuse it.
    fn weight_rows(w: Weight<FloatTensor<Self>>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        match w {
            Weight::Blocks(w) if blocks::rows_fit(&w, &rows) => blocks::rows(&w, rows),
            w => composed::weight_rows::<Self>(w, rows),
        }
    }

    fn gelu_forward(x: FloatTensor<Self>, kind: Gelu) -> FloatTensor<Self> {
        if fit([&x]) { elementwise::gelu_forward(x, kind) } else { composed::gelu::<Self>(x, kind) }
    }

    fn gelu_saving(x: FloatTensor<Self>, kind: Gelu) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if fit([&x]) { elementwise::gelu_saving(x, kind) } else { composed::gelu_saving::<Self>(x, kind) }
    }

    fn norm_forward(
        x: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        beta: Option<FloatTensor<Self>>,
        dropout: Option<Dropout>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        if norm_fits([Some(&x), residual.as_ref(), Some(&gamma), beta.as_ref()], dropout) {
            rows::norm(x, residual, gamma, beta, dropout, spec, None)
        } else {
            composed::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec).0
        }
    }

    fn norm_saving(
        x: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        beta: Option<FloatTensor<Self>>,
        dropout: Option<Dropout>,
        spec: NormSpec,
    ) -> (FloatTensor<Self>, NormState<FloatTensor<Self>>) {
        if norm_fits([Some(&x), residual.as_ref(), Some(&gamma), beta.as_ref()], dropout) {
            rows::norm_saving(x, residual, gamma, beta, dropout, spec)
        } else {
            composed::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec)
        }
    }

    fn norm_input_grad(
        dy: FloatTensor<Self>,
        state: NormState<FloatTensor<Self>>,
        gamma: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let one_shape = dy.shape() == state.x_hat.shape();
        if one_shape && norm_fits([Some(&dy), Some(&state.x_hat), Some(&gamma), None], None) {
            rows::norm_input_grad(dy, state, gamma, spec)
        } else {
            composed::norm_input_grad::<Self>(dy, state, gamma, spec)
        }
    }

    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        if fit([&x]) && has_u64(&x) {
            elementwise::dropout_forward(x, dropout)
        } else {
            composed::dropout::<Self>(x, dropout)
        }
    }

    fn attention_saving(
        tensors: AttentionTensors<FloatTensor<Self>>,
        spec: &AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        check_attention(&tensors, spec);
        if packed::fits(&tensors, spec) {
            packed::attention(tensors, spec)
        } else {
            composed::attention_saving::<Self>(tensors, spec)
        }
    }

    fn attention_grads(
        tensors: AttentionTensors<FloatTensor<Self>>,
        y: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        spec: &AttentionSpec,
        needed: [bool; 5],
    ) -> AttentionGrads<FloatTensor<Self>> {
        assert!(matches!(spec.keys, Keys::Packed(_)), "attention: gradients over cached keys");
        check_attention(&tensors, spec);
        let one_shape = y.shape() == tensors.q.shape()
            && dy.shape() == tensors.q.shape()
            && elements(&log_sums) == spec.queries.n_tokens() * spec.n_heads;
        if one_shape && fit([&y, &log_sums, &dy]) && packed::fits(&tensors, spec) {
            packed::grads(tensors, y, log_sums, dy, spec, needed)
        } else {
            composed::attention_grads::<Self>(tensors, y, log_sums, dy, spec, needed)
        }
    }

    fn cross_entropy_saving(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if losses_fit(&logits, &targets, weights.as_ref()) {
            let (losses, log_sums) = rows::cross_entropies(logits, targets, weights);
            (Self::float_sum(losses), log_sums)
        } else {
            composed::cross_entropy_saving::<Self>(logits, targets, weights)
        }
    }

    fn cross_entropy_grad(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        log_sums: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [rows, _] = logits.shape().dims();
        let rest_fits = fit([&log_sums, &dy]) && elements(&log_sums) == rows && elements(&dy) == 1;
        if rest_fits && losses_fit(&logits, &targets, weights.as_ref()) {
            rows::cross_entropy_grad(logits, targets, weights, log_sums, dy)
        } else {
            composed::cross_entropy_grad::<Self>(logits, targets, weights, log_sums, dy)
        }
    }

    fn head_loss_saving(
        head: HeadTensors<FloatTensor<Self>>,
        targets: IntTensor<Self>,
        weights: Option<FloatTensor<Self>>,
        soft_cap: Option<f32>,
        needed: [bool; 5],
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 5]) {
        match &head.w {
            Weight::Blocks(w) if !blocks::parts_fit(&head.x, w) => {
                composed::head_loss::<Self>(head, targets, weights, soft_cap, needed)
            }
            _ => composed::head_loss_over_blocks::<Self>(head, targets, weights, soft_cap, needed),
        }
    }

    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        if fit([&gate, &up]) && gate.shape() == up.shape() {
            elementwise::gated_forward(gate, up, kind)
        } else {
            composed::gated::<Self>(gate, up, kind)
        }
    }

    fn gated_grads(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        kind: Gate,
    ) -> [FloatTensor<Self>; 2] {
        let are_equal = gate.shape() == up.shape() && gate.shape() == dy.shape();
        if fit([&gate, &up, &dy]) && are_equal {
            elementwise::gated_grads(gate, up, dy, kind)
        } else {
            composed::gated_grads::<Self>(gate, up, dy, kind)
        }
    }

    fn rope_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        spec: RopeSpec,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let [tokens, width] = x.shape().dims();
        let angles = tokens * (spec.rotary_dim / 2);
        let layout = spec.rotary_dim > 0
            && spec.n_heads > 0
            && width.is_multiple_of(spec.n_heads)
            && spec.rotary_dim.is_multiple_of(2)
            && spec.rotary_dim <= width / spec.n_heads
            && elements(&cos) == angles
            && elements(&sin) == angles;
        if layout && fit([&x, &cos, &sin]) {
            elementwise::rope_forward(x, cos, sin, spec, inverse)
        } else {
            composed::rope::<Self>(x, cos, sin, spec, inverse)
        }
    }

    fn write_rows(
        table: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        spans: &[[usize; 3]],
    ) -> FloatTensor<Self> {
        if cache::fits(&table, &rows, spans) {
            cache::write_rows(table, rows, spans)
        } else {
            composed::write_rows::<Self>(table, rows, spans)
        }
    }

    fn sample(logits: &FloatTensor<Self>, spec: impl FnOnce() -> SampleSpec) -> Option<IntTensor<Self>> {
        let [rows, _] = logits.shape().dims();
        sample::fits(logits).then(|| {
            let spec = spec();
            spec.check(rows);
            cast(sample::sample(logits.clone(), &spec), I::dtype())
        })
    }

    fn adamw_update(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        state: AdamWState<FloatTensor<Self>>,
        options: &AdamW,
    ) -> (FloatTensor<Self>, AdamWState<FloatTensor<Self>>) {
        if optimizer::all_fit([&param, &grad, &state.mean, &state.square]) {
            optimizer::adamw_update(param, grad, state, options)
        } else {
            composed::adamw::<Self>(param, grad, state, options)
        }
    }

    fn adamw_update_all(
        steps: Vec<AdamWStep<FloatTensor<Self>>>,
        clip: Option<FloatTensor<Self>>,
    ) -> Vec<(FloatTensor<Self>, AdamWState<FloatTensor<Self>>)> {
        if optimizer::fits(&steps, clip.as_ref()) {
            optimizer::adamw_update_all(steps, clip)
        } else {
            composed::adamw_all::<Self>(steps, clip)
        }
    }

    fn clip_factor(grads: Vec<FloatTensor<Self>>, max_norm: f64) -> Option<FloatTensor<Self>> {
        if fit(&grads) {
            optimizer::clip_factor(grads, max_norm)
        } else {
            composed::clip_factor::<Self>(grads, max_norm)
        }
    }
}

/// `x·w` where it is not the composed product: of blocks, or with factors of 16 bits.
fn product<B, R>(x: &CubeTensor<R>, w: &Weight<CubeTensor<R>>, precision: Precision) -> Option<CubeTensor<R>>
where
    B: Kernels<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    match w {
        Weight::Float(w) => linear::product(x, w, precision),
        Weight::Blocks(w) => {
            let plan = blocks::Plan { precision, ..blocks::Plan::DEFAULT };
            blocks::fits(x, w).then(|| blocks::product::<B, R>(x.clone(), w, plan))
        }
    }
}

/// Whether the kernels take a norm of `x`, a residual of its shape, and a gamma and a beta of its width.
fn norm_fits<R: CubeRuntime>(
    [x, like_x, gamma, beta]: [Option<&CubeTensor<R>>; 4],
    dropout: Option<Dropout>,
) -> bool {
    let Some(x) = x else { return false };
    let width = x.shape().dims::<2>()[1];
    fit([Some(x), like_x, gamma, beta].into_iter().flatten())
        && like_x.is_none_or(|tensor| tensor.shape() == x.shape())
        && [gamma, beta].into_iter().flatten().all(|tensor| elements(tensor) == width)
        && (dropout.is_none() || has_u64(x))
}

/// Whether the kernels take a cross-entropy.
fn losses_fit<R: CubeRuntime>(
    logits: &CubeTensor<R>,
    targets: &CubeTensor<R>,
    weights: Option<&CubeTensor<R>>,
) -> bool {
    let [rows, _] = logits.shape().dims();
    fit([Some(logits), weights].into_iter().flatten())
        && elements(logits) > 0
        && elements(targets) == rows
        && weights.is_none_or(|weights| elements(weights) == rows)
}

/// The kernels read and write where the spec says.
#[track_caller]
fn check_attention<R: CubeRuntime>(tensors: &AttentionTensors<CubeTensor<R>>, spec: &AttentionSpec) {
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|tensor| tensor.shape().dims());
    spec.check(q, k, v);
}
