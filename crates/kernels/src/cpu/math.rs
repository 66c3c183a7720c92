//! Elementary functions on sixteen lanes.
//!
//! Polynomials of our own and not the platform's, so that every machine computes the same bits.

use super::simd::Simd;
use lowrank_spec::dropout::HASH_FACTORS;

use crate::spec::Gelu;

/// `eˣ` within 2 ulp; 0 below -87, and `e⁸⁸` above 88.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    // Adding this rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few enough bits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Taylor coefficients of (eʳ - 1 - r) / r², adjusted to |r| <= ln 2 / 2 (Cephes, Moshier 1992).
    const TERMS: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let bounded = simd.min(simd.splat(88.0), x);
    let shifted = simd.fma(bounded, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(shifted, simd.splat(ROUND));
    let r = simd.fnma(n, simd.splat(LN_2_HIGH), bounded);
    let r = simd.fnma(n, simd.splat(LN_2_LOW), r);
    let tail = polynomial(simd, r, &TERMS);
    let y = simd.add(simd.fma(tail, simd.mul(r, r), r), simd.splat(1.0));
    let scaled = simd.from_bits(simd.add_u(simd.to_bits(y), simd.shl_u::<23>(simd.to_bits(shifted))));
    simd.select_lt(x, simd.splat(-87.0), simd.splat(0.0), scaled)
}

/// Horner's rule; the coefficient of the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::V, terms: &[f32; N]) -> S::V {
    let mut y = simd.splat(terms[0]);
    for &term in &terms[1..] {
        y = simd.fma(y, x, simd.splat(term));
    }
    y
}

/// `Φ(x)` and `Φ'(x)` of the normal distribution.
///
/// `Φ(-|x|) = e^{-x²/2}·t·P(t) / 2` with `t = 1 / (1 + 0.3·|x|/√2)`; P is the minimax polynomial of degree 8
/// for `0 <= |x| <= 14`, with a relative error of 2e-8 before rounding.
#[inline(always)]
pub(crate) fn normal<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
    const SLOPE: f32 = 0.212_132_03;
    // The coefficients of P, halved.
    const TERMS: [f32; 9] = [
        -0.129_522_66 / 2.0,
        0.485_562_03 / 2.0,
        -0.512_275_7 / 2.0,
        0.547_717_34 / 2.0,
        -0.094_648_9 / 2.0,
        0.214_925_29 / 2.0,
        0.148_339_36 / 2.0,
        0.170_715_2 / 2.0,
        0.169_188_01 / 2.0,
    ];
    const INV_SQRT_TAU: f32 = 0.398_942_3;

    let zero = simd.splat(0.0);
    let one = simd.splat(1.0);
    let magnitude = simd.max(simd.sub(zero, x), x);
    let bell = exp(simd, simd.mul(simd.mul(x, simd.splat(-0.5)), x));
    let t = simd.div(one, simd.fma(magnitude, simd.splat(SLOPE), one));
    let tail = simd.mul(simd.mul(bell, t), polynomial(simd, t, &TERMS));
    let cdf = simd.select_lt(x, zero, tail, simd.sub(one, tail));
    (cdf, simd.mul(bell, simd.splat(INV_SQRT_TAU)))
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::V) -> S::V {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// `2·√(2/π)`: the tanh form of GELU is `x·sigmoid(2·√(2/π)·(x + 0.044715 x³))`.
const TANH_FACTOR: f32 = 1.595_769;
const TANH_CUBE: f32 = 0.044_715;

/// A GELU.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::V, kind: Gelu) -> S::V {
    match kind {
        Gelu::Erf => simd.mul(x, normal(simd, x).0),
        Gelu::Tanh => simd.mul(x, sigmoid(simd, tanh_argument(simd, x))),
    }
}

/// A GELU and its slope.
#[inline(always)]
pub(crate) fn gelu_slope<S: Simd>(simd: S, x: S::V, kind: Gelu) -> (S::V, S::V) {
    match kind {
        Gelu::Erf => {
            let (cdf, density) = normal(simd, x);
            (simd.mul(x, cdf), simd.fma(x, density, cdf))
        }
        Gelu::Tanh => {
            let s = sigmoid(simd, tanh_argument(simd, x));
            let inner = simd.splat(3.0 * TANH_CUBE * TANH_FACTOR);
            let inner = simd.fma(simd.mul(x, x), inner, simd.splat(TANH_FACTOR));
            let y = simd.mul(x, s);
            (y, simd.fma(simd.mul(y, simd.sub(simd.splat(1.0), s)), inner, s))
        }
    }
}

#[inline(always)]
fn tanh_argument<S: Simd>(simd: S, x: S::V) -> S::V {
    let square = simd.mul(x, x);
    simd.mul(x, simd.fma(square, simd.splat(TANH_CUBE * TANH_FACTOR), simd.splat(TANH_FACTOR)))
}

/// Sixteen hashes of a dropout row, from this column on (see `Dropout::row_mask`).
#[inline(always)]
pub(crate) fn dropout_hash<S: Simd>(simd: S, key: (u32, u32), column: u32) -> S::U {
    let mut x = simd.count_from(column.wrapping_add(key.0));
    x = simd.xor_u(x, simd.shr_u::<16>(x));
    x = simd.add_u(simd.mul_u(x, simd.splat_u(HASH_FACTORS[0])), simd.splat_u(key.1));
    x = simd.xor_u(x, simd.shr_u::<15>(x));
    x = simd.mul_u(x, simd.splat_u(HASH_FACTORS[1]));
    simd.xor_u(x, simd.shr_u::<16>(x))
}

/// The natural logarithm of a positive number within 1 ulp; the same on every machine.
pub(crate) fn ln(x: f32) -> f32 {
    let x = f64::from(x);
    if x <= 0.0 || !x.is_finite() {
        return if x == 0.0 {
            f32::NEG_INFINITY
        } else if x > 0.0 {
            f32::INFINITY
        } else {
            f32::NAN
        };
    }
    // x = m·2ᵉ with m between 1/√2 and √2, and ln m = 2·artanh((m - 1) / (m + 1)). No float is a subnormal
    // double.
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    (2.0 * s * sum + f64::from(exponent) * std::f64::consts::LN_2) as f32
}
