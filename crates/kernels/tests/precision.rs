//! Products on a GPU with rounded factors. This is a separate test program because the precision is global to a process.

#![cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use lowrank_kernels::{BlockFormat, BlockMatrix, Head, Precision, Weight, linear_cross_entropy};

#[cfg(feature = "cuda")]
type Gpu = burn_cuda::Cuda;
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
type Gpu = burn_wgpu::Vulkan;
#[cfg(all(feature = "metal", not(any(feature = "cuda", feature = "vulkan"))))]
type Gpu = burn_wgpu::Metal;

type Train = Autodiff<Gpu>;

const ROWS: usize = 12;
const WIDTH: usize = 64;
const OUT: usize = 96;

/// Positive numbers, so that no sum is smaller than its terms.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 11) as f32 * 0.7).sin() * 0.1 + 0.15).collect()
}

fn matrix(shape: [usize; 2], seed: usize) -> Tensor<Train, 2> {
    Tensor::from_data(TensorData::new(values(shape[0] * shape[1], seed), shape), &Default::default())
}

/// An output and the gradients of the input and of the weight, if that is trained.
fn step(w: Weight<Tensor<Train, 2>>, trained: Option<&Tensor<Train, 2>>) -> Vec<Vec<f32>> {
    let x = matrix([ROWS, WIDTH], 1).require_grad();
    let y = w.linear(x.clone(), None);
    let grads = (y.clone() * matrix([ROWS, OUT], 3)).sum().backward();
    let read = |tensor: Tensor<Gpu, 2>| tensor.into_data().to_vec::<f32>().unwrap();
    let mut all = vec![read(y.inner()), read(x.grad(&grads).unwrap())];
    all.extend(trained.map(|w| read(w.grad(&grads).unwrap())));
    all
}

/// The loss of a head, and the gradient of its input.
fn head(w: Weight<Tensor<Train, 2>>) -> Vec<Vec<f32>> {
    let x = matrix([ROWS, WIDTH], 1).require_grad();
    let targets = Tensor::<Train, 1, Int>::arange(0..ROWS as i64, &Default::default());
    let loss = linear_cross_entropy(x.clone(), Head::new(w), targets, None);
    let grads = loss.backward();
    vec![loss.into_data().to_vec().unwrap(), x.grad(&grads).unwrap().into_data().to_vec().unwrap()]
}

/// The largest difference, relative to the largest value.
fn difference(one: &[f32], other: &[f32]) -> f32 {
    let scale = other.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    one.iter().zip(other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / scale
}

#[test]
fn forward_products_are_rounded_and_gradients_in_f16_are_not() {
    let blocks = BlockMatrix::quantize(BlockFormat::Q8_0, [OUT, WIDTH], &values(OUT * WIDTH, 2)).unwrap();
    let run = || {
        let w = matrix([WIDTH, OUT], 2).require_grad();
        let quantized = || Weight::from(blocks.clone().transpose());
        [
            step(Weight::Float(w.clone()), Some(&w)),
            step(quantized(), None),
            head(Weight::Float(matrix([WIDTH, OUT], 2))),
            head(quantized()),
        ]
    };
    let exact = run();
    for (precision, unit) in [(Precision::F16, 2.0_f32.powi(-11)), (Precision::Bf16, 2.0_f32.powi(-8))] {
        precision.choose();
        let is_supported = Gpu::supports_dtype(&Default::default(), precision.dtype());
        let rounded = run();
        for (case, (rounded, exact)) in rounded.iter().zip(&exact).enumerate() {
            for (part, (rounded, exact)) in rounded.iter().zip(exact).enumerate() {
                let off = difference(rounded, exact);
                let name = precision.name();
                let is_forward = part == 0;
                assert!(off < 8.0 * unit, "{name}, case {case}, part {part}: {off}");
                // The gradient of a loss depends on rounded logits.
                if !is_supported || (precision == Precision::F16 && !is_forward && case < 2) {
                    assert!(off < 1e-5, "{name}, case {case}, part {part}: {off}");
                } else if case < 2 {
                    assert!(off > 0.01 * unit, "{name}, case {case}, part {part}: {off}");
                }
            }
        }
        Precision::F32.choose();
    }
    assert_eq!(Precision::chosen(), Precision::F32);
}
