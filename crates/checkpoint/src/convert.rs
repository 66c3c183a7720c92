//! Little-endian bytes to numbers and back, without alignment requirements.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::dtype::{Dtype, FloatType};

/// Number of elements converted through the stack at a time.
const BLOCK: usize = 1024;

/// Appends the elements as f32. Doubles and integers are rounded to nearest; a boolean is 0 or 1.
pub(crate) fn extend_f32(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        Dtype::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Dtype::F16 => each_f16_block(bytes, |block| {
            let mut wide = [0f32; BLOCK];
            block.convert_to_f32_slice(&mut wide[..block.len()]);
            out.extend_from_slice(&wide[..block.len()]);
        }),
        Dtype::I64 => out.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32)),
        Dtype::I32 => out.extend(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32)),
        Dtype::I16 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)))),
        Dtype::I8 => out.extend(bytes.iter().map(|&b| f32::from(i8::from_le_bytes([b])))),
        Dtype::U64 => out.extend(bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b) as f32)),
        Dtype::U32 => out.extend(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as f32)),
        Dtype::U16 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from(u16::from_le_bytes(*b)))),
        Dtype::U8 => out.extend(bytes.iter().map(|&b| f32::from(b))),
        Dtype::Bool => out.extend(bytes.iter().map(|&b| f32::from(u8::from(b != 0)))),
        Dtype::Block(format) => format.dequantize(bytes, out),
    }
}

/// Appends the elements as f64; exact for all but 64-bit integers beyond 2⁵³.
pub(crate) fn extend_f64(dtype: Dtype, bytes: &[u8], out: &mut Vec<f64>) {
    match dtype {
        Dtype::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b))),
        Dtype::I64 => out.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64)),
        Dtype::I32 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b)))),
        Dtype::U64 => out.extend(bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b) as f64)),
        Dtype::U32 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(u32::from_le_bytes(*b)))),
        _ => {
            let mut narrow = Vec::with_capacity(BLOCK);
            for block in bytes.chunks(BLOCK / dtype.unit_len() * dtype.size()) {
                narrow.clear();
                extend_f32(dtype, block, &mut narrow);
                out.extend(narrow.iter().map(|&x| f64::from(x)));
            }
        }
    }
}

