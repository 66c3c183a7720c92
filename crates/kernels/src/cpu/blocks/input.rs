//! Rows of the input, or of what rounding takes away from them, rounded to 8 bits: 32 elements have one scale, as in llama.cpp.
//!
//! The bytes are stored in the order in which the weights of a format leave their blocks, and next to them what their
//! sums contribute to a product.

use super::super::simd::{LANES, Simd};

/// Elements that share a scale.
const GROUP: usize = 32;

/// Elements of one of the formats' smallest pieces with a scale.
const CHUNK: usize = 16;

/// 128 elements for blocks of 32: the first halves of four groups, then their second halves.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Quad {
    pub(super) q: [[u8; 64]; 2],
    /// The scale of the group that a lane belongs to.
    pub(super) scales: [f32; LANES],
    /// `scale·Σ q` of the eight elements of a lane.
    pub(super) sums: [f32; LANES],
    /// Where the integers of a lane's sum begin: what is subtracted from each weight, times `-Σ q`.
    pub(super) start: [i32; LANES],
}

/// 256 elements for blocks of 256, whose chunks of sixteen come in an order of their format's.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Large {
    pub(super) q: [[u8; 64]; 4],
    /// The scale of each chunk.
    pub(super) scales: [f32; LANES],
    /// `scale·Σ q` of each chunk.
    pub(super) sums: [f32; LANES],
}

/// A group in 8 bits, and its scale. Groups with a NaN or an infinity have such a scale.
#[inline(always)]
fn rounded(x: &[f32; GROUP]) -> ([u8; GROUP], f32) {
    // The largest exponent with all bits set is that of NaN, which must not be lost.
    let mut largest = 0;
    let mut i = 0;
    while i < GROUP {
        largest = largest.max(x[i].to_bits() & 0x7fff_ffff);
        i += 1;
    }
    let max = f32::from_bits(largest);
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let mut q = [0; GROUP];
    let mut i = 0;
    while i < GROUP {
        // In the last bits of 1.5·2²³ + x lies x rounded to the nearest integer, of two the even one.
        q[i] = (x[i] * inverse + 12_582_912.0).to_bits() as u8;
        i += 1;
    }
    (q, max / 127.0)
}

/// What rounding takes away from rows of `k` elements.
pub(super) fn residual(x: &[f32], k: usize) -> Vec<f32> {
    let mut residual = Vec::with_capacity(x.len());
    for part in x.chunks_exact(k).flat_map(|row| row.chunks(GROUP)) {
        let (q, scale) = rounded(&group(part, 0));
        residual.extend(part.iter().zip(q).map(|(x, q)| x - f32::from(q.cast_signed()) * scale));
    }
    residual
}

/// The group of this number; what lies past the end is zero.
#[inline(always)]
fn group(x: &[f32], group: usize) -> [f32; GROUP] {
    let mut elements = [0.0; GROUP];
    if let Some(rest) = x.get(group * GROUP..) {
        let count = rest.len().min(GROUP);
        elements[..count].copy_from_slice(&rest[..count]);
    }
    elements
}

#[inline(always)]
fn put(to: &mut [u8; 64], quarter: usize, from: &[u8; GROUP], half: usize) {
    to[CHUNK * quarter..CHUNK * (quarter + 1)].copy_from_slice(&from[CHUNK * half..CHUNK * (half + 1)]);
}

impl Quad {
    /// At most 128 elements; `subtracted` is what is subtracted from each weight.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, x: &[f32], subtracted: i32) -> Self {
        let mut quad = Self { q: [[0; 64]; 2], scales: [0.0; LANES], sums: [0.0; LANES], start: [0; LANES] };
        let mut i = 0;
        while i < 4 {
            let (q, scale) = rounded(&group(x, i));
            put(&mut quad.q[0], i, &q, 0);
            put(&mut quad.q[1], i, &q, 1);
            quad.scales[4 * i..4 * i + 4].copy_from_slice(&[scale; 4]);
            i += 1;
        }
        let ones = simd.splat_b(1);
        let first = simd.dot(simd.splat_u(0), ones, simd.bytes(&quad.q[0]));
        let sums = simd.dot(first, ones, simd.bytes(&quad.q[1]));
        simd.store(simd.mul(simd.from_words(sums), simd.load(&quad.scales)), &mut quad.sums);
        let start = simd.mul_u(sums, simd.splat_u((-subtracted).cast_unsigned()));
        simd.store_u(start, &mut quad.start);
        quad
    }
}

impl Large {
    /// 256 elements; place `i` gets the chunk `order[i]`.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, x: &[f32], order: &[u8; LANES]) -> Self {
        let mut groups = [([0; GROUP], 0.0); 8];
        let mut i = 0;
        while i < 8 {
            groups[i] = rounded(&group(x, i));
            i += 1;
        }
        let mut large = Self { q: [[0; 64]; 4], scales: [0.0; LANES], sums: [0.0; LANES] };
        let mut place = 0;
        while place < LANES {
            let chunk = usize::from(order[place] & 15);
            let (q, scale) = &groups[chunk / 2];
            put(&mut large.q[place / 4], place % 4, q, chunk % 2);
            large.scales[place] = *scale;
            place += 1;
        }
        let mut i = 0;
        while i < 4 {
            let mut lanes = [0; LANES];
            let sums = simd.dot(simd.splat_u(0), simd.splat_b(1), simd.bytes(&large.q[i]));
            simd.store_u(sums, &mut lanes);
            let mut quarter = 0;
            while quarter < 4 {
                let sum: i32 = lanes[4 * quarter]
                    + lanes[4 * quarter + 1]
                    + lanes[4 * quarter + 2]
                    + lanes[4 * quarter + 3];
                large.sums[4 * i + quarter] = large.scales[4 * i + quarter] * sum as f32;
                quarter += 1;
            }
            i += 1;
        }
        large
    }
}
