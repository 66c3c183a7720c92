//! [`Kernels`](crate::Kernels) for the backends of the enabled features.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "flex")]
mod flex;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(any(feature = "vulkan", feature = "metal"))]
mod wgpu;
