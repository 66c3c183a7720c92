//! Blocks beside rounded inputs: how the weights of each format leave their bytes, some at a time.

use super::super::buffer;
use super::super::simd::{LANES, Simd};
use super::input::{Large, Quad};
use lowrank_spec::blocks::format::{
    IQ4_NL_VALUES, Iq4Nl, Iq4Xs, MXFP4_VALUES, Mxfp4, NF2_VALUES, NF3_VALUES, NF4_VALUES, Nf2, Nf3, Nf4, Q2K,
    Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, half_power,
};

/// A format as products with rounded inputs take it.
pub(super) trait Dots {
    /// Elements of a step.
    const SPAN: usize;
    /// Input of a step.
    type Input: Sync + Send;

    /// At most [`SPAN`](Self::SPAN) elements.
    fn input<S: Simd>(simd: S, x: &[f32]) -> Self::Input;

    /// The products of `R` rows of blocks with `M` rows of the input, still in lanes.
    fn rows<S: Simd, const R: usize, const M: usize>(
        simd: S,
        rows: [&[u8]; R],
        x: [&[Self::Input]; M],
    ) -> [[S::V; M]; R];
}

/// Bytes between what is read and what is asked for: what a core reads while memory answers. Rows are shorter than what
/// the processor needs to see coming.
const AHEAD: usize = 4096;

/// Asks for what comes [`AHEAD`] of the `bytes` from here on.
#[inline(always)]
fn prefetch<T>(from: &T, bytes: usize) {
    let at = std::ptr::from_ref(from).cast::<u8>().wrapping_add(AHEAD);
    let mut line = 0;
    while line < bytes {
        buffer::prefetch(at.wrapping_add(line));
        line += 64;
    }
}

/// Scales and offsets of the four blocks of a step, and their weights: first halves and second halves.
struct Weights<S: Simd> {
    q: [S::B; 2],
    scales: S::V,
    offsets: S::V,
}

/// A format with blocks of 32 elements, of which a step takes four.
trait Small {
    type Block: 'static;
    const ZERO: &'static Self::Block;
    /// What is subtracted from each weight.
    const SUBTRACTED: i32;
    /// Whether weights have signs; what is subtracted then is up to [`Simd::dot_signed`].
    const SIGNED: bool;
    const HAS_OFFSET: bool;

    fn blocks(bytes: &[u8]) -> &[Self::Block];

    fn weights<S: Simd>(simd: S, blocks: [&Self::Block; 4]) -> Weights<S>;
}

#[inline(always)]
fn small_rows<S: Simd, F: Small, const R: usize, const M: usize>(
    simd: S,
    rows: [&[u8]; R],
    x: [&[Quad]; M],
) -> [[S::V; M]; R] {
    let mut sums = [[simd.splat(0.0); M]; R];
    let steps = if M == 0 { 0 } else { x[0].len() };
    let mut blocks: [&[F::Block]; R] = [&[]; R];
    let mut r = 0;
    while r < R {
        blocks[r] = F::blocks(rows[r]);
        r += 1;
    }
    let mut step = 0;
    while step < steps {
        let mut r = 0;
        while r < R {
            let four = match blocks[r].split_first_chunk::<4>() {
                Some(([a, b, c, d], rest)) => {
                    blocks[r] = rest;
                    prefetch(a, 4 * size_of::<F::Block>());
                    [a, b, c, d]
                }
                None => part(blocks[r], F::ZERO),
            };
            let w = F::weights(simd, four);
            let mut m = 0;
            while m < M {
                let x = &x[m][step];
                let bytes = [simd.bytes(&x.q[0]), simd.bytes(&x.q[1])];
                let start = simd.load_u(&x.start);
                let words = if F::SIGNED {
                    simd.dot_signed(w.q, bytes, start)
                } else {
                    simd.dot(simd.dot(start, w.q[0], bytes[0]), w.q[1], bytes[1])
                };
                let scales = simd.mul(w.scales, simd.load(&x.scales));
                sums[r][m] = simd.fma(simd.from_words(words), scales, sums[r][m]);
                if F::HAS_OFFSET {
                    sums[r][m] = simd.fma(w.offsets, simd.load(&x.sums), sums[r][m]);
                }
                m += 1;
            }
            r += 1;
        }
        step += 1;
    }
    sums
}

