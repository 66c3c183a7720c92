//! Linear maps, plain and with a LoRA.

use burn::tensor::ops::FloatTensor;

use super::{HostTensor, all_f32, dims2, dropout_forward};
use crate::composed;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::{Finish, Left, Product, Right, Weights, gemm, gemm_into};
use crate::cpu::gemv;
use crate::kernels::{Adapted, Kernels};
use crate::spec::{Gelu, LoraSpec};

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

pub(in crate::backends) fn linear_forward<B: Kernels>(
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

pub(in crate::backends) fn linear_input_grad<B: Kernels>(
    dy: FloatTensor<B>,
    w: FloatTensor<B>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match multiply(&dy, &w, true, None, None) {
        Some((dx, _)) => dx,
        None => composed::linear_input_grad::<B>(dy, w),
    }
}

pub(in crate::backends) fn linear_weight_grad<B: Kernels>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B>
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

pub(in crate::backends) fn lora_forward<B: Kernels>(
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

pub(in crate::backends) fn add_lora_forward<B: Kernels>(
    mut y: FloatTensor<B>,
    x: FloatTensor<B>,
    [a, b]: [FloatTensor<B>; 2],
    spec: LoraSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&y, &x, &a, &b]) {
        return composed::add_lora::<B>(y, x, [a, b], spec);
    }
    let ([m, n], [_, rank]) = (dims2(&y), dims2(&a));
    let x = match spec.dropout {
        Some(dropout) => dropout_forward::<B>(x, dropout),
        None => x,
    };
    let h = linear_forward::<B>(x, a, None).in_rows();
    let b = B::float_mul_scalar(b, spec.scale.into()).in_rows();
    let b = Right::new(Weights::F32(b.floats()), [rank, n]);
    let product = Product { a: Left::Rows(h.floats()), b, k: rank };
    gemm_into([m, n], &[product], None, true, y.floats_mut());
    (y, h)
}

pub(in crate::backends) fn lora_input_grad<B: Kernels>(
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

pub(in crate::backends) fn linear_gelu_forward<B: Kernels>(
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

pub(in crate::backends) fn linear_gelu_saving<B: Kernels>(
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
