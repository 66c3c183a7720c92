//! AVX2 with FMA: two registers per vector.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the machine has AVX2, FMA and F16C, and with `VNNI` its instructions for neural networks.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>(());

pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

pub(super) fn vnni_is_available() -> bool {
    is_available() && is_x86_feature_detected!("avxvnni")
}

/// Runs a kernel with these instructions.
///
/// # Safety
/// [`is_available`] must be true.
#[target_feature(enable = "avx,avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// Runs a kernel with these instructions.
///
/// # Safety
/// [`vnni_is_available`] must be true.
#[target_feature(enable = "avx,avx2,fma,f16c,avxvnni")]
#[inline(never)]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<true>(()))
}

/// Sums of four vectors, each through the tree of [`Simd::sum`] from its third step on.
///
/// # Safety
/// The machine must have AVX.
#[inline(always)]
pub(super) unsafe fn sums(v: [__m256; 4]) -> [f32; 4] {
    // SAFETY: the caller's, and the array has four floats.
    unsafe {
        let [a, b, c, d] = [quartered(v[0]), quartered(v[1]), quartered(v[2]), quartered(v[3])];
        let (ab, cd) = (paired(a, b), paired(c, d));
        let both =
            _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        let mut all = [0.0; 4];
        _mm_storeu_ps(all.as_mut_ptr(), both);
        all
    }
}

/// Sums of lanes `i` and `i + 4`.
///
/// # Safety
/// The machine must have AVX.
#[inline(always)]
unsafe fn quartered(v: __m256) -> __m128 {
    // SAFETY: the caller's.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
}

/// Sums of lanes `i` and `i + 2` of `a`, and then of `b`.
///
/// # Safety
/// The machine must have AVX.
#[inline(always)]
unsafe fn paired(a: __m128, b: __m128) -> __m128 {
    // SAFETY: the caller's.
    unsafe { _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)) }
}

/// Calls an intrinsic.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: a token exists only where the machine has the instructions.
        unsafe { $call }
    };
}

/// The same of both halves. A closure need not be inlined into a kernel.
macro_rules! halves {
    ($i:ident => $call:expr) => {
        // SAFETY: as above; arrays that are read or written have room for both halves.
        unsafe {
            [
                {
                    let $i = 0_usize;
                    $call
                },
                {
                    let $i = 1_usize;
                    $call
                },
            ]
        }
    };
}

/// Lanes 0 to 7 and 8 to 15.
type Floats = [__m256; 2];
type Words = [__m256i; 2];

