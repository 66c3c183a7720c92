//! Conversion of tensors to and from host matrices.

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::{Mat, MatRef};

use crate::error::Result;

/// Values of a tensor on the host, row-major, as f32.
pub fn host_values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let data = tensor.into_data();
    match data.as_slice::<f32>() {
        Ok(values) => values.to_vec(),
        Err(_) => data.iter::<f32>().collect(),
    }
}

/// A matrix on the host.
pub(crate) fn to_mat<B: Backend>(tensor: Tensor<B, 2>) -> Result<Mat<f32>> {
    let [rows, columns] = tensor.dims();
    Ok(from_row_major(&host_values(tensor), rows, columns)?.to_owned())
}

/// A matrix on the device.
pub(crate) fn from_mat<B: Backend>(matrix: MatRef<'_, f32>, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(to_row_major(matrix), [matrix.nrows(), matrix.ncols()]);
    Tensor::from_data(data, device)
}
