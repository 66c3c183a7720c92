//! Quantized factors of low-rank methods.

use lowrank_checkpoint::{Dtype, StreamWriter, TensorPlan};
use lowrank_spec::names::WeightPart;
use lowrank_spec::{BlockFormat, transpose};

use crate::error::{CompressError, Result};
use crate::fit::Factor;
use crate::rounding::as_stored;

/// Storage of a factor in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InFile {
    /// Floats of a type.
    Floats(Dtype),
    /// Blocks; `is_turned` means that they divide the columns of the matrix in the floats' layout.
    Blocks { format: BlockFormat, is_turned: bool },
}

impl InFile {
    /// Storage of a tensor named by its suffix after the module, with a shape in the layout of floats. If the
    /// format cannot hold its rows, they take the fallback format or stay floats.
    pub(crate) fn of(
        suffix: &str,
        shape: &[usize],
        embedding: bool,
        format: Option<BlockFormat>,
        dtype: Dtype,
    ) -> Self {
        let key = format!("m.{suffix}");
        let part = WeightPart::parse(&key).map(|(_, part)| part);
        let transposed = part.and_then(|part| part.blocks_are_transposed(embedding));
        let (Some(format), Some(is_transposed), &[rows, columns]) = (format, transposed, shape) else {
            return Self::Floats(dtype);
        };
        // The floats of a factor are transposed in the file.
        let width = if is_transposed { columns } else { rows };
        match format.fitting(width) {
            Some(format) => Self::Blocks { format, is_turned: !is_transposed },
            None => Self::Floats(dtype),
        }
    }

    /// The tensor to plan.
    pub(crate) fn plan(self, key: String, shape: Vec<usize>) -> TensorPlan {
        match (self, shape.as_slice()) {
            (Self::Blocks { format, is_turned }, &[rows, columns]) => {
                let [rows, columns] = if is_turned { [columns, rows] } else { [rows, columns] };
                let bytes = columns / format.block_len() * format.block_bytes();
                TensorPlan::new(key, [rows, bytes], Dtype::U8)
            }
            (Self::Floats(dtype), _) => TensorPlan::new(key, shape, dtype),
            (Self::Blocks { .. }, _) => TensorPlan::new(key, shape, Dtype::F32),
        }
    }

    /// Bytes of a tensor of a shape in the layout of floats.
    pub(crate) fn bytes(self, [rows, columns]: [usize; 2]) -> u64 {
        let bytes = match self {
            Self::Blocks { format, .. } => rows * columns / format.block_len() * format.block_bytes(),
            Self::Floats(dtype) => rows * columns * dtype.size(),
        };
        bytes as u64
    }

    /// The name of the format, if it is quantized.
    pub(crate) fn format(self) -> Option<&'static str> {
        match self {
            Self::Blocks { format, .. } => Some(format.name()),
            Self::Floats(_) => None,
        }
    }

    /// The blocks of a factor, if it is quantized, and its values as they will be read.
    pub(crate) fn stored(self, factor: &Factor, key: &str) -> Result<(Option<Vec<u8>>, Vec<f32>)> {
        match (self, factor.shape.as_slice()) {
            (Self::Blocks { format, is_turned }, &[rows, columns]) => {
                let turned;
                let (values, shape) = if is_turned {
                    turned = transpose(&factor.values, rows, columns);
                    (&turned, [columns, rows])
                } else {
                    (&factor.values, [rows, columns])
                };
                let blocks = format
                    .quantize(shape, values)
                    .map_err(|e| CompressError::Input(format!("'{key}': {e}")))?;
                let mut read = Vec::with_capacity(values.len());
                format.dequantize(&blocks, &mut read);
                Ok((Some(blocks), if is_turned { transpose(&read, columns, rows) } else { read }))
            }
            (Self::Floats(dtype), _) => {
                Ok((None, as_stored(&factor.values, dtype).unwrap_or_else(|| factor.values.clone())))
            }
            _ => Ok((None, factor.values.clone())),
        }
    }
}

/// Writes a factor.
pub(crate) fn put(
    writer: &mut StreamWriter,
    key: &str,
    factor: &Factor,
    blocks: Option<&Vec<u8>>,
) -> Result<()> {
    match blocks {
        Some(blocks) => Ok(writer.write_bytes(key, blocks)?),
        None => Ok(writer.write_f32(key, &factor.values)?),
    }
}
