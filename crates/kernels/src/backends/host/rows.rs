//! Row-wise operations: norms, activations, dropout, rotary positions.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostTensor, all_f32, dims2};
use crate::composed;
use crate::cpu::{elementwise, norm, rope};
use crate::kernels::{Kernels, NormState};
use crate::spec::{Dropout, Gate, Gelu, NormSpec, RopeSpec};

pub(in crate::backends) fn sum_rows<B: Kernels>(dy: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&dy]) {
        return composed::sum_rows::<B>(dy);
    }
    let [_, width] = dims2(&dy);
    HostTensor::from_floats(norm::sum_rows(dy.in_rows().floats(), None, width), vec![width])
}

/// A function of two tensors of one shape; `None` if their types or shapes do not fit the kernels.
fn pairwise<T: HostTensor>(a: &T, b: &T, f: fn(&[f32], &[f32]) -> Vec<f32>) -> Option<T> {
    if !all_f32([a, b]) || a.shape() != b.shape() {
        return None;
    }
    let (rows_a, rows_b) = (a.clone().in_rows(), b.clone().in_rows());
    Some(T::from_floats(f(rows_a.floats(), rows_b.floats()), a.shape().to_vec()))
}

pub(in crate::backends) fn product<B: Kernels>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    pairwise(&a, &b, elementwise::product).unwrap_or_else(|| B::float_mul(a, b))
}

pub(in crate::backends) fn add<B: Kernels>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    pairwise(&a, &b, elementwise::sum).unwrap_or_else(|| B::float_add(a, b))
}

pub(in crate::backends) fn gelu_forward<B: Kernels>(x: FloatTensor<B>, kind: Gelu) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x]) {
        return composed::gelu::<B>(x, kind);
    }
    let shape = x.shape().to_vec();
    HostTensor::from_floats(elementwise::gelu(x.in_rows().floats(), kind), shape)
}

pub(in crate::backends) fn gelu_saving<B: Kernels>(
    x: FloatTensor<B>,
    kind: Gelu,
) -> (FloatTensor<B>, FloatTensor<B>)
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

/// Calls `f` with the arguments of a norm; `None` if any is not of type `f32`.
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

pub(in crate::backends) fn norm_forward<B: Kernels>(
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

pub(in crate::backends) fn norm_saving<B: Kernels>(
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

pub(in crate::backends) fn norm_input_grad<B: Kernels>(
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

pub(in crate::backends) fn norm_gamma_grad<B: Kernels>(
    dy: FloatTensor<B>,
    x_hat: FloatTensor<B>,
) -> FloatTensor<B>
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

pub(in crate::backends) fn dropout_forward<B: Kernels>(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&x]) {
        return composed::dropout::<B>(x, dropout);
    }
    let [rows, width] = dims2(&x);
    HostTensor::from_floats(elementwise::dropout(x.in_rows().floats(), width, dropout), vec![rows, width])
}

pub(in crate::backends) fn gated_forward<B: Kernels>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    kind: Gate,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&gate, &up]) {
        return composed::gated::<B>(gate, up, kind);
    }
    let shape = gate.shape().to_vec();
    let (gate, up) = (gate.by_rows(), up.by_rows());
    HostTensor::from_floats(elementwise::gated(gate.rows(), up.rows(), kind), shape)
}

pub(in crate::backends) fn gated_grads<B: Kernels>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    dy: FloatTensor<B>,
    kind: Gate,
) -> [FloatTensor<B>; 2]
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&gate, &up, &dy]) {
        return composed::gated_grads::<B>(gate, up, dy, kind);
    }
    let shape = gate.shape().to_vec();
    let [gate, up, dy] = [gate, up, dy].map(HostTensor::by_rows);
    elementwise::gated_grads(gate.rows(), up.rows(), dy.rows(), kind)
        .map(|grad| HostTensor::from_floats(grad, shape.clone()))
}

pub(in crate::backends) fn rope_forward<B: Kernels>(
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
    let (x, [cos, sin]) = (x.by_rows(), [cos, sin].map(HostTensor::in_rows));
    let y = rope::rope(x.rows(), cos.floats(), sin.floats(), spec, inverse);
    HostTensor::from_floats(y, vec![rows, width])
}

pub(in crate::backends) fn write_rows<B: Kernels>(
    mut table: FloatTensor<B>,
    rows: FloatTensor<B>,
    spans: &[[usize; 3]],
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&table, &rows]) {
        return composed::write_rows::<B>(table, rows, spans);
    }
    let [_, width] = dims2(&table);
    let rows = rows.in_rows();
    let (to, from) = (table.floats_mut(), rows.floats());
    for &[first, row, count] in spans {
        let own = &from[row * width..(row + count) * width];
        to[first * width..(first + count) * width].copy_from_slice(own);
    }
    table
}
