//! The integers of blocks: which there are in a format, and how they are packed.

use super::BlockFormat;
use super::format::{Chunk, Format, IQ4_NL_VALUES, NF2_VALUES, NF3_VALUES, NF4_VALUES, with_format};
use super::mxfp4;

/// The integers that elements of a block can have.
enum Levels {
    /// All from the first to the last.
    Range(i8, i8),
    /// The values of a table, ascending.
    Table(&'static [i8]),
}

impl Levels {
    fn of(format: BlockFormat) -> Self {
        match format {
            BlockFormat::Q8_0 => Self::Range(-127, 127),
            BlockFormat::Q4_0 => Self::Range(-8, 7),
            BlockFormat::Q5_0 => Self::Range(-16, 15),
            BlockFormat::Q4_1 | BlockFormat::Q4K => Self::Range(0, 15),
            BlockFormat::Q5_1 | BlockFormat::Q5K => Self::Range(0, 31),
            BlockFormat::Q2K => Self::Range(0, 3),
            BlockFormat::Q3K => Self::Range(-4, 3),
            BlockFormat::Q6K => Self::Range(-32, 31),
            BlockFormat::Iq4Nl | BlockFormat::Iq4Xs => Self::Table(&IQ4_NL_VALUES),
            BlockFormat::Mxfp4 => Self::Table(&mxfp4::ASCENDING),
            BlockFormat::Nf4 => Self::Table(&NF4_VALUES),
            BlockFormat::Nf3 => Self::Table(&NF3_VALUES[..8]),
            BlockFormat::Nf2 => Self::Table(&NF2_VALUES[..4]),
        }
    }

    /// The number and the integer nearest to a value in units of the scale.
    fn nearest(&self, x: f32) -> (u8, i8) {
        match *self {
            Self::Range(first, last) => {
                let q = x.round_ties_even().clamp(first.into(), last.into()) as i8;
                (q.wrapping_sub(first).cast_unsigned(), q)
            }
            Self::Table(table) => {
                let below = |pair: &&[i8]| 0.5 * (f32::from(pair[0]) + f32::from(pair[1])) < x;
                let number = table.windows(2).filter(below).count();
                (number as u8, table[number])
            }
        }
    }
}

impl BlockFormat {
    /// Rounds the elements of a block once more, one after the other, with the scales and offsets that it has.
    /// `values` are those to round to; after each element `feed_back` may change the values of those after it, given
    /// the element's index and its error, the value minus the rounded one.
    ///
    /// Nothing is changed if `block` or `values` do not have the length of a block.
    ///
    /// ```
    /// use lowrank_spec::blocks::BlockFormat;
    /// let mut values = [0.26_f32; 32];
    /// values[0] = -8.0;
    /// let mut block = BlockFormat::Q4_0.quantize([1, 32], &values)?;
    /// // The scale is 1. Each error goes to the next element: about every fourth is 1 instead of 0.
    /// BlockFormat::Q4_0.round_in_turn(&mut block, &mut values, |_, error, rest| {
    ///     if let Some(next) = rest.first_mut() {
    ///         *next += error;
    ///     }
    /// });
    /// let mut rounded = Vec::new();
    /// BlockFormat::Q4_0.dequantize(&block, &mut rounded);
    /// assert_eq!(rounded[1..].iter().sum::<f32>(), 8.0);
    /// # Ok::<(), lowrank_spec::blocks::BlockError>(())
    /// ```
    pub fn round_in_turn(
        self,
        block: &mut [u8],
        values: &mut [f32],
        mut feed_back: impl FnMut(usize, f32, &mut [f32]),
    ) {
        let len = self.block_len();
        if values.len() != len || block.len() != self.block_bytes() {
            return;
        }
        let levels = Levels::of(self);
        let mut codes = Vec::with_capacity(len);
        for i in 0..len {
            let Chunk { scale, offset, .. } = with_format!(self, F => F::chunk(block, i / Chunk::LEN));
            // Finite for the smallest scales of MXFP4, too, which blocks of zeros have.
            let inverse = if scale == 0.0 { 0.0 } else { (1.0 / scale).min(f32::MAX) };
            let (number, q) = levels.nearest((values[i] - offset) * inverse);
            codes.push(number);
            let error = values[i] - (scale * f32::from(q) + offset);
            feed_back(i, error, &mut values[i + 1..]);
        }
        put(self, &codes, block);
    }
}

/// Replaces the integers of a block by those with these numbers among the format's levels.
fn put(format: BlockFormat, codes: &[u8], block: &mut [u8]) {
    let mut at = |first: usize, bytes: &[u8]| block[first..first + bytes.len()].copy_from_slice(bytes);
    if let Some(q) = codes.first_chunk::<256>() {
        match format {
            BlockFormat::Q2K => at(16, &two_bits_of_256(q)),
            BlockFormat::Q3K => {
                at(0, &bits_of_256(q, 2));
                at(32, &two_bits_of_256(q));
            }
            BlockFormat::Q4K => at(16, &halves_of_256(q)),
            BlockFormat::Iq4Xs => {
                for (group, q) in q.as_chunks().0.iter().enumerate() {
                    at(8 + 16 * group, &halves_of_32(q));
                }
            }
            BlockFormat::Q5K => {
                at(16, &bits_of_256(q, 4));
                at(48, &halves_of_256(q));
            }
            BlockFormat::Q6K => {
                let (low, high) = six_bits_of_256(q);
                at(0, &low);
                at(128, &high);
            }
            _ => {}
        }
    } else if let Some(q) = codes.first_chunk::<32>() {
        match format {
            BlockFormat::Q8_0 => at(2, &q.map(|q| q.wrapping_sub(127))),
            BlockFormat::Q4_0 | BlockFormat::Iq4Nl => at(2, &halves_of_32(q)),
            BlockFormat::Q4_1 => at(4, &halves_of_32(q)),
            BlockFormat::Mxfp4 => at(1, &halves_of_32(&q.map(mxfp4::code))),
            BlockFormat::Nf4 => at(1, &halves_of_32(q)),
            BlockFormat::Q5_0 => {
                at(2, &bits_of_32(q, 4));
                at(6, &halves_of_32(q));
            }
            BlockFormat::Q5_1 => {
                at(4, &bits_of_32(q, 4));
                at(8, &halves_of_32(q));
            }
            BlockFormat::Nf3 => {
                at(1, &bits_of_32(q, 2));
                at(5, &two_bits_of_32(q));
            }
            BlockFormat::Nf2 => at(1, &two_bits_of_32(q)),
            _ => {}
        }
    }
}

/// The low four bits of elements `i` and `i + 16` in one byte.
pub(super) fn halves_of_32(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| q[i] & 15 | (q[i + 16] & 15) << 4)
}

