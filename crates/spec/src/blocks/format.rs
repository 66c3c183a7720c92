//! What the bytes of a block mean (llama.cpp, `ggml-common.h` and `dequantize_row_*`; the NF formats are ours).
//!
//! Everything is `inline(always)`: the loops are compiled for the instruction set of the kernel that uses them.

/// Sixteen neighbouring elements of a block: `scale·q + offset`.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Small integers, of any value that the type has.
    pub q: [i8; Chunk::LEN],
    /// What they are multiplied by.
    pub scale: f32,
    /// What is added.
    pub offset: f32,
}

impl Chunk {
    /// Elements of a chunk.
    pub const LEN: usize = 16;
    /// Zeros.
    pub const ZERO: Self = Self { q: [0; Self::LEN], scale: 0.0, offset: 0.0 };
}

/// A block format.
pub trait Format: Copy {
    /// Elements of a block, a multiple of 32.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Whether blocks have offsets.
    const HAS_OFFSET: bool;

    /// The chunk of this number in a block, which has [`BYTES`](Format::BYTES) bytes.
    fn chunk(block: &[u8], chunk: usize) -> Chunk;
}

/// The value of an f16, without a detection of the processor.
#[inline(always)]
fn f16(low: u8, high: u8) -> f32 {
    let bits = u32::from(u16::from_le_bytes([low, high]));
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent's bias is 15 instead of 127; the product gives subnormal numbers right as well.
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let value = if bits & 0x7c00 == 0x7c00 { f32::from_bits(magnitude | 0x7f80_0000) } else { finite };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// The array of what `f` gives. `array::from_fn` and `map` of the standard library need not be inlined into a kernel.
#[inline(always)]
fn each<T: Copy + Default, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut all = [T::default(); N];
    let mut i = 0;
    while i < N {
        all[i] = f(i);
        i += 1;
    }
    all
}

/// Bytes as signed numbers.
#[inline(always)]
fn signed(bytes: [u8; 16]) -> [i8; 16] {
    each(|i| bytes[i].cast_signed())
}

/// Low or high halves of sixteen bytes.
#[inline(always)]
fn nibbles(bytes: &[u8; 16], high: bool) -> [u8; 16] {
    each(|i| if high { bytes[i] >> 4 } else { bytes[i] & 15 })
}

/// The values of a table that the low or the high halves of sixteen bytes number.
#[inline(always)]
fn numbered(bytes: &[u8; 16], high: bool, table: &[i8; 16]) -> [i8; 16] {
    let numbers = nibbles(bytes, high);
    each(|i| table[usize::from(numbers[i] & 15)])
}

/// Sixteen bits of 32 as 0 or 16.
#[inline(always)]
fn fifth_bits(bits: [u8; 4], high: bool) -> [u8; 16] {
    let bits = u32::from_le_bytes(bits) >> if high { 16 } else { 0 };
    each(|i| ((bits >> i & 1) << 4) as u8)
}

/// The bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    match block.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => *bytes,
        None => [0; N],
    }
}

/// f16 scale, 32 signed bytes.
#[derive(Clone, Copy, Debug)]
pub struct Q8_0;

impl Format for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<34>() else { return Chunk::ZERO };
        let q = signed(part::<16>(block, 2 + 16 * chunk));
        Chunk { q, scale: f16(block[0], block[1]), offset: 0.0 }
    }
}

/// f16 scale, 16 bytes of low and high halves: elements 0 to 15 and 16 to 31.
#[derive(Clone, Copy, Debug)]
pub struct Q4_0;

impl Format for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<18>() else { return Chunk::ZERO };
        let low = nibbles(&part(block, 2), chunk == 1);
        let q = each(|i| low[i].cast_signed() - 8);
        Chunk { q, scale: f16(block[0], block[1]), offset: 0.0 }
    }
}

/// f16 scale, f16 offset, halves as in [`Q4_0`].
#[derive(Clone, Copy, Debug)]
pub struct Q4_1;

impl Format for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<20>() else { return Chunk::ZERO };
        let q = signed(nibbles(&part(block, 4), chunk == 1));
        Chunk { q, scale: f16(block[0], block[1]), offset: f16(block[2], block[3]) }
    }
}

/// f16 scale, the fifth bits of 32 elements, halves as in [`Q4_0`].
#[derive(Clone, Copy, Debug)]
pub struct Q5_0;

impl Format for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<22>() else { return Chunk::ZERO };
        let (low, fifth) = (nibbles(&part(block, 6), chunk == 1), fifth_bits(part(block, 2), chunk == 1));
        let q = each(|i| (low[i] | fifth[i]).cast_signed() - 16);
        Chunk { q, scale: f16(block[0], block[1]), offset: 0.0 }
    }
}

