//! Matrices in blocks of few bits: the layouts of llama.cpp's files, computed on as they are.
//!
//! A row is cut into blocks of 32 or 256 elements, each with its own scale (and, in some formats, offset), so that a
//! GGUF tensor is used without conversion. An element is `scale·q + offset` with a small integer `q`.

pub(crate) mod format;
mod quantize;
mod quantize_k;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use format::{Chunk, Format, with_format};

use crate::error::KernelError;

/// A block format, by llama.cpp's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 8 bits and an f16 scale for 32 elements: 8.5 bits an element.
    Q8_0,
    /// 4 bits and an f16 scale for 32 elements: 4.5 bits an element.
    Q4_0,
    /// 4 bits, an f16 scale and an f16 offset for 32 elements: 5 bits an element.
    Q4_1,
    /// 5 bits and an f16 scale for 32 elements: 5.5 bits an element.
    Q5_0,
    /// 5 bits, an f16 scale and an f16 offset for 32 elements: 6 bits an element.
    Q5_1,
    /// Q4_K: 4 bits, a scale and an offset of 6 bits for 32 of 256 elements: 4.5 bits an element.
    Q4K,
    /// Q5_K: 5 bits, a scale and an offset of 6 bits for 32 of 256 elements: 5.5 bits an element.
    Q5K,
    /// Q6_K: 6 bits, a scale of 8 bits for 16 of 256 elements: 6.5625 bits an element.
    Q6K,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 8] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q4K, Self::Q5K, Self::Q6K];

    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        with_format!(self, F => F::LEN)
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        with_format!(self, F => F::BYTES)
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes that a [`BlockMatrix`] shares with others, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A frozen matrix in blocks along its stored rows, or the transpose of one. A clone shares the bytes.
///
/// Products with few rows round the input to 8 bits, block by block, as llama.cpp does; see
/// [`with_exact_products`](Self::with_exact_products). All others, and all that record gradients, multiply `f32` by
/// the elements' values.
#[derive(Clone)]
pub struct BlockMatrix {
    format: BlockFormat,
    /// Shape of what is stored.
    stored: [usize; 2],
    transposed: bool,
    exact: bool,
    bytes: SharedBytes,
    range: Range<usize>,
}

impl fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMatrix({}, {:?})", self.format, self.dims())
    }
}

impl BlockMatrix {
    /// A matrix `[rows, columns]` from the bytes of its blocks, row after row; they begin at `start` of `bytes`.
    ///
    /// # Errors
    /// [`KernelError::BlockWidth`] if the columns are not a multiple of a block's length,
    /// [`KernelError::BlockBytes`] if there are too few bytes.
    pub fn new(
        format: BlockFormat,
        [rows, columns]: [usize; 2],
        bytes: SharedBytes,
        start: usize,
    ) -> Result<Self, KernelError> {
        let block = format.block_len();
        if !columns.is_multiple_of(block) {
            return Err(KernelError::BlockWidth { format: format.name(), columns, block });
        }
        let expected = rows.checked_mul(columns / block).and_then(|n| n.checked_mul(format.block_bytes()));
        let available = bytes.as_ref().as_ref().len().saturating_sub(start);
        match expected {
            Some(expected) if expected <= available => Ok(Self {
                format,
                stored: [rows, columns],
                transposed: false,
                exact: false,
                bytes,
                range: start..start + expected,
            }),
            _ => Err(KernelError::BlockBytes { format: format.name(), rows, columns, available }),
        }
    }

    /// Rounds a row-major matrix `[rows, columns]` to the nearest values of a format, as llama.cpp's reference
    /// quantisation does.
    ///
    /// # Errors
    /// [`KernelError::BlockWidth`] if the columns are not a multiple of a block's length, [`KernelError::NonFinite`] for
    /// NaN and infinities, [`KernelError::Overflow`] if a scale does not fit f16, [`KernelError::Elements`] if
    /// there are not `rows * columns` values.
    ///
    /// ```
    /// use lowrank_kernels::{BlockFormat, BlockMatrix};
    /// let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.3).sin()).collect();
    /// let matrix = BlockMatrix::quantize(BlockFormat::Q8_0, [2, 32], &values)?;
    /// assert_eq!(matrix.bytes().len(), 2 * 34);
    /// let worst = matrix.to_floats().iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    /// assert!(worst < 0.5 / 127.0 + 1e-3);
    /// # Ok::<(), lowrank_kernels::KernelError>(())
    /// ```
    pub fn quantize(format: BlockFormat, shape: [usize; 2], values: &[f32]) -> Result<Self, KernelError> {
        let bytes = quantize::quantize(format, shape, values)?;
        Self::new(format, shape, Arc::new(bytes), 0)
    }

    /// The format.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Shape: that of what is stored, or of its transpose.
    pub fn dims(&self) -> [usize; 2] {
        let [rows, columns] = self.stored;
        if self.transposed { [columns, rows] } else { [rows, columns] }
    }

    /// Shape of what is stored, whose rows are cut into blocks.
    pub fn stored_dims(&self) -> [usize; 2] {
        self.stored
    }

    /// Whether this is the transpose of what is stored. A linear layer stored as `[d_output, d_input]` is used as the
    /// transpose.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The transpose, of the same bytes.
    pub fn transpose(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// The same matrix whose products never round their input to 8 bits.
    pub fn with_exact_products(mut self) -> Self {
        self.exact = true;
        self
    }

    /// The blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.as_ref().as_ref()[self.range.clone()]
    }

    /// The elements in row-major order of [`dims`](Self::dims).
    pub fn to_floats(&self) -> Vec<f32> {
        let [rows, columns] = self.stored;
        let mut values = Vec::with_capacity(rows * columns);
        (0..rows).for_each(|row| self.extend_stored_row(row, &mut values));
        if self.transposed { lowrank_spec::transpose(&values, rows, columns) } else { values }
    }

    /// Appends the elements of a stored row.
    pub(crate) fn extend_stored_row(&self, row: usize, values: &mut Vec<f32>) {
        let row_bytes = self.bytes().len() / self.stored[0].max(1);
        let blocks = &self.bytes()[row * row_bytes..(row + 1) * row_bytes];
        with_format!(self.format, F => {
            for block in blocks.chunks_exact(F::BYTES) {
                for chunk in 0..F::LEN / Chunk::LEN {
                    let Chunk { q, scale, offset } = F::chunk(block, chunk);
                    values.extend(q.map(|q| f32::from(q) * scale + offset));
                }
            }
        });
    }

    /// Whether products with few rows may round their input.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }
}
