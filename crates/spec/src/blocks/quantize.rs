//! Rounding to the nearest values of a block (llama.cpp, `quantize_row_*_ref`).

use half::f16;

use super::format::IQ4_NL_VALUES;
use super::{BlockFormat, quantize_k};

/// Appends the blocks of `values`, whose length is a multiple of a block's; the error is the index of the block and the
/// scale that does not fit f16.
pub(super) fn extend(format: BlockFormat, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), (usize, f32)> {
    for (i, values) in values.chunks_exact(format.block_len()).enumerate() {
        let fits = match (format, values.first_chunk(), values.first_chunk()) {
            (BlockFormat::Q8_0, Some(values), _) => signed_bytes(values, bytes),
            (BlockFormat::Q4_0, Some(values), _) => signed(values, 8.0, bytes),
            (BlockFormat::Q5_0, Some(values), _) => signed(values, 16.0, bytes),
            (BlockFormat::Q4_1, Some(values), _) => unsigned(values, 15.0, bytes),
            (BlockFormat::Q5_1, Some(values), _) => unsigned(values, 31.0, bytes),
            (BlockFormat::Iq4Nl, Some(values), _) => from_table(values, bytes),
            (BlockFormat::Q2K, _, Some(values)) => quantize_k::two_bits(values, bytes),
            (BlockFormat::Q3K, _, Some(values)) => quantize_k::three_bits(values, bytes),
            (BlockFormat::Q4K, _, Some(values)) => quantize_k::groups_of_32(values, 15.0, bytes),
            (BlockFormat::Q5K, _, Some(values)) => quantize_k::groups_of_32(values, 31.0, bytes),
            (BlockFormat::Q6K, _, Some(values)) => quantize_k::groups_of_16(values, bytes),
            // Every block has its length.
            _ => Ok(()),
        };
        fits.map_err(|value| (i, value))?;
    }
    Ok(())
}

/// Appends a scale or an offset, and returns it as it was rounded; the error is the value that does not fit.
pub(super) fn push(value: f32, bytes: &mut Vec<u8>) -> Result<f32, f32> {
    let narrow = f16::from_f32(value);
    bytes.extend(narrow.to_le_bytes());
    if narrow.is_finite() { Ok(narrow.to_f32()) } else { Err(value) }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Q8_0: the largest magnitude becomes 127.
fn signed_bytes(values: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let scale = values.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
    push(scale, bytes)?;
    bytes.extend(values.map(|x| ((x * inverse(scale)).round() as i8).cast_unsigned()));
    Ok(())
}

/// Q4_0 and Q5_0: the value of largest magnitude becomes `-half`, the end that reaches farther.
fn signed(values: &[f32; 32], half: f32, bytes: &mut Vec<u8>) -> Result<(), f32> {
    let max = values.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    let scale = max / -half;
    push(scale, bytes)?;
    let most = 2.0 * half - 1.0;
    pack(&values.map(|x| (x * inverse(scale) + half + 0.5).clamp(0.0, most) as u8), half > 8.0, bytes);
    Ok(())
}

/// Q4_1 and Q5_1: the smallest value becomes 0 and the largest `most`.
fn unsigned(values: &[f32; 32], most: f32, bytes: &mut Vec<u8>) -> Result<(), f32> {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / most;
    push(scale, bytes)?;
    push(min, bytes)?;
    pack(&values.map(|x| ((x - min) * inverse(scale) + 0.5).clamp(0.0, most) as u8), most > 15.0, bytes);
    Ok(())
}

/// IQ4_NL: the scale that fits best with the squares as weights, the better of several first ones
/// (`quantize_row_iq4_nl_impl`).
fn from_table(values: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let max = values.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    if max.abs() < 1e-15 {
        // Scale zero; llama.cpp rounds 0 to the eighth value.
        push(0.0, bytes)?;
        bytes.extend([0x88; 16]);
        return Ok(());
    }
    let sums = |inverse: f32| {
        values.iter().fold((0.0_f32, 0.0_f32), |(qx, qq), &x| {
            let (q, w) = (f32::from(IQ4_NL_VALUES[nearest(inverse * x)]), x * x);
            (qx + w * q * x, qq + w * q * q)
        })
    };
    let first = f32::from(IQ4_NL_VALUES[0]);
    let (qx, qq) = sums(1.0 / (-max / first));
    let mut scale = if qq > 0.0 { qx / qq } else { 0.0 };
    let mut best = scale * qx;
    for step in -7..=7 {
        let (qx, qq) = sums((step as f32 + first) / max);
        if qq > 0.0 && qx * qx > best * qq {
            scale = qx / qq;
            best = scale * qx;
        }
    }
    push(scale, bytes)?;
    pack(&values.map(|x| nearest(x * inverse(scale)) as u8), false, bytes);
    Ok(())
}

/// The number of the value of the table that is nearest to `x`.
fn nearest(x: f32) -> usize {
    let above = IQ4_NL_VALUES.partition_point(|&value| f32::from(value) <= x);
    if above == 0 || above == IQ4_NL_VALUES.len() {
        return above.saturating_sub(1);
    }
    let [low, high] = [above - 1, above].map(|i| f32::from(IQ4_NL_VALUES[i]));
    if x - low < high - x { above - 1 } else { above }
}

/// Appends the fifth bits, if there are, and then the low four bits of elements `i` and `i + 16` in one byte.
fn pack(q: &[u8; 32], with_fifth: bool, bytes: &mut Vec<u8>) {
    if with_fifth {
        let fifth = q.iter().enumerate().fold(0_u32, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
        bytes.extend(fifth.to_le_bytes());
    }
    bytes.extend((0..16).map(|i| q[i] & 15 | (q[i + 16] & 15) << 4));
}
