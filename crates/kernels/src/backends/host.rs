//! What the CPU backends share: their tensors as slices, and the kernels on those.
//!
//! Tensors of another element type than `f32` take the composed default.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, TensorMetadata};

use crate::composed;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::{Finish, Left, Product, Right, Weights, gemm};
use crate::cpu::{attention, elementwise, gemv, loss, norm, optimizer, rope};
use crate::kernels::{AdamWState, Adapted, AttentionGrads, Kernels, NormState};
use crate::spec::{AdamW, AttentionSpec, Dropout, Gelu, LoraSpec, NormSpec, RopeSpec};

/// A tensor in the machine's memory.
pub(super) trait HostTensor: TensorMetadata + Clone {
    /// The same with its elements in the order of rows.
    fn in_rows(self) -> Self;

    /// The elements of a tensor that is [`in_rows`](HostTensor::in_rows) and of type `f32`.
    fn floats(&self) -> &[f32];

    /// The elements of a tensor of type `f32` for writing, in the order of rows; a copy if others have them.
    fn floats_mut(&mut self) -> &mut [f32];

    /// The elements of a matrix that lies in the order of rows, or of columns (then `true`).
    fn weights(&self) -> Option<(Weights<'_>, bool)>;

    /// The elements of an integer tensor; negative ones are as large as can be.
    fn indices(&self) -> Vec<usize>;

    /// A tensor of these elements, in the order of rows.
    fn from_floats(floats: Vec<f32>, shape: Vec<usize>) -> Self;
}

/// The methods of `Kernels`, by the functions of this module.
macro_rules! host_kernels {
    () => {
        fn linear_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: ::burn::tensor::ops::FloatTensor<Self>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_forward::<Self>(x, w, bias)
        }

        fn linear_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            w: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_input_grad::<Self>(dy, w)
        }

        fn linear_weight_grad(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_weight_grad::<Self>(x, dy)
        }

        fn sum_rows(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::sum_rows::<Self>(dy)
        }

        fn product(
            a: ::burn::tensor::ops::FloatTensor<Self>,
            b: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::product::<Self>(a, b)
        }

