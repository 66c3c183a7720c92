//! Rounding to MXFP4: floats of 4 bits, and a power of two for 32 elements.

use super::codes::halves_of_32;
use super::format::{MXFP4_VALUES, half_power};

/// The values in ascending order.
pub(super) const ASCENDING: [i8; 15] = [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12];

/// The code of the value at a place in that order; zero has no sign.
pub(super) const fn code(place: u8) -> u8 {
    if place < 7 { 15 - place } else { place - 7 }
}

/// The nearest values under the scale whose largest value has the exponent of the largest element (`quantize_row_mxfp4_ref`,
/// with an exact logarithm).
pub(super) fn reference(x: &[f32; 32], bytes: &mut Vec<u8>) {
    put(x, scale(x), bytes);
}

/// The nearest values under the scale of least squared error, weighted by `weights`: this one or one of its neighbors.
pub(super) fn weighted(x: &[f32; 32], weights: &[f32; 32], bytes: &mut Vec<u8>) {
    let reference = scale(x);
    let error = |byte: u8| -> f32 {
        let scale = power(byte);
        let of = |i: usize| x[i] - scale * f32::from(MXFP4_VALUES[usize::from(nearest(x[i], scale))]);
        (0..32).map(|i| weights[i] * of(i).powi(2)).sum()
    };
    let neighbors = [reference.saturating_sub(1), reference + 1];
    let (byte, _) = neighbors.into_iter().fold((reference, error(reference)), |best, byte| {
        let error = error(byte);
        if error < best.1 { (byte, error) } else { best }
    });
    put(x, byte, bytes);
}

/// The byte of the reference's scale: the exponent of the largest magnitude, less that of the largest value, 6.
fn scale(x: &[f32; 32]) -> u8 {
    let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    (max.to_bits() >> 23).saturating_sub(2) as u8
}

fn power(byte: u8) -> f32 {
    f32::from_bits(u32::from(half_power(byte)) << 16)
}

fn put(x: &[f32; 32], byte: u8, bytes: &mut Vec<u8>) {
    bytes.push(byte);
    bytes.extend(halves_of_32(&x.map(|x| nearest(x, power(byte)))));
}

/// The code of the nearest value; of two the one closer to zero.
fn nearest(x: f32, scale: f32) -> u8 {
    let between = |pair: &&[i8]| scale * 0.5 * (f32::from(pair[0]) + f32::from(pair[1])) < x.abs();
    let magnitude = MXFP4_VALUES[..8].windows(2).filter(between).count() as u8;
    if magnitude > 0 && x < 0.0 { magnitude | 8 } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::super::BlockFormat;
    use super::*;

    #[test]
    fn codes_are_those_of_the_ascending_values() {
        for (place, value) in ASCENDING.into_iter().enumerate() {
            assert_eq!(MXFP4_VALUES[usize::from(code(place as u8))], value);
        }
    }

    /// All powers of two are exact, and so are all products with the values.
    #[test]
    fn what_a_block_holds_stays_bit_for_bit() {
        for byte in 0..=252 {
            for most in 2..8 {
                // Magnitudes up to one of the values, of both signs.
                let block: Vec<u8> = std::iter::once(byte)
                    .chain((0..16).map(|i| {
                        let magnitude = i % (most + 1);
                        magnitude | (if magnitude == 0 { 0 } else { magnitude | 8 }) << 4
                    }))
                    .collect();
                let mut values = Vec::new();
                BlockFormat::Mxfp4.dequantize(&block, &mut values);
                assert_eq!(
                    values[usize::from(most)],
                    2_f64.powi(i32::from(byte) - 128) as f32 * f32::from(MXFP4_VALUES[usize::from(most)])
                );
                if values.iter().any(|x| x.abs() > 1e9) {
                    continue;
                }
                let mut again = Vec::new();
                let rounded = BlockFormat::Mxfp4.quantize([1, 32], &values).unwrap();
                BlockFormat::Mxfp4.dequantize(&rounded, &mut again);
                assert_eq!(again, values, "scale {byte}");
            }
        }
    }

    /// Halfway between two values the one closer to zero is taken, as by llama.cpp.
    #[test]
    fn rounding_is_that_of_llama_cpp() {
        let values =
            [0.25, -0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 6.0, 7.9, -5.0, -5.1, -6.0, -0.2];
        let x: [f32; 32] = std::array::from_fn(|i| values[i % 16]);
        let mut bytes = Vec::new();
        reference(&x, &mut bytes);
        assert_eq!(bytes[0], 127);
        let codes = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7, 14, 15, 15, 0];
        assert_eq!(bytes[1..], codes.map(|code| code | code << 4));
        bytes.clear();
        reference(&[0.0; 32], &mut bytes);
        assert_eq!(bytes, [0; 17]);
    }
}
