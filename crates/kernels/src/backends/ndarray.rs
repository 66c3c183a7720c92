//! NdArray: the CPU kernels.

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn_ndarray::{NdArray, NdArrayTensor, SharedArray};

use super::host::{HostTensor, host_kernels};
use crate::cpu::gemm::Weights;
use crate::kernels::Kernels;

impl<E, I, Q> Kernels for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    Self: Backend<FloatTensorPrimitive = NdArrayTensor, IntTensorPrimitive = NdArrayTensor>,
{
    host_kernels!();
}

impl HostTensor for NdArrayTensor {
    fn in_rows(self) -> Self {
        match self {
            NdArrayTensor::F32(storage) if storage.view().to_slice().is_none() => {
                storage.view().as_standard_layout().into_owned().into_shared().into()
            }
            tensor => tensor,
        }
    }

    fn floats(&self) -> &[f32] {
        match self {
            NdArrayTensor::F32(storage) => storage.view().to_slice().unwrap_or_default(),
            _ => &[],
        }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        if self.floats().is_empty() {
            *self = self.clone().in_rows();
        }
        match self {
            NdArrayTensor::F32(storage) => storage.ensure_owned().as_slice_mut().unwrap_or_default(),
            _ => &mut [],
        }
    }

    fn weights(&self) -> Option<(Weights<'_>, bool)> {
        let NdArrayTensor::F32(storage) = self else {
            return None;
        };
        if storage.is_empty() {
            return Some((Weights::F32(&[]), false));
        }
        let rows = storage.view().to_slice().map(|floats| (Weights::F32(floats), false));
        rows.or_else(|| Some((Weights::F32(storage.view().reversed_axes().to_slice()?), true)))
    }

    fn indices(&self) -> Vec<usize> {
        fn indices<T: Copy>(values: impl Iterator<Item = T>) -> Vec<usize>
        where
            usize: TryFrom<T>,
        {
            values.map(|value| usize::try_from(value).unwrap_or(usize::MAX)).collect()
        }
        match self {
            NdArrayTensor::I64(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::I32(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::I16(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::I8(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::U64(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::U32(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::U16(storage) => indices(storage.view().iter().copied()),
            NdArrayTensor::U8(storage) => indices(storage.view().iter().copied()),
            _ => Vec::new(),
        }
    }

    fn from_floats(floats: Vec<f32>, shape: Vec<usize>) -> Self {
        NdArrayTensor::from_data(TensorData::new(floats, shape))
    }
}