        fn linear_gelu_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: ::burn::tensor::ops::FloatTensor<Self>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            kind: $crate::Gelu,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_gelu_forward::<Self>(x, w, bias, kind)
        }

        fn linear_gelu_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: ::burn::tensor::ops::FloatTensor<Self>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            kind: $crate::Gelu,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::linear_gelu_saving::<Self>(x, w, bias, kind)
        }

        fn gelu_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gelu,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::gelu_forward::<Self>(x, kind)
        }

        fn gelu_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gelu,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::gelu_saving::<Self>(x, kind)
        }

        fn norm_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            residual: Option<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            beta: Option<::burn::tensor::ops::FloatTensor<Self>>,
            dropout: Option<$crate::Dropout>,
            spec: $crate::NormSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_forward::<Self>(x, residual, gamma, beta, dropout, spec)
        }

        fn norm_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            residual: Option<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            beta: Option<::burn::tensor::ops::FloatTensor<Self>>,
            dropout: Option<$crate::Dropout>,
            spec: $crate::NormSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, $crate::NormState<::burn::tensor::ops::FloatTensor<Self>>) {
            $crate::backends::host::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec)
        }

        fn norm_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            state: $crate::NormState<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::NormSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_input_grad::<Self>(dy, state, gamma, spec)
        }

        fn norm_gamma_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            x_hat: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_gamma_grad::<Self>(dy, x_hat)
        }

        fn dropout_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            dropout: $crate::Dropout,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::dropout_forward::<Self>(x, dropout)
        }

        fn attention_forward(
            q: ::burn::tensor::ops::FloatTensor<Self>,
            k: ::burn::tensor::ops::FloatTensor<Self>,
            v: ::burn::tensor::ops::FloatTensor<Self>,
            spec: &$crate::AttentionSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::attention_forward::<Self>(q, k, v, spec)
        }

        fn attention_saving(
            q: ::burn::tensor::ops::FloatTensor<Self>,
            k: ::burn::tensor::ops::FloatTensor<Self>,
            v: ::burn::tensor::ops::FloatTensor<Self>,
            spec: &$crate::AttentionSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::attention_saving::<Self>(q, k, v, spec)
        }

        fn attention_grads(
            q: ::burn::tensor::ops::FloatTensor<Self>,
            k: ::burn::tensor::ops::FloatTensor<Self>,
            v: ::burn::tensor::ops::FloatTensor<Self>,
            y: ::burn::tensor::ops::FloatTensor<Self>,
            log_sums: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            spec: &$crate::AttentionSpec,
            needed: [bool; 3],
        ) -> $crate::AttentionGrads<::burn::tensor::ops::FloatTensor<Self>> {
            $crate::backends::host::attention_grads::<Self>(q, k, v, y, log_sums, dy, spec, needed)
        }

        fn cross_entropy_forward(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::cross_entropy_forward::<Self>(logits, targets)
        }

        fn cross_entropy_saving(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::cross_entropy_saving::<Self>(logits, targets)
        }

        fn cross_entropy_grad(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
            log_sums: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::cross_entropy_grad::<Self>(logits, targets, log_sums, dy)
        }

        fn swiglu_forward(
            gate: ::burn::tensor::ops::FloatTensor<Self>,
            up: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::swiglu_forward::<Self>(gate, up)
        }

        fn swiglu_grads(
            gate: ::burn::tensor::ops::FloatTensor<Self>,
            up: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> [::burn::tensor::ops::FloatTensor<Self>; 2] {
            $crate::backends::host::swiglu_grads::<Self>(gate, up, dy)
        }

        fn rope_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            cos: ::burn::tensor::ops::FloatTensor<Self>,
            sin: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::RopeSpec,
            inverse: bool,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rope_forward::<Self>(x, cos, sin, spec, inverse)
        }

        fn adamw_update(
            param: ::burn::tensor::ops::FloatTensor<Self>,
            grad: ::burn::tensor::ops::FloatTensor<Self>,
            state: $crate::AdamWState<::burn::tensor::ops::FloatTensor<Self>>,
            options: &$crate::AdamW,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, $crate::AdamWState<::burn::tensor::ops::FloatTensor<Self>>) {
            $crate::backends::host::adamw_update::<Self>(param, grad, state, options)
        }

        fn lora_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            weights: $crate::Adapted<::burn::tensor::ops::FloatTensor<Self>>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            spec: $crate::LoraSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::lora_forward::<Self>(x, weights, bias, spec)
        }

        fn lora_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            w: ::burn::tensor::ops::FloatTensor<Self>,
            dh: ::burn::tensor::ops::FloatTensor<Self>,
            a: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::LoraSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::lora_input_grad::<Self>(dy, w, dh, a, spec)
        }
    };
}
pub(super) use host_kernels;