/// f16 scale, f16 offset, fifth bits, halves.
#[derive(Clone, Copy, Debug)]
pub struct Q5_1;

impl Format for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<24>() else { return Chunk::ZERO };
        let (low, fifth) = (nibbles(&part(block, 8), chunk == 1), fifth_bits(part(block, 4), chunk == 1));
        let q = each(|i| (low[i] | fifth[i]).cast_signed());
        Chunk { q, scale: f16(block[0], block[1]), offset: f16(block[2], block[3]) }
    }
}

/// Scale and offset of a group of 32 elements in 6 bits each, which eight groups share twelve bytes for.
#[inline(always)]
fn six_bits(scales: &[u8; 12], group: usize) -> [f32; 2] {
    let [scale, offset] = if group < 4 {
        [scales[group] & 63, scales[group + 4] & 63]
    } else {
        [
            scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
            scales[group + 4] >> 4 | scales[group] >> 6 << 4,
        ]
    };
    [f32::from(scale), f32::from(offset)]
}

/// f16 factor of the scales, f16 factor of the offsets, eight scales and offsets of 6 bits, halves: groups 0 and 1 in
/// the first 32 bytes, and so on.
#[derive(Clone, Copy, Debug)]
pub struct Q4K;

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<144>() else { return Chunk::ZERO };
        let group = chunk / 2;
        let [scale, offset] = six_bits(&part(block, 4), group);
        let bytes = part(block, 16 + 32 * (group / 2) + 16 * (chunk % 2));
        let q = signed(nibbles(&bytes, group % 2 == 1));
        let (d, d_min) = (f16(block[0], block[1]), f16(block[2], block[3]));
        Chunk { q, scale: d * scale, offset: -(d_min * offset) }
    }
}

/// [`Q4K`] with the fifth bits of 32 elements of all groups, a bit for each, before the halves.
#[derive(Clone, Copy, Debug)]
pub struct Q5K;

impl Format for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<176>() else { return Chunk::ZERO };
        let group = chunk / 2;
        let [scale, offset] = six_bits(&part(block, 4), group);
        let low = nibbles(&part(block, 48 + 32 * (group / 2) + 16 * (chunk % 2)), group % 2 == 1);
        let fifth: [u8; 16] = part(block, 16 + 16 * (chunk % 2));
        let q = each(|i| (low[i] | (fifth[i] >> group & 1) << 4).cast_signed());
        let (d, d_min) = (f16(block[0], block[1]), f16(block[2], block[3]));
        Chunk { q, scale: d * scale, offset: -(d_min * offset) }
    }
}

/// Low four bits, high two bits, a signed byte of scale for 16 elements, their f16 factor: in each half of 128
/// elements, groups 0 and 2 of 32 share bytes, and 1 and 3.
#[derive(Clone, Copy, Debug)]
pub struct Q6K;

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<210>() else { return Chunk::ZERO };
        let (half, group, first) = (chunk / 8, chunk % 8 / 2, 16 * (chunk % 2));
        let low = nibbles(&part(block, 64 * half + 32 * (group % 2) + first), group / 2 == 1);
        let high: [u8; 16] = part(block, 128 + 32 * half + first);
        let q = each(|i| (low[i] | (high[i] >> (2 * group) & 3) << 4).cast_signed() - 32);
        let scale = f16(block[208], block[209]) * f32::from(block[192 + chunk].cast_signed());
        Chunk { q, scale, offset: 0.0 }
    }
}

/// Sixteen scales and offsets of 4 bits, 2 bits of each element, an f16 factor of the scales and one of the offsets:
/// in each half of 128 elements, four groups of 32 share bytes.
#[derive(Clone, Copy, Debug)]
pub struct Q2K;

impl Format for Q2K {
    const LEN: usize = 256;
    const BYTES: usize = 84;
    const HAS_OFFSET: bool = true;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<84>() else { return Chunk::ZERO };
        let (half, group, first) = (chunk / 8, chunk % 8 / 2, 16 * (chunk % 2));
        let bytes: [u8; 16] = part(block, 16 + 32 * half + first);
        let scales = block[chunk];
        Chunk {
            q: each(|i| (bytes[i] >> (2 * group) & 3).cast_signed()),
            scale: f16(block[80], block[81]) * f32::from(scales & 15),
            offset: -(f16(block[82], block[83]) * f32::from(scales >> 4)),
        }
    }
}

/// The third bits of 32 elements of all groups, a bit for each, the low two bits as in [`Q2K`], sixteen scales of 6 bits,
/// and their f16 factor.
#[derive(Clone, Copy, Debug)]
pub struct Q3K;

