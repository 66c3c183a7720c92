//! The products that randomized methods need, so that each method is written once for matrices on the
//! host and on a device.

use faer::{Accum, Mat, MatRef};

use crate::error::Result;
use crate::matrix::{Balanced, norm_squared, product, product_into};
use crate::scalar::Scalar;

/// An `m × n` matrix that is known through its products with thin blocks.
///
/// Blocks live on the host, where all small dense work is done; implementors move them to wherever the
/// large matrix is. [`HostMatrix`] is the implementation for a matrix in memory, `DeviceMatrix` (feature
/// `burn`) is the one for a tensor of any burn backend.
pub trait MatrixProducts {
    /// Element type of the blocks.
    type Scalar: Scalar;

    /// Number of rows `m`.
    fn nrows(&self) -> usize;

    /// Number of columns `n`.
    fn ncols(&self) -> usize;

    /// Factor by which the matrix was multiplied to keep sums of squares in range; singular values are
    /// divided by it at the end.
    fn scale(&self) -> f64 {
        1.0
    }

    /// `‖A‖²_F`.
    ///
    /// # Errors
    /// Any error of reading from a device.
    fn norm_squared(&self) -> Result<f64>;

    /// `A·X`, shapes `x` n × l, result m × l.
    ///
    /// # Errors
    /// Any error of reading from a device.
    fn multiply(&self, x: MatRef<'_, Self::Scalar>) -> Result<Mat<Self::Scalar>>;

    /// `Aᵀ·X`, shapes `x` m × l, result n × l.
    ///
    /// # Errors
    /// Any error of reading from a device.
    fn multiply_transposed(&self, x: MatRef<'_, Self::Scalar>) -> Result<Mat<Self::Scalar>>;

    /// `‖A − L·Rᵀ‖²_F`, shapes `left` m × l, `right` n × l: the residual without cancellation, at the cost
    /// of one more product.
    ///
    /// # Errors
    /// Any error of reading from a device.
    fn residual_squared(
        &self,
        left: MatRef<'_, Self::Scalar>,
        right: MatRef<'_, Self::Scalar>,
    ) -> Result<f64>;
}

impl<T: Scalar, A: MatrixProducts<Scalar = T> + ?Sized> MatrixProducts for Box<A> {
    type Scalar = T;

    fn nrows(&self) -> usize {
        (**self).nrows()
    }

    fn ncols(&self) -> usize {
        (**self).ncols()
    }

    fn scale(&self) -> f64 {
        (**self).scale()
    }

    fn norm_squared(&self) -> Result<f64> {
        (**self).norm_squared()
    }

    fn multiply(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        (**self).multiply(x)
    }

    fn multiply_transposed(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        (**self).multiply_transposed(x)
    }

    fn residual_squared(&self, left: MatRef<'_, T>, right: MatRef<'_, T>) -> Result<f64> {
        (**self).residual_squared(left, right)
    }
}

/// A validated matrix in host memory.
pub struct HostMatrix<'a, T: Scalar> {
    balanced: Balanced<'a, T>,
}

impl<'a, T: Scalar> HostMatrix<'a, T> {
    /// Checks the matrix. It is copied only if its magnitude must be rescaled.
    ///
    /// # Errors
    /// [`FactorError::Empty`](crate::FactorError::Empty),
    /// [`FactorError::NonFinite`](crate::FactorError::NonFinite).
    pub fn new(a: MatRef<'a, T>) -> Result<Self> {
        Ok(Self { balanced: Balanced::new(a, "matrix")? })
    }

    /// The matrix as the products see it, multiplied by [`MatrixProducts::scale`].
    pub(crate) fn view(&self) -> MatRef<'_, T> {
        self.balanced.view()
    }
}

impl<T: Scalar> MatrixProducts for HostMatrix<'_, T> {
    type Scalar = T;

    fn nrows(&self) -> usize {
        self.view().nrows()
    }

    fn ncols(&self) -> usize {
        self.view().ncols()
    }

    fn scale(&self) -> f64 {
        self.balanced.scale
    }

    fn norm_squared(&self) -> Result<f64> {
        Ok(norm_squared(self.view()))
    }

    fn multiply(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        Ok(product(self.view(), x))
    }

    fn multiply_transposed(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        Ok(product(self.view().transpose(), x))
    }

    fn residual_squared(&self, left: MatRef<'_, T>, right: MatRef<'_, T>) -> Result<f64> {
        let mut difference = self.view().to_owned();
        product_into(difference.as_mut(), Accum::Add, left, right.transpose(), T::of(-1.0));
        Ok(norm_squared(difference.as_ref()))
    }
}