/// Whether all these tensors are of type `f32`.
fn all_f32<const N: usize>(tensors: [&impl TensorMetadata; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

fn dims2(tensor: &impl TensorMetadata) -> [usize; 2] {
    tensor.shape().dims()
}

/// Calls `f` with a weight matrix, which is copied only if it lies in no order.
fn with_weights<T: HostTensor, R>(w: T, f: impl FnOnce(Weights<'_>, bool) -> R) -> Option<R> {
    if let Some((weights, transposed)) = w.weights() {
        return Some(f(weights, transposed));
    }
    let w = w.in_rows();
    w.weights().map(|(weights, transposed)| f(weights, transposed))
}

/// `x·w` or, with `by_transpose`, `x·wᵀ`; `None` if the types are not those of the kernels.
fn multiply<T: HostTensor>(
    x: &T,
    w: &T,
    by_transpose: bool,
    bias: Option<&T>,
    gelu: Option<(Gelu, bool)>,
) -> Option<(T, Option<T>)> {
    if !all_f32([x, bias.unwrap_or(x)]) {
        return None;
    }
    let [m, k] = dims2(x);
    let [w_rows, w_columns] = dims2(w);
    let n = if by_transpose { w_rows } else { w_columns };
    let (x, bias) = (x.clone().in_rows(), bias.map(|bias| bias.clone().in_rows()));
    with_weights(w.clone(), |weights, transposed| {
        let b = right(weights, transposed != by_transpose, [k, n]);
        let finish = Finish { bias: bias.as_ref().map(T::floats), gelu: gelu.map(|(kind, _)| kind) };
        let mut y = Buffer::new(m * n);
        let mut slope = gelu.and_then(|(_, with_slope)| with_slope.then(|| Buffer::new(m * n)));
        if m <= gemv::MAX_ROWS && !b.transposed {
            gemv::gemv([m, k, n], x.floats(), weights, finish, &mut y, slope.as_mut());
        } else {
            let product = Product { a: Left::Rows(x.floats()), b, k };
            gemm([m, n], &[product], finish, &mut y, slope.as_mut());
        }
        // SAFETY: both write all of both.
        let (y, slope) = unsafe { (y.finish(), slope.map(|slope| slope.finish())) };
        (T::from_floats(y, vec![m, n]), slope.map(|slope| T::from_floats(slope, vec![m, n])))
    })
}

pub(super) fn linear_forward<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match multiply(&x, &w, false, bias.as_ref(), None) {
        Some((y, _)) => y,
        None => composed::linear::<B>(x, w, bias),
    }
}

pub(super) fn linear_input_grad<B: Kernels>(dy: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match multiply(&dy, &w, true, None, None) {
        Some((dx, _)) => dx,
        None => composed::linear_input_grad::<B>(dy, w),
    }
}

pub(super) fn linear_weight_grad<B: Kernels>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x, &dy]) {
        return composed::linear_weight_grad::<B>(x, dy);
    }
    let ([rows, d_input], [_, d_output]) = (dims2(&x), dims2(&dy));
    let (x, dy) = (x.in_rows(), dy.in_rows());
    let b = Right::new(Weights::F32(dy.floats()), [rows, d_output]);
    let mut dw = Buffer::new(d_input * d_output);
    let product = Product { a: Left::Columns(x.floats()), b, k: rows };
    gemm([d_input, d_output], &[product], Finish::default(), &mut dw, None);
    // SAFETY: `gemm` writes all of it.
    let dw = unsafe { dw.finish() };
    HostTensor::from_floats(dw, vec![d_input, d_output])
}

/// The right factor of a product of length `k` and width `n` from a matrix, or from its transpose.
fn right<'a>(weights: Weights<'a>, of_transpose: bool, shape: [usize; 2]) -> Right<'a> {
    if of_transpose { Right::of_transpose(weights, shape) } else { Right::new(weights, shape) }
}

/// `x·w + h·b + bias` or, with `by_transpose`, `x·wᵀ + h·bᵀ`, in one pass.
fn multiply_both<T: HostTensor>(
    [x, h]: [&T; 2],
    [w, b]: [&T; 2],
    bias: Option<&T>,
    by_transpose: bool,
) -> Option<T> {
    if !all_f32([x, h, bias.unwrap_or(x)]) {
        return None;
    }
    let ([m, k], [_, rank]) = (dims2(x), dims2(h));
    let [w_rows, w_columns] = dims2(w);
    let n = if by_transpose { w_rows } else { w_columns };
    let [x, h] = [x, h].map(|tensor| tensor.clone().in_rows());
    let bias = bias.map(|bias| bias.clone().in_rows());
    let y = with_weights(w.clone(), |w, w_transposed| {
        with_weights(b.clone(), |b, b_transposed| {
            let products = [
                Product { a: Left::Rows(x.floats()), b: right(w, w_transposed != by_transpose, [k, n]), k },
                Product {
                    a: Left::Rows(h.floats()),
                    b: right(b, b_transposed != by_transpose, [rank, n]),
                    k: rank,
                },
            ];
            let mut y = Buffer::new(m * n);
            let finish = Finish { bias: bias.as_ref().map(T::floats), gelu: None };
            gemm([m, n], &products, finish, &mut y, None);
            // SAFETY: `gemm` writes all of it.
            unsafe { y.finish() }
        })
    });
    y.flatten().map(|y| T::from_floats(y, vec![m, n]))
}