/// Appends the values in `dtype`, rounded to nearest even. The error is the first finite value that became infinite.
pub(crate) fn encode(values: &[f32], dtype: FloatType, out: &mut Vec<u8>) -> Result<(), f32> {
    match dtype {
        FloatType::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        FloatType::F16 => {
            let mut narrow = [f16::ZERO; BLOCK];
            for block in values.chunks(BLOCK) {
                let narrow = &mut narrow[..block.len()];
                narrow.convert_from_f32_slice(block);
                overflowed(block, narrow.iter().map(|x| x.is_infinite()))?;
                out.extend(narrow.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
        FloatType::BF16 => {
            let mut narrow = [bf16::ZERO; BLOCK];
            for block in values.chunks(BLOCK) {
                let narrow = &mut narrow[..block.len()];
                narrow.convert_from_f32_slice(block);
                overflowed(block, narrow.iter().map(|x| x.is_infinite()))?;
                out.extend(narrow.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
    Ok(())
}

fn overflowed(values: &[f32], infinite: impl Iterator<Item = bool>) -> Result<(), f32> {
    match values.iter().zip(infinite).find(|(x, infinite)| *infinite && x.is_finite()) {
        Some((x, _)) => Err(*x),
        None => Ok(()),
    }
}

fn each_f16_block(bytes: &[u8], mut f: impl FnMut(&[f16])) {
    let mut aligned = [f16::ZERO; BLOCK];
    for block in bytes.as_chunks().0.chunks(BLOCK) {
        for (to, from) in aligned.iter_mut().zip(block) {
            *to = f16::from_le_bytes(*from);
        }
        f(&aligned[..block.len()]);
    }
}

/// Rows and columns of a tile: a tile of f32 fits the L2 cache with room to spare.
const TILE_ROWS: usize = 64;
const TILE_COLUMNS: usize = 128;
/// Distance of two rows in the scratch tile; not a power of two, so that a column does not fall into one cache set.
const PITCH: usize = TILE_COLUMNS + 16;

/// Transposes row-major `[rows, columns]` elements of `size` bytes into `[columns, rows]`, tile by tile; `extend`
/// appends the elements of some bytes. `done` is called after each band of rows with its number of bytes.
pub(crate) fn transpose<T: Copy + Default>(
    size: usize,
    bytes: &[u8],
    [rows, columns]: [usize; 2],
    out: &mut [T],
    extend: impl Fn(&[u8], &mut Vec<T>),
    mut done: impl FnMut(&[u8]),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let row_bytes = columns * size;
    let mut tile = [T::default(); TILE_ROWS * PITCH];
    let mut line = Vec::with_capacity(TILE_COLUMNS);
    for (band_index, band) in bytes.chunks(TILE_ROWS * row_bytes).enumerate() {
        let top = band_index * TILE_ROWS;
        let height = band.len() / row_bytes;
        for left in (0..columns).step_by(TILE_COLUMNS) {
            let width = TILE_COLUMNS.min(columns - left);
            for (row, to) in band.chunks_exact(row_bytes).zip(tile.chunks_exact_mut(PITCH)) {
                line.clear();
                extend(&row[left * size..(left + width) * size], &mut line);
                to[..width].copy_from_slice(&line);
            }
            for (j, to) in out.chunks_exact_mut(rows).skip(left).take(width).enumerate() {
                for (x, from) in to[top..top + height].iter_mut().zip(tile[j..].iter().step_by(PITCH)) {
                    *x = *from;
                }
            }
        }
        done(band);
    }
}

/// Number of block rows that are transposed at a time.
const LINES: usize = 16;

/// [`transpose`] into f32 from any type.
pub(crate) fn transpose_f32(
    dtype: Dtype,
    bytes: &[u8],
    [rows, columns]: [usize; 2],
    out: &mut [f32],
    mut done: impl FnMut(&[u8]),
) {
    let shape = [rows, columns];
    if let Dtype::Block(_) = dtype {
        // A tile of the transposition would split blocks: some rows are read completely, then written to
        // their columns.
        let row_bytes = columns / dtype.unit_len() * dtype.size();
        let mut lines = Vec::with_capacity(LINES.min(rows) * columns);
        for (band, bytes) in bytes.chunks((LINES * row_bytes).max(1)).enumerate() {
            lines.clear();
            extend_f32(dtype, bytes, &mut lines);
            for (column, to) in out.chunks_exact_mut(rows).enumerate() {
                let from = lines.iter().skip(column).step_by(columns);
                to[band * LINES..].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            done(bytes);
        }
        return;
    }
    transpose(dtype.size(), bytes, shape, out, |bytes, line| extend_f32(dtype, bytes, line), done);
}

/// Appends two-byte elements as their bits.
pub(crate) fn extend_bits(bytes: &[u8], out: &mut Vec<u16>) {
    out.extend(bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::new();
        extend_f32(dtype, bytes, &mut out);
        out
    }

    fn f64s(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
        let mut out = Vec::new();
        extend_f64(dtype, bytes, &mut out);
        out
    }

    #[test]
    fn every_type_by_hand() {
        assert_eq!(f32s(Dtype::F32, &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(f32s(Dtype::F64, &(-0.25f64).to_le_bytes()), [-0.25]);
        // 1.0, -2.0, 65504, the smallest subnormal, infinity
        let halves = [0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01, 0x00, 0x00, 0x7c];
        assert_eq!(f32s(Dtype::F16, &halves), [1.0, -2.0, 65504.0, 2f32.powi(-24), f32::INFINITY]);
        assert_eq!(f32s(Dtype::BF16, &[0x80, 0x3f, 0x49, 0x40]), [1.0, 3.140625]);
        assert_eq!(f32s(Dtype::I64, &(-3i64).to_le_bytes()), [-3.0]);
        assert_eq!(f32s(Dtype::I32, &7i32.to_le_bytes()), [7.0]);
        assert_eq!(f32s(Dtype::I16, &(-300i16).to_le_bytes()), [-300.0]);
        assert_eq!(f32s(Dtype::I8, &[0xff]), [-1.0]);
        assert_eq!(f32s(Dtype::U64, &u64::MAX.to_le_bytes()), [2f32.powi(64)]);
        assert_eq!(f32s(Dtype::U32, &(1u32 << 31).to_le_bytes()), [2f32.powi(31)]);
        assert_eq!(f32s(Dtype::U16, &u16::MAX.to_le_bytes()), [65535.0]);
        assert_eq!(f32s(Dtype::U8, &[0xff]), [255.0]);
        assert_eq!(f32s(Dtype::Bool, &[0, 1, 2]), [0.0, 1.0, 1.0]);
        assert_eq!(f64s(Dtype::F64, &0.1f64.to_le_bytes()), [0.1]);
        assert_eq!(f64s(Dtype::I64, &(1i64 << 53).to_le_bytes()), [9007199254740992.0]);
        assert_eq!(f64s(Dtype::U64, &(1u64 << 53).to_le_bytes()), [9007199254740992.0]);
        assert_eq!(f64s(Dtype::U32, &u32::MAX.to_le_bytes()), [4294967295.0]);
        assert_eq!(f64s(Dtype::BF16, &[0x80, 0x3f]), [1.0]);
    }

    #[test]
    fn long_halves_cross_the_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK as u16 + 5)
            .flat_map(|i| f16::from_f32(f32::from(i % 2048)).to_le_bytes())
            .collect();
        for (i, x) in f32s(Dtype::F16, &bytes).into_iter().enumerate() {
            assert_eq!(x, (i % 2048) as f32);
        }
    }

    #[test]
    fn encoding_rounds_to_even_and_reports_overflow() {
        let mut out = Vec::new();
        // 1 + 2⁻⁹ lies between two bf16 and nearer to 1; 1 + 3·2⁻⁸ is a tie and goes to the even 1 + 2⁻⁶.
        encode(&[1.0 + 2f32.powi(-9), 1.0 + 3.0 * 2f32.powi(-8)], FloatType::BF16, &mut out).unwrap();
        assert_eq!(f32s(Dtype::BF16, &out), [1.0, 1.0 + 2f32.powi(-6)]);
        out.clear();
        assert_eq!(encode(&[1.0, -70000.0], FloatType::F16, &mut out), Err(-70000.0));
        out.clear();
        encode(&[f32::INFINITY, 65504.0], FloatType::F16, &mut out).unwrap();
        assert_eq!(f32s(Dtype::F16, &out), [f32::INFINITY, 65504.0]);
        assert_eq!(encode(&[f32::MAX], FloatType::BF16, &mut out), Err(f32::MAX));
        out.clear();
        encode(&[f32::NAN, 0.1], FloatType::F32, &mut out).unwrap();
        assert_eq!(out[4..], 0.1f32.to_le_bytes());
    }

    #[test]
    fn transposition_of_every_odd_shape() {
        for [rows, columns] in
            [[1, 1], [1, 300], [300, 1], [64, 128], [65, 129], [130, 257], [7, 3], [0, 4], [4, 0]]
        {
            let bytes: Vec<u8> = (0..rows * columns).flat_map(|i| (i as i32).to_le_bytes()).collect();
            let mut out = vec![f32::NAN; rows * columns];
            let mut seen = 0;
            transpose_f32(Dtype::I32, &bytes, [rows, columns], &mut out, |band| seen += band.len());
            assert_eq!(seen, bytes.len());
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(out[j * rows + i], (i * columns + j) as f32, "{rows}x{columns} at {i},{j}");
                }
            }
        }
    }
}
