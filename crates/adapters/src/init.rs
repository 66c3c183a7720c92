//! Seeded initial values, identical on every backend and independent of the order of initialization.

use burn::prelude::*;
use burn::tensor::TensorData;
pub(crate) use lowrank_spec::rng::{normal_values, uniform_values};

/// Kaiming-uniform with a = √5, PyTorch's default for linear layers: `U(−1/√fan_in, 1/√fan_in)`.
///
/// # Shapes
/// - output: `[d_input, d_output]`, fan-in `d_input`
pub(crate) fn kaiming<B: Backend>(
    seed: u64,
    key: &str,
    [d_input, d_output]: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2> {
    let values = uniform_values(seed, key, d_input * d_output, 1.0 / (d_input as f64).sqrt());
    Tensor::from_data(TensorData::new(values, [d_input, d_output]), device)
}

/// Normal values of standard deviation `std`.
pub(crate) fn normal<B: Backend, const D: usize>(
    seed: u64,
    key: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    let values = normal_values(seed, key, shape.iter().product(), std);
    Tensor::from_data(TensorData::new(values, shape), device)
}
