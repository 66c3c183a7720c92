//! AVX-512: one register per vector; with and without its instructions for neural networks (VNNI).

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Calls an intrinsic.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: a token exists only where the machine has the instructions.
        unsafe { $call }
    };
}

/// Adds sums of four neighbouring products; `w` has no sign.
///
/// # Safety
/// The machine must have AVX-512BW; two products must stay below 2¹⁵.
#[inline(always)]
unsafe fn dot(sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let pairs = _mm512_maddubs_epi16(w, x);
        _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
    }
}

/// Dot products of bytes with signs: that of `w` moves to `x`, since products of bytes are made without signs on one
/// side.
///
/// # Safety
/// The machine must have AVX-512BW.
#[inline(always)]
unsafe fn dot_signed(w: [__m512i; 2], x: [__m512i; 2], _start: __m512i) -> __m512i {
    // SAFETY: the caller's; two products are at most 2·128·127, which is below 2¹⁵.
    unsafe {
        let zero = _mm512_setzero_si512();
        let [first, second] = [0, 1].map(|i| {
            (_mm512_abs_epi8(w[i]), _mm512_mask_sub_epi8(x[i], _mm512_movepi8_mask(w[i]), zero, x[i]))
        });
        dot(dot(zero, first.0, first.1), second.0, second.1)
    }
}

/// [`dot`] in one instruction.
///
/// # Safety
/// The machine must have AVX-512VNNI.
#[inline(always)]
unsafe fn dot_vnni(sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_dpbusd_epi32(sums, w, x) }
}

/// [`dot_signed`] of `w + 128`, which has no sign; `start` takes the difference back.
///
/// # Safety
/// The machine must have AVX-512VNNI.
#[inline(always)]
unsafe fn dot_signed_vnni(w: [__m512i; 2], x: [__m512i; 2], start: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let sign = _mm512_set1_epi8(-128);
        let first = _mm512_dpbusd_epi32(start, _mm512_xor_si512(w[0], sign), x[0]);
        _mm512_dpbusd_epi32(first, _mm512_xor_si512(w[1], sign), x[1])
    }
}

