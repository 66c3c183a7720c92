//! [`Kernels`](crate::Kernels) for the CPU backends and the router of the enabled features; `gpu` has those of GPUs.

#[cfg(feature = "flex")]
mod flex;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "router")]
mod router;
