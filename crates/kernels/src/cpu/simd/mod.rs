//! Sixteen lanes of `f32` on any machine, chosen at run time.
//!
//! A kernel is written once over [`Simd`] and runs as AVX-512, as AVX2 with FMA, or portably. A vector has
//! sixteen lanes in all three, every operation is exactly rounded, and reductions go through the same tree,
//! so that the results agree bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::atomic::{AtomicU8, Ordering};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A token for an instruction set that this machine has: only [`dispatch`] makes one.
///
/// Every method is `#[inline(always)]`, and so must be every function that is generic over `Simd`: the
/// instructions are only there inside the functions of this module that enable them.
#[allow(clippy::wrong_self_convention, reason = "self is the proof that the instructions are there")]
pub(crate) trait Simd: Copy {
    /// Sixteen floats.
    type V: Copy;
    /// Sixteen words.
    type U: Copy;
    /// Sixty-four bytes, in four quarters.
    type B: Copy;
    /// Rows of the largest tile of a matrix product that fits in the registers.
    const TILE_ROWS: usize;
    /// Vectors across that tile.
    const TILE_VECTORS: usize;
    /// Whether [`dot`](Simd::dot) takes a `w` of up to 255.
    const DOTS_ANY: bool;

    /// Runs a kernel as a separate function, compiled once instead of at every call site.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// Sixteen floats must be readable at `from`.
    unsafe fn load_ptr(self, from: *const f32) -> Self::V;
    /// # Safety
    /// Sixteen floats must be writable at `to`.
    unsafe fn store_ptr(self, v: Self::V, to: *mut f32);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a·b`, rounded once.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` where `a > b`, else `b`: b where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where `a < b`, else `b`: b where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;

    fn splat_u(self, x: u32) -> Self::U;
    /// `start`, `start + 1`, …
    fn count_from(self, start: u32) -> Self::U;
    fn to_bits(self, v: Self::V) -> Self::U;
    fn from_bits(self, u: Self::U) -> Self::V;
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn mul_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn shr_u<const N: u32>(self, a: Self::U) -> Self::U;
    fn shl_u<const N: u32>(self, a: Self::U) -> Self::U;
    /// `x` where `a >= b`, else 0.
    fn keep_ge_u(self, a: Self::U, b: Self::U, x: Self::V) -> Self::V;

    /// Rows become columns.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];
    /// Floats from the bits of sixteen half-precision numbers.
    fn from_f16(self, bits: &[u16; LANES]) -> Self::V;
    /// Floats from sixteen integers.
    fn from_i8(self, x: &[i8; LANES]) -> Self::V;
    /// Floats from the bits of sixteen bfloat16 numbers.
    fn from_bf16(self, bits: &[u16; LANES]) -> Self::V;

    /// Floats from signed words.
    fn from_words(self, words: Self::U) -> Self::V;
    fn load_u(self, from: &[i32; LANES]) -> Self::U;
    fn store_u(self, u: Self::U, to: &mut [i32; LANES]);
    /// A half-precision number in every lane.
    fn splat_f16(self, bits: u16) -> Self::V;
    /// Four half-precision numbers, each in four neighbouring lanes.
    fn spread_f16(self, bits: [u16; 4]) -> Self::V;
    /// The same of values in bf16.
    fn spread_bf16(self, bits: [u16; 4]) -> Self::V;
    /// Floats from the sixteen of `x` that `order` numbers.
    fn pick_i8(self, x: &[u8; LANES], order: &[u8; LANES]) -> Self::V;
    /// Lanes `4·Q` to `4·Q + 3`, each in four neighbouring lanes.
    fn spread<const Q: usize>(self, v: Self::V) -> Self::V;
    /// [`sum`](Simd::sum) of each vector.
    fn sums(self, v: [Self::V; 4]) -> [f32; 4];

