//! Functions that the kernels share: the polynomials of the CPU's, dropout's hash, sums over lanes and cubes.

use burn_cubecl::cubecl;
use cubecl::prelude::*;
use lowrank_spec::dropout::HASH_FACTORS;

/// Below every score and logit that is not -∞; maxima begin with it, so that no difference of two infinities arises.
pub(super) const LOWEST: f32 = -3.0e38;

/// `Φ(x)`, the distribution function of the normal distribution, by the polynomial of the CPU's kernel.
#[cube]
fn normal_cdf(x: f32, bell: f32) -> f32 {
    let magnitude = select(x < 0.0, 0.0 - x, x);
    let t = 1.0 / (magnitude * 0.212_132_03 + 1.0);
    let mut p = t * -0.129_522_66 + 0.485_562_03;
    p = p * t - 0.512_275_7;
    p = p * t + 0.547_717_34;
    p = p * t - 0.094_648_9;
    p = p * t + 0.214_925_29;
    p = p * t + 0.148_339_36;
    p = p * t + 0.170_715_2;
    p = p * t + 0.169_188_01;
    let tail = bell * t * p * 0.5;
    select(x < 0.0, tail, 1.0 - tail)
}

/// `1 / (1 + e⁻ˣ)`.
#[cube]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (0.0 - x).exp())
}

/// A GELU: the tanh form where `tanh`, that of Φ otherwise.
#[cube]
pub(super) fn gelu(x: f32, #[comptime] tanh: bool) -> f32 {
    if comptime!(tanh) {
        // 2·√(2/π)·(x + 0.044715 x³): the tanh form is x times the sigmoid of that.
        x * sigmoid(x * (x * x * 0.071_354_815 + 1.595_769_1))
    } else {
        x * normal_cdf(x, (x * x * -0.5).exp())
    }
}

/// A GELU's slope.
#[cube]
pub(super) fn gelu_slope(x: f32, #[comptime] tanh: bool) -> f32 {
    if comptime!(tanh) {
        let s = sigmoid(x * (x * x * 0.071_354_815 + 1.595_769_1));
        x * s * (1.0 - s) * (x * x * 0.214_064_45 + 1.595_769_1) + s
    } else {
        let bell = (x * x * -0.5).exp();
        x * bell * 0.398_942_3 + normal_cdf(x, bell)
    }
}

/// The activation of a gate: [`SILU`], [`ERF`] or [`TANH`].
#[cube]
pub(super) fn gate(x: f32, #[comptime] kind: u8) -> f32 {
    if comptime!(kind == SILU) { x * sigmoid(x) } else { gelu(x, comptime!(kind == TANH)) }
}

/// A gate's slope.
#[cube]
pub(super) fn gate_slope(x: f32, #[comptime] kind: u8) -> f32 {
    if comptime!(kind == SILU) {
        let s = sigmoid(x);
        x * s * (1.0 - s) + s
    } else {
        gelu_slope(x, comptime!(kind == TANH))
    }
}

/// Kinds of gates, as comptime arguments.
pub(super) const SILU: u8 = 0;
pub(super) const ERF: u8 = 1;
pub(super) const TANH: u8 = 2;

/// SplitMix64's first output (see `lowrank_spec`).
#[cube]
fn split_mix(seed: u64) -> u64 {
    let mut z = seed + 0x9e37_79b9_7f4a_7c15u64;
    z = (z ^ (z >> 30u64)) * 0xbf58_476d_1ce4_e5b9u64;
    z = (z ^ (z >> 27u64)) * 0x94d0_49bb_1331_11ebu64;
    z ^ (z >> 31u64)
}

/// The key of a row of dropout's mask: `Dropout::row_key`, its two words in one. The seed is in two words, since an
/// argument of 64 bits excludes devices from a kernel even where it is not used.
#[cube]
pub(super) fn row_key(seed_low: u32, seed_high: u32, row: usize) -> u64 {
    let seed = ((seed_high as u64) << 32u64) | (seed_low as u64);
    split_mix(seed ^ split_mix(row as u64))
}

/// Whether dropout keeps an element: `Dropout::row_mask`.
#[cube]
pub(super) fn keeps(key: u64, column: usize, threshold: u32) -> bool {
    let mut x = column as u32 + (key & 0xffff_ffffu64) as u32;
    x = x ^ (x >> 16u32);
    x = x * HASH_FACTORS[0] + (key >> 32u64) as u32;
    x = x ^ (x >> 15u32);
    x = x * HASH_FACTORS[1];
    x = x ^ (x >> 16u32);
    x >= threshold
}

/// The sum over groups of neighbouring lanes: 1, 2, 4 or 8.
#[cube]
pub(super) fn lane_sum(value: f32, #[comptime] lanes: usize) -> f32 {
    let mut sum = value;
    if comptime!(lanes >= 2) {
        sum += plane_shuffle_xor(sum, 1u32);
    }
    if comptime!(lanes >= 4) {
        sum += plane_shuffle_xor(sum, 2u32);
    }
    if comptime!(lanes >= 8) {
        sum += plane_shuffle_xor(sum, 4u32);
    }
    sum
}

/// The sum over a cube of [`UNITS`] units, in one order whatever the device.
#[cube]
pub(super) fn cube_sum(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..LEVELS {
        let half = comptime!(UNITS >> (level + 1));
        if unit < half {
            shared[unit] = shared[unit] + shared[unit + half];
        }
        sync_cube();
    }
    shared[0]
}

/// The largest value of a cube of [`UNITS`] units; NaNs are passed over.
#[cube]
pub(super) fn cube_max(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..LEVELS {
        let half = comptime!(UNITS >> (level + 1));
        if unit < half {
            shared[unit] = select(shared[unit + half] > shared[unit], shared[unit + half], shared[unit]);
        }
        sync_cube();
    }
    shared[0]
}

/// Units of a cube that reduces a row.
pub(super) const UNITS: usize = 128;
const LEVELS: usize = UNITS.ilog2() as usize;
