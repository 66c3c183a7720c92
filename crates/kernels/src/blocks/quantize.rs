//! Rounding to the nearest values of a block (llama.cpp, `quantize_row_*_ref`).

use burn::tensor::f16;

use super::{BlockFormat, quantize_k};
use crate::error::KernelError;

/// The blocks of a row-major matrix.
pub(super) fn quantize(
    format: BlockFormat,
    [rows, columns]: [usize; 2],
    values: &[f32],
) -> Result<Vec<u8>, KernelError> {
    let block = format.block_len();
    if !columns.is_multiple_of(block) {
        return Err(KernelError::BlockWidth { format: format.name(), columns, block });
    }
    if rows.checked_mul(columns) != Some(values.len()) {
        return Err(KernelError::Elements { rows, columns, elements: values.len() });
    }
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(KernelError::NonFinite {
            row: index / columns,
            column: index % columns,
            value: values[index],
        });
    }
    let mut bytes = Vec::with_capacity(values.len() / block * format.block_bytes());
    for (i, values) in values.chunks_exact(block).enumerate() {
        let fits = match (format, values.first_chunk(), values.first_chunk()) {
            (BlockFormat::Q8_0, Some(values), _) => signed_bytes(values, &mut bytes),
            (BlockFormat::Q4_0, Some(values), _) => signed(values, 8.0, &mut bytes),
            (BlockFormat::Q5_0, Some(values), _) => signed(values, 16.0, &mut bytes),
            (BlockFormat::Q4_1, Some(values), _) => unsigned(values, 15.0, &mut bytes),
            (BlockFormat::Q5_1, Some(values), _) => unsigned(values, 31.0, &mut bytes),
            (BlockFormat::Q4K, _, Some(values)) => quantize_k::groups_of_32(values, 15.0, &mut bytes),
            (BlockFormat::Q5K, _, Some(values)) => quantize_k::groups_of_32(values, 31.0, &mut bytes),
            (BlockFormat::Q6K, _, Some(values)) => quantize_k::groups_of_16(values, &mut bytes),
            // Every block has its length.
            _ => Ok(()),
        };
        if let Err(value) = fits {
            let largest = f16::MAX.to_f64();
            return Err(KernelError::Overflow {
                index: block * i,
                value: value.into(),
                dtype: "f16",
                largest,
            });
        }
    }
    Ok(bytes)
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

/// Appends the fifth bits, if there are, and then the low four bits of elements `i` and `i + 16` in one byte.
fn pack(q: &[u8; 32], with_fifth: bool, bytes: &mut Vec<u8>) {
    if with_fifth {
        let fifth = q.iter().enumerate().fold(0_u32, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
        bytes.extend(fifth.to_le_bytes());
    }
    bytes.extend((0..16).map(|i| q[i] & 15 | (q[i + 16] & 15) << 4));
}
