//! Activations by their names in `config.json`.

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, sigmoid, silu};
use lowrank_kernels::{Gate, Gelu, Kernels, gated, gelu};

/// Activation of a feed-forward part or a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Gaussian error linear unit, exact or by tanh.
    Gelu(Gelu),
    /// Rectifier.
    Relu,
    /// Square of the rectifier (So et al. 2021).
    ReluSquared,
    /// Sigmoid-weighted linear unit.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `x·σ(slope·x)` of `min(x, limit)`; the values that it gates are clamped to `±limit` and increased by 1 (gpt-oss).
    ClampedSilu {
        /// Factor in the sigmoid.
        slope: f32,
        /// Bound of gates and values.
        limit: f32,
    },
}

impl Activation {
    pub(crate) const NAMES: [(&'static str, Self); 10] = [
        ("gelu", Self::Gelu(Gelu::Erf)),
        ("gelu_python", Self::Gelu(Gelu::Erf)),
        ("gelu_new", Self::Gelu(Gelu::Tanh)),
        ("gelu_pytorch_tanh", Self::Gelu(Gelu::Tanh)),
        ("gelu_fast", Self::Gelu(Gelu::Tanh)),
        ("relu", Self::Relu),
        ("relu2", Self::ReluSquared),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("tanh", Self::Tanh),
    ];

    /// Elementwise.
    pub fn apply<B: Kernels>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Gelu(kind) => gelu(x, kind),
            Self::Relu => relu(x),
            Self::ReluSquared => relu(x).powi_scalar(2),
            Self::Silu => silu(x),
            Self::Tanh => x.tanh(),
            Self::ClampedSilu { slope, limit } => {
                let x = x.clamp_max(limit);
                x.clone() * sigmoid(x * slope)
            }
        }
    }

    /// `act(gate) ∘ up`, of equal shapes.
    pub(crate) fn gated<B: Kernels>(self, gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Silu => gated(gate, up, Gate::Silu),
            Self::Gelu(kind) => gated(gate, up, Gate::Gelu(kind)),
            Self::ClampedSilu { limit, .. } => self.apply(gate) * (up.clamp(-limit, limit) + 1.0),
            activation => activation.apply(gate) * up,
        }
    }
}