/// The blocks at the end of a row, filled up.
#[inline(always)]
fn part<'a, T>(blocks: &'a [T], zero: &'a T) -> [&'a T; 4] {
    match blocks {
        [a, b, c] => [a, b, c, zero],
        [a, b] => [a, b, zero, zero],
        [a] => [a, zero, zero, zero],
        _ => [zero; 4],
    }
}

/// A half-precision number of a block.
#[inline(always)]
fn half<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// One number of each of four blocks.
#[inline(always)]
fn halves<const N: usize>(blocks: [&[u8; N]; 4], at: usize) -> [u16; 4] {
    [half(blocks[0], at), half(blocks[1], at), half(blocks[2], at), half(blocks[3], at)]
}

/// The number at the beginning of each of four blocks.
#[inline(always)]
fn first_halves<const N: usize>(blocks: [&[u8; N]; 4]) -> [u16; 4] {
    halves(blocks, 0)
}

/// The same where it is only the upper byte of a positive number, without its sign.
#[inline(always)]
fn first_bytes<const N: usize>([a, b, c, d]: [&[u8; N]; 4]) -> [u16; 4] {
    [u16::from(a[0]) << 7, u16::from(b[0]) << 7, u16::from(c[0]) << 7, u16::from(d[0]) << 7]
}

/// The first byte of each of four blocks, half of a power of two, in bf16.
#[inline(always)]
fn first_powers<const N: usize>([a, b, c, d]: [&[u8; N]; 4]) -> [u16; 4] {
    [half_power(a[0]), half_power(b[0]), half_power(c[0]), half_power(d[0])]
}

/// `N` bytes of a block; those past its end are zero, and never asked for.
#[inline(always)]
fn bytes<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    if let Some(rest) = block.get(at..)
        && let Some(bytes) = rest.first_chunk()
    {
        return bytes;
    }
    &[0; N]
}

/// Sixteen bytes of each of four blocks.
#[inline(always)]
fn quarters<S: Simd, const N: usize>(simd: S, blocks: [&[u8; N]; 4], at: usize) -> S::B {
    simd.quarters([bytes(blocks[0], at), bytes(blocks[1], at), bytes(blocks[2], at), bytes(blocks[3], at)])
}

/// Low halves and high halves of the sixteen bytes at the end of four blocks.
#[inline(always)]
fn nibbles<S: Simd, const N: usize>(simd: S, blocks: [&[u8; N]; 4]) -> [S::B; 2] {
    let both = quarters(simd, blocks, N - 16);
    [simd.field::<0, 0>(both, 15), simd.field::<4, 4>(both, 15)]
}

/// [`nibbles`] with the fifth bits, which are before them.
#[inline(always)]
fn with_fifth_bits<S: Simd, const N: usize>(simd: S, blocks: [&[u8; N]; 4]) -> [S::B; 2] {
    let [low, high] = nibbles(simd, blocks);
    let [first, second] = [joined(halves(blocks, N - 20)), joined(halves(blocks, N - 18))];
    [simd.add_where(low, first, 16), simd.add_where(high, second, 16)]
}

#[inline(always)]
fn joined([a, b, c, d]: [u16; 4]) -> u64 {
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
}

macro_rules! small {
    ($Format:ident, $bytes:literal, scales $scales:expr => $spread:ident, subtracted $subtracted:literal, offset $has_offset:literal, signed $signed:literal,
     $q:expr) => {
        impl Small for $Format {
            type Block = [u8; $bytes];
            const ZERO: &'static Self::Block = &[0; $bytes];
            const SUBTRACTED: i32 = $subtracted;
            const SIGNED: bool = $signed;
            const HAS_OFFSET: bool = $has_offset;

            #[inline(always)]
            fn blocks(bytes: &[u8]) -> &[Self::Block] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn weights<S: Simd>(simd: S, blocks: [&Self::Block; 4]) -> Weights<S> {
                let offsets = if $has_offset { simd.spread_f16(halves(blocks, 2)) } else { simd.splat(0.0) };
                Weights { q: $q(simd, blocks), scales: simd.$spread($scales(blocks)), offsets }
            }
        }

        impl Dots for $Format {
            const SPAN: usize = 128;
            type Input = Quad;

            #[inline(always)]
            fn input<S: Simd>(simd: S, x: &[f32]) -> Quad {
                Quad::new(simd, x, Self::SUBTRACTED)
            }

            #[inline(always)]
            fn rows<S: Simd, const R: usize, const M: usize>(
                simd: S,
                rows: [&[u8]; R],
                x: [&[Quad]; M],
            ) -> [[S::V; M]; R] {
                small_rows::<S, Self, R, M>(simd, rows, x)
            }
        }
    };
}

