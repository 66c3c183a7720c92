//! Large products on the device of a burn tensor (feature `burn`): those of randomized methods, and Gram matrices.
//!
//! Thin blocks are copied to the host for the small dense work.
//!
//! # Precision
//! Some devices round the operands of `f32` products to TF32, 11 bits, for which their units are faster: the norm of a matrix
//! is then known to three digits. Split into its leading 11 bits and the rest, an operand loses nothing to that rounding, and
//! three products of parts give the product in the precision of `f32` (Markidis et al. 2018).

use core::marker::PhantomData;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, ElementConversion, Tensor, TensorData};
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
    /// Shape `[m, n]`, times `scale`: all of it, or the leading bits.
    tensor: Tensor<B, 2>,
    /// The other bits, if products are those of parts.
    low: Option<Tensor<B, 2>>,
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
        Ok(Self { tensor, low: None, scale, element: PhantomData })
    }

    /// The same matrix in two parts, whose products have the precision of `f32` on every device, at three times the products
    /// and twice the memory. Only `f32` is split.
    pub fn in_parts(self) -> Self {
        if self.low.is_some() || self.tensor.dtype() != DType::F32 {
            return self;
        }
        let [tensor, low] = parts(self.tensor);
        Self { tensor, low: Some(low), ..self }
    }

    /// All bits of the matrix.
    fn whole(&self) -> Tensor<B, 2> {
        match &self.low {
            Some(low) => self.tensor.clone() + low.clone(),
            None => self.tensor.clone(),
        }
    }

    /// `X·A`, or `X·Aᵀ`, for a thin `X` on the device.
    fn times(&self, x: Tensor<B, 2>, is_transposed: bool) -> Tensor<B, 2> {
        let of = |a: &Tensor<B, 2>| if is_transposed { a.clone().transpose() } else { a.clone() };
        match &self.low {
            Some(low) => product_of_parts(parts(x), [of(&self.tensor), of(low)]),
            None => x.matmul(of(&self.tensor)),
        }
    }

    /// `A·X`, or `Aᵀ·X`, for a block on the host.
    fn multiply_by(&self, x: MatRef<'_, T>, is_transposed: bool) -> Result<Mat<T>> {
        // The transposed product, whose rows are the columns of the result.
        let product = self.times(self.upload(x.transpose()), !is_transposed); // [l, rows]
        let [_, rows] = product.dims();
        let values: Vec<T> = read(product)?;
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
        self.sum_of_squares(self.whole())
    }

    fn multiply(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.multiply_by(x, false)
    }

    fn multiply_transposed(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.multiply_by(x, true)
    }

    fn residual_squared(&self, left: MatRef<'_, T>, right: MatRef<'_, T>) -> Result<f64> {
        let (left, right) = (self.upload(left), self.upload(right.transpose()));
        let product = match self.low {
            Some(_) => product_of_parts(parts(left), parts(right)),
            None => left.matmul(right),
        };
        self.sum_of_squares(self.whole().sub(product))
    }
}

/// `xᵀ·x`, shape `[n, n]` for `x` `[rows, n]`, in the precision of `f32` on every device.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// let x = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &Default::default());
/// let gram: Vec<f32> = lowrank_factor::device::gram(x).into_data().iter().collect();
/// assert_eq!(gram, [10.0, 14.0, 14.0, 20.0]);
/// ```
pub fn gram<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    if x.dtype() != DType::F32 {
        return x.clone().transpose().matmul(x);
    }
    let [high, low] = parts(x);
    let turned = high.clone().transpose();
    let crossed = turned.clone().matmul(low);
    turned.matmul(high) + (crossed.clone() + crossed.transpose())
}

/// The multiplier that splits an `f32` of 24 bits into 11 and 13 (Veltkamp 1968).
const SPLIT: f32 = 8193.0;

