//! One core of a tensor train.

use faer::MatRef;

use crate::error::{FactorError, Result};
use crate::matrix::{check_slice, from_row_major};
use crate::scalar::Scalar;

/// A core `G` of shape `[left rank, mode, right rank]`, row-major. In a TT-matrix the mode is the pair
/// `(m_k, n_k)`, flattened.
#[derive(Debug, Clone, PartialEq)]
pub struct Core<T: Scalar> {
    left: usize,
    mode: usize,
    right: usize,
    data: Vec<T>,
}

impl<T: Scalar> Core<T> {
    /// Creates a core from row-major data.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the length is not `left · mode · right`, [`FactorError::Empty`],
    /// [`FactorError::NonFinite`].
    pub fn new([left, mode, right]: [usize; 3], data: Vec<T>) -> Result<Self> {
        let size = left.checked_mul(mode).and_then(|size| size.checked_mul(right));
        if size != Some(data.len()) {
            return Err(FactorError::ShapeMismatch {
                what: "core",
                expected: vec![left, mode, right],
                got: vec![data.len()],
            });
        }
        check_slice(&data, "core")?;
        Ok(Self { left, mode, right, data })
    }

    /// Data known to match the shape.
    pub(crate) fn from_parts([left, mode, right]: [usize; 3], data: Vec<T>) -> Self {
        debug_assert_eq!(left * mode * right, data.len());
        Self { left, mode, right, data }
    }

    /// `[left rank, mode, right rank]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.left, self.mode, self.right]
    }

    /// Row-major data.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The data, by value.
    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// Number of elements.
    pub fn parameters(&self) -> usize {
        self.data.len()
    }

    /// Shape `(left · mode) × right`.
    pub(crate) fn left_unfolding(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.left * self.mode, self.right)
    }

    /// Shape `left × (mode · right)`.
    pub(crate) fn right_unfolding(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.left, self.mode * self.right)
    }

    /// `[left, a, b, right]` with the two halves of the mode swapped, row-major `[left, b, a, right]`.
    pub(crate) fn swapped(&self, a: usize, b: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(self.data.len());
        for l in 0..self.left {
            for j in 0..b {
                for i in 0..a {
                    let start = ((l * a + i) * b + j) * self.right;
                    out.extend_from_slice(&self.data[start..start + self.right]);
                }
            }
        }
        out
    }
}

/// Row-major `A·B` as a flat vector.
pub(crate) fn flat_product<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Vec<T> {
    let mut out = vec![T::default(); a.nrows() * b.ncols()];
    let view = faer::MatMut::from_row_major_slice_mut(&mut out, a.nrows(), b.ncols());
    crate::matrix::product_into(view, faer::Accum::Replace, a, b, T::of(1.0));
    out
}

/// View of a flat row-major vector whose length is known to match.
pub(crate) fn view<T: Scalar>(data: &[T], rows: usize) -> Result<MatRef<'_, T>> {
    from_row_major(data, rows, data.len() / rows.max(1))
}
