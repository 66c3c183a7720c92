//! GPUs of any maker through burn's wgpu backend, over Vulkan or Metal: every step uses the composed default.

#[cfg(not(feature = "vulkan"))]
use burn_wgpu::Metal as Gpu;
#[cfg(feature = "vulkan")]
use burn_wgpu::Vulkan as Gpu;

use crate::kernels::Kernels;

impl Kernels for Gpu {}
