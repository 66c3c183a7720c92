//! Randomized methods on the device of a burn tensor (feature `burn`).
//!
//! The large products run on the device; thin blocks are copied to the host for the small dense work.

use core::marker::PhantomData;

use burn::tensor::backend::Backend;
use burn::tensor::{Element, ElementConversion, Tensor, TensorData};
use faer::{Mat, MatRef};

use crate::error::{FactorError, Result};
use crate::matrix::{balance, check, from_row_major, to_row_major};
use crate::products::MatrixProducts;
use crate::scalar::Scalar;

/// A matrix held in a tensor of any burn backend, for [`svd::randomized`](crate::svd::randomized) and
/// [`svd::adaptive`](crate::svd::adaptive).
///
/// `T` is the element type of the blocks on the host: that of the backend, or `f32` for half precision.
///
/// ```
/// use burn_flex::Flex;
/// use burn::tensor::{Distribution, Tensor};
/// use lowrank_factor::{DeviceMatrix, svd};
/// let device = Default::default();
/// let left = Tensor::<Flex, 2>::random([50, 3], Distribution::Default, &device);
/// let right = Tensor::<Flex, 2>::random([3, 40], Distribution::Default, &device);
/// let a = DeviceMatrix::<Flex, f32>::new(left.matmul(right))?;
/// let fit = svd::randomized(&a, 3, &svd::RandomizedOptions::default())?;
/// assert!(fit.residual() < 1e-5);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DeviceMatrix<B: Backend, T: Scalar> {
    /// Shape `[m, n]`, times `scale`.
    tensor: Tensor<B, 2>,
    scale: f64,
    element: PhantomData<T>,
}

/// Elements per partial sum on the device; the partial sums of a norm are added in `f64` on the host.
const PARTIAL: usize = 64;

impl<B: Backend, T: Scalar + Element> DeviceMatrix<B, T> {
    /// Checks the tensor, on its device.
    ///
    /// # Errors
    /// [`FactorError::Empty`], [`FactorError::NonFinite`], [`FactorError::Device`].
    pub fn new(tensor: Tensor<B, 2>) -> Result<Self> {
        let [rows, cols] = tensor.dims();
        if rows == 0 || cols == 0 {
            return Err(FactorError::Empty { what: "tensor", rows, cols });
        }
        // NaN and ±Inf are the only values with x·0 ≠ 0.
        let zero: f64 = tensor.clone().mul_scalar(0.0).abs().sum().into_scalar().elem();
        if zero != 0.0 {
            let values: Vec<T> = read(tensor)?;
            check(from_row_major(&values, rows, cols)?, "tensor")?;
            return Err(FactorError::NonFinite { what: "tensor", row: 0, col: 0 });
        }
        let max_abs: f64 = tensor.clone().abs().max().into_scalar().elem();
        let scale = balance(max_abs, T::SAFE);
        let tensor = if scale == 1.0 { tensor } else { tensor.mul_scalar(scale) };
        Ok(Self { tensor, scale, element: PhantomData })
    }

    /// `(B·A')ᵀ` for a row-major block `B` on the host, where `A'` is the matrix or its transpose.
    fn multiply_by(&self, x: MatRef<'_, T>, right: Tensor<B, 2>) -> Result<Mat<T>> {
        let left = self.upload(x.transpose()); // [l, inner]
        let [_, rows] = right.dims();
        let values: Vec<T> = read(left.matmul(right))?; // [l, rows]
        Ok(from_row_major(&values, x.ncols(), rows)?.transpose().to_owned())
    }

    fn upload(&self, x: MatRef<'_, T>) -> Tensor<B, 2> {
        let data = TensorData::new(to_row_major(x), [x.nrows(), x.ncols()]);
        Tensor::from_data(data, &self.tensor.device())
    }

    fn sum_of_squares(&self, tensor: Tensor<B, 2>) -> Result<f64> {
        let len = tensor.shape().num_elements();
        let width = (1..=PARTIAL.min(len)).rev().find(|width| len.is_multiple_of(*width)).unwrap_or(1);
        let flat: Tensor<B, 2> = tensor.reshape([len / width, width]);
        let sums: Vec<T> = read(flat.clone().mul(flat).sum_dim(1))?;
        Ok(sums.into_iter().map(Scalar::widen).sum())
    }
}

impl<B: Backend, T: Scalar + Element> MatrixProducts for DeviceMatrix<B, T> {
    type Scalar = T;

    fn nrows(&self) -> usize {
        self.tensor.dims()[0]
    }

    fn ncols(&self) -> usize {
        self.tensor.dims()[1]
    }

    fn scale(&self) -> f64 {
        self.scale
    }

    fn norm_squared(&self) -> Result<f64> {
        self.sum_of_squares(self.tensor.clone())
    }

    fn multiply(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.multiply_by(x, self.tensor.clone().transpose())
    }

    fn multiply_transposed(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.multiply_by(x, self.tensor.clone())
    }

    fn residual_squared(&self, left: MatRef<'_, T>, right: MatRef<'_, T>) -> Result<f64> {
        let product = self.upload(left).matmul(self.upload(right.transpose()));
        self.sum_of_squares(self.tensor.clone().sub(product))
    }
}

/// Elements of a tensor, row-major, in the host type.
fn read<B: Backend, T: Element, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<T>> {
    let data =
        tensor.try_into_data().map_err(|error| FactorError::Device { message: format!("{error:?}") })?;
    data.convert::<T>().to_vec().map_err(|error| FactorError::Device { message: error.to_string() })
}