#[inline(always)]
fn both<T: Copy, R>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> R) -> [R; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl<const VNNI: bool> Avx2<VNNI> {
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

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = Floats;
    type U = Words;
    type B = Words;
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;
    const DOTS_ANY: bool = VNNI;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a token exists only where the machine has the instructions.
        unsafe { if VNNI { run_vnni(kernel) } else { run(kernel) } }
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
    fn from_bf16(self, bits: &[u16; LANES]) -> Floats {
        // SAFETY: the token, and the array has twice sixteen bytes.
        let wide =
            [0, 8].map(|i| unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(bits.as_ptr().add(i).cast())) });
        self.from_bits(self.shl_u::<16>(wide))
    }

    #[inline(always)]
    fn from_words(self, words: Words) -> Floats {
        halves!(i => _mm256_cvtepi32_ps(words[i]))
    }

    #[inline(always)]
    fn load_u(self, from: &[i32; LANES]) -> Words {
        halves!(i => _mm256_loadu_si256(from.as_ptr().add(8 * i).cast()))
    }

    #[inline(always)]
    fn store_u(self, u: Words, to: &mut [i32; LANES]) {
        halves!(i => _mm256_storeu_si256(to.as_mut_ptr().add(8 * i).cast(), u[i]));
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Floats {
        [intrinsic!(_mm256_cvtph_ps(_mm_set1_epi16(bits.cast_signed()))); 2]
    }

    #[inline(always)]
    fn spread_f16(self, [a, b, c, d]: [u16; 4]) -> Floats {
        let (a, b, c, d) = (a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed());
        let four = intrinsic!(_mm_cvtph_ps(_mm_setr_epi16(a, b, c, d, 0, 0, 0, 0)));
        self.spread::<0>([intrinsic!(_mm256_castps128_ps256(four)); 2])
    }

    #[inline(always)]
    fn spread_bf16(self, [a, b, c, d]: [u16; 4]) -> Floats {
        let (a, b, c, d) = (a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed());
        let upper = intrinsic!(_mm_setr_epi16(0, a, 0, b, 0, c, 0, d));
        self.spread::<0>([intrinsic!(_mm256_castps128_ps256(_mm_castsi128_ps(upper))); 2])
    }

    #[inline(always)]
    fn pick_i8(self, x: &[u8; LANES], order: &[u8; LANES]) -> Floats {
        // SAFETY: the token, and the arrays have sixteen bytes.
        let picked = unsafe {
            let (x, order) = (_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(order.as_ptr().cast()));
            _mm_shuffle_epi8(x, order)
        };
        let parts = [picked, intrinsic!(_mm_srli_si128::<8>(picked))];
        halves!(i => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(parts[i])))
    }

    #[inline(always)]
    fn spread<const Q: usize>(self, v: Floats) -> Floats {
        let first = (4 * Q % 8) as i32;
        halves!(half => {
            let i = first + 2 * half as i32;
            let lanes = _mm256_setr_epi32(i, i, i, i, i + 1, i + 1, i + 1, i + 1);
            _mm256_permutevar8x32_ps(v[Q / 2], lanes)
        })
    }

    #[inline(always)]
    fn sums(self, v: [Floats; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        // SAFETY: the token.
        unsafe {
            sums([
                _mm256_add_ps(a[0], a[1]),
                _mm256_add_ps(b[0], b[1]),
                _mm256_add_ps(c[0], c[1]),
                _mm256_add_ps(d[0], d[1]),
            ])
        }
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Words {
        halves!(i => _mm256_loadu_si256(from.as_ptr().add(32 * i).cast()))
    }

    #[inline(always)]
    fn bytes_twice(self, from: &[u8; 32]) -> Words {
        // SAFETY: the token, and the array has 32 bytes.
        [unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }; 2]
    }

    #[inline(always)]
    fn quarters(self, from: [&[u8; 16]; 4]) -> Words {
        halves!(i => {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(from[2 * i].as_ptr().cast()));
            _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(from[2 * i + 1].as_ptr().cast()))
        })
    }

    #[inline(always)]
    fn splat_b(self, x: u8) -> Words {
        [intrinsic!(_mm256_set1_epi8(x.cast_signed())); 2]
    }

    #[inline(always)]
    fn or_b(self, a: Words, b: Words) -> Words {
        halves!(i => _mm256_or_si256(a[i], b[i]))
    }

    #[inline(always)]
    fn field<const LOW: u32, const HIGH: u32>(self, b: Words, mask: u8) -> Words {
        let counts = [LOW.cast_signed(), HIGH.cast_signed()];
        halves!(i => {
            let shifted = _mm256_srl_epi16(b[i], _mm_cvtsi32_si128(counts[i]));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask.cast_signed()))
        })
    }

    #[inline(always)]
    fn shl_b<const N: u32>(self, b: Words) -> Words {
        halves!(i => _mm256_sll_epi16(b[i], _mm_cvtsi32_si128(N.cast_signed())))
    }

    #[inline(always)]
    fn add_where(self, b: Words, bits: u64, value: u8) -> Words {
        halves!(i => {
            // Each byte gets the byte that has its bit, and sees whether the bit is set.
            let eighths = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let own = _mm256_shuffle_epi8(_mm256_set1_epi32((bits >> (32 * i)) as i32), eighths);
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(own, bit), bit);
            _mm256_add_epi8(b[i], _mm256_and_si256(is_set, _mm256_set1_epi8(value.cast_signed())))
        })
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: Words) -> Words {
        halves!(i => {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, index[i])
        })
    }

    #[inline(always)]
    fn dot(self, sums: Words, w: Words, x: Words) -> Words {
        if VNNI {
            return halves!(i => _mm256_dpbusd_avx_epi32(sums[i], w[i], x[i]));
        }
        halves!(i => {
            let pairs = _mm256_maddubs_epi16(w[i], x[i]);
            _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn dot_signed(self, w: [Words; 2], x: [Words; 2], start: Words) -> Words {
        if VNNI {
            // Of `w + 128`, which has no sign; `start` takes the difference back.
            let sign = self.splat_b(128);
            let first = halves!(i => _mm256_xor_si256(w[0][i], sign[i]));
            let second = halves!(i => _mm256_xor_si256(w[1][i], sign[i]));
            return self.dot(self.dot(start, first, x[0]), second, x[1]);
        }
        // The sign of `w` moves to `x`, since products of bytes are made without signs on one side; two of them are
        // at most 2·128·127, which is below 2¹⁵.
        let sizes = [halves!(i => _mm256_abs_epi8(w[0][i])), halves!(i => _mm256_abs_epi8(w[1][i]))];
        let first = halves!(i => _mm256_sign_epi8(x[0][i], w[0][i]));
        let second = halves!(i => _mm256_sign_epi8(x[1][i], w[1][i]));
        self.dot(self.dot(self.splat_u(0), sizes[0], first), sizes[1], second)
    }
}
