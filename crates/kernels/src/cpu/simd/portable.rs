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
    type B = [u8; 64];
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;
    const DOTS_ANY: bool = true;

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
    fn from_bf16(self, bits: &[u16; LANES]) -> Self::V {
        bits.map(|bits| bf16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn from_words(self, words: Self::U) -> Self::V {
        words.map(|word| word.cast_signed() as f32)
    }

    #[inline(always)]
    fn load_u(self, from: &[i32; LANES]) -> Self::U {
        from.map(i32::cast_unsigned)
    }

    #[inline(always)]
    fn store_u(self, u: Self::U, to: &mut [i32; LANES]) {
        *to = u.map(u32::cast_signed);
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::V {
        [f16::from_bits(bits).to_f32(); LANES]
    }

    #[inline(always)]
    fn spread_f16(self, bits: [u16; 4]) -> Self::V {
        let values = bits.map(|bits| f16::from_bits(bits).to_f32());
        std::array::from_fn(|i| values[i / 4])
    }

    #[inline(always)]
    fn spread_bf16(self, bits: [u16; 4]) -> Self::V {
        std::array::from_fn(|i| f32::from_bits(u32::from(bits[i / 4]) << 16))
    }

    #[inline(always)]
    fn pick_i8(self, x: &[u8; LANES], order: &[u8; LANES]) -> Self::V {
        order.map(|i| f32::from(x[usize::from(i & 15)].cast_signed()))
    }

    #[inline(always)]
    fn spread<const Q: usize>(self, v: Self::V) -> Self::V {
        std::array::from_fn(|i| v[4 * Q + i / 4])
    }

    #[inline(always)]
    fn sums(self, v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 64]) -> Self::B {
        *from
    }

    #[inline(always)]
    fn bytes_twice(self, from: &[u8; 32]) -> Self::B {
        std::array::from_fn(|i| from[i % 32])
    }

    #[inline(always)]
    fn quarters(self, from: [&[u8; 16]; 4]) -> Self::B {
        std::array::from_fn(|i| from[i / 16][i % 16])
    }

    #[inline(always)]
    fn splat_b(self, x: u8) -> Self::B {
        [x; 64]
    }

    #[inline(always)]
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn field<const LOW: u32, const HIGH: u32>(self, b: Self::B, mask: u8) -> Self::B {
        std::array::from_fn(|i| b[i] >> if i < 32 { LOW } else { HIGH } & mask)
    }

    #[inline(always)]
    fn shl_b<const N: u32>(self, b: Self::B) -> Self::B {
        b.map(|b| b << N)
    }

    #[inline(always)]
    fn add_where(self, b: Self::B, bits: u64, value: u8) -> Self::B {
        std::array::from_fn(|i| b[i].wrapping_add(if bits >> i & 1 == 1 { value } else { 0 }))
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: Self::B) -> Self::B {
        index.map(|i| table[usize::from(i & 15)].cast_unsigned())
    }

    #[inline(always)]
    fn dot(self, sums: Self::U, w: Self::B, x: Self::B) -> Self::U {
        std::array::from_fn(|lane| {
            let products = (4 * lane..4 * lane + 4).map(|i| i32::from(w[i]) * i32::from(x[i].cast_signed()));
            sums[lane].wrapping_add(products.sum::<i32>().cast_unsigned())
        })
    }

    #[inline(always)]
    fn dot_signed(self, w: [Self::B; 2], x: [Self::B; 2], _start: Self::U) -> Self::U {
        std::array::from_fn(|lane| {
            let product = |(w, x): (&[u8; 64], &[u8; 64]), i: usize| {
                i32::from(w[i].cast_signed()) * i32::from(x[i].cast_signed())
            };
            let products =
                (4 * lane..4 * lane + 4).map(|i| product((&w[0], &x[0]), i) + product((&w[1], &x[1]), i));
            products.sum::<i32>().cast_unsigned()
        })
    }
}