/// The leading 11 bits of each element, and the rest.
fn parts<B: Backend>(x: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    let scaled = x.clone().mul_scalar(SPLIT);
    let high = scaled.clone() - (scaled - x.clone());
    [high.clone(), x - high]
}

/// The product of two matrices in parts, without that of the lower parts, which rounding would lose.
fn product_of_parts<B: Backend>(left: [Tensor<B, 2>; 2], right: [Tensor<B, 2>; 2]) -> Tensor<B, 2> {
    let ([left, left_low], [right, right_low]) = (left, right);
    let crossed = left.clone().matmul(right_low) + left_low.matmul(right.clone());
    left.matmul(right) + crossed
}

/// Elements of a tensor, row-major, in the host type.
fn read<B: Backend, T: Element, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<T>> {
    let data =
        tensor.try_into_data().map_err(|error| FactorError::Device { message: format!("{error:?}") })?;
    data.convert::<T>().to_vec().map_err(|error| FactorError::Device { message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::random::NormalSource;

    fn tensor(a: &Mat<f32>) -> Tensor<Flex, 2> {
        Tensor::from_data(
            TensorData::new(to_row_major(a.as_ref()), [a.nrows(), a.ncols()]),
            &Default::default(),
        )
    }

    fn mat(x: Tensor<Flex, 2>) -> Mat<f32> {
        let [rows, cols] = x.dims();
        let values: Vec<f32> = read(x).unwrap();
        from_row_major(&values, rows, cols).unwrap().to_owned()
    }

    /// To the nearest number of 11 bits, as a device rounds the operands of a product.
    fn to_tf32(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & !0x1fff)
    }

    fn rounded(a: &Mat<f32>) -> Mat<f32> {
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| to_tf32(a[(i, j)]))
    }

    #[test]
    fn parts_lose_nothing_to_a_rounding_that_loses_half_of_the_digits() {
        let (m, k, n) = (30, 200, 20);
        let a: Mat<f32> = NormalSource::new(1).matrix(m, k);
        let b: Mat<f32> = NormalSource::new(2).matrix(k, n);
        let wide = |x: &Mat<f32>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| f64::from(x[(i, j)]));
        let exact = wide(&a) * wide(&b);
        let off = |x: &Mat<f32>| (wide(x) - &exact).norm_max() / exact.norm_max();
        assert!(off(&(rounded(&a) * rounded(&b))) > 1e-4);
        let [left, right] = [&a, &b].map(|x| parts(tensor(x)));
        for (x, [high, low]) in [(&a, &left), (&b, &right)] {
            assert_eq!(mat(high.clone() + low.clone()), *x);
            let high = mat(high.clone());
            assert_eq!(rounded(&high), high, "more than 11 bits");
        }
        let as_on_device = |parts: [Tensor<Flex, 2>; 2]| parts.map(|part| tensor(&rounded(&mat(part))));
        let product = mat(product_of_parts(as_on_device(left), as_on_device(right)));
        assert!(off(&product) < 2e-6, "{}", off(&product));
    }

    #[test]
    fn a_gram_matrix_is_that_of_the_host() {
        let x: Mat<f32> = NormalSource::new(3).matrix(150, 40);
        let (device, host) = (mat(gram(tensor(&x))), crate::matrix::gram(x.as_ref()));
        let mirrored = Mat::from_fn(40, 40, |i, j| host[(i.max(j), i.min(j))]);
        let off = (&device - &mirrored).norm_max() / mirrored.norm_max();
        assert!(off < 2e-6, "{off}");
        let half =
            Tensor::<Flex, 2>::from_data(TensorData::new(vec![300.0_f32, 2.0], [1, 2]), &Default::default())
                .cast(burn::tensor::DType::F16);
        let wide: Vec<f32> =
            gram(half.clone().div_scalar(10.0)).into_data().convert::<f32>().to_vec().unwrap();
        assert!((wide[0] - 900.0).abs() < 1.0 && gram(half).dtype() == DType::F16, "{wide:?}");
    }
}
