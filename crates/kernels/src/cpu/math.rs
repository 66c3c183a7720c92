//! Elementary functions on sixteen lanes.
//!
//! The polynomials are our own instead of the platform's, so that every machine computes the same bits. A NaN
//! argument gives a NaN, whatever its payload.

use super::simd::Simd;
use lowrank_spec::dropout::HASH_FACTORS;

use crate::spec::Gelu;

/// `eˣ` within 2 ulp; 0 below -87, ∞ above [`EXP_MAX`], and NaN for every NaN, whatever its payload.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    // Adding this rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few enough bits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Taylor coefficients of (eʳ - 1 - r) / r², adjusted to |r| <= ln 2 / 2 (Cephes, Moshier 1992).
    const TERMS: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let one = simd.splat(1.0);
    let bounded = simd.min(simd.splat(EXP_MAX), x);
    let shifted = simd.fma(bounded, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(shifted, simd.splat(ROUND));
    let r = simd.fnma(n, simd.splat(LN_2_HIGH), bounded);
    let r = simd.fnma(n, simd.splat(LN_2_LOW), r);
    let tail = polynomial(simd, r, &TERMS);
    let rest = simd.add(simd.fma(tail, simd.mul(r, r), r), one);
    // 2ⁿ from its bits. Multiplying by it is exact and, unlike an addition to the exponent, keeps a NaN.
    let power = simd.from_bits(simd.add_u(simd.to_bits(one), simd.shl_u::<23>(simd.to_bits(shifted))));
    let y = simd.mul(rest, power);
    let y = simd.select_lt(simd.splat(EXP_MAX), x, simd.splat(f32::INFINITY), y);
    simd.select_lt(x, simd.splat(-87.0), simd.splat(0.0), y)
}

/// `127.5·ln 2`, the largest argument of [`exp`] whose power of two is a float.
const EXP_MAX: f32 = 88.376_26;

/// The hyperbolic tangent with an error of at most 3e-7, and below 0.25 of at most 3e-7 of its value.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // 1 - 2/(e²ˣ + 1): correct at both infinities. Near zero the difference cancels, and the Taylor series is
    // used.
    const SMALL: f32 = 0.25;
    const SERIES: [f32; 4] = [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0];

    let (one, two) = (simd.splat(1.0), simd.splat(2.0));
    let y = simd.sub(one, simd.div(two, simd.add(exp(simd, simd.mul(x, two)), one)));
    let square = simd.mul(x, x);
    let series = simd.fma(simd.mul(polynomial(simd, square, &SERIES), square), x, x);
    simd.select_lt(square, simd.splat(SMALL * SMALL), series, y)
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

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, LANES, on_every_level};
    use super::*;

    /// Every function of this module on sixteen lanes.
    #[derive(Clone, Copy)]
    struct Functions([f32; LANES]);

    const NAMES: [&str; 9] = [
        "exp",
        "tanh",
        "sigmoid",
        "Φ",
        "Φ'",
        "gelu (erf)",
        "gelu (tanh)",
        "gelu's slope (erf)",
        "gelu's slope (tanh)",
    ];

    impl Kernel for Functions {
        type Output = [[f32; LANES]; 9];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let x = simd.load(&self.0);
            let (cdf, density) = normal(simd, x);
            [
                exp(simd, x),
                tanh(simd, x),
                sigmoid(simd, x),
                cdf,
                density,
                gelu(simd, x, Gelu::Erf),
                gelu(simd, x, Gelu::Tanh),
                gelu_slope(simd, x, Gelu::Erf).1,
                gelu_slope(simd, x, Gelu::Tanh).1,
            ]
            .map(|y| {
                let mut lanes = [0.0; LANES];
                simd.store(y, &mut lanes);
                lanes
            })
        }
    }

    #[test]
    fn a_nan_of_any_payload_stays_one() {
        // Each bit of the payload alone, all but that bit, and some sums; both signs.
        let payloads =
            (0..23).flat_map(|bit| [1_u32 << bit, 0x7f_ffff ^ 1 << bit]).chain([0x7f_ffff, 0x2a_aaaa]);
        for payload in payloads {
            for sign in [0, 1 << 31] {
                let nan = f32::from_bits(sign | 0x7f80_0000 | payload);
                let mut x = [1.0; LANES];
                (x[0], x[7], x[15]) = (nan, nan, nan);
                for (level, results) in on_every_level(Functions(x)) {
                    for (name, y) in NAMES.iter().zip(results) {
                        for (lane, y) in y.iter().enumerate() {
                            let expected = x[lane].is_nan();
                            assert_eq!(
                                y.is_nan(),
                                expected,
                                "{level:?}: {name}({:#x}) is {y}",
                                nan.to_bits()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn values_are_those_of_double_precision() {
        for start in (-2000..2000).step_by(LANES) {
            let x: [f32; LANES] = std::array::from_fn(|i| (start + i as i32) as f32 * 0.0457);
            for (level, [exp, tanh, sigmoid, ..]) in on_every_level(Functions(x)) {
                for (i, x) in x.map(f64::from).into_iter().enumerate() {
                    if x.abs() < 86.0 {
                        let error = (f64::from(exp[i]) / x.exp() - 1.0).abs();
                        assert!(error < 2.5e-7, "{level:?}: exp({x}) is {}", exp[i]);
                    }
                    let error = (f64::from(tanh[i]) - x.tanh()).abs();
                    let allowed = 3e-7 * if x.abs() < 0.25 { x.abs() } else { 1.0 };
                    assert!(error <= allowed, "{level:?}: tanh({x}) is {}", tanh[i]);
                    let error = (f64::from(sigmoid[i]) - 1.0 / (1.0 + (-x).exp())).abs();
                    assert!(error < 2e-7, "{level:?}: sigmoid({x}) is {}", sigmoid[i]);
                }
            }
        }
    }

    #[test]
    fn ends_are_those_of_the_functions() {
        let mut x = [0.0; LANES];
        x[..6].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 88.37, -0.0]);
        for (level, [exp, tanh, sigmoid, cdf, density, ..]) in on_every_level(Functions(x)) {
            assert_eq!(exp[..4], [f32::INFINITY, 0.0, f32::INFINITY, 0.0], "{level:?}");
            assert!(
                (f64::from(exp[4]) / f64::from(88.37_f32).exp() - 1.0).abs() < 2.5e-7,
                "{level:?}: {}",
                exp[4]
            );
            assert_eq!(tanh[..4], [1.0, -1.0, 1.0, -1.0], "{level:?}");
            assert_eq!(sigmoid[..4], [1.0, 0.0, 1.0, 0.0], "{level:?}");
            assert_eq!(cdf[..4], [1.0, 0.0, 1.0, 0.0], "{level:?}");
            assert_eq!(density[..4], [0.0; 4], "{level:?}");
            assert_eq!((exp[5], tanh[5], sigmoid[5]), (1.0, 0.0, 0.5), "{level:?}");
        }
    }
}
