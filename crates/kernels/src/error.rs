//! The errors of this crate.

use lowrank_spec::blocks::BlockError;

/// Error of data given to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Data that do not fit the block format.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Fewer bytes than a matrix of this shape needs.
    #[error("{available} bytes are too few for a {rows} x {columns} matrix in {format}")]
    BlockBytes {
        /// The format.
        format: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Bytes available from the matrix's start on.
        available: usize,
    },
}
