//! NdArray: the CPU kernels.

use burn::tensor::backend::Backend;
use burn_ndarray::{NdArray, NdArrayTensor, SharedArray};

use crate::kernels::Kernels;

impl<E, I, Q> Kernels for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    Self: Backend,
{
}
