//! Hand-written kernels on plain slices, for backends whose tensors are in host memory.

pub(crate) mod attention;
pub(crate) mod blocks;
pub(crate) mod buffer;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod gemv;
pub(crate) mod head;
pub(crate) mod loss;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod simd;
pub(crate) mod team;