impl Format for Q3K {
    const LEN: usize = 256;
    const BYTES: usize = 110;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<110>() else { return Chunk::ZERO };
        let (half, group, first) = (chunk / 8, chunk % 8 / 2, 16 * (chunk % 2));
        let low: [u8; 16] = part(block, 32 + 32 * half + first);
        let high: [u8; 16] = part(block, first);
        let q = each(|i| {
            let third = high[i] >> (4 * half + group) & 1;
            ((low[i] >> (2 * group) & 3) | third << 2).cast_signed() - 4
        });
        let scales: [u8; 12] = part(block, 96);
        let four = scales[chunk % 8] >> (4 * half) & 15;
        let two = scales[8 + chunk % 4] >> (2 * (chunk / 4)) & 3;
        let scale = f16(block[108], block[109]) * f32::from((four | two << 4).cast_signed() - 32);
        Chunk { q, scale, offset: 0.0 }
    }
}

/// The sixteen values of [`Iq4Nl`], denser near zero.
pub const IQ4_NL_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// f16 scale, halves as in [`Q4_0`] that number the values of a table.
#[derive(Clone, Copy, Debug)]
pub struct Iq4Nl;

impl Format for Iq4Nl {
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<18>() else { return Chunk::ZERO };
        let q = numbered(&part(block, 2), chunk == 1, &IQ4_NL_VALUES);
        Chunk { q, scale: f16(block[0], block[1]), offset: 0.0 }
    }
}

/// f16 factor of eight scales of 6 bits, their high two bits, their low four bits, and halves: the sixteen bytes of each
/// group of 32 elements as in [`Iq4Nl`].
#[derive(Clone, Copy, Debug)]
pub struct Iq4Xs;

impl Format for Iq4Xs {
    const LEN: usize = 256;
    const BYTES: usize = 136;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<136>() else { return Chunk::ZERO };
        let group = chunk / 2;
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
        let high = block[2 + group / 4] >> (2 * (group % 4)) & 3;
        let q = numbered(&part(block, 8 + 16 * group), chunk % 2 == 1, &IQ4_NL_VALUES);
        let scale = f16(block[0], block[1]) * f32::from((low | high << 4).cast_signed() - 32);
        Chunk { q, scale, offset: 0.0 }
    }
}

/// The sixteen values of [`Nf4`]: those of QLoRA's NormalFloat (Dettmers et al. 2023, appendix E), times 127.
pub const NF4_VALUES: [i8; 16] = [-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127];
/// The eight values of [`Nf3`], twice: of least squared error for blocks of 32 normal numbers, each with its best
/// scale (Lloyd 1982, Max 1960).
pub const NF3_VALUES: [i8; 16] = [-127, -76, -42, -13, 13, 42, 76, 127, -127, -76, -42, -13, 13, 42, 76, 127];
/// The four values of [`Nf2`], four times, found like [`NF3_VALUES`].
pub const NF2_VALUES: [i8; 16] =
    [-127, -36, 36, 127, -127, -36, 36, 127, -127, -36, 36, 127, -127, -36, 36, 127];

/// The scale in a byte: the upper bits of a positive f16, of which five are the exponent and three the mantissa.
#[inline(always)]
fn byte_scale(byte: u8) -> f32 {
    let [low, high] = (u16::from(byte) << 7).to_le_bytes();
    f16(low, high)
}

/// 2-bit indices of 32 elements in eight bytes: elements `8·i` to `8·i + 7` begin at bit 0, 4, 2 or 6 of a byte.
#[inline(always)]
fn two_bits(bytes: [u8; 8], chunk: usize) -> [u8; 16] {
    each(|i| bytes[i % 8] >> (2 * chunk + 4 * (i / 8)) & 3)
}

/// A byte of scale, halves as in [`Q4_0`] that number the values of a table.
#[derive(Clone, Copy, Debug)]
pub struct Nf4;

impl Format for Nf4 {
    const LEN: usize = 32;
    const BYTES: usize = 17;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<17>() else { return Chunk::ZERO };
        let q = numbered(&part(block, 1), chunk == 1, &NF4_VALUES);
        Chunk { q, scale: byte_scale(block[0]), offset: 0.0 }
    }
}

/// A byte of scale, the third bits of 32 elements, low two bits as in [`Nf2`].
#[derive(Clone, Copy, Debug)]
pub struct Nf3;

