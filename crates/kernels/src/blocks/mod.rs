//! Quantized matrices in the block layouts of llama.cpp's files, used in computations without conversion.
//!
//! A row is divided into blocks of 32 or 256 elements, each with its own scale (and, in some formats,
//! offset), so that a GGUF tensor is used without conversion. An element is `scale·q + offset` with a small
//! integer `q`.

#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod resident;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use lowrank_spec::blocks::BlockFormat;
pub(crate) use lowrank_spec::blocks::format::{Chunk, Format, with_format};

use crate::error::KernelError;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
use resident::Resident;

/// Bytes that a [`BlockMatrix`] shares with others, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A frozen matrix quantized along its stored rows, or the transpose of one. A clone shares the bytes, and what a GPU
/// has of them.
///
/// Products with few rows round the input on CPUs, 32 elements with one scale, to two integers of 8 bits, of which llama.cpp
/// has the first; see [`with_exact_products`](Self::with_exact_products). All others, and all that record gradients, multiply `f32` by
/// the elements' values.
#[derive(Clone)]
pub struct BlockMatrix {
    format: BlockFormat,
    /// Shape of the stored matrix.
    stored: [usize; 2],
    transposed: bool,
    exact: bool,
    bytes: SharedBytes,
    range: Range<usize>,
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    resident: Resident,
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
    /// [`KernelError::Block`] if the columns are not a multiple of a block's length, [`KernelError::BlockBytes`] if there are too few bytes.
    pub fn new(
        format: BlockFormat,
        [rows, columns]: [usize; 2],
        bytes: SharedBytes,
        start: usize,
    ) -> Result<Self, KernelError> {
        let expected = rows.checked_mul(format.row_bytes(columns)?);
        let available = bytes.as_ref().as_ref().len().saturating_sub(start);
        match expected {
            Some(expected) if expected <= available => Ok(Self {
                format,
                stored: [rows, columns],
                transposed: false,
                exact: false,
                bytes,
                range: start..start + expected,
                #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
                resident: Resident::default(),
            }),
            _ => Err(KernelError::BlockBytes { format: format.name(), rows, columns, available }),
        }
    }

    /// Rounds a row-major matrix `[rows, columns]` to the nearest values of a format, like llama.cpp's
    /// reference quantization.
    ///
    /// # Errors
    /// [`KernelError::Block`] for a shape or a value that the format cannot hold.
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
        Self::new(format, shape, Arc::new(format.quantize(shape, values)?), 0)
    }

    /// The format.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Shape of this matrix: that of the stored matrix, or of its transpose.
    pub fn dims(&self) -> [usize; 2] {
        let [rows, columns] = self.stored;
        if self.transposed { [columns, rows] } else { [rows, columns] }
    }

    /// Shape of the stored matrix, whose rows are divided into blocks.
    pub fn stored_dims(&self) -> [usize; 2] {
        self.stored
    }

    /// Whether this is the transpose of the stored matrix. A linear layer stored as `[d_output, d_input]` is
    /// used as the transpose.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The transpose, over the same bytes.
    pub fn transpose(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// The same matrix, with products that never round their input.
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
        self.format.dequantize(blocks, values);
    }

    /// The copies of the blocks on devices.
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
    pub(crate) fn resident(&self) -> &Resident {
        &self.resident
    }

    /// Whether products with few rows may round their input.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }
}
