//! Rounding to the nearest values of a block (llama.cpp, `quantize_row_*_ref`).

use half::f16;

use super::codes::{bits_of_32, halves_of_32};
use super::format::IQ4_NL_VALUES;
use super::{BlockFormat, mxfp4, normal_float, quantize_k, weighted};

/// Appends the blocks of `values`, whose length is a multiple of a block's; the error is the index of the block and the
/// scale that does not fit f16. `importance` weights the columns of a row and is repeated for each row.
pub(super) fn extend(
    format: BlockFormat,
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut Vec<u8>,
) -> Result<(), (usize, f32)> {
    let block = format.block_len();
    for (i, values) in values.chunks_exact(block).enumerate() {
        let weights = importance.map(|all| &all[block * i % all.len()..][..block]);
        let of_super_block = weights.and_then(|weights| weights.first_chunk());
        if let (Some(values), Some(weights)) = (values.first_chunk(), weights.and_then(|w| w.first_chunk()))
            && let Some(fits) = under_weights(format, values, weights, bytes)
        {
            fits.map_err(|value| (i, value))?;
            continue;
        }
        let fits = match (format, values.first_chunk(), values.first_chunk()) {
            (BlockFormat::Q8_0, Some(values), _) => signed_bytes(values, bytes),
            (BlockFormat::Q4_0, Some(values), _) => signed(values, 8.0, bytes),
            (BlockFormat::Q5_0, Some(values), _) => signed(values, 16.0, bytes),
            (BlockFormat::Q4_1, Some(values), _) => unsigned(values, 15.0, bytes),
            (BlockFormat::Q5_1, Some(values), _) => unsigned(values, 31.0, bytes),
            (BlockFormat::Iq4Nl, Some(values), _) => from_table(values, &values.map(|x| x * x), bytes),
            (BlockFormat::Mxfp4, Some(values), _) => {
                mxfp4::reference(values, bytes);
                Ok(())
            }
            (BlockFormat::Nf4, Some(values), _) => normal_float::four_bits(values, &[1.0; 32], bytes),
            (BlockFormat::Nf3, Some(values), _) => normal_float::three_bits(values, &[1.0; 32], bytes),
            (BlockFormat::Nf2, Some(values), _) => normal_float::two_bits(values, &[1.0; 32], bytes),
            (BlockFormat::Q2K, _, Some(values)) => quantize_k::two_bits(values, of_super_block, bytes),
            (BlockFormat::Q3K, _, Some(values)) => quantize_k::three_bits(values, of_super_block, bytes),
            (BlockFormat::Q4K, _, Some(values)) => {
                quantize_k::groups_of_32(values, of_super_block, 15.0, bytes)
            }
            (BlockFormat::Q5K, _, Some(values)) => {
                quantize_k::groups_of_32(values, of_super_block, 31.0, bytes)
            }
            (BlockFormat::Iq4Xs, _, Some(values)) => groups_from_table(values, of_super_block, bytes),
            (BlockFormat::Q6K, _, Some(values)) => quantize_k::groups_of_16(values, of_super_block, bytes),
            // Every block has the full length.
            _ => Ok(()),
        };
        fits.map_err(|value| (i, value))?;
    }
    Ok(())
}

/// A weighted block of 32 elements; `None` for the formats of super-blocks.
fn under_weights(
    format: BlockFormat,
    x: &[f32; 32],
    weights: &[f32; 32],
    bytes: &mut Vec<u8>,
) -> Option<Result<(), f32>> {
    let mut signed = |half: f32| {
        let (scale, q) = weighted::signed(x, weights, half);
        push(scale, bytes)?;
        pack(&q, half > 8.0, bytes);
        Ok(())
    };
    match format {
        BlockFormat::Q4_0 => return Some(signed(8.0)),
        BlockFormat::Q5_0 => return Some(signed(16.0)),
        _ => {}
    }
    let mut unsigned = |most: f32| {
        let (scale, offset, q) = weighted::unsigned(x, weights, most);
        push(scale, bytes)?;
        push(offset, bytes)?;
        pack(&q, most > 15.0, bytes);
        Ok(())
    };
    match format {
        BlockFormat::Q4_1 => return Some(unsigned(15.0)),
        BlockFormat::Q5_1 => return Some(unsigned(31.0)),
        _ => {}
    }
    match format {
        BlockFormat::Q8_0 => {
            let (scale, q) = weighted::bytes(x, weights);
            let pushed = push(scale, bytes).map(|_| ());
            bytes.extend(q.map(i8::cast_unsigned));
            Some(pushed)
        }
        BlockFormat::Iq4Nl => {
            let spread = 2.0 * x.iter().map(|x| x * x).sum::<f32>() / 32.0;
            Some(from_table(x, &std::array::from_fn(|i| weights[i] * (spread + x[i] * x[i]).sqrt()), bytes))
        }
        BlockFormat::Mxfp4 => {
            mxfp4::weighted(x, weights, bytes);
            Some(Ok(()))
        }
        BlockFormat::Nf4 => Some(normal_float::four_bits(x, weights, bytes)),
        BlockFormat::Nf3 => Some(normal_float::three_bits(x, weights, bytes)),
        BlockFormat::Nf2 => Some(normal_float::two_bits(x, weights, bytes)),
        _ => None,
    }
}

