//! Flex: the CPU kernels.

use burn::tensor::{DType, TensorData, bf16, f16};
use burn_flex::{Flex, FlexTensor};
use half::slice::HalfFloatSliceExt;

use super::host::{HostTensor, host_kernels};
use crate::cpu::gemm::Weights;
use crate::cpu::rows::Rows;
use crate::kernels::Kernels;

impl Kernels for Flex {
    host_kernels!();
}

impl HostTensor for FlexTensor {
    fn in_rows(self) -> Self {
        if self.layout().is_contiguous() { self } else { self.to_contiguous() }
    }

    fn by_rows(self) -> Self {
        if row_stride(&self).is_some() { self } else { self.in_rows() }
    }

    fn rows(&self) -> Rows<'_> {
        let shape = self.layout().shape().dims();
        match row_stride(self) {
            Some(stride) => Rows::new(&self.storage()[self.layout().start_offset()..], shape, stride),
            None => Rows::new(self.floats(), shape, shape[1]),
        }
    }

    fn floats(&self) -> &[f32] {
        self.as_slice().unwrap_or_default()
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        if self.dtype() != DType::F32 {
            return &mut [];
        }
        let whole = self.bytes().len() == self.layout().num_elements() * size_of::<f32>();
        if !(whole && self.is_contiguous()) {
            *self = self.to_contiguous();
        }
        self.storage_mut()
    }

    fn weights(&self) -> Option<(Weights<'_>, bool)> {
        let layout = self.layout();
        let (&[rows, columns], &[row, column]) = (layout.shape().as_slice(), layout.strides()) else {
            return None;
        };
        let (rows, columns) = (isize::try_from(rows).ok()?, isize::try_from(columns).ok()?);
        let transposed = if (row, column) == (columns, 1) || layout.num_elements() == 0 {
            false
        } else if (row, column) == (1, rows) {
            true
        } else {
            return None;
        };
        let start = layout.start_offset();
        let range = start..start + layout.num_elements();
        let weights = match self.dtype() {
            DType::F32 => Weights::F32(&self.storage()[range]),
            DType::F16 => Weights::F16(self.storage::<f16>()[range].reinterpret_cast()),
            DType::BF16 => Weights::Bf16(self.storage::<bf16>()[range].reinterpret_cast()),
            _ => return None,
        };
        Some((weights, transposed))
    }

    fn indices(&self) -> Vec<usize> {
        self.clone()
            .into_data()
            .iter::<i64>()
            .map(|index| usize::try_from(index).unwrap_or(usize::MAX))
            .collect()
    }

    fn from_floats(floats: Vec<f32>, shape: Vec<usize>) -> Self {
        FlexTensor::from_data(TensorData::new(floats, shape))
    }
}

/// The distance between the rows of a matrix that are apart, with adjacent elements in each.
fn row_stride(tensor: &FlexTensor) -> Option<usize> {
    let layout = tensor.layout();
    let (&[rows, width], &[stride, 1]) = (layout.shape().as_slice(), layout.strides()) else { return None };
    usize::try_from(stride).ok().filter(|&stride| rows > 1 && stride > width)
}
