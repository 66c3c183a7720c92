//! Elements of blocks on a device, with the values of `BlockFormat::dequantize`.
//!
//! A matrix's bytes are an array of words. Elements are decoded in quads: four neighbours share a scale and an offset,
//! and their codes come out of one word or two. Products of scales, codes and integers are exact in `f32`, so that it
//! does not matter whether a device fuses them with the sum.

use burn_cubecl::cubecl;
use cubecl::prelude::*;
use lowrank_spec::blocks::BlockFormat;
use lowrank_spec::blocks::format::{IQ4_NL_VALUES, MXFP4_VALUES, NF2_VALUES, NF3_VALUES, NF4_VALUES};

/// Four neighbouring elements of a row.
pub(super) type Quad = Vector<f32, Const<4>>;

/// Elements that share a scale and an offset, at least.
pub(super) const CHUNK: usize = 16;

/// What the integers of a chunk are multiplied by, and what is added.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Whether blocks have offsets.
fn has_offset(format: BlockFormat) -> bool {
    use BlockFormat::{Q2K, Q4_1, Q4K, Q5_1, Q5K};
    matches!(format, Q4_1 | Q5_1 | Q2K | Q4K | Q5K)
}

/// Whether everything that is read in words begins at a multiple of four bytes.
fn is_aligned(format: BlockFormat) -> bool {
    has_offset(format) || format == BlockFormat::Iq4Xs
}

/// The table that codes number the values of.
fn table(format: BlockFormat) -> Option<&'static [i8; 16]> {
    match format {
        BlockFormat::Iq4Nl | BlockFormat::Iq4Xs => Some(&IQ4_NL_VALUES),
        BlockFormat::Mxfp4 => Some(&MXFP4_VALUES),
        BlockFormat::Nf4 => Some(&NF4_VALUES),
        BlockFormat::Nf3 => Some(&NF3_VALUES),
        BlockFormat::Nf2 => Some(&NF2_VALUES),
        _ => None,
    }
}

/// Four values of a format's table, each plus 128, in the bytes of a word.
fn table_word(format: BlockFormat, word: usize) -> u32 {
    let bytes = table(format).map_or([0; 4], |values| {
        std::array::from_fn(|i| values[4 * word + i].cast_unsigned().wrapping_add(128))
    });
    u32::from_le_bytes(bytes)
}

/// The integer of code zero, where codes number consecutive integers.
fn least(format: BlockFormat) -> f32 {
    match format {
        BlockFormat::Q8_0 => -128.0,
        BlockFormat::Q4_0 => -8.0,
        BlockFormat::Q5_0 => -16.0,
        BlockFormat::Q3K => -4.0,
        BlockFormat::Q6K => -32.0,
        _ => 0.0,
    }
}

/// Where the bytes of the lowest bits begin in a block of 32 elements.
fn low_at(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Mxfp4 | BlockFormat::Nf4 | BlockFormat::Nf2 => 1,
        BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Iq4Nl => 2,
        BlockFormat::Q4_1 => 4,
        BlockFormat::Nf3 => 5,
        BlockFormat::Q5_0 => 6,
        _ => 8,
    }
}

/// Where the highest bits of 32 elements begin in their block, a bit for each.
fn high_at(format: BlockFormat) -> usize {
    match format {
        BlockFormat::Nf3 => 1,
        BlockFormat::Q5_0 => 2,
        _ => 4,
    }
}

/// A byte.
#[cube]
fn byte_at(words: &Array<u32>, at: usize) -> u32 {
    (words[at / 4] >> ((at % 4) * 8) as u32) & 255u32
}

/// The four bytes from a byte on.
#[cube]
fn word_at(words: &Array<u32>, at: usize, #[comptime] aligned: bool) -> u32 {
    if comptime!(aligned) {
        words[at / 4]
    } else {
        let shift = ((at % 4) * 8) as u32;
        // A shift by all 32 bits is not defined: it is done in two steps.
        (words[at / 4] >> shift) | ((words[at / 4 + 1] << (24u32 - shift)) << 8u32)
    }
}

/// The value of an f16 in the low bits.
#[cube]
fn f16(bits: u32) -> f32 {
    let exponent = (bits >> 10u32) & 31u32;
    let mantissa = bits & 1023u32;
    // The exponent's bias is 15 instead of 127. A device may take subnormal numbers for zero: they are made of integers.
    let widened = select(exponent == 31u32, 255u32, exponent + 112u32);
    let normal = (widened << 23u32) | (mantissa << 13u32);
    let subnormal = u32::reinterpret((mantissa as f32) * 5.960_464_5e-8);
    f32::reinterpret(((bits & 0x8000u32) << 16u32) | select(exponent == 0u32, subnormal, normal))
}

/// The f16 at a byte with an even number.
#[cube]
fn f16_at(words: &Array<u32>, at: usize) -> f32 {
    f16((words[at / 4] >> ((at % 4) * 8) as u32) & 0xffffu32)
}

