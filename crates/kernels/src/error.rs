//! The errors of this crate.

/// What can be wrong with data that is given to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
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
