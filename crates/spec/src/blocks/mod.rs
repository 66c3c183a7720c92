//! Quantized blocks: the layouts of llama.cpp's files, and three of ours.
//!
//! A row is divided into blocks of 32 or 256 elements, each with its own scale (and, in some formats,
//! offset). An element is `scale·q + offset` with a small integer `q`. llama.cpp's formats below 4 bits need rows of
//! whole blocks of 256 elements; ours (NF4, NF3, NF2) fit every multiple of 32, with scales of 8 bits.

mod codes;
#[doc(hidden)]
pub mod format;
mod mxfp4;
mod normal_float;
mod quantize;
mod quantize_k;
mod weighted;

use std::fmt;

use format::{Chunk, Format, with_format};

/// Error of data for blocks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// A row that is not a whole number of blocks.
    #[error("rows of {columns} elements do not fit {format}, whose blocks have {}", format.block_len())]
    Width {
        /// The format.
        format: BlockFormat,
        /// Elements of a row.
        columns: usize,
    },
    /// A number of elements that does not match the shape.
    #[error("{elements} elements for a {rows} x {columns} matrix")]
    Elements {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Elements given.
        elements: usize,
    },
    /// A value that no block can hold.
    #[error("row {row}, column {column} is {value}; a matrix to quantize must be finite")]
    NonFinite {
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A scale that does not fit f16.
    #[error("the block at element {index} needs the scale {value}, which overflows f16 (at most 65504)")]
    Scale {
        /// Index of the block's first element, in row-major order.
        index: usize,
        /// The scale.
        value: f32,
    },
}

