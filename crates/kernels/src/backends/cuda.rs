//! NVIDIA GPUs through burn's CUDA backend: every step uses the composed default.

use burn_cuda::Cuda;

use crate::kernels::Kernels;

impl Kernels for Cuda {}
