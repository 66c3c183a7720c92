//! GELU, its slope, gated activations and dropout composed of burn operations.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData};

use super::{unwrap, wrap};
use crate::spec::{Dropout, Gate, Gelu};

pub(crate) fn gelu<B: Backend>(x: FloatTensor<B>, kind: Gelu) -> FloatTensor<B> {
    let x: Tensor<B, 2> = wrap(x);
    let cdf = match kind {
        Gelu::Erf => (x.clone().mul_scalar(FRAC_1_SQRT_2).erf() + 1.0).mul_scalar(0.5),
        Gelu::Tanh => (tanh_argument(x.clone()).tanh() + 1.0).mul_scalar(0.5),
    };
    unwrap(x * cdf)
}

/// `gelu(x) = x·Φ(x)` has the slope `Φ(x) + x·Φ'(x)`.
pub(crate) fn gelu_saving<B: Backend>(x: FloatTensor<B>, kind: Gelu) -> (FloatTensor<B>, FloatTensor<B>) {
    let x: Tensor<B, 2> = wrap(x);
    let (cdf, density) = match kind {
        Gelu::Erf => {
            let cdf = (x.clone().mul_scalar(FRAC_1_SQRT_2).erf() + 1.0).mul_scalar(0.5);
            let density = (x.clone().square() * -0.5).exp().mul_scalar(1.0 / (2.0 * PI).sqrt());
            (cdf, density)
        }
        Gelu::Tanh => {
            let tanh = tanh_argument(x.clone()).tanh();
            let slope = (x.clone().square().mul_scalar(3.0 * TANH_CUBE) + 1.0).mul_scalar(tanh_factor());
            let density = (tanh.clone().square().neg() + 1.0).mul_scalar(0.5) * slope;
            ((tanh + 1.0).mul_scalar(0.5), density)
        }
    };
    (unwrap(x.clone() * cdf.clone()), unwrap(x * density + cdf))
}

/// Coefficient of x³ in the tanh form of GELU.
const TANH_CUBE: f64 = 0.044715;

fn tanh_factor() -> f64 {
    (2.0 / PI).sqrt()
}

fn tanh_argument<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let cubic = x.clone().square().mul_scalar(TANH_CUBE) + 1.0;
    (x * cubic).mul_scalar(tanh_factor())
}

pub(crate) fn dropout<B: Backend>(x: FloatTensor<B>, dropout: Dropout) -> FloatTensor<B> {
    let x: Tensor<B, 2> = wrap(x);
    let [rows, columns] = x.dims();
    let mut factors = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let keep = dropout.row_mask(row as u64);
        factors.extend((0..columns).map(|column| if keep(column as u32) { dropout.scale() } else { 0.0 }));
    }
    let factors = TensorData::new(factors, [rows, columns]);
    let factors = Tensor::<B, 2>::from_data(factors, (&x.device(), x.dtype()));
    unwrap(x * factors)
}

pub(crate) fn gated<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>, kind: Gate) -> FloatTensor<B> {
    let activated: Tensor<B, 2> = match kind {
        Gate::Silu => {
            let gate: Tensor<B, 2> = wrap(gate);
            gate.clone() * sigmoid(gate)
        }
        Gate::Gelu(kind) => wrap(gelu::<B>(gate, kind)),
    };
    unwrap(activated * wrap(up))
}

pub(crate) fn gated_grads<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    dy: FloatTensor<B>,
    kind: Gate,
) -> [FloatTensor<B>; 2] {
    let (up, dy): (Tensor<B, 2>, Tensor<B, 2>) = (wrap(up), wrap(dy));
    let (activated, slope) = match kind {
        Gate::Silu => {
            let gate: Tensor<B, 2> = wrap(gate);
            let s = sigmoid(gate.clone());
            let silu = gate * s.clone();
            // silu' = s + silu·(1 - s)
            (silu.clone(), silu * (s.clone().neg() + 1.0) + s)
        }
        Gate::Gelu(kind) => {
            let (y, slope) = gelu_saving::<B>(gate, kind);
            (wrap(y), wrap(slope))
        }
    };
    [unwrap(dy.clone() * up * slope), unwrap(dy * activated)]
}

/// Burn's own is in single precision on some double-precision backends.
fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    (x.neg().exp() + 1.0).recip()
}