/// A block format, by llama.cpp's name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockFormat {
    /// 8 bits and an f16 scale for 32 elements: 8.5 bits per element.
    Q8_0,
    /// 4 bits and an f16 scale for 32 elements: 4.5 bits per element.
    Q4_0,
    /// 4 bits, an f16 scale and an f16 offset for 32 elements: 5 bits per element.
    Q4_1,
    /// 5 bits and an f16 scale for 32 elements: 5.5 bits per element.
    Q5_0,
    /// 5 bits, an f16 scale and an f16 offset for 32 elements: 6 bits per element.
    Q5_1,
    /// Q2_K: 2 bits, a scale and an offset of 4 bits for 16 of 256 elements: 2.625 bits per element.
    Q2K,
    /// Q3_K: 3 bits, a scale of 6 bits for 16 of 256 elements: 3.4375 bits per element.
    Q3K,
    /// Q4_K: 4 bits, a scale and an offset of 6 bits for 32 of 256 elements: 4.5 bits per element.
    Q4K,
    /// Q5_K: 5 bits, a scale and an offset of 6 bits for 32 of 256 elements: 5.5 bits per element.
    Q5K,
    /// Q6_K: 6 bits, a scale of 8 bits for 16 of 256 elements: 6.5625 bits per element.
    Q6K,
    /// IQ4_NL: 4-bit indices into a table denser near zero, and an f16 scale for 32 elements: 4.5 bits per
    /// element.
    Iq4Nl,
    /// IQ4_XS: the same indices, and a scale of 6 bits for 32 of 256 elements: 4.25 bits per element.
    Iq4Xs,
    /// MXFP4: floats of 4 bits (E2M1) and a power of two for 32 elements: 4.25 bits per element (OCP Microscaling
    /// Formats 1.0, 2023).
    Mxfp4,
    /// NF4: 4-bit indices into QLoRA's table of values for normal numbers (Dettmers et al. 2023), and a scale of 8 bits
    /// for 32 elements: 4.25 bits per element. Not in llama.cpp.
    Nf4,
    /// NF3: 3-bit indices into a table for normal numbers, and a scale of 8 bits for 32 elements: 3.25 bits per element.
    /// Not in llama.cpp.
    Nf3,
    /// NF2: 2-bit indices into a table for normal numbers, and a scale of 8 bits for 32 elements: 2.25 bits per element.
    /// Not in llama.cpp.
    Nf2,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 16] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nf4,
        Self::Nf3,
        Self::Nf2,
    ];

    /// The name, llama.cpp's where it has the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
            Self::Nf4 => "NF4",
            Self::Nf3 => "NF3",
            Self::Nf2 => "NF2",
        }
    }

    /// The format with a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The number of the type in a GGUF file (`ggml_type`); `None` for formats that llama.cpp does not have.
    pub const fn ggml_type(self) -> Option<u32> {
        Some(match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
            Self::Mxfp4 => 39,
            Self::Nf4 | Self::Nf3 | Self::Nf2 => return None,
        })
    }

    /// The format with a number in a GGUF file.
    pub fn from_ggml_type(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.ggml_type() == Some(number))
    }

    /// Elements per block.
    pub const fn block_len(self) -> usize {
        with_format!(self, F => F::LEN)
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        with_format!(self, F => F::BYTES)
    }

    /// Bytes per row.
    ///
    /// # Errors
    /// [`BlockError::Width`] if the columns are not a multiple of a block's length.
    pub fn row_bytes(self, columns: usize) -> Result<usize, BlockError> {
        let block = self.block_len();
        if !columns.is_multiple_of(block) {
            return Err(BlockError::Width { format: self, columns });
        }
        Ok(columns / block * self.block_bytes())
    }

    /// This format, or, if rows of `columns` elements are not a multiple of its blocks, one with blocks of 32
    /// elements and at least as many bits (for Q4_K and more llama.cpp's fallback); `None` if they are not a
    /// multiple of 32 either.
    ///
    /// ```
    /// use lowrank_spec::BlockFormat;
    /// assert_eq!(BlockFormat::Q4K.fitting(1536), Some(BlockFormat::Q4K));
    /// assert_eq!(BlockFormat::Q4K.fitting(576), Some(BlockFormat::Q5_0));
    /// assert_eq!(BlockFormat::Q4K.fitting(100), None);
    /// ```
    pub fn fitting(self, columns: usize) -> Option<Self> {
        let fits = |format: &Self| columns.is_multiple_of(format.block_len());
        let instead = match self {
            Self::Q2K | Self::Q3K | Self::Iq4Xs => Self::Iq4Nl,
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            _ => Self::Q8_0,
        };
        Some(self).filter(fits).or_else(|| Some(instead).filter(fits))
    }

    /// Appends the elements of whole blocks; trailing bytes are ignored.
    pub fn dequantize(self, blocks: &[u8], values: &mut Vec<f32>) {
        with_format!(self, F => {
            for block in blocks.chunks_exact(F::BYTES) {
                for chunk in 0..F::LEN / Chunk::LEN {
                    let Chunk { q, scale, offset } = F::chunk(block, chunk);
                    values.extend(q.map(|q| f32::from(q) * scale + offset));
                }
            }
        });
    }

    /// Rounds a row-major matrix `[rows, columns]` to the nearest values, like llama.cpp's reference
    /// quantization; NF formats search for the scale of least squared error.
    ///
    /// # Errors
    /// [`BlockError::Width`] if the columns are not a multiple of a block's length, [`BlockError::NonFinite`] for NaN
    /// and infinities, [`BlockError::Scale`] if a scale does not fit f16, [`BlockError::Elements`] if there are not
    /// `rows * columns` values.
    ///
    /// ```
    /// use lowrank_spec::blocks::BlockFormat;
    /// let bytes = BlockFormat::Q8_0.quantize([1, 32], &[0.5; 32])?;
    /// let mut values = Vec::new();
    /// BlockFormat::Q8_0.dequantize(&bytes, &mut values);
    /// assert!(values.iter().all(|x| (x - 0.5).abs() < 1e-3));
    /// # Ok::<(), lowrank_spec::blocks::BlockError>(())
    /// ```
    pub fn quantize(self, shape: [usize; 2], values: &[f32]) -> Result<Vec<u8>, BlockError> {
        self.quantize_under(shape, values, None)
    }

    /// Like [`quantize`](Self::quantize), for the least squared error weighted by column, that is by the
    /// importance of its input. Scales and offsets are searched for in all formats.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize); another number of weights than there are columns is
    /// [`BlockError::Elements`], and one that is not finite or below zero [`BlockError::NonFinite`].
    pub fn quantize_weighted(
        self,
        shape: [usize; 2],
        values: &[f32],
        importance: &[f32],
    ) -> Result<Vec<u8>, BlockError> {
        if importance.len() != shape[1] {
            return Err(BlockError::Elements { rows: 1, columns: shape[1], elements: importance.len() });
        }
        if let Some(column) = importance.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(BlockError::NonFinite { row: 0, column, value: importance[column] });
        }
        // Of order 1, so that no square leaves the range of f32; columns without importance still count a
        // little.
        let mean = importance.iter().map(|&w| f64::from(w)).sum::<f64>() / importance.len().max(1) as f64;
        let scaled = |&w: &f32| if mean > 0.0 { (f64::from(w) / mean) as f32 + 1e-4 } else { 1.0 };
        let importance: Vec<f32> = importance.iter().map(scaled).collect();
        self.quantize_under(shape, values, Some(&importance))
    }

    fn quantize_under(
        self,
        [rows, columns]: [usize; 2],
        values: &[f32],
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, BlockError> {
        let row_bytes = self.row_bytes(columns)?;
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(BlockError::Elements { rows, columns, elements: values.len() });
        }
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            let (row, column) = (index / columns, index % columns);
            return Err(BlockError::NonFinite { row, column, value: values[index] });
        }
        // Beyond what any block can hold, where sums of squares would leave the range of f32.
        if let Some(index) = values.iter().position(|x| x.abs() > 1e9) {
            return Err(BlockError::Scale { index: index - index % self.block_len(), value: values[index] });
        }
        let mut bytes = Vec::with_capacity(rows * row_bytes);
        quantize::extend(self, values, importance, &mut bytes)
            .map_err(|(block, value)| BlockError::Scale { index: block * self.block_len(), value })?;
        Ok(bytes)
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