#[inline(always)]
fn q8_0<S: Simd>(simd: S, blocks: [&[u8; 34]; 4]) -> [S::B; 2] {
    [quarters(simd, blocks, 2), quarters(simd, blocks, 18)]
}

#[inline(always)]
fn iq4_nl<S: Simd>(simd: S, blocks: [&[u8; 18]; 4]) -> [S::B; 2] {
    let [low, high] = nibbles(simd, blocks);
    [simd.look_up(&IQ4_NL_VALUES, low), simd.look_up(&IQ4_NL_VALUES, high)]
}

#[inline(always)]
fn mxfp4<S: Simd>(simd: S, blocks: [&[u8; 17]; 4]) -> [S::B; 2] {
    let [low, high] = nibbles(simd, blocks);
    [simd.look_up(&MXFP4_VALUES, low), simd.look_up(&MXFP4_VALUES, high)]
}

#[inline(always)]
fn nf4<S: Simd>(simd: S, blocks: [&[u8; 17]; 4]) -> [S::B; 2] {
    let [low, high] = nibbles(simd, blocks);
    [simd.look_up(&NF4_VALUES, low), simd.look_up(&NF4_VALUES, high)]
}

/// The 2-bit indices in the last eight bytes of four blocks: first halves and second halves.
#[inline(always)]
fn indices<S: Simd, const N: usize>(simd: S, blocks: [&[u8; N]; 4]) -> [S::B; 2] {
    let [a, b, c, d] = [spread(blocks[0]), spread(blocks[1]), spread(blocks[2]), spread(blocks[3])];
    let both = simd.quarters([&a, &b, &c, &d]);
    [simd.field::<0, 0>(both, 3), simd.field::<2, 2>(both, 3)]
}

/// Low halves of the last eight bytes, then high halves.
#[inline(always)]
fn spread<const N: usize>(block: &[u8; N]) -> [u8; 16] {
    let eight = u64::from_le_bytes(*bytes(block, N - 8));
    let low = u64::from_le_bytes([15; 8]);
    (u128::from(eight & low) | u128::from(eight >> 4 & low) << 64).to_le_bytes()
}

#[inline(always)]
fn nf3<S: Simd>(simd: S, blocks: [&[u8; 13]; 4]) -> [S::B; 2] {
    let [low, high] = indices(simd, blocks);
    let [first, second] = [joined(halves(blocks, 1)), joined(halves(blocks, 3))];
    let [low, high] = [simd.add_where(low, first, 4), simd.add_where(high, second, 4)];
    [simd.look_up(&NF3_VALUES, low), simd.look_up(&NF3_VALUES, high)]
}

#[inline(always)]
fn nf2<S: Simd>(simd: S, blocks: [&[u8; 9]; 4]) -> [S::B; 2] {
    let [low, high] = indices(simd, blocks);
    [simd.look_up(&NF2_VALUES, low), simd.look_up(&NF2_VALUES, high)]
}

small!(Q8_0, 34, scales first_halves => spread_f16, subtracted 128, offset false, signed true, q8_0);
small!(Iq4Nl, 18, scales first_halves => spread_f16, subtracted 128, offset false, signed true, iq4_nl);
small!(Q4_0, 18, scales first_halves => spread_f16, subtracted 8, offset false, signed false, nibbles);
small!(Q4_1, 20, scales first_halves => spread_f16, subtracted 0, offset true, signed false, nibbles);
small!(Q5_0, 22, scales first_halves => spread_f16, subtracted 16, offset false, signed false, with_fifth_bits);
small!(Q5_1, 24, scales first_halves => spread_f16, subtracted 0, offset true, signed false, with_fifth_bits);
small!(Mxfp4, 17, scales first_powers => spread_bf16, subtracted 128, offset false, signed true, mxfp4);
small!(Nf4, 17, scales first_bytes => spread_f16, subtracted 128, offset false, signed true, nf4);
small!(Nf3, 13, scales first_bytes => spread_f16, subtracted 128, offset false, signed true, nf3);
small!(Nf2, 9, scales first_bytes => spread_f16, subtracted 128, offset false, signed true, nf2);

/// A block of 256: weights in four vectors, scales and offsets of their sixteen chunks.
struct Super<S: Simd> {
    q: [S::B; 4],
    scales: S::V,
    offsets: S::V,
}

