//! Tensor trains: vectors, tensors and matrices as chains of small cores.
//!
//! A tensor of shape `n_1 × … × n_d` is in tensor-train form when
//! `X[i_1, …, i_d] = G_1[i_1]·G_2[i_2]·…·G_d[i_d]` with cores `G_k` of shape `[r_{k-1}, n_k, r_k]` and
//! `r_0 = r_d = 1` (Oseledets 2011). A matrix becomes such a tensor by splitting its sides into
//! `m = m_1·…·m_d` and `n = n_1·…·n_d` and pairing `(i_k, j_k)`: cores `[r_{k-1}, m_k, n_k, r_k]`.
//!
//! Everything is row-major (C order), as in numpy, PyTorch and safetensors: the first index of a tensor
//! is the slowest, and the data of a core can be stored unchanged.

mod algebra;
mod contract;
mod core;
mod decompose;
mod gather;
mod matrix;
mod orthogonal;
mod shape;
mod train;

pub use self::contract::{ContractionPlan, ContractionStep};
pub use self::core::Core;
pub use self::decompose::{tt_svd, tt_svd_vector, tt_svd_with_ranks};
pub use self::matrix::TtMatrix;
pub use self::shape::{DimFactors, TtShape};
pub use self::train::TensorTrain;
