//! Fused transformer steps on packed tokens, for any burn backend.
//!
//! A batch is the concatenation of its sequences, so hidden states are `[tokens, d_model]` and only
//! [`attention`] looks at the sequence lengths. Each step is a free function over burn tensors
//! ([`linear`], [`layer_norm`], [`attention`], …) generic over a backend that implements [`Kernels`].
//!
//! [`Kernels`] holds the same steps on tensor primitives. Every one has a default composed of burn
//! operations; the CPU backends (features `flex` and `ndarray`) replace them by hand-written kernels,
//! and `Autodiff<B>` adds a backward rule to each, whatever `B` is.
//!
//! A rule computes and saves only what is needed: any tensor argument may be untracked (a frozen base),
//! and a step whose arguments are all untracked saves nothing.

mod autodiff;
mod backends;
mod composed;
mod convert;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
mod error;
mod kernels;
mod ops;
mod spec;
#[cfg(test)]
mod tests;

pub use convert::convert_checked;
pub use error::KernelError;
pub use kernels::{AdamWState, Adapted, AttentionGrads, HeadTensors, Kernels, NormState};
pub use ops::{
    Head, adamw_step, add_lora, attention, cross_entropy, cross_entropy_sum, dropout, gelu, layer_norm,
    linear, linear_cross_entropy, linear_gelu, linear_lora, rms_norm, rope, swiglu,
};
pub use spec::{AdamW, AttentionSpec, Dropout, Gelu, Keys, LoraSpec, NormSpec, RopeSpec};
