//! Linear maps, plain and with a LoRA.

use burn::tensor::ops::FloatTensor;

use super::{HostTensor, all_f32, dims2, dropout_forward, weight_dims};
use crate::blocks::BlockMatrix;
use crate::composed;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::{Finish, Left, Product, Right, Weights, gemm, gemm_into};
use crate::cpu::{blocks, elementwise, gemv};
use crate::kernels::Kernels;
use crate::spec::{Gelu, LoraSpec};
use crate::weight::Weight;

/// Calls `f` with a weight matrix, which is copied only if it is neither row- nor column-major.
fn with_weights<T: HostTensor, R>(w: &Weight<T>, f: impl FnOnce(Weights<'_>, bool) -> R) -> Option<R> {
    let w = match w {
        Weight::Float(w) => w.clone(),
        Weight::Blocks(blocks) => {
            return Some(f(Weights::Blocks(blocks.format(), blocks.bytes()), blocks.is_transposed()));
        }
    };
    if let Some((weights, transposed)) = w.weights() {
        return Some(f(weights, transposed));
    }
    let w = w.in_rows();
    w.weights().map(|(weights, transposed)| f(weights, transposed))
}

/// Whether products with `m` rows of this weight, or of its transpose, round their input.
fn rounded<T>(w: &Weight<T>, m: usize, by_transpose: bool) -> Option<&BlockMatrix> {
    match w {
        Weight::Blocks(w) if m <= blocks::MAX_ROWS && w.is_transposed() != by_transpose && !w.is_exact() => {
            Some(w)
        }
        _ => None,
    }
}

/// `x·w` or, with `by_transpose`, `x·wᵀ`; `None` if the kernels do not support the types.
fn multiply<T: HostTensor>(
    x: &T,
    w: &Weight<T>,
    by_transpose: bool,
    bias: Option<&T>,
    gelu: Option<(Gelu, bool)>,
) -> Option<(T, Option<T>)> {
    if !all_f32([x, bias.unwrap_or(x)]) {
        return None;
    }
    let [m, k] = dims2(x);
    let [w_rows, w_columns] = weight_dims(w);
    let n = if by_transpose { w_rows } else { w_columns };
    let (x, bias) = (x.clone().in_rows(), bias.map(|bias| bias.clone().in_rows()));
    let bias = bias.as_ref().map(T::floats);
    if let Some(blocks) = rounded(w, m, by_transpose) {
        let mut y = blocks::product(m, x.floats(), blocks);
        if let Some(bias) = bias {
            y.chunks_exact_mut(n.max(1))
                .for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        }
        let (y, slope) = match gelu {
            None => (y, None),
            Some((kind, false)) => (elementwise::gelu(&y, kind), None),
            Some((kind, true)) => {
                let [y, slope] = elementwise::gelu_slope(&y, kind);
                (y, Some(slope))
            }
        };
        return Some((T::from_floats(y, vec![m, n]), slope.map(|slope| T::from_floats(slope, vec![m, n]))));
    }
    with_weights(w, |weights, transposed| {
        let b = right(weights, transposed != by_transpose, [k, n]);
        let finish = Finish { bias, gelu: gelu.map(|(kind, _)| kind) };
        let mut y = Buffer::new(m * n);
        let mut slope = gelu.and_then(|(_, with_slope)| with_slope.then(|| Buffer::new(m * n)));
        if m <= gemv::MAX_ROWS && !matches!(weights, Weights::Blocks(..)) {
            gemv::gemv([m, k, n], x.floats(), b, finish, &mut y, slope.as_mut());
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
    w: Weight<FloatTensor<B>>,
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
    w: Weight<FloatTensor<B>>,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    // A gradient is not rounded.
    match multiply(&dy, &w.clone().exact(), true, None, None) {
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

/// The right factor of a product of length `k` and width `n` from a matrix or its transpose.
fn right<'a>(weights: Weights<'a>, of_transpose: bool, shape: [usize; 2]) -> Right<'a> {
    if of_transpose { Right::of_transpose(weights, shape) } else { Right::new(weights, shape) }
}

/// `x·w + h·b + bias` or, with `by_transpose`, `x·wᵀ + h·bᵀ`, in one pass.
fn multiply_both<T: HostTensor>(
    [x, h]: [&T; 2],
    w: &Weight<T>,
    b: &T,
    bias: Option<&T>,
    by_transpose: bool,
) -> Option<T> {
    if !all_f32([x, h, bias.unwrap_or(x)]) {
        return None;
    }
    let ([m, k], [_, rank]) = (dims2(x), dims2(h));
    let [w_rows, w_columns] = weight_dims(w);
    let n = if by_transpose { w_rows } else { w_columns };
    let [x, h] = [x, h].map(|tensor| tensor.clone().in_rows());
    let bias = bias.map(|bias| bias.clone().in_rows());
    let y = with_weights(w, |w, w_transposed| {
        with_weights(&Weight::Float(b.clone()), |b, b_transposed| {
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
    w: Weight<FloatTensor<B>>,
    [a, b]: [FloatTensor<B>; 2],
    bias: Option<FloatTensor<B>>,
    spec: LoraSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    if all_f32([&x, &a, &b]) {
        if rounded(&w, dims2(&x)[0], false).is_some() {
            return add_lora_forward::<B>(linear_forward::<B>(x.clone(), w, bias), x, [a, b], spec);
        }
        let dropped = match spec.dropout {
            Some(dropout) => dropout_forward::<B>(x.clone(), dropout),
            None => x.clone(),
        };
        let h = linear_forward::<B>(dropped, Weight::Float(a.clone()), None);
        let scaled = B::float_mul_scalar(b.clone(), spec.scale.into());
        if let Some(y) = multiply_both([&x, &h], &w, &scaled, bias.as_ref(), false) {
            return (y, h);
        }
    }
    composed::lora::<B>(x, w, [a, b], bias, spec)
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
    let h = linear_forward::<B>(x, Weight::Float(a), None).in_rows();
    let b = B::float_mul_scalar(b, spec.scale.into()).in_rows();
    let b = Right::new(Weights::F32(b.floats()), [rank, n]);
    let product = Product { a: Left::Rows(h.floats()), b, k: rank };
    gemm_into([m, n], &[product], None, true, y.floats_mut());
    (y, h)
}

pub(in crate::backends) fn lora_input_grad<B: Kernels>(
    dy: FloatTensor<B>,
    w: Weight<FloatTensor<B>>,
    dh: FloatTensor<B>,
    a: FloatTensor<B>,
    spec: LoraSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if let Some(dropout) = spec.dropout {
        let dx = dropout_forward::<B>(linear_input_grad::<B>(dh, Weight::Float(a)), dropout);
        return B::float_add(linear_input_grad::<B>(dy, w), dx);
    }
    match multiply_both([&dy, &dh], &w, &a, None, true) {
        Some(dx) => dx,
        None => {
            let base = composed::linear_input_grad::<B>(dy, w);
            composed::lora_input_grad::<B>(base, dh, a, spec)
        }
    }
}

pub(in crate::backends) fn linear_gelu_forward<B: Kernels>(
    x: FloatTensor<B>,
    w: Weight<FloatTensor<B>>,
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
    w: Weight<FloatTensor<B>>,
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