/// One bit of each element.
pub(super) fn bits_of_32(q: &[u8; 32], bit: u32) -> [u8; 4] {
    q.iter().enumerate().fold(0_u32, |bits, (i, q)| bits | u32::from(q >> bit & 1) << i).to_le_bytes()
}

/// The low two bits of elements `i`, `i + 16`, `i + 8` and `i + 24` in one byte.
pub(super) fn two_bits_of_32(q: &[u8; 32]) -> [u8; 8] {
    std::array::from_fn(|i| q[i] & 3 | (q[i + 16] & 3) << 2 | (q[i + 8] & 3) << 4 | (q[i + 24] & 3) << 6)
}

/// Two bits of each element: in each half, those of elements `i`, `i + 32`, `i + 64` and `i + 96` in one byte.
pub(super) fn two_bits_of_256(q: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|at| {
        let (half, i) = (128 * (at / 32), at % 32);
        (0..4).fold(0, |bits, g| bits | (q[half + 32 * g + i] & 3) << (2 * g))
    })
}

/// One bit of each element: those of elements `i`, `i + 32` and so on in one byte.
pub(super) fn bits_of_256(q: &[u8; 256], bit: u32) -> [u8; 32] {
    std::array::from_fn(|i| (0..8).fold(0, |bits, g| bits | (q[32 * g + i] >> bit & 1) << g))
}

/// The low four bits: in each quarter, those of elements `i` and `i + 32` in one byte.
pub(super) fn halves_of_256(q: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|at| {
        let i = 64 * (at / 32) + at % 32;
        q[i] & 15 | (q[i + 32] & 15) << 4
    })
}

/// In each half, the low four bits of elements `i` and `i + 64` in one byte; and the high two of elements `i`, `i + 32`,
/// `i + 64` and `i + 96`.
pub(super) fn six_bits_of_256(q: &[u8; 256]) -> ([u8; 128], [u8; 64]) {
    let low = std::array::from_fn(|at| {
        let i = 128 * (at / 64) + at % 64;
        q[i] & 15 | (q[i + 64] & 15) << 4
    });
    (low, two_bits_of_256(&q.map(|q| q >> 4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::normal_values;

    /// Without feedback, elements are at their nearest values: no further from them than before.
    #[test]
    fn without_feedback_elements_take_their_nearest_values() {
        for format in BlockFormat::ALL {
            let len = format.block_len();
            let values = normal_values(6, "x", 8 * len, 0.1);
            let weights: Vec<f32> = normal_values(7, "w", len, 1.0).into_iter().map(f32::exp).collect();
            for block in 0..8 {
                let values = &values[block * len..][..len];
                let mut made = format.quantize_weighted([1, len], values, &weights).unwrap();
                let mut before = Vec::new();
                format.dequantize(&made, &mut before);
                let mut errors = Vec::new();
                format.round_in_turn(&mut made, &mut values.to_vec(), |_, error, _| errors.push(error));
                let mut after = Vec::new();
                format.dequantize(&made, &mut after);
                for i in 0..len {
                    let [old, new] = [before[i], after[i]].map(|y| (values[i] - y).abs());
                    assert!(new <= old * 1.0001 + 1e-7, "{format}, element {i}: {old} became {new}");
                    assert!((errors[i].abs() - new).abs() < 1e-6, "{format}: {} is not {new}", errors[i]);
                }
            }
        }
    }

    /// What is on the grid stays, bit for bit, in any block.
    #[test]
    fn the_elements_of_a_block_are_its_own_grid() {
        for format in BlockFormat::ALL {
            let len = format.block_len();
            let made = format.quantize([4, len], &normal_values(8, "x", 4 * len, 0.1)).unwrap();
            for block in made.chunks_exact(format.block_bytes()) {
                let mut values = Vec::new();
                format.dequantize(block, &mut values);
                let mut again = block.to_vec();
                format.round_in_turn(&mut again, &mut values, |_, _, _| {});
                assert_eq!(again, block, "{format}");
            }
        }
    }
}
