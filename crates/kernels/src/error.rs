//! The errors of this crate.

use lowrank_spec::blocks::BlockError;

/// What can be wrong with data that is given to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Data that do not fit blocks.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Fewer bytes than a matrix of this shape has.
    #[error("{available} bytes are too few for a {rows} x {columns} matrix in {format}")]
    BlockBytes {
        /// The format.
        format: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Bytes from the matrix's start on.
        available: usize,
    },
}