impl Format for Nf3 {
    const LEN: usize = 32;
    const BYTES: usize = 13;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<13>() else { return Chunk::ZERO };
        let (low, third) = (two_bits(part(block, 5), chunk), fifth_bits(part(block, 1), chunk == 1));
        let q = each(|i| NF3_VALUES[usize::from(low[i] | third[i] >> 2)]);
        Chunk { q, scale: byte_scale(block[0]), offset: 0.0 }
    }
}

/// A byte of scale, 2-bit indices: elements 0 to 7 in the lowest bits of eight bytes, 8 to 15 from bit 4, 16 to 23 from
/// bit 2 and 24 to 31 from bit 6 on.
#[derive(Clone, Copy, Debug)]
pub struct Nf2;

impl Format for Nf2 {
    const LEN: usize = 32;
    const BYTES: usize = 9;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<9>() else { return Chunk::ZERO };
        let low = two_bits(part(block, 1), chunk);
        let q = each(|i| NF2_VALUES[usize::from(low[i])]);
        Chunk { q, scale: byte_scale(block[0]), offset: 0.0 }
    }
}

/// The sixteen values of [`Mxfp4`], doubled: a sign, two bits of exponent, one of mantissa (E2M1).
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two in a byte (E8M0), as the bits of a bf16.
#[inline(always)]
#[must_use]
pub fn half_power(byte: u8) -> u16 {
    // The two smallest are subnormal.
    if byte < 2 { 0x20 << byte } else { (u16::from(byte) - 1) << 7 }
}

/// A power of two in a byte, halves as in [`Q4_0`] that number the values of a table (OCP Microscaling Formats 1.0, 2023).
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4;

impl Format for Mxfp4 {
    const LEN: usize = 32;
    const BYTES: usize = 17;
    const HAS_OFFSET: bool = false;

    #[inline(always)]
    fn chunk(block: &[u8], chunk: usize) -> Chunk {
        let Some(block) = block.first_chunk::<17>() else { return Chunk::ZERO };
        let q = numbered(&part(block, 1), chunk == 1, &MXFP4_VALUES);
        Chunk { q, scale: f32::from_bits(u32::from(half_power(block[0])) << 16), offset: 0.0 }
    }
}

/// Evaluates an expression with the type of a format.
#[doc(hidden)]
#[macro_export]
macro_rules! with_block_format {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            $crate::blocks::BlockFormat::Q8_0 => {
                type $F = $crate::blocks::format::Q8_0;
                $body
            }
            $crate::blocks::BlockFormat::Q4_0 => {
                type $F = $crate::blocks::format::Q4_0;
                $body
            }
            $crate::blocks::BlockFormat::Q4_1 => {
                type $F = $crate::blocks::format::Q4_1;
                $body
            }
            $crate::blocks::BlockFormat::Q5_0 => {
                type $F = $crate::blocks::format::Q5_0;
                $body
            }
            $crate::blocks::BlockFormat::Q5_1 => {
                type $F = $crate::blocks::format::Q5_1;
                $body
            }
            $crate::blocks::BlockFormat::Q2K => {
                type $F = $crate::blocks::format::Q2K;
                $body
            }
            $crate::blocks::BlockFormat::Q3K => {
                type $F = $crate::blocks::format::Q3K;
                $body
            }
            $crate::blocks::BlockFormat::Q4K => {
                type $F = $crate::blocks::format::Q4K;
                $body
            }
            $crate::blocks::BlockFormat::Q5K => {
                type $F = $crate::blocks::format::Q5K;
                $body
            }
            $crate::blocks::BlockFormat::Q6K => {
                type $F = $crate::blocks::format::Q6K;
                $body
            }
            $crate::blocks::BlockFormat::Nf4 => {
                type $F = $crate::blocks::format::Nf4;
                $body
            }
            $crate::blocks::BlockFormat::Nf3 => {
                type $F = $crate::blocks::format::Nf3;
                $body
            }
            $crate::blocks::BlockFormat::Nf2 => {
                type $F = $crate::blocks::format::Nf2;
                $body
            }
            $crate::blocks::BlockFormat::Mxfp4 => {
                type $F = $crate::blocks::format::Mxfp4;
                $body
            }
            $crate::blocks::BlockFormat::Iq4Nl => {
                type $F = $crate::blocks::format::Iq4Nl;
                $body
            }
            $crate::blocks::BlockFormat::Iq4Xs => {
                type $F = $crate::blocks::format::Iq4Xs;
                $body
            }
        }
    };
}
pub use with_block_format as with_format;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_as_half_does() {
        for bits in 0..=u16::MAX {
            let [low, high] = bits.to_le_bytes();
            let (got, expected) = (f16(low, high), half::f16::from_bits(bits).to_f32());
            assert!(
                got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                "{bits:#x}: {got}"
            );
        }
    }
}
