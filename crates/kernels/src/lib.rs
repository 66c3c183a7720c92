//! Fused transformer operations on packed tokens, for any burn backend.
//!
//! [`Kernels`] holds the operations on tensor primitives, with defaults of burn operations; the CPU and GPU backends
//! replace them, and `Autodiff<B>` adds a backward rule to each, whatever `B` is. A rule computes and saves only what is needed: any
//! tensor argument may be untracked (a frozen base), and a step whose arguments are all untracked saves nothing.
#![cfg_attr(all(feature = "flex", feature = "ndarray"), doc = include_str!("../README.md"))]

mod autodiff;
mod backends;
mod blocks;
mod composed;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
mod error;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
mod gpu;
mod kernels;
mod ops;
mod precision;
mod spec;
#[cfg(test)]
mod tests;
mod weight;

pub use blocks::{BlockFormat, BlockMatrix, SharedBytes};
pub use error::KernelError;
pub use kernels::{
    AdamWState, AdamWStep, AttentionGrads, AttentionTensors, HeadTensors, Kernels, LoraWeights, NormState,
};
pub use ops::{
    Head, adamw_step, adamw_steps, add, add_lora, attention, clip_factor, cross_entropy, cross_entropy_sum,
    dropout, gated, gelu, layer_norm, linear, linear_cross_entropy, linear_gelu, linear_lora,
    relative_attention, rms_norm, rope, sample, sink_attention, write_rows,
};
pub use precision::Precision;
pub use spec::{
    AdamW, Alibi, AttentionSpec, Distances, Dropout, Gate, Gelu, Keys, LoraSpec, NormSpec, RopeSpec,
    SampleRow, SampleSpec,
};
pub use weight::Weight;
