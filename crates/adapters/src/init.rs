//! Seeded initial values, the same on every backend and whatever the order of initialisation.

use burn::prelude::*;
use burn::tensor::TensorData;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Mixes a seed with a stream number (SplitMix64's finaliser).
pub fn mix(seed: u64, stream: u64) -> u64 {
    let mut z = seed.wrapping_add(stream.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Generator for the tensor called `key`: a stream of its own, so that values do not depend on the order
/// in which tensors are made.
fn rng(seed: u64, key: &str) -> ChaCha8Rng {
    // FNV-1a over the key.
    let hash =
        key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ChaCha8Rng::seed_from_u64(mix(seed, hash))
}

/// Uniform in `(0, 1]`, 24 bits, made of integers alone.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    f64::from((rng.random::<u32>() >> 8) + 1) / f64::from(1u32 << 24)
}

/// `n` values uniform in `[-bound, bound]`.
pub fn uniform_values(seed: u64, key: &str, n: usize, bound: f64) -> Vec<f32> {
    let mut rng = rng(seed, key);
    (0..n).map(|_| ((2.0 * unit(&mut rng) - 1.0) * bound) as f32).collect()
}

/// `n` normal values with mean 0 and standard deviation `std` (Box–Muller).
pub fn normal_values(seed: u64, key: &str, n: usize, std: f64) -> Vec<f32> {
    let mut rng = rng(seed, key);
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let radius = (-2.0 * unit(&mut rng).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * unit(&mut rng)).sin_cos();
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(n);
    values
}

/// Kaiming-uniform with a = √5, PyTorch's default for linear layers: `U(−1/√fan_in, 1/√fan_in)`.
///
/// # Shapes
/// - output: `[d_input, d_output]`, fan-in `d_input`
pub fn kaiming<B: Backend>(
    seed: u64,
    key: &str,
    [d_input, d_output]: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2> {
    let values = uniform_values(seed, key, d_input * d_output, 1.0 / (d_input as f64).sqrt());
    Tensor::from_data(TensorData::new(values, [d_input, d_output]), device)
}

/// Normal values of standard deviation `std`.
pub fn normal<B: Backend, const D: usize>(
    seed: u64,
    key: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    let values = normal_values(seed, key, shape.iter().product(), std);
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_the_moments_asked_for() {
        let values = normal_values(7, "w", 100_000, 0.5);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let var = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors: 5·0.5/√n and 5·σ²·√(2/n).
        assert!(mean.abs() < 5.0 * 0.5 / 1e5_f64.sqrt(), "mean {mean}");
        assert!((var - 0.25).abs() < 5.0 * 0.25 * (2e-5_f64).sqrt(), "variance {var}");
    }

    #[test]
    fn uniform_stays_in_its_bounds_and_fills_them() {
        let values = uniform_values(7, "w", 10_000, 0.25);
        assert!(values.iter().all(|v| v.abs() <= 0.25));
        assert!(values.iter().any(|&v| v > 0.24) && values.iter().any(|&v| v < -0.24));
    }

    #[test]
    fn keys_and_seeds_give_streams_of_their_own() {
        assert_eq!(normal_values(1, "a", 5, 1.0), normal_values(1, "a", 5, 1.0));
        assert_ne!(normal_values(1, "a", 5, 1.0), normal_values(1, "b", 5, 1.0));
        assert_ne!(normal_values(1, "a", 5, 1.0), normal_values(2, "a", 5, 1.0));
    }
}