pub(super) fn lora_forward<B: Kernels>(
    x: FloatTensor<B>,
    weights: Adapted<FloatTensor<B>>,
    bias: Option<FloatTensor<B>>,
    spec: LoraSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    let Adapted { w, a, b } = &weights;
    if all_f32([&x, a, b]) {
        let dropped = match spec.dropout {
            Some(dropout) => dropout_forward::<B>(x.clone(), dropout),
            None => x.clone(),
        };
        let h = linear_forward::<B>(dropped, a.clone(), None);
        let scaled = B::float_mul_scalar(b.clone(), spec.scale.into());
        if let Some(y) = multiply_both([&x, &h], [w, &scaled], bias.as_ref(), false) {
            return (y, h);
        }
    }
    composed::lora::<B>(x, weights, bias, spec)
}

pub(super) fn lora_input_grad<B: Kernels>(
    dy: FloatTensor<B>,
    w: FloatTensor<B>,
    dh: FloatTensor<B>,
    a: FloatTensor<B>,
    spec: LoraSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if let Some(dropout) = spec.dropout {
        let dx = dropout_forward::<B>(linear_input_grad::<B>(dh, a), dropout);
        return B::float_add(linear_input_grad::<B>(dy, w), dx);
    }
    match multiply_both([&dy, &dh], [&w, &a], None, true) {
        Some(dx) => dx,
        None => composed::lora_input_grad::<B>(dy, w, dh, a, spec),
    }
}

pub(super) fn sum_rows<B: Kernels>(dy: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&dy]) {
        return composed::sum_rows::<B>(dy);
    }
    let [_, width] = dims2(&dy);
    HostTensor::from_floats(norm::sum_rows(dy.in_rows().floats(), None, width), vec![width])
}

pub(super) fn product<B: Kernels>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&a, &b]) || a.shape() != b.shape() {
        return B::float_mul(a, b);
    }
    let shape = a.shape().to_vec();
    let (a, b) = (a.in_rows(), b.in_rows());
    HostTensor::from_floats(elementwise::product(a.floats(), b.floats()), shape)
}

pub(super) fn linear_gelu_forward<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    kind: Gelu,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match multiply(&x, &w, false, bias.as_ref(), Some((kind, false))) {
        Some((y, _)) => y,
        None => composed::gelu::<B>(composed::linear::<B>(x, w, bias), kind),
    }
}

pub(super) fn linear_gelu_saving<B: Kernels>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    kind: Gelu,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    match multiply(&x, &w, false, bias.as_ref(), Some((kind, true))) {
        Some((y, Some(slope))) => (y, slope),
        _ => composed::gelu_saving::<B>(composed::linear::<B>(x, w, bias), kind),
    }
}

pub(super) fn gelu_forward<B: Kernels>(x: FloatTensor<B>, kind: Gelu) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x]) {
        return composed::gelu::<B>(x, kind);
    }
    let shape = x.shape().to_vec();
    HostTensor::from_floats(elementwise::gelu(x.in_rows().floats(), kind), shape)
}

pub(super) fn gelu_saving<B: Kernels>(x: FloatTensor<B>, kind: Gelu) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x]) {
        return composed::gelu_saving::<B>(x, kind);
    }
    let shape = x.shape().to_vec();
    let [y, slope] = elementwise::gelu_slope(x.in_rows().floats(), kind);
    (HostTensor::from_floats(y, shape.clone()), HostTensor::from_floats(slope, shape))
}

