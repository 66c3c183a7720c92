//! Tests that need a backend: the kernels against the composed defaults, and those against mathematics.

mod attention;
mod blocks;
mod cache;
mod dropout;
mod frozen;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod gpu_blocks;
mod gradients;
mod head;
mod linear;
mod loss;
mod nonfinite;
mod norm;
mod optimizer;
mod reproducible;
mod rope;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod sample;
mod unsound;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod uploads;
mod views;

use burn::tensor::backend::Backend;
use burn::tensor::{Element, Tensor, TensorData};
use burn_ndarray::NdArray;

/// A backend without custom kernels, in double precision: the reference.
type Exact = NdArray<f64>;

/// The GPU of a build for one. Without a card, `CUBECL_WGPU_DEFAULT_DEVICE=Cpu` selects Mesa's lavapipe.
#[cfg(feature = "cuda")]
pub(crate) type Gpu = burn_cuda::Cuda;
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
pub(crate) type Gpu = burn_wgpu::Vulkan;
#[cfg(all(feature = "metal", not(any(feature = "cuda", feature = "vulkan"))))]
pub(crate) type Gpu = burn_wgpu::Metal;

/// Uniform numbers in -1..1.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Representable in single precision, so that all backends get the same numbers.
        f64::from(((state >> 40) as f32) / 8_388_608.0 - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Uniform numbers in -1..1.
pub(crate) fn random<B: Backend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<B, D> {
    tensor(numbers(shape.iter().product(), seed), shape)
}

fn tensor<B: Backend, const D: usize>(values: Vec<f64>, shape: [usize; D]) -> Tensor<B, D> {
    // The type is explicit: a device has one default for all backends that share it, the first one's.
    let dtype = <B::FloatElem as Element>::dtype();
    Tensor::from_data(TensorData::new(values, shape).convert::<B::FloatElem>(), (&Default::default(), dtype))
}

pub(crate) fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().into_vec().unwrap()
}

/// Checks `|got - expected| <= tolerance·max(1, largest |expected|)` for all elements.
#[track_caller]
pub(crate) fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0_f64, |max, x| max.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * scale, "{what}: element {i} is {got}, expected {expected}");
    }
}

/// Rounding errors of a sum of `terms` numbers of size one in single precision.
fn tolerance(terms: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * (terms.max(1) as f64).sqrt()
}

/// Calls a generic check for each backend with kernels.
#[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "metal")))]
macro_rules! on_backends {
    ($check:ident($($argument:expr),* $(,)?)) => {
        $check::<burn_flex::Flex>($($argument),*);
        $check::<burn_ndarray::NdArray>($($argument),*);
    };
}

/// Calls a generic check for the backend of a build for GPUs; those of the CPU are checked in a build without.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
macro_rules! on_backends {
    ($check:ident($($argument:expr),* $(,)?)) => {
        $check::<$crate::tests::Gpu>($($argument),*);
    };
}
use on_backends;