    fn bytes(self, from: &[u8; 64]) -> Self::B;
    /// The same 32 bytes in both halves.
    fn bytes_twice(self, from: &[u8; 32]) -> Self::B;
    fn quarters(self, from: [&[u8; 16]; 4]) -> Self::B;
    fn splat_b(self, x: u8) -> Self::B;
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B;
    /// Bits of each byte, from bit `LOW` on in the first half and from `HIGH` on in the second: `mask` has no more than
    /// are above these.
    fn field<const LOW: u32, const HIGH: u32>(self, b: Self::B, mask: u8) -> Self::B;
    /// Each byte times `2^N`, which is below 256.
    fn shl_b<const N: u32>(self, b: Self::B) -> Self::B;
    /// `b + value` in the bytes whose bit is set.
    fn add_where(self, b: Self::B, bits: u64, value: u8) -> Self::B;
    /// The values of a table that the bytes number, all below 16.
    fn look_up(self, table: &[i8; 16], index: Self::B) -> Self::B;
    /// Adds sums of four neighbouring products to words: `w` is at most 127 and `x` has signs.
    fn dot(self, sums: Self::U, w: Self::B, x: Self::B) -> Self::U;
    /// The same for a `w` of up to 255; no `x` is -128.
    #[inline(always)]
    fn dot_any(self, sums: Self::U, w: Self::B, x: Self::B) -> Self::U {
        if Self::DOTS_ANY {
            return self.dot(sums, w, x);
        }
        // Two products of 128 are at most 2·128·127, which is below 2¹⁵.
        let top = self.field::<0, 0>(w, 128);
        self.dot(self.dot(sums, self.field::<0, 0>(w, 127), x), top, x)
    }
    /// Sums of four neighbouring products, over two vectors, of bytes that both have signs; no `x` is -128. `start` is
    /// -128 times the sums of four neighbours of `x`, over both.
    fn dot_signed(self, w: [Self::B; 2], x: [Self::B; 2], start: Self::U) -> Self::U;

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        // SAFETY: the array has sixteen floats.
        unsafe { self.load_ptr(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        // SAFETY: the array has sixteen floats.
        unsafe { self.store_ptr(v, to.as_mut_ptr()) }
    }

    /// The first `from.len()` lanes, at most sixteen; the others are `rest`.
    #[inline(always)]
    fn load_part(self, from: &[f32], rest: f32) -> Self::V {
        if let Some(lanes) = from.as_array() {
            return self.load(lanes);
        }
        let mut lanes = [rest; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Stores the first `to.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        if let Some(lanes) = to.as_mut_array() {
            return self.store(v, lanes);
        }
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// Sum of the lanes: lane `i` with lane `i + 8`, then `i + 4`, and so on.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        fold(lanes, |a, b| a + b)
    }

    /// Largest of the lanes, none of which is NaN.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        fold(lanes, f32::max)
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// A computation that is generic over the instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Defines a function whose body runs with the best instruction set: the first argument is its token.
macro_rules! kernel {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($simd:ident: $S:ident, $($argument:ident: $type:ty),* $(,)?)
        $(-> $output:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name<'a>($($argument: $type),*) $(-> $output)? {
            struct Arguments<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> $crate::cpu::simd::Kernel for Arguments<'a> {
                type Output = $crate::cpu::simd::kernel!(@output $($output)?);

                #[inline(always)]
                fn run<$S: $crate::cpu::simd::Simd>(self, $simd: $S) -> Self::Output {
                    let Self { $($argument,)* .. } = self;
                    $body
                }
            }
            $crate::cpu::simd::dispatch(Arguments { $($argument,)* lifetime: std::marker::PhantomData })
        }
    };
    (@output) => { () };
    (@output $output:ty) => { $output };
}
pub(crate) use kernel;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Level {
    Portable = 1,
    #[cfg(target_arch = "x86_64")]
    Avx2 = 2,
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni = 3,
    #[cfg(target_arch = "x86_64")]
    Avx512 = 4,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni = 5,
}

/// The level in use; 0 until the first use.
static LEVEL: AtomicU8 = AtomicU8::new(0);

impl Level {
    /// The levels that this machine has, the best last.
    pub(crate) fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2::is_available() {
                levels.push(Level::Avx2);
            }
            if avx2::vnni_is_available() {
                levels.push(Level::Avx2Vnni);
            }
            if avx512::is_available() {
                levels.push(Level::Avx512);
            }
            if avx512::vnni_is_available() {
                levels.push(Level::Avx512Vnni);
            }
        }
        levels
    }

    /// The level in use: the best one, unless another was [set](Level::set).
    #[inline]
    pub(crate) fn current() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            #[cfg(target_arch = "x86_64")]
            5 => Level::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            4 => Level::Avx512,
            #[cfg(target_arch = "x86_64")]
            3 => Level::Avx2Vnni,
            #[cfg(target_arch = "x86_64")]
            2 => Level::Avx2,
            1 => Level::Portable,
            _ => {
                let best = Level::available().pop().unwrap_or(Level::Portable);
                LEVEL.store(best as u8, Ordering::Relaxed);
                best
            }
        }
    }

    /// Uses this level from now on, if the machine has it. All levels give the same results.
    #[cfg(test)]
    pub(crate) fn set(self) {
        if Level::available().contains(&self) {
            LEVEL.store(self as u8, Ordering::Relaxed);
        }
    }
}

/// Runs a kernel with the instruction set in use.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match Level::current() {
        // SAFETY: `Level::current` is a level that the machine has; one with VNNI has the others.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx2Vnni => unsafe { avx2::run(kernel) },
        Level::Portable => portable::run(kernel),
    }
}

/// Runs a kernel of [dot products of integers](Simd::dot) with the instruction set in use. No other kernel is
/// compiled for VNNI, which only those have a use for.
#[inline]
pub(crate) fn dispatch_dots<K: Kernel>(kernel: K) -> K::Output {
    match Level::current() {
        // SAFETY: `Level::current` is a level that the machine has.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { avx512::run_vnni(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Vnni => unsafe { avx2::run_vnni(kernel) },
        _ => dispatch(kernel),
    }
}

/// The results of a kernel at every level that the machine has, called without [`Level::set`], which all tests see.
#[cfg(test)]
pub(crate) fn on_every_level<K: Kernel + Clone>(kernel: K) -> Vec<(Level, K::Output)> {
    let run = |level| match level {
        // SAFETY: the level is available.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { avx512::run_vnni(kernel.clone()) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::run(kernel.clone()) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::run(kernel.clone()) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Vnni => unsafe { avx2::run_vnni(kernel.clone()) },
        Level::Portable => portable::run(kernel.clone()),
    };
    Level::available().into_iter().map(|level| (level, run(level))).collect()
}

#[cfg(test)]
mod tests {
    use super::portable::Portable;
    use super::*;

    /// Bits of every operation on awkward inputs.
    #[derive(Clone)]
    struct Everything<'a> {
        a: &'a [f32; LANES],
        b: &'a [f32; LANES],
    }

    impl Kernel for Everything<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let (a, b) = (simd.load(self.a), simd.load(self.b));
            let c = simd.splat(0.75);
            let hash = simd.mul_u(simd.to_bits(a), simd.splat_u(0x7feb_352d));
            let words = [
                hash,
                simd.add_u(hash, simd.count_from(7)),
                simd.xor_u(hash, simd.shr_u::<15>(hash)),
                simd.shl_u::<23>(hash),
            ];
            let halves: [u16; LANES] = std::array::from_fn(|i| (self.a[i].to_bits() >> 16) as u16);
            // All values of one side against extreme and other ones of the other.
            let w = [0, 1].map(|i| simd.bytes(&std::array::from_fn(|j| (13 * j + 128 * i) as u8)));
            let x = [0, 1].map(|i| {
                simd.bytes(&std::array::from_fn(|j| [127_i8, -127, 3, -1][(i + j / 3) % 4].cast_unsigned()))
            });
            let low = w.map(|w| simd.field::<1, 1>(w, 127));
            let zero = simd.splat_u(0);
            let ones = simd.splat_b(1);
            let x_sums = simd.dot(simd.dot(zero, ones, x[0]), ones, x[1]);
            let start = simd.mul_u(x_sums, simd.splat_u((-128_i32).cast_unsigned()));
            let quarters: [[u8; 16]; 4] =
                std::array::from_fn(|i| std::array::from_fn(|j| (i * 31 + j * 7) as u8 & 15));
            let index = simd.quarters(quarters.each_ref());
            let table = std::array::from_fn(|i| (i * i) as i8 - 100);
            let summed = |b| simd.from_words(simd.dot(simd.splat_u(5), b, x[0]));
            let order = std::array::from_fn(|i| (5 * i % 16) as u8);
            let some: [u8; 32] = std::array::from_fn(|i| (i * 41) as u8);
            let mut all = vec![
                simd.add(a, b),
                simd.sub(a, b),
                simd.mul(a, b),
                simd.div(a, b),
                simd.fma(a, b, c),
                simd.fnma(a, b, c),
                simd.max(a, b),
                simd.min(b, a),
                simd.sqrt(simd.max(a, simd.splat(0.0))),
                simd.select_lt(a, b, c, a),
                simd.keep_ge_u(hash, simd.splat_u(1 << 31), c),
                simd.from_f16(&halves),
                simd.from_bf16(&halves),
                simd.load_part(&self.a[..5], 3.0),
                simd.from_i8(&halves.map(|bits| bits as i8)),
                summed(low[0]),
                summed(simd.or_b(simd.shl_b::<4>(simd.field::<2, 5>(w[1], 7)), simd.field::<0, 0>(w[0], 15))),
                summed(simd.field::<3, 6>(simd.bytes_twice(&some), 3)),
                summed(simd.add_where(index, 0xfedc_ba98_7654_3210, 16)),
                simd.from_words(simd.dot_signed([w[0], simd.look_up(&table, index)], x, start)),
                simd.from_words(simd.load_u(&std::array::from_fn(|i| i as i32 - 9))),
                simd.splat_f16(halves[4]),
                simd.spread_f16([0x3c00, 0x0001, 0xc123, 0x7bff]),
                simd.spread_bf16([0x3f80, 0x0020, 0xc123, 0x7f00]),
                simd.pick_i8(&some[8..24].try_into().unwrap(), &order),
                simd.spread::<0>(a),
                simd.spread::<1>(a),
                simd.spread::<2>(a),
                simd.spread::<3>(a),
            ];
            all.extend(words.map(|word| simd.from_bits(word)));
            let mut table = [a; LANES];
            for (i, row) in table.iter_mut().enumerate() {
                *row = simd.add(a, simd.splat(100.0 * i as f32));
            }
            all.extend(simd.transpose(table));
            let mut bits = vec![simd.sum(a).to_bits(), simd.largest(a).to_bits()];
            let each = [a, c, simd.mul(a, a), simd.sub(c, a)];
            let sums = simd.sums(each);
            assert_eq!(sums, each.map(|v| simd.sum(v)));
            let mut stored = [0; LANES];
            simd.store_u(hash, &mut stored);
            bits.extend(stored.map(i32::cast_unsigned));
            for v in all {
                let mut lanes = [0.0; LANES];
                simd.store(v, &mut lanes);
                // The payload of a NaN is not part of the contract.
                bits.extend(lanes.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
            }
            bits
        }
    }

    #[test]
    fn levels_agree_bit_for_bit() {
        let a = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7e-3_f32.powi(i as i32 % 3 - 1));
        let mut b = std::array::from_fn(|i| 0.1 + (i as f32 * 0.37).sin());
        b[3] = 0.0;
        b[9] = f32::NAN;
        let expected = Everything { a: &a, b: &b }.run(Portable);
        for (level, got) in on_every_level(Everything { a: &a, b: &b }) {
            assert_eq!(got, expected, "{level:?}");
        }
    }

    #[test]
    fn max_and_min_keep_a_nan_of_the_second() {
        let nan = [f32::NAN; LANES];
        let one = Portable.splat(1.0);
        assert!(Portable.max(one, nan)[0].is_nan() && Portable.min(one, nan)[0].is_nan());
        assert_eq!(Portable.max(nan, one)[0], 1.0);
    }

    #[test]
    fn sum_follows_its_tree() {
        let mut lanes = [0.0; LANES];
        lanes[0] = 1e8;
        lanes[8] = -1e8;
        lanes[1] = 1.0;
        assert_eq!(Portable.sum(lanes), 1.0);
        assert_eq!(Portable.largest(lanes), 1e8);
    }
}