/// A format with blocks of 256 elements.
trait Superblock {
    type Block: 'static;
    /// The chunk of sixteen elements in each quarter of the four vectors.
    const ORDER: [u8; LANES];
    /// Whether weights are up to 255, and not 127.
    const WIDE: bool;

    fn blocks(bytes: &[u8]) -> &[Self::Block];

    fn weights<S: Simd>(simd: S, block: &Self::Block) -> Super<S>;
}

#[inline(always)]
fn dot<S: Simd, F: Superblock>(simd: S, w: S::B, x: &[u8; 64]) -> S::U {
    let (zero, x) = (simd.splat_u(0), simd.bytes(x));
    if F::WIDE { simd.dot_any(zero, w, x) } else { simd.dot(zero, w, x) }
}

#[inline(always)]
fn large_rows<S: Simd, F: Superblock, const R: usize, const M: usize>(
    simd: S,
    rows: [&[u8]; R],
    x: [&[Large]; M],
) -> [[S::V; M]; R] {
    let mut sums = [[simd.splat(0.0); M]; R];
    let steps = if M == 0 { 0 } else { x[0].len() };
    let mut blocks: [&[F::Block]; R] = [&[]; R];
    let mut r = 0;
    while r < R {
        blocks[r] = F::blocks(rows[r]);
        r += 1;
    }
    let mut step = 0;
    while step < steps {
        let mut r = 0;
        while r < R {
            let block = &blocks[r][step];
            prefetch(block, size_of::<F::Block>());
            let w = F::weights(simd, block);
            let mut m = 0;
            while m < M {
                let x = &x[m][step];
                let scales = simd.mul(w.scales, simd.load(&x.scales));
                let mut sum = simd.fma(w.offsets, simd.load(&x.sums), sums[r][m]);
                let words = dot::<S, F>(simd, w.q[0], &x.q[0]);
                sum = simd.fma(simd.from_words(words), simd.spread::<0>(scales), sum);
                let words = dot::<S, F>(simd, w.q[1], &x.q[1]);
                sum = simd.fma(simd.from_words(words), simd.spread::<1>(scales), sum);
                let words = dot::<S, F>(simd, w.q[2], &x.q[2]);
                sum = simd.fma(simd.from_words(words), simd.spread::<2>(scales), sum);
                let words = dot::<S, F>(simd, w.q[3], &x.q[3]);
                sum = simd.fma(simd.from_words(words), simd.spread::<3>(scales), sum);
                sums[r][m] = sum;
                m += 1;
            }
            r += 1;
        }
        step += 1;
    }
    sums
}

macro_rules! large {
    ($Format:ident, $bytes:literal, $order:expr, wide $wide:literal, $weights:expr) => {
        impl Superblock for $Format {
            type Block = [u8; $bytes];
            const ORDER: [u8; LANES] = $order;
            const WIDE: bool = $wide;

            #[inline(always)]
            fn blocks(bytes: &[u8]) -> &[Self::Block] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn weights<S: Simd>(simd: S, block: &Self::Block) -> Super<S> {
                $weights(simd, block)
            }
        }

        impl Dots for $Format {
            const SPAN: usize = 256;
            type Input = Large;

            #[inline(always)]
            fn input<S: Simd>(simd: S, x: &[f32]) -> Large {
                Large::new(simd, x, &Self::ORDER)
            }

            #[inline(always)]
            fn rows<S: Simd, const R: usize, const M: usize>(
                simd: S,
                rows: [&[u8]; R],
                x: [&[Large]; M],
            ) -> [[S::V; M]; R] {
                large_rows::<S, Self, R, M>(simd, rows, x)
            }
        }
    };
}

/// Low halves of 32 bytes are a group of 32 elements, high halves the next group.
const BY_HALVES: [u8; LANES] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];

/// Four groups of 32 elements share 32 bytes: the first vector has the first group of each half of the block.
const BY_BITS: [u8; LANES] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

/// The sixteen bytes of each group of 32 elements: the low halves of four groups, then the high ones.
const BY_GROUPS: [u8; LANES] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];

const IN_ORDER: [u8; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

large!(Q4K, 144, BY_HALVES, wide false, q4_k);
large!(Q5K, 176, BY_HALVES, wide false, q5_k);
large!(Q6K, 210, IN_ORDER, wide false, q6_k);
large!(Iq4Xs, 136, BY_GROUPS, wide true, iq4_xs);
large!(Q2K, 84, BY_BITS, wide false, q2_k);
large!(Q3K, 110, BY_BITS, wide false, q3_k);

/// Four bytes of a block.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes(block, at))
}

