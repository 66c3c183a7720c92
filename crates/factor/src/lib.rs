//! Low-rank and tensor-train factorizations of real matrices, in `f32` and `f64`.
//!
//! | Task | Entry points |
//! |---|---|
//! | Singular values and vectors | [`svd::exact`], [`svd::randomized`], [`svd::adaptive`], [`svd::auto`] |
//! | Approximate `A ≈ L·R` | [`subspace::leading`], [`Svd::low_rank`], [`LowRank`] (refits, alternating least squares, sums) |
//! | Weight the error by activations | [`whitened::by_gram`], [`whitened::by_diagonal`], by gradients too: [`two_sided::TwoSided`] |
//! | Share factors between matrices | [`tucker::tucker2`], [`tucker::shared_basis`] |
//! | Tensor trains | [`tt::tt_svd`], [`tt::TensorTrain`], [`tt::TtMatrix`] |
//! | Decide ranks | [`Truncation`], [`Spectrum`], [`ErrorCurve`], [`allocate_ranks`] |
//!
//! Matrices are [`faer::MatRef`]s of shape `m × n` with any strides ([`matrix::from_row_major`] views the
//! layout of PyTorch and burn); the crate knows nothing about layers, and a transposed view is free.
//! Errors are relative Frobenius errors in `f64`. Input is checked once; invalid input returns a
//! [`FactorError`], never a panic.
//!
//! ```
//! use lowrank_factor::{Mat, SigmaPlacement, Truncation, svd};
//!
// A smooth kernel: numerically of low rank.
//! let a = Mat::from_fn(200, 150, |i, j| 1.0 / (1.0 + (i as f64 / 200.0 - j as f64 / 150.0).powi(2)));
//! let fit = svd::exact(a.as_ref())?.low_rank(&Truncation::RelativeError(1e-4), SigmaPlacement::Split)?;
//! assert!(fit.report.pays() && fit.report.relative_error <= 1e-4);
//! assert!(fit.report.rank < 10);
//! let x = Mat::from_fn(4, 200, |i, j| ((i + j) as f64).sin());
//! let y = fit.factors.multiply_batch(x.as_ref())?; // two thin products
//! assert_eq!(y.shape(), (4, 150));
//! # Ok::<(), lowrank_factor::FactorError>(())
//! ```
//!
//! # Features
//! `burn`: `DeviceMatrix`, randomized methods whose large products run on the device of a burn tensor, and `device::gram`.
//!
//! # Speed
//! faer's SIMD loops are closures, which are vectorized only if they are inlined. The number of codegen units hardly
//! matters: an exact SVD with one is 2 to 5 % faster than with 16, which this workspace uses (docs/LOG.md).
//!
//! # Threads
//! Large operations use the current rayon pool; run them inside `ThreadPool::install` to limit their threads.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod allocate;
mod dense;
#[cfg(feature = "burn")]
pub mod device;
pub mod error;
pub mod feedback;
pub mod low_rank;
pub mod matrix;
mod pass;
pub mod pivoted;
pub mod products;
pub mod qr;
mod random;
pub mod scalar;
pub mod spectrum;
pub mod subspace;
pub mod svd;
pub mod truncation;
pub mod tt;
pub mod tucker;
pub mod two_sided;
pub mod whitened;

pub use faer::{Mat, MatRef};

pub use crate::allocate::{RankAllocation, RankChoice, RankItem, allocate_ranks};
#[cfg(feature = "burn")]
pub use crate::device::DeviceMatrix;
pub use crate::error::{FactorError, Result};
pub use crate::feedback::Feedback;
pub use crate::low_rank::{LowRank, SigmaPlacement};
pub use crate::products::{HostMatrix, MatrixProducts};
pub use crate::scalar::Scalar;
pub use crate::spectrum::{ElementwiseError, ErrorCurve, Spectrum, elementwise_errors};
pub use crate::subspace::{Subspace, SubspaceSide};
pub use crate::svd::Svd;
pub use crate::truncation::{Approximation, Truncation, TruncationReport};
pub use crate::tt::{TensorTrain, TtMatrix};
pub use crate::tucker::Tucker2;
pub use crate::two_sided::{TwoSided, TwoSidedFactors};
pub use crate::whitened::Whitened;
