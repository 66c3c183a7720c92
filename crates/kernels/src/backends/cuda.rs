//! CUDA: the composed defaults.

use burn::tensor::backend::Backend;
use burn_cuda::Cuda;

use crate::kernels::Kernels;

impl<F, I> Kernels for Cuda<F, I> where Self: Backend {}
