//! Rows of a TT-matrix by index, for embeddings.

use faer::{Mat, MatRef};
use rayon::prelude::*;

use super::core::flat_product;
use super::matrix::TtMatrix;
use crate::error::{FactorError, Result};
use crate::scalar::Scalar;

impl<T: Scalar> TtMatrix<T> {
    /// The rows with the given indices, shape `indices.len() × n`, without forming the matrix.
    ///
    /// Rows are computed in parallel, each as a chain of small products.
    ///
    /// # Errors
    /// [`FactorError::IndexOutOfRange`], [`FactorError::Empty`] without indices.
    ///
    /// # Complexity
    /// `O(n·r²)` per row.
    ///
    /// ```
    /// use lowrank_factor::{Mat, Truncation, tt::{TtMatrix, TtShape}};
    /// let table = Mat::from_fn(10, 6, |i, j| (i * j) as f64);
    /// let shape = TtShape::balanced(10, 6, 2)?;
    /// let tt = TtMatrix::from_dense(table.as_ref(), &shape, &Truncation::RelativeError(0.0))?.factors;
    /// let rows = tt.gather_rows(&[7, 0, 7])?;
    /// assert!((rows[(0, 5)] - 35.0).abs() < 1e-12 && (rows[(2, 5)] - 35.0).abs() < 1e-12);
    /// assert!(tt.gather_rows(&[10]).is_err());
    /// # Ok::<(), lowrank_factor::FactorError>(())
    /// ```
    pub fn gather_rows(&self, indices: &[usize]) -> Result<Mat<T>> {
        let (m, n) = (self.nrows(), self.ncols());
        if indices.is_empty() {
            return Err(FactorError::Empty { what: "indices", rows: 0, cols: n });
        }
        if let Some(&index) = indices.iter().find(|&&index| index >= m) {
            return Err(FactorError::IndexOutOfRange { index, len: m });
        }
        let mut out = vec![T::default(); indices.len() * n];
        out.par_chunks_exact_mut(n).zip(indices).for_each(|(row, &index)| self.write_row(index, row));
        Ok(MatRef::from_row_major_slice(&out, indices.len(), n).to_owned())
    }

    /// One row, as the product of the slices that its digits select.
    fn write_row(&self, index: usize, out: &mut [T]) {
        let mut digits = Vec::new();
        self.shape().rows().digits(index, &mut digits);
        let mut row = vec![T::of(1.0)]; // [j_1·…·j_{k-1}, r_{k-1}]
        for ((core, &digit), &n) in
            self.train().cores().iter().zip(&digits).zip(self.shape().cols().factors())
        {
            let [left, _, right] = core.shape();
            let slice = core.right_unfolding().subcols(digit * n * right, n * right); // [r_{k-1}, n_k·r_k]
            let view = MatRef::from_row_major_slice(&row, row.len() / left, left);
            row = flat_product(view, slice);
        }
        out.copy_from_slice(&row[..out.len()]);
    }
}