/// Calls `f` with the arguments of a norm; `None` if one is not of type `f32`.
fn with_norm<T: HostTensor, R>(
    [x, gamma]: [&T; 2],
    [residual, beta]: [Option<&T>; 2],
    dropout: Option<Dropout>,
    spec: NormSpec,
    f: impl FnOnce(norm::Norm<'_>) -> R,
) -> Option<R> {
    if !all_f32([x, gamma, residual.unwrap_or(x), beta.unwrap_or(x)]) {
        return None;
    }
    let (x, gamma) = (x.clone().in_rows(), gamma.clone().in_rows());
    let [residual, beta] = [residual, beta].map(|tensor| tensor.map(|tensor| tensor.clone().in_rows()));
    Some(f(norm::Norm {
        x: x.floats(),
        residual: residual.as_ref().map(T::floats),
        gamma: gamma.floats(),
        beta: beta.as_ref().map(T::floats),
        dropout,
        spec,
    }))
}

pub(super) fn norm_forward<B: Kernels>(
    x: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    gamma: FloatTensor<B>,
    beta: Option<FloatTensor<B>>,
    dropout: Option<Dropout>,
    spec: NormSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match with_norm([&x, &gamma], [residual.as_ref(), beta.as_ref()], dropout, spec, norm::norm) {
        Some(y) => HostTensor::from_floats(y, x.shape().to_vec()),
        None => composed::norm_saving::<B>(x, residual, gamma, beta, dropout, spec).0,
    }
}

pub(super) fn norm_saving<B: Kernels>(
    x: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    gamma: FloatTensor<B>,
    beta: Option<FloatTensor<B>>,
    dropout: Option<Dropout>,
    spec: NormSpec,
) -> (FloatTensor<B>, NormState<FloatTensor<B>>)
where
    FloatTensor<B>: HostTensor,
{
    match with_norm([&x, &gamma], [residual.as_ref(), beta.as_ref()], dropout, spec, norm::norm_saving) {
        Some([y, x_hat, inv_std]) => {
            let [rows, width] = dims2(&x);
            let state = NormState {
                x_hat: HostTensor::from_floats(x_hat, vec![rows, width]),
                inv_std: HostTensor::from_floats(inv_std, vec![rows, 1]),
            };
            (HostTensor::from_floats(y, vec![rows, width]), state)
        }
        None => composed::norm_saving::<B>(x, residual, gamma, beta, dropout, spec),
    }
}

pub(super) fn norm_input_grad<B: Kernels>(
    dy: FloatTensor<B>,
    state: NormState<FloatTensor<B>>,
    gamma: FloatTensor<B>,
    spec: NormSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&dy, &state.x_hat, &state.inv_std, &gamma]) {
        return composed::norm_input_grad::<B>(dy, state, gamma, spec);
    }
    let shape = dy.shape().to_vec();
    let [dy, x_hat, inv_std, gamma] = [dy, state.x_hat, state.inv_std, gamma].map(HostTensor::in_rows);
    let dx = norm::input_grad(dy.floats(), x_hat.floats(), inv_std.floats(), gamma.floats(), spec);
    HostTensor::from_floats(dx, shape)
}

pub(super) fn norm_gamma_grad<B: Kernels>(dy: FloatTensor<B>, x_hat: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&dy, &x_hat]) {
        return composed::sum_rows::<B>(B::float_mul(dy, x_hat));
    }
    let [_, width] = dims2(&dy);
    let (dy, x_hat) = (dy.in_rows(), x_hat.in_rows());
    HostTensor::from_floats(norm::sum_rows(dy.floats(), Some(x_hat.floats()), width), vec![width])
}

pub(super) fn dropout_forward<B: Kernels>(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x]) {
        return composed::dropout::<B>(x, dropout);
    }
    let [rows, width] = dims2(&x);
    HostTensor::from_floats(elementwise::dropout(x.in_rows().floats(), width, dropout), vec![rows, width])
}

/// The attention of `f32` tensors, with the logarithms of its softmax denominators if asked to.
fn attend<T: HostTensor>(
    q: &T,
    k: &T,
    v: &T,
    spec: &AttentionSpec,
    with_log_sums: bool,
) -> Option<(T, Option<T>)> {
    if !all_f32([q, k, v]) {
        return None;
    }
    let shape = q.shape().to_vec();
    let [q, k, v] = [q, k, v].map(|tensor| tensor.clone().in_rows());
    let (y, log_sums) = attention::attention(q.floats(), k.floats(), v.floats(), spec, with_log_sums);
    let log_sums = log_sums.map(|log_sums| T::from_floats(log_sums, vec![shape[0], spec.n_heads]));
    Some((T::from_floats(y, shape), log_sums))
}

pub(super) fn attention_forward<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match attend(&q, &k, &v, spec, false) {
        Some((y, _)) => y,
        None => composed::attention_saving::<B>(q, k, v, spec).0,
    }
}

pub(super) fn attention_saving<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    match attend(&q, &k, &v, spec, true) {
        Some((y, Some(log_sums))) => (y, log_sums),
        _ => composed::attention_saving::<B>(q, k, v, spec),
    }
}

