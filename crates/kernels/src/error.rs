//! The errors of this crate.

/// What can be wrong with data that is given to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A row that is not a whole number of blocks.
    #[error("rows of {columns} elements do not fit {format}, whose blocks have {block}")]
    BlockWidth {
        /// The format.
        format: &'static str,
        /// Elements of a row.
        columns: usize,
        /// Elements of a block.
        block: usize,
    },
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
    /// Another number of elements than a shape has.
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
    #[error("row {row}, column {column} is {value}; a matrix to quantise must be finite")]
    NonFinite {
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A finite value does not fit a narrower float type.
    #[error("element {index} is {value}, which overflows {dtype} (at most {largest})")]
    Overflow {
        /// Index of the first such element, in row-major order.
        index: usize,
        /// Its value.
        value: f64,
        /// Name of the narrower type.
        dtype: &'static str,
        /// The largest value of that type.
        largest: f64,
    },
}
