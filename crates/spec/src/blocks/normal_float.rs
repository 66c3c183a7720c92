//! Rounding to the NF formats: a table of values and a scale of 8 bits for 32 elements.

use super::codes::{bits_of_32, halves_of_32, two_bits_of_32};
use super::format::{Chunk, Format, NF2_VALUES, NF3_VALUES, NF4_VALUES, Nf2, Nf3, Nf4};

/// The largest scale: the upper eight bits of an f16 below infinity.
const LARGEST: u8 = 0xf7;
/// Scales below the one that brings the largest element to the end of the table, and above it, in steps of an eighth of an
/// octave: outliers may be cut, and the end of the table may stay unused.
const BELOW: u8 = 12;
const ABOVE: u8 = 2;

/// The indices and the scale of least squared error, weighted by `weights`, in NF4.
pub(super) fn four_bits(x: &[f32; 32], weights: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let (scale, q) = search::<Nf4>(x, weights, &NF4_VALUES)?;
    bytes.push(scale);
    bytes.extend(halves_of_32(&q));
    Ok(())
}

/// The same in NF3.
pub(super) fn three_bits(x: &[f32; 32], weights: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let (scale, q) = search::<Nf3>(x, weights, &NF3_VALUES[..8])?;
    bytes.push(scale);
    bytes.extend(bits_of_32(&q, 2));
    bytes.extend(two_bits_of_32(&q));
    Ok(())
}

/// The same in NF2.
pub(super) fn two_bits(x: &[f32; 32], weights: &[f32; 32], bytes: &mut Vec<u8>) -> Result<(), f32> {
    let (scale, q) = search::<Nf2>(x, weights, &NF2_VALUES[..4])?;
    bytes.push(scale);
    bytes.extend(two_bits_of_32(&q));
    Ok(())
}

/// The value of a scale's byte in a format.
fn scale_of<F: Format>(byte: u8) -> f32 {
    let mut block = [0; 32];
    block[0] = byte;
    let Chunk { scale, .. } = F::chunk(&block, 0);
    scale
}

/// Byte of a scale and indices into the table; the error is a scale that is too large.
fn search<F: Format>(x: &[f32; 32], weights: &[f32; 32], table: &[i8]) -> Result<(u8, [u8; 32]), f32> {
    let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let whole = max / 127.0;
    let least_above = (0..=LARGEST).find(|&byte| scale_of::<F>(byte) >= whole).ok_or(whole)?;
    let mut best = (f32::INFINITY, 0, [0; 32]);
    for byte in least_above.saturating_sub(BELOW)..=least_above.saturating_add(ABOVE).min(LARGEST) {
        let scale = scale_of::<F>(byte);
        let q = x.map(|x| nearest(x, scale, table));
        let error = |i: usize| weights[i] * (x[i] - scale * f32::from(table[usize::from(q[i])])).powi(2);
        let error = (0..32).map(error).sum();
        if error < best.0 {
            best = (error, byte, q);
        }
    }
    Ok((best.1, best.2))
}

/// The index of the nearest value.
fn nearest(x: f32, scale: f32, table: &[i8]) -> u8 {
    let between = |pair: &[i8]| scale * 0.5 * (f32::from(pair[0]) + f32::from(pair[1])) < x;
    table.windows(2).filter(|pair| between(pair)).count() as u8
}

#[cfg(test)]
mod tests {
    use super::super::BlockFormat;
    use crate::rng::normal_values;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Nf4, BlockFormat::Nf3, BlockFormat::Nf2];

    /// Relative squared errors of normal numbers in blocks of 32: those of a search over real scales are 0.0067, 0.026
    /// and 0.105.
    #[test]
    fn errors_of_normal_numbers_are_those_of_the_tables() {
        let values = normal_values(1, "x", 32 * 4000, 0.02);
        let total: f64 = values.iter().map(|x| f64::from(x * x)).sum();
        for (format, most) in FORMATS.into_iter().zip([0.0072, 0.0275, 0.110]) {
            let mut made = Vec::new();
            format.dequantize(&format.quantize([4000, 32], &values).unwrap(), &mut made);
            let error: f64 = values.iter().zip(&made).map(|(x, y)| f64::from((x - y).powi(2))).sum();
            assert!(error < most * total, "{format}: {}", error / total);
        }
    }

    /// From the smallest to the largest scales, and beyond, where an error says so.
    #[test]
    fn scales_of_any_size() {
        for format in FORMATS {
            for size in [1e-30_f32, 1e-7, 1e-5, 1e-2, 1.0, 1e3, 7.8e6] {
                let values: Vec<f32> = (0..32).map(|i| size * (i as f32 - 15.5) / 15.5).collect();
                let mut made = Vec::new();
                format.dequantize(&format.quantize([1, 32], &values).unwrap(), &mut made);
                // The smallest scale is 2^-17, subnormal ones of which are coarse.
                let most = 0.45 * size + 127.0 * 2.0_f32.powi(-18);
                for (x, y) in values.iter().zip(&made) {
                    assert!((x - y).abs() < most, "{format} {size}: {x} became {y}");
                }
            }
            assert!(format.quantize([1, 32], &[8e6; 32]).is_err(), "{format}");
        }
    }
}
