//! AVX2 with FMA: two registers per vector.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs a kernel with these instructions.
///
/// # Safety
/// [`is_available`] must be true.
#[target_feature(enable = "avx,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Calls an intrinsic.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: an `Avx2` exists only where the machine has the instructions.
        unsafe { $call }
    };
}

/// Lanes 0 to 7 and 8 to 15.
type Floats = [__m256; 2];
type Words = [__m256i; 2];

#[inline(always)]
fn both<T: Copy, R>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> R) -> [R; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl Avx2 {
    /// Transposes eight vectors of eight lanes.
    #[inline(always)]
    fn transpose8(self, rows: [__m256; 8]) -> [__m256; 8] {
        let mut pairs = rows;
        for i in (0..8).step_by(2) {
            pairs[i] = intrinsic!(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
            pairs[i + 1] = intrinsic!(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
        }
        let mut quads = pairs;
        for i in (0..8).step_by(4) {
            let [a, b, c, d] = [pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]];
            quads[i] = intrinsic!(_mm256_shuffle_ps::<0b01_00_01_00>(a, c));
            quads[i + 1] = intrinsic!(_mm256_shuffle_ps::<0b11_10_11_10>(a, c));
            quads[i + 2] = intrinsic!(_mm256_shuffle_ps::<0b01_00_01_00>(b, d));
            quads[i + 3] = intrinsic!(_mm256_shuffle_ps::<0b11_10_11_10>(b, d));
        }
        let mut columns = quads;
        for j in 0..4 {
            columns[j] = intrinsic!(_mm256_permute2f128_ps::<0x20>(quads[j], quads[j + 4]));
            columns[j + 4] = intrinsic!(_mm256_permute2f128_ps::<0x31>(quads[j], quads[j + 4]));
        }
        columns
    }
}

impl Simd for Avx2 {
    type V = Floats;
    type U = Words;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: an `Avx2` exists only where the machine has the instructions.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        [intrinsic!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Floats {
        // SAFETY: the token, and the caller vouches for sixteen floats.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, v: Floats, to: *mut f32) {
        // SAFETY: the token, and the caller vouches for sixteen floats.
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_add_ps(a, b)))
    }

    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_sub_ps(a, b)))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_mul_ps(a, b)))
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_div_ps(a, b)))
    }

    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        [0, 1].map(|i| intrinsic!(_mm256_fmadd_ps(a[i], b[i], c[i])))
    }

    #[inline(always)]
    fn fnma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        [0, 1].map(|i| intrinsic!(_mm256_fnmadd_ps(a[i], b[i], c[i])))
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_max_ps(a, b)))
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        both(a, b, |a, b| intrinsic!(_mm256_min_ps(a, b)))
    }

    #[inline(always)]
    fn sqrt(self, a: Floats) -> Floats {
        a.map(|a| intrinsic!(_mm256_sqrt_ps(a)))
    }

    #[inline(always)]
    fn select_lt(self, a: Floats, b: Floats, x: Floats, y: Floats) -> Floats {
        [0, 1].map(|i| intrinsic!(_mm256_blendv_ps(y[i], x[i], _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i]))))
    }

    #[inline(always)]
    fn splat_u(self, x: u32) -> Words {
        [intrinsic!(_mm256_set1_epi32(x.cast_signed())); 2]
    }

    #[inline(always)]
    fn count_from(self, start: u32) -> Words {
        let counts = intrinsic!([
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15),
        ]);
        self.add_u(self.splat_u(start), counts)
    }

    #[inline(always)]
    fn to_bits(self, v: Floats) -> Words {
        v.map(|v| intrinsic!(_mm256_castps_si256(v)))
    }

    #[inline(always)]
    fn from_bits(self, u: Words) -> Floats {
        u.map(|u| intrinsic!(_mm256_castsi256_ps(u)))
    }

    #[inline(always)]
    fn add_u(self, a: Words, b: Words) -> Words {
        both(a, b, |a, b| intrinsic!(_mm256_add_epi32(a, b)))
    }

    #[inline(always)]
    fn mul_u(self, a: Words, b: Words) -> Words {
        both(a, b, |a, b| intrinsic!(_mm256_mullo_epi32(a, b)))
    }

    #[inline(always)]
    fn xor_u(self, a: Words, b: Words) -> Words {
        both(a, b, |a, b| intrinsic!(_mm256_xor_si256(a, b)))
    }

    #[inline(always)]
    fn shr_u<const N: u32>(self, a: Words) -> Words {
        a.map(|a| intrinsic!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(N.cast_signed()))))
    }

    #[inline(always)]
    fn shl_u<const N: u32>(self, a: Words) -> Words {
        a.map(|a| intrinsic!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(N.cast_signed()))))
    }

    #[inline(always)]
    fn keep_ge_u(self, a: Words, b: Words, x: Floats) -> Floats {
        // a >= b exactly if the larger of the two is a.
        [0, 1].map(|i| {
            intrinsic!(_mm256_and_ps(
                x[i],
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(a[i], b[i]), a[i]))
            ))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: [Floats; LANES]) -> [Floats; LANES] {
        let block = |first_row: usize, half: usize| {
            self.transpose8(std::array::from_fn(|i| rows[first_row + i][half]))
        };
        let (top, bottom) = ([block(0, 0), block(0, 1)], [block(8, 0), block(8, 1)]);
        std::array::from_fn(|i| [top[i / 8][i % 8], bottom[i / 8][i % 8]])
    }

    #[inline(always)]
    fn from_f16(self, bits: &[u16; LANES]) -> Floats {
        // SAFETY: the token, and the array has twice sixteen bytes.
        [0, 8].map(|i| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().add(i).cast())) })
    }

    #[inline(always)]
    fn from_i8(self, x: &[i8; LANES]) -> Floats {
        // SAFETY: the token, and the array has sixteen bytes.
        [0, 8].map(|i| unsafe {
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(i).cast())))
        })
    }

    #[inline(always)]
    fn dot_pair(self, q: [&[i8; 32]; 2], x: [&[i8; 32]; 2]) -> Floats {
        // SAFETY: the token, and the arrays have 32 bytes. Products of bytes are made without signs on one side; two of
        // them are at most 2·128·127, which is below 2¹⁵.
        unsafe { [dot(q[0], x[0]), dot(q[1], x[1])] }
    }

    #[inline(always)]
    fn from_bf16(self, bits: &[u16; LANES]) -> Floats {
        // SAFETY: the token, and the array has twice sixteen bytes.
        let wide =
            [0, 8].map(|i| unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(bits.as_ptr().add(i).cast())) });
        self.from_bits(self.shl_u::<16>(wide))
    }
}

/// Sums of four neighbouring products each.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn dot(q: &[i8; 32], x: &[i8; 32]) -> __m256 {
    // SAFETY: the caller's, and the arrays have 32 bytes each.
    unsafe {
        let (q, x) = (_mm256_loadu_si256(q.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().cast()));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
        _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}