/// Scale and offset of a chunk in the block that begins at a byte.
#[cube]
pub(super) fn affine(
    words: &Array<u32>,
    block: usize,
    chunk: usize,
    #[comptime] format: BlockFormat,
) -> Affine {
    if comptime!(matches!(format, BlockFormat::Nf4 | BlockFormat::Nf3 | BlockFormat::Nf2)) {
        Affine { scale: f16(byte_at(words, block) << 7u32), offset: 0.0f32.runtime() }
    } else if comptime!(format == BlockFormat::Mxfp4) {
        // Half of the power of two: values are doubled. The two smallest are subnormal.
        let exponent = byte_at(words, block);
        let bits = select(exponent < 2u32, 0x20_0000u32 << (exponent & 1u32), (exponent - 1u32) << 23u32);
        Affine { scale: f32::reinterpret(bits), offset: 0.0f32.runtime() }
    } else if comptime!(matches!(format, BlockFormat::Q4_1 | BlockFormat::Q5_1)) {
        let both = words[block / 4];
        Affine { scale: f16(both & 0xffffu32), offset: f16(both >> 16u32) }
    } else if comptime!(matches!(format, BlockFormat::Q4K | BlockFormat::Q5K)) {
        // Scales and offsets of 6 bits: those of the last four groups are in the third word and in the upper bits of
        // the others.
        let group = chunk / 2;
        let shift = ((group % 4) * 8) as u32;
        let first = (words[block / 4 + 1] >> shift) & 255u32;
        let second = (words[block / 4 + 2] >> shift) & 255u32;
        let third = (words[block / 4 + 3] >> shift) & 255u32;
        let scale = select(group < 4, first & 63u32, (third & 15u32) | ((first >> 6u32) << 4u32));
        let offset = select(group < 4, second & 63u32, (third >> 4u32) | ((second >> 6u32) << 4u32));
        let both = words[block / 4];
        Affine {
            scale: f16(both & 0xffffu32) * (scale as f32),
            offset: 0.0 - f16(both >> 16u32) * (offset as f32),
        }
    } else if comptime!(matches!(format, BlockFormat::Q2K)) {
        let scales = byte_at(words, block + chunk);
        let both = words[block / 4 + 20];
        Affine {
            scale: f16(both & 0xffffu32) * ((scales & 15u32) as f32),
            offset: 0.0 - f16(both >> 16u32) * ((scales >> 4u32) as f32),
        }
    } else if comptime!(matches!(format, BlockFormat::Q3K)) {
        let four = (byte_at(words, block + 96 + chunk % 8) >> (4 * (chunk / 8)) as u32) & 15u32;
        let two = (byte_at(words, block + 104 + chunk % 4) >> (2 * (chunk / 4)) as u32) & 3u32;
        let scale = ((four | (two << 4u32)) as f32) - 32.0;
        Affine { scale: f16_at(words, block + 108) * scale, offset: 0.0f32.runtime() }
    } else if comptime!(matches!(format, BlockFormat::Iq4Xs)) {
        let group = chunk / 2;
        let both = words[block / 4];
        let four = (words[block / 4 + 1] >> (4 * group) as u32) & 15u32;
        let two = (both >> (16 + 2 * group) as u32) & 3u32;
        let scale = ((four | (two << 4u32)) as f32) - 32.0;
        Affine { scale: f16(both & 0xffffu32) * scale, offset: 0.0f32.runtime() }
    } else if comptime!(matches!(format, BlockFormat::Q6K)) {
        let scale = ((byte_at(words, block + 192 + chunk) ^ 128u32) as f32) - 128.0;
        Affine { scale: f16_at(words, block + 208) * scale, offset: 0.0f32.runtime() }
    } else {
        Affine { scale: f16_at(words, block), offset: 0.0f32.runtime() }
    }
}

/// Bits 0 to 3 in four bytes.
#[cube]
fn spread(bits: u32) -> u32 {
    let bits = bits & 15u32;
    (bits | (bits << 7u32) | (bits << 14u32) | (bits << 21u32)) & 0x0101_0101u32
}

