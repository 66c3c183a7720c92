//! Leaves of the forms: float or quantized matrices.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::DType;
use lowrank_kernels::{BlockMatrix, Weight};

/// A frozen quantized matrix, with the shape of the forward pass.
#[derive(Module, Clone, Debug)]
pub struct Blocks {
    matrix: BlockMatrix,
}

/// A stored matrix of a form.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful in each layer; burn's modules cannot be boxed")]
pub enum Stored<B: Backend> {
    /// f32, f16 or bf16; trained if it requires a gradient.
    Float(Param<Tensor<B, 2>>),
    /// Quantized blocks, always frozen.
    Blocks(Blocks),
}

impl<B: Backend> From<BlockMatrix> for Stored<B> {
    fn from(matrix: BlockMatrix) -> Self {
        Self::Blocks(Blocks { matrix })
    }
}

impl<B: Backend> From<Param<Tensor<B, 2>>> for Stored<B> {
    fn from(param: Param<Tensor<B, 2>>) -> Self {
        Self::Float(param)
    }
}

impl<B: Backend> Stored<B> {
    /// Floats that do not require a gradient.
    pub(crate) fn of_tensor(tensor: Tensor<B, 2>) -> Self {
        Self::Float(Param::initialized(ParamId::new(), tensor))
    }

    /// The shape of the matrix.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(param) => param.lazy_shape().dims(),
            Self::Blocks(blocks) => blocks.matrix.dims(),
        }
    }

    /// The blocks, if it is quantized.
    pub fn blocks(&self) -> Option<&BlockMatrix> {
        match self {
            Self::Float(_) => None,
            Self::Blocks(blocks) => Some(&blocks.matrix),
        }
    }

    /// The matrix in the form expected by the kernels, over the same memory.
    pub fn weight(&self) -> Weight<Tensor<B, 2>> {
        match self {
            Self::Float(param) => Weight::Float(param.val()),
            Self::Blocks(blocks) => Weight::Blocks(blocks.matrix.clone()),
        }
    }

    /// The elements in f32; those of blocks on the backend's default device.
    pub fn to_tensor(&self) -> Tensor<B, 2> {
        match self {
            Self::Float(param) => param.val().cast(DType::F32),
            Self::Blocks(_) => self.weight().to_tensor(&B::Device::default(), DType::F32),
        }
    }

    /// The same over the same memory, with products that do not round their input.
    pub(crate) fn exact(&self) -> Self {
        match self {
            Self::Float(param) => Self::Float(param.clone()),
            Self::Blocks(blocks) => blocks.matrix.clone().with_exact_products().into(),
        }
    }

    /// The transpose, over the same memory.
    pub fn transposed(&self) -> Self {
        match self {
            Self::Float(param) => Self::of_tensor(param.val().transpose()),
            Self::Blocks(blocks) => blocks.matrix.clone().transpose().into(),
        }
    }
}