/// Appends a scale or an offset, and returns its rounded value; the error is the value that does not fit.
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

/// Q4_0 and Q5_0: the value of largest magnitude becomes `-half`, the end with the larger range.
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

/// IQ4_NL, with the squares as the reference's weights (`quantize_row_iq4_nl_impl`).
fn from_table(values: &[f32; 32], weights: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    // Scale zero: llama.cpp rounds 0 to the eighth value.
    let scale = table_scale(values, weights);
    push(scale, bytes)?;
    pack(&values.map(|x| nearest(x * inverse(scale)) as u8), false, bytes);
    Ok(())
}

/// IQ4_XS: the scales of eight groups as multiples of one factor, and the integers for the multiples (`quantize_row_iq4_nl_impl`).
fn groups_from_table(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    bytes: &mut Vec<u8>,
) -> Result<(), f32> {
    let spread = 2.0 * values.iter().map(|x| x * x).sum::<f32>() / 256.0;
    let groups: &[[f32; 32]] = values.as_chunks().0;
    let mut scales = [0.0_f32; 8];
    for (g, (scale, x)) in scales.iter_mut().zip(groups).enumerate() {
        let weights = std::array::from_fn(|i| match importance {
            Some(importance) => importance[32 * g + i] * (spread + x[i] * x[i]).sqrt(),
            None => x[i] * x[i],
        });
        *scale = table_scale(x, &weights);
    }
    let largest = scales.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    let factor = -largest / 32.0;
    push(factor, bytes)?;
    let steps = scales.map(|scale| (scale * inverse(factor)).round_ties_even().clamp(-32.0, 31.0));
    let six_bits = steps.map(|step| (step as i8 + 32).cast_unsigned());
    let high = (0..8).fold(0_u16, |bits, g| bits | u16::from(six_bits[g] >> 4) << (2 * g));
    bytes.extend(high.to_le_bytes());
    bytes.extend(six_bits.as_chunks().0.iter().map(|[low, high]| low & 15 | (high & 15) << 4));
    for (x, step) in groups.iter().zip(steps) {
        pack(&x.map(|x| nearest(x * inverse(factor * step)) as u8), false, bytes);
    }
    Ok(())
}

/// The scale of the least weighted error, the best of several initial ones.
fn table_scale(values: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let max = values.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    if max.abs() < 1e-15 {
        return 0.0;
    }
    let sums = |inverse: f32| {
        values.iter().zip(weights).fold((0.0_f32, 0.0_f32), |(qx, qq), (&x, &w)| {
            let q = f32::from(IQ4_NL_VALUES[nearest(inverse * x)]);
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
    scale
}

/// The index of the table's value nearest to `x`.
fn nearest(x: f32) -> usize {
    let above = IQ4_NL_VALUES.partition_point(|&value| f32::from(value) <= x);
    if above == 0 || above == IQ4_NL_VALUES.len() {
        return above.saturating_sub(1);
    }
    let [low, high] = [above - 1, above].map(|i| f32::from(IQ4_NL_VALUES[i]));
    if x - low < high - x { above - 1 } else { above }
}

/// Appends the fifth bits, if there are any, and then the low four bits of elements `i` and `i + 16` in one
/// byte.
fn pack(q: &[u8; 32], with_fifth: bool, bytes: &mut Vec<u8>) {
    if with_fifth {
        bytes.extend(bits_of_32(q, 4));
    }
    bytes.extend(halves_of_32(q));
}