/// The codes of four elements, one in each byte: those from `4·quad` on in the block that begins at a byte.
#[cube]
pub(super) fn codes(words: &Array<u32>, block: usize, quad: usize, #[comptime] format: BlockFormat) -> u32 {
    let aligned = comptime!(is_aligned(format));
    let low = comptime!(low_at(format));
    let chunk = quad / 4;
    let at = (quad % 4) * 4;
    if comptime!(matches!(format, BlockFormat::Q8_0)) {
        word_at(words, block + low + quad * 4, aligned) ^ 0x8080_8080u32
    } else if comptime!(matches!(
        format,
        BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Iq4Nl | BlockFormat::Mxfp4 | BlockFormat::Nf4
    )) {
        (word_at(words, block + low + at, aligned) >> (4 * chunk) as u32) & 0x0f0f_0f0fu32
    } else if comptime!(format == BlockFormat::Iq4Xs) {
        let word = word_at(words, block + 8 + 16 * (chunk / 2) + at, aligned);
        (word >> (4 * (chunk % 2)) as u32) & 0x0f0f_0f0fu32
    } else if comptime!(matches!(format, BlockFormat::Q5_0 | BlockFormat::Q5_1)) {
        let four = (word_at(words, block + low + at, aligned) >> (4 * chunk) as u32) & 0x0f0f_0f0fu32;
        let fifth = word_at(words, block + comptime!(high_at(format)), aligned) >> (4 * quad) as u32;
        four | (spread(fifth) << 4u32)
    } else if comptime!(matches!(format, BlockFormat::Nf3 | BlockFormat::Nf2)) {
        let shift = 2 * chunk + 4 * (at / 8);
        let two = (word_at(words, block + low + at % 8, aligned) >> shift as u32) & 0x0303_0303u32;
        if comptime!(matches!(format, BlockFormat::Nf3)) {
            let third = word_at(words, block + comptime!(high_at(format)), aligned) >> (4 * quad) as u32;
            two | (spread(third) << 2u32)
        } else {
            two
        }
    } else if comptime!(matches!(format, BlockFormat::Q4K | BlockFormat::Q5K)) {
        let group = chunk / 2;
        let first = 16 * (chunk % 2) + at;
        let low = comptime!(if format == BlockFormat::Q4K { 16usize } else { 48usize });
        let word = word_at(words, block + low + 32 * (group / 2) + first, aligned);
        let four = (word >> (4 * (group % 2)) as u32) & 0x0f0f_0f0fu32;
        if comptime!(format == BlockFormat::Q5K) {
            let fifth = word_at(words, block + 16 + first, aligned) >> group as u32;
            four | ((fifth & 0x0101_0101u32) << 4u32)
        } else {
            four
        }
    } else {
        // Two halves of 128 elements, in each of which four groups of 32 share bytes.
        let half = chunk / 8;
        let group = chunk % 8 / 2;
        let first = 16 * (chunk % 2) + at;
        if comptime!(format == BlockFormat::Q6K) {
            let word = word_at(words, block + 64 * half + 32 * (group % 2) + first, aligned);
            let four = (word >> (4 * (group / 2)) as u32) & 0x0f0f_0f0fu32;
            let two = word_at(words, block + 128 + 32 * half + first, aligned) >> (2 * group) as u32;
            four | ((two & 0x0303_0303u32) << 4u32)
        } else {
            let low = comptime!(if format == BlockFormat::Q2K { 16usize } else { 32usize });
            let word = word_at(words, block + low + 32 * half + first, aligned);
            let two = (word >> (2 * group) as u32) & 0x0303_0303u32;
            if comptime!(format == BlockFormat::Q3K) {
                let third = word_at(words, block + first, aligned) >> (4 * half + group) as u32;
                two | ((third & 0x0101_0101u32) << 2u32)
            } else {
                two
            }
        }
    }
}

/// The integer of a code.
#[cube]
fn integer(code: u32, #[comptime] format: BlockFormat) -> f32 {
    if comptime!(table(format).is_some()) {
        let first = comptime!(table_word(format, 0)).runtime();
        let second = comptime!(table_word(format, 1)).runtime();
        let third = comptime!(table_word(format, 2)).runtime();
        let fourth = comptime!(table_word(format, 3)).runtime();
        let lower = select(code < 4u32, first, second);
        let upper = select(code < 12u32, third, fourth);
        let word = select(code < 8u32, lower, upper);
        (((word >> ((code & 3u32) * 8u32)) & 255u32) as f32) - 128.0
    } else {
        (code as f32) + comptime!(least(format)).runtime()
    }
}

/// The element whose code is in the lowest byte.
#[cube]
pub(super) fn value(code: u32, scale: f32, offset: f32, #[comptime] format: BlockFormat) -> f32 {
    let q = integer(code & 255u32, format);
    if comptime!(has_offset(format)) { q * scale + offset } else { q * scale }
}

/// The first byte of the block that has a quad of the matrix.
#[cube]
pub(super) fn block_of(quad: usize, #[comptime] format: BlockFormat) -> usize {
    quad / comptime!(format.block_len() / 4) * comptime!(format.block_bytes())
}

/// The elements from `4·quad` on, counted through the stored matrix.
#[cube]
pub(super) fn decode(words: &Array<u32>, quad: usize, #[comptime] format: BlockFormat) -> Quad {
    let block = block_of(quad, format);
    let at = quad % comptime!(format.block_len() / 4);
    let affine = affine(words, block, at / 4, format);
    let codes = codes(words, block, at, format);
    let mut values = Quad::empty();
    #[unroll]
    for i in 0..4usize {
        values[i] = value(codes >> comptime!(8 * i as u32), affine.scale, affine.offset, format);
    }
    values
}
