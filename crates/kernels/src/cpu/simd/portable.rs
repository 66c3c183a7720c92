//! Arrays of floats: any machine. Fast only where the compiler has vectors and a fused multiply-add.

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// The portable instruction set.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Runs a kernel with these instructions.
#[inline(never)]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable)
}

#[inline(always)]
fn zip<T: Copy>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    type U = [u32; LANES];
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        run(kernel)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen floats; an unaligned read needs no more.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::V, to: *mut f32) {
        // SAFETY: the caller vouches for sixteen floats; an unaligned write needs no more.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }

    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn splat_u(self, x: u32) -> Self::U {
        [x; LANES]
    }

    #[inline(always)]
    fn count_from(self, start: u32) -> Self::U {
        std::array::from_fn(|i| start.wrapping_add(i as u32))
    }

    #[inline(always)]
    fn to_bits(self, v: Self::V) -> Self::U {
        v.map(f32::to_bits)
    }

    #[inline(always)]
    fn from_bits(self, u: Self::U) -> Self::V {
        u.map(f32::from_bits)
    }

    #[inline(always)]
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, u32::wrapping_add)
    }

    #[inline(always)]
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, u32::wrapping_mul)
    }

    #[inline(always)]
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, |a, b| a ^ b)
    }

    #[inline(always)]
    fn shr_u<const N: u32>(self, a: Self::U) -> Self::U {
        a.map(|a| a >> N)
    }

    #[inline(always)]
    fn shl_u<const N: u32>(self, a: Self::U) -> Self::U {
        a.map(|a| a << N)
    }

    #[inline(always)]
    fn keep_ge_u(self, a: Self::U, b: Self::U, x: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] >= b[i] { x[i] } else { 0.0 })
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }

    #[inline(always)]
    fn from_f16(self, bits: &[u16; LANES]) -> Self::V {
        bits.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn from_i8(self, x: &[i8; LANES]) -> Self::V {
        x.map(f32::from)
    }

    #[inline(always)]
    fn dot_pair(self, q: [&[i8; 32]; 2], x: [&[i8; 32]; 2]) -> Self::V {
        std::array::from_fn(|lane| {
            let (pair, first) = (lane / 8, lane % 8 * 4);
            let products = (first..first + 4).map(|i| i32::from(q[pair][i]) * i32::from(x[pair][i]));
            products.sum::<i32>() as f32
        })
    }

    #[inline(always)]
    fn from_bf16(self, bits: &[u16; LANES]) -> Self::V {
        bits.map(|bits| bf16::from_bits(bits).to_f32())
    }
}