/// Four words.
#[inline(always)]
fn sixteen([a, b, c, d]: [u32; 4]) -> [u8; LANES] {
    (u128::from(a) | u128::from(b) << 32 | u128::from(c) << 64 | u128::from(d) << 96).to_le_bytes()
}

/// Scales and offsets of Q4_K and Q5_K, each of 6 bits for a group of 32.
#[inline(always)]
fn six_bits<S: Simd, const N: usize>(simd: S, block: &[u8; N]) -> [S::V; 2] {
    let (a, b, c) = (word(block, 4), word(block, 8), word(block, 12));
    let [low, high] = [a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 6) & 0x0303_0303) << 4];
    let [low_offsets, high_offsets] =
        [b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 6) & 0x0303_0303) << 4];
    let all = sixteen([low, high, low_offsets, high_offsets]);
    // The groups of the chunks in their order.
    let scales = simd.pick_i8(&all, &[0, 0, 2, 2, 1, 1, 3, 3, 4, 4, 6, 6, 5, 5, 7, 7]);
    let offsets = simd.pick_i8(&all, &[8, 8, 10, 10, 9, 9, 11, 11, 12, 12, 14, 14, 13, 13, 15, 15]);
    let minus = simd.sub(simd.splat(0.0), simd.splat_f16(half(block, 2)));
    [simd.mul(simd.splat_f16(half(block, 0)), scales), simd.mul(minus, offsets)]
}

#[inline(always)]
fn q4_k<S: Simd>(simd: S, block: &[u8; 144]) -> Super<S> {
    let [scales, offsets] = six_bits(simd, block);
    let (first, second) = (simd.bytes(bytes(block, 16)), simd.bytes(bytes(block, 80)));
    let q = [
        simd.field::<0, 0>(first, 15),
        simd.field::<4, 4>(first, 15),
        simd.field::<0, 0>(second, 15),
        simd.field::<4, 4>(second, 15),
    ];
    Super { q, scales, offsets }
}

#[inline(always)]
fn q5_k<S: Simd>(simd: S, block: &[u8; 176]) -> Super<S> {
    let [scales, offsets] = six_bits(simd, block);
    let fifth = simd.bytes_twice(bytes(block, 16));
    let (first, second) = (simd.bytes(bytes(block, 48)), simd.bytes(bytes(block, 112)));
    let q = [
        simd.or_b(simd.field::<0, 0>(first, 15), simd.shl_b::<4>(simd.field::<0, 2>(fifth, 1))),
        simd.or_b(simd.field::<4, 4>(first, 15), simd.shl_b::<4>(simd.field::<1, 3>(fifth, 1))),
        simd.or_b(simd.field::<0, 0>(second, 15), simd.shl_b::<4>(simd.field::<4, 6>(fifth, 1))),
        simd.or_b(simd.field::<4, 4>(second, 15), simd.shl_b::<4>(simd.field::<5, 7>(fifth, 1))),
    ];
    Super { q, scales, offsets }
}

#[inline(always)]
fn q6_k<S: Simd>(simd: S, block: &[u8; 210]) -> Super<S> {
    let (first, second) = (simd.bytes(bytes(block, 0)), simd.bytes(bytes(block, 64)));
    let (high_first, high_second) =
        (simd.bytes_twice(bytes(block, 128)), simd.bytes_twice(bytes(block, 160)));
    let q = [
        simd.or_b(simd.field::<0, 0>(first, 15), simd.shl_b::<4>(simd.field::<0, 2>(high_first, 3))),
        simd.or_b(simd.field::<4, 4>(first, 15), simd.shl_b::<4>(simd.field::<4, 6>(high_first, 3))),
        simd.or_b(simd.field::<0, 0>(second, 15), simd.shl_b::<4>(simd.field::<0, 2>(high_second, 3))),
        simd.or_b(simd.field::<4, 4>(second, 15), simd.shl_b::<4>(simd.field::<4, 6>(high_second, 3))),
    ];
    let scales = simd.mul(simd.splat_f16(half(block, 208)), simd.pick_i8(bytes(block, 192), &IN_ORDER));
    Super { q, scales, offsets: simd.mul(scales, simd.splat(-32.0)) }
}

/// [`IQ4_NL_VALUES`], each plus 128.
const IQ4_NL_UNSIGNED: [i8; 16] = {
    let mut values = IQ4_NL_VALUES;
    let mut i = 0;
    while i < 16 {
        values[i] = values[i].wrapping_add(-128);
        i += 1;
    }
    values
};

