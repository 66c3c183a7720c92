//! [`Kernels`](crate::Kernels) for the backends of the enabled features.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