/// Defines a token of these features, which sums products of bytes by `$dot`, of any bytes or not, and `$dot_signed`.
macro_rules! implement {
    ($Token:ident, $is_available:ident, $run:ident, $features:literal, [$($feature:tt)*], $dot:ident, $dot_signed:ident, $dots_any:literal) => {
        /// Proof that the machine has the features.
        #[derive(Clone, Copy)]
        pub(super) struct $Token(());

        pub(super) fn $is_available() -> bool {
            $(is_x86_feature_detected!($feature))&&*
        }

        /// Runs a kernel with these instructions.
        ///
        /// # Safety
        /// The features must be there.
        #[target_feature(enable = $features)]
        #[inline(never)]
        pub(super) unsafe fn $run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run($Token(()))
        }

        impl Simd for $Token {
            type V = __m512;
            type U = __m512i;
            type B = __m512i;
            const TILE_ROWS: usize = 14;
            const TILE_VECTORS: usize = 2;
            const DOTS_ANY: bool = $dots_any;

            #[inline(always)]
            fn call<K: Kernel>(self, kernel: K) -> K::Output {
                // SAFETY: such a token exists only where the machine has the instructions.
                unsafe { $run(kernel) }
            }

            #[inline(always)]
            fn splat(self, x: f32) -> __m512 {
                intrinsic!(_mm512_set1_ps(x))
            }

            #[inline(always)]
            unsafe fn load_ptr(self, from: *const f32) -> __m512 {
                // SAFETY: the token, and the caller vouches for sixteen floats.
                unsafe { _mm512_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn store_ptr(self, v: __m512, to: *mut f32) {
                // SAFETY: the token, and the caller vouches for sixteen floats.
                unsafe { _mm512_storeu_ps(to, v) }
            }

            #[inline(always)]
            fn add(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_add_ps(a, b))
            }

            #[inline(always)]
            fn sub(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_sub_ps(a, b))
            }

            #[inline(always)]
            fn mul(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_mul_ps(a, b))
            }

            #[inline(always)]
            fn div(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_div_ps(a, b))
            }

            #[inline(always)]
            fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                intrinsic!(_mm512_fmadd_ps(a, b, c))
            }

            #[inline(always)]
            fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                intrinsic!(_mm512_fnmadd_ps(a, b, c))
            }

            #[inline(always)]
            fn max(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_max_ps(a, b))
            }

            #[inline(always)]
            fn min(self, a: __m512, b: __m512) -> __m512 {
                intrinsic!(_mm512_min_ps(a, b))
            }

            #[inline(always)]
            fn sqrt(self, a: __m512) -> __m512 {
                intrinsic!(_mm512_sqrt_ps(a))
            }

            #[inline(always)]
            fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
                intrinsic!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
            }

            #[inline(always)]
            fn splat_u(self, x: u32) -> __m512i {
                intrinsic!(_mm512_set1_epi32(x.cast_signed()))
            }

            #[inline(always)]
            fn count_from(self, start: u32) -> __m512i {
                let counts = intrinsic!(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
                self.add_u(self.splat_u(start), counts)
            }

            #[inline(always)]
            fn to_bits(self, v: __m512) -> __m512i {
                intrinsic!(_mm512_castps_si512(v))
            }

            #[inline(always)]
            fn from_bits(self, u: __m512i) -> __m512 {
                intrinsic!(_mm512_castsi512_ps(u))
            }

            #[inline(always)]
            fn add_u(self, a: __m512i, b: __m512i) -> __m512i {
                intrinsic!(_mm512_add_epi32(a, b))
            }

            #[inline(always)]
            fn mul_u(self, a: __m512i, b: __m512i) -> __m512i {
                intrinsic!(_mm512_mullo_epi32(a, b))
            }

            #[inline(always)]
            fn xor_u(self, a: __m512i, b: __m512i) -> __m512i {
                intrinsic!(_mm512_xor_si512(a, b))
            }

            #[inline(always)]
            fn shr_u<const N: u32>(self, a: __m512i) -> __m512i {
                intrinsic!(_mm512_srli_epi32::<N>(a))
            }

            #[inline(always)]
            fn shl_u<const N: u32>(self, a: __m512i) -> __m512i {
                intrinsic!(_mm512_slli_epi32::<N>(a))
            }

            #[inline(always)]
            fn keep_ge_u(self, a: __m512i, b: __m512i, x: __m512) -> __m512 {
                intrinsic!(_mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(a, b), x))
            }

            #[inline(always)]
            fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
                let mut pairs = rows;
                for i in (0..LANES).step_by(2) {
                    pairs[i] = intrinsic!(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
                    pairs[i + 1] = intrinsic!(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
                }
                // Lane group g of quads[4i + j] is column 4g + j of rows 4i to 4i + 3.
                let mut quads = pairs;
                for i in (0..LANES).step_by(4) {
                    let [a, b, c, d] = [pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]];
                    quads[i] = intrinsic!(_mm512_shuffle_ps::<0b01_00_01_00>(a, c));
                    quads[i + 1] = intrinsic!(_mm512_shuffle_ps::<0b11_10_11_10>(a, c));
                    quads[i + 2] = intrinsic!(_mm512_shuffle_ps::<0b01_00_01_00>(b, d));
                    quads[i + 3] = intrinsic!(_mm512_shuffle_ps::<0b11_10_11_10>(b, d));
                }
                let mut columns = quads;
                for j in 0..4 {
                    let [a, b, c, d] = [quads[j], quads[j + 4], quads[j + 8], quads[j + 12]];
                    let ab_even = intrinsic!(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b));
                    let ab_odd = intrinsic!(_mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
                    let cd_even = intrinsic!(_mm512_shuffle_f32x4::<0b10_00_10_00>(c, d));
                    let cd_odd = intrinsic!(_mm512_shuffle_f32x4::<0b11_01_11_01>(c, d));
                    columns[j] = intrinsic!(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even));
                    columns[j + 4] = intrinsic!(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd));
                    columns[j + 8] = intrinsic!(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even));
                    columns[j + 12] = intrinsic!(_mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd));
                }
                columns
            }

            #[inline(always)]
            fn from_f16(self, bits: &[u16; LANES]) -> __m512 {
                // SAFETY: the token, and the array has 32 bytes.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
            }

            #[inline(always)]
            fn from_i8(self, x: &[i8; LANES]) -> __m512 {
                // SAFETY: the token, and the array has sixteen bytes.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
            }

            #[inline(always)]
            fn from_bf16(self, bits: &[u16; LANES]) -> __m512 {
                // SAFETY: the token, and the array has 32 bytes.
                let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(bits.as_ptr().cast())) };
                self.from_bits(self.shl_u::<16>(wide))
            }

            #[inline(always)]
            fn from_words(self, words: __m512i) -> __m512 {
                intrinsic!(_mm512_cvtepi32_ps(words))
            }

            #[inline(always)]
            fn load_u(self, from: &[i32; LANES]) -> __m512i {
                // SAFETY: the token, and the array has 64 bytes.
                unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
            }

            #[inline(always)]
            fn store_u(self, u: __m512i, to: &mut [i32; LANES]) {
                // SAFETY: the token, and the array has 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), u) }
            }

            #[inline(always)]
            fn splat_f16(self, bits: u16) -> __m512 {
                intrinsic!(_mm512_cvtph_ps(_mm256_set1_epi16(bits.cast_signed())))
            }

            #[inline(always)]
            fn spread_f16(self, bits: [u16; 4]) -> __m512 {
                let [a, b, c, d] = [bits[0].cast_signed(), bits[1].cast_signed(), bits[2].cast_signed(), bits[3].cast_signed()];
                let four = intrinsic!(_mm256_castsi128_si256(_mm_setr_epi16(a, b, c, d, 0, 0, 0, 0)));
                self.spread::<0>(intrinsic!(_mm512_cvtph_ps(four)))
            }

            #[inline(always)]
            fn spread_bf16(self, bits: [u16; 4]) -> __m512 {
                let [a, b, c, d] = [bits[0].cast_signed(), bits[1].cast_signed(), bits[2].cast_signed(), bits[3].cast_signed()];
                let upper = intrinsic!(_mm_setr_epi16(0, a, 0, b, 0, c, 0, d));
                self.spread::<0>(intrinsic!(_mm512_castps128_ps512(_mm_castsi128_ps(upper))))
            }

            #[inline(always)]
            fn pick_i8(self, x: &[u8; LANES], order: &[u8; LANES]) -> __m512 {
                // SAFETY: the token, and the arrays have sixteen bytes.
                unsafe {
                    let (x, order) = (_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(order.as_ptr().cast()));
                    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_shuffle_epi8(x, order)))
                }
            }

            #[inline(always)]
            fn spread<const Q: usize>(self, v: __m512) -> __m512 {
                let [a, b, c, d] = [4 * Q as i32, 4 * Q as i32 + 1, 4 * Q as i32 + 2, 4 * Q as i32 + 3];
                intrinsic!(_mm512_permutexvar_ps(
                    _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d),
                    v
                ))
            }

            #[inline(always)]
            fn sums(self, v: [__m512; 4]) -> [f32; 4] {
                // SAFETY: the token.
                unsafe { super::avx2::sums([halved(v[0]), halved(v[1]), halved(v[2]), halved(v[3])]) }
            }

            #[inline(always)]
            fn bytes(self, from: &[u8; 64]) -> __m512i {
                // SAFETY: the token, and the array has 64 bytes.
                unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
            }

            #[inline(always)]
            fn bytes_twice(self, from: &[u8; 32]) -> __m512i {
                // SAFETY: the token, and the array has 32 bytes.
                unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(from.as_ptr().cast())) }
            }

            #[inline(always)]
            fn quarters(self, from: [&[u8; 16]; 4]) -> __m512i {
                // SAFETY: the token, and the arrays have sixteen bytes.
                unsafe {
                    let v = _mm512_castsi128_si512(_mm_loadu_si128(from[0].as_ptr().cast()));
                    let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(from[1].as_ptr().cast()));
                    let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(from[2].as_ptr().cast()));
                    _mm512_inserti32x4::<3>(v, _mm_loadu_si128(from[3].as_ptr().cast()))
                }
            }

            #[inline(always)]
            fn splat_b(self, x: u8) -> __m512i {
                intrinsic!(_mm512_set1_epi8(x.cast_signed()))
            }

            #[inline(always)]
            fn or_b(self, a: __m512i, b: __m512i) -> __m512i {
                intrinsic!(_mm512_or_si512(a, b))
            }

            #[inline(always)]
            fn field<const LOW: u32, const HIGH: u32>(self, b: __m512i, mask: u8) -> __m512i {
                let shifted = if LOW == HIGH {
                    if LOW == 0 { b } else { intrinsic!(_mm512_srl_epi16(b, _mm_cvtsi32_si128(LOW.cast_signed()))) }
                } else {
                    let counts = intrinsic!(_mm512_inserti64x4::<1>(
                        _mm512_set1_epi16(LOW as i16),
                        _mm256_set1_epi16(HIGH as i16)
                    ));
                    intrinsic!(_mm512_srlv_epi16(b, counts))
                };
                intrinsic!(_mm512_and_si512(shifted, _mm512_set1_epi8(mask.cast_signed())))
            }

            #[inline(always)]
            fn shl_b<const N: u32>(self, b: __m512i) -> __m512i {
                intrinsic!(_mm512_sll_epi16(b, _mm_cvtsi32_si128(N.cast_signed())))
            }

            #[inline(always)]
            fn add_where(self, b: __m512i, bits: u64, value: u8) -> __m512i {
                intrinsic!(_mm512_mask_add_epi8(b, bits, b, _mm512_set1_epi8(value.cast_signed())))
            }

            #[inline(always)]
            fn look_up(self, table: &[i8; 16], index: __m512i) -> __m512i {
                // SAFETY: the token, and the array has sixteen bytes.
                unsafe {
                    let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
                    _mm512_shuffle_epi8(table, index)
                }
            }

            #[inline(always)]
            fn dot(self, sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
                intrinsic!($dot(sums, w, x))
            }

            #[inline(always)]
            fn dot_signed(self, w: [__m512i; 2], x: [__m512i; 2], start: __m512i) -> __m512i {
                intrinsic!($dot_signed(w, x, start))
            }
        }
    };
}

/// Sums of lanes `i` and `i + 8`.
///
/// # Safety
/// The machine must have AVX-512F.
#[inline(always)]
unsafe fn halved(v: __m512) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
        _mm256_add_ps(_mm512_castps512_ps256(v), high)
    }
}

implement!(
    Avx512,
    is_available,
    run,
    "avx512f,avx512bw,avx,avx2,fma",
    ["avx512f" "avx512bw" "fma"],
    dot,
    dot_signed,
    false
);
implement!(
    Avx512Vnni,
    vnni_is_available,
    run_vnni,
    "avx512f,avx512bw,avx512vnni,avx,avx2,fma",
    ["avx512f" "avx512bw" "avx512vnni" "fma"],
    dot_vnni,
    dot_signed_vnni,
    true
);