#[inline(always)]
fn iq4_xs<S: Simd>(simd: S, block: &[u8; 136]) -> Super<S> {
    let (first, second) = (simd.bytes(bytes(block, 8)), simd.bytes(bytes(block, 72)));
    let q = [
        simd.look_up(&IQ4_NL_UNSIGNED, simd.field::<0, 0>(first, 15)),
        simd.look_up(&IQ4_NL_UNSIGNED, simd.field::<4, 4>(first, 15)),
        simd.look_up(&IQ4_NL_UNSIGNED, simd.field::<0, 0>(second, 15)),
        simd.look_up(&IQ4_NL_UNSIGNED, simd.field::<4, 4>(second, 15)),
    ];
    let (low, high) = (word(block, 4), u32::from(half(block, 2)));
    // The high bits of two groups in each byte.
    let high = (high & 0xf) | (high & 0xf0) << 4 | (high & 0xf00) << 8 | (high & 0xf000) << 12;
    let even = (low & 0x0f0f_0f0f) | (high & 0x0303_0303) << 4;
    let odd = (low >> 4 & 0x0f0f_0f0f) | (high >> 2 & 0x0303_0303) << 4;
    let steps = simd.pick_i8(&sixteen([even, odd, 0, 0]), &[0, 4, 1, 5, 0, 4, 1, 5, 2, 6, 3, 7, 2, 6, 3, 7]);
    let scales = simd.mul(simd.splat_f16(half(block, 0)), simd.sub(steps, simd.splat(32.0)));
    Super { q, scales, offsets: simd.mul(scales, simd.splat(-128.0)) }
}

/// Bits `2·i` and `2·i + 1` of all bytes in vector `i`.
#[inline(always)]
fn two_bits<S: Simd>(simd: S, bytes: S::B) -> [S::B; 4] {
    [
        simd.field::<0, 0>(bytes, 3),
        simd.field::<2, 2>(bytes, 3),
        simd.field::<4, 4>(bytes, 3),
        simd.field::<6, 6>(bytes, 3),
    ]
}

#[inline(always)]
fn q2_k<S: Simd>(simd: S, block: &[u8; 84]) -> Super<S> {
    let q = two_bits(simd, simd.bytes(bytes(block, 16)));
    let all = u128::from_le_bytes(*bytes(block, 0));
    let low_halves = u128::from_le_bytes([15; 16]);
    let scales = simd.pick_i8(&(all & low_halves).to_le_bytes(), &BY_BITS);
    let offsets = simd.pick_i8(&(all >> 4 & low_halves).to_le_bytes(), &BY_BITS);
    let minus = simd.sub(simd.splat(0.0), simd.splat_f16(half(block, 82)));
    Super { q, scales: simd.mul(simd.splat_f16(half(block, 80)), scales), offsets: simd.mul(minus, offsets) }
}

#[inline(always)]
fn q3_k<S: Simd>(simd: S, block: &[u8; 110]) -> Super<S> {
    let [a, b, c, d] = two_bits(simd, simd.bytes(bytes(block, 32)));
    let third = simd.bytes_twice(bytes(block, 0));
    let q = [
        simd.or_b(a, simd.shl_b::<2>(simd.field::<0, 4>(third, 1))),
        simd.or_b(b, simd.shl_b::<2>(simd.field::<1, 5>(third, 1))),
        simd.or_b(c, simd.shl_b::<2>(simd.field::<2, 6>(third, 1))),
        simd.or_b(d, simd.shl_b::<2>(simd.field::<3, 7>(third, 1))),
    ];
    let (low, middle, high) = (word(block, 96), word(block, 100), word(block, 104));
    let all = sixteen([
        (low & 0x0f0f_0f0f) | (high & 0x0303_0303) << 4,
        (middle & 0x0f0f_0f0f) | (high >> 2 & 0x0303_0303) << 4,
        (low >> 4 & 0x0f0f_0f0f) | (high >> 4 & 0x0303_0303) << 4,
        (middle >> 4 & 0x0f0f_0f0f) | (high >> 6 & 0x0303_0303) << 4,
    ]);
    let scales = simd.sub(simd.pick_i8(&all, &BY_BITS), simd.splat(32.0));
    let scales = simd.mul(simd.splat_f16(half(block, 108)), scales);
    Super { q, scales, offsets: simd.mul(scales, simd.splat(-4.0)) }
}