#[allow(clippy::too_many_arguments, reason = "those of the trait")]
pub(super) fn attention_grads<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
    spec: &AttentionSpec,
    needed: [bool; 3],
) -> AttentionGrads<FloatTensor<B>>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&q, &k, &v, &y, &log_sums, &dy]) {
        return composed::attention_grads::<B>([q, k, v], y, log_sums, dy, spec, needed);
    }
    let (q_shape, kv_shape) = (q.shape().to_vec(), k.shape().to_vec());
    let [q, k, v, y, log_sums, dy] = [q, k, v, y, log_sums, dy].map(HostTensor::in_rows);
    let saved = attention::Saved {
        q: q.floats(),
        k: k.floats(),
        v: v.floats(),
        y: y.floats(),
        log_sums: log_sums.floats(),
        dy: dy.floats(),
    };
    let [q, k, v] = attention::attention_grads(saved, spec, needed);
    AttentionGrads {
        q: q.map(|q| HostTensor::from_floats(q, q_shape)),
        k: k.map(|k| HostTensor::from_floats(k, kv_shape.clone())),
        v: v.map(|v| HostTensor::from_floats(v, kv_shape)),
    }
}

pub(super) fn cross_entropy_forward<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    cross_entropy_saving::<B>(logits, targets).0
}

pub(super) fn cross_entropy_saving<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    if !all_f32([&logits]) {
        return composed::cross_entropy_saving::<B>(logits, targets);
    }
    let [rows, classes] = dims2(&logits);
    let (loss, log_sums) = loss::cross_entropy(logits.in_rows().floats(), &targets.indices(), classes);
    (HostTensor::from_floats(vec![loss], vec![1]), HostTensor::from_floats(log_sums, vec![rows, 1]))
}

pub(super) fn cross_entropy_grad<B: Kernels>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
    IntTensor<B>: HostTensor,
{
    if !all_f32([&logits, &log_sums, &dy]) {
        return composed::cross_entropy_grad::<B>(logits, targets, log_sums, dy);
    }
    let [rows, classes] = dims2(&logits);
    let [logits, log_sums, dy] = [logits, log_sums, dy].map(HostTensor::in_rows);
    let dy = dy.floats().first().copied().unwrap_or(0.0);
    let grad = loss::cross_entropy_grad(logits.floats(), &targets.indices(), classes, log_sums.floats(), dy);
    HostTensor::from_floats(grad, vec![rows, classes])
}

pub(super) fn swiglu_forward<B: Kernels>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&gate, &up]) {
        return composed::swiglu::<B>(gate, up);
    }
    let shape = gate.shape().to_vec();
    let (gate, up) = (gate.in_rows(), up.in_rows());
    HostTensor::from_floats(elementwise::swiglu(gate.floats(), up.floats()), shape)
}

pub(super) fn swiglu_grads<B: Kernels>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> [FloatTensor<B>; 2]
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&gate, &up, &dy]) {
        return composed::swiglu_grads::<B>(gate, up, dy);
    }
    let shape = gate.shape().to_vec();
    let [gate, up, dy] = [gate, up, dy].map(HostTensor::in_rows);
    elementwise::swiglu_grads(gate.floats(), up.floats(), dy.floats())
        .map(|grad| HostTensor::from_floats(grad, shape.clone()))
}

pub(super) fn rope_forward<B: Kernels>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    spec: RopeSpec,
    inverse: bool,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x, &cos, &sin]) {
        return composed::rope::<B>(x, cos, sin, spec, inverse);
    }
    let [rows, width] = dims2(&x);
    let [x, cos, sin] = [x, cos, sin].map(HostTensor::in_rows);
    let y = rope::rope(x.floats(), cos.floats(), sin.floats(), width, spec, inverse);
    HostTensor::from_floats(y, vec![rows, width])
}

pub(super) fn adamw_update<B: Kernels>(
    mut param: FloatTensor<B>,
    grad: FloatTensor<B>,
    mut state: AdamWState<FloatTensor<B>>,
    options: &AdamW,
) -> (FloatTensor<B>, AdamWState<FloatTensor<B>>)
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&param, &grad, &state.mean, &state.square]) {
        return composed::adamw::<B>(param, grad, state, options);
    }
    let grad = grad.in_rows();
    let (mean, square) = (state.mean.floats_mut(), state.square.floats_mut());
    optimizer::adamw(param.floats_mut(), grad.floats(), mean, square, options);
    (param, state)
}
