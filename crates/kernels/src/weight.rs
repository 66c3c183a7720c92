//! The weight of a linear step, in any storage.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::blocks::BlockMatrix;
use crate::kernels::Kernels;
use crate::ops;
use crate::spec::{Gelu, LoraSpec};

/// A stored matrix `[d_input, d_output]`: the leaf of every form of a linear map.
///
/// `T` is a tensor, or a primitive of a backend.
#[derive(Clone, Debug)]
pub enum Weight<T> {
    /// Floats: f32, f16 or bf16; row-major or, as a transposed view, column-major.
    Float(T),
    /// Quantized blocks. They are frozen: they get no gradient.
    Blocks(BlockMatrix),
}

impl<T> Weight<T> {
    /// The floats, unless the weight is quantized.
    pub fn float(&self) -> Option<&T> {
        match self {
            Self::Float(tensor) => Some(tensor),
            Self::Blocks(_) => None,
        }
    }

    /// The same with other floats.
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Weight<U> {
        match self {
            Self::Float(tensor) => Weight::Float(f(tensor)),
            Self::Blocks(blocks) => Weight::Blocks(blocks),
        }
    }

    /// The same, with products that do not round their input.
    pub fn exact(self) -> Self {
        match self {
            Self::Blocks(blocks) => Self::Blocks(blocks.with_exact_products()),
            weight => weight,
        }
    }
}

impl<B: Backend> From<Tensor<B, 2>> for Weight<Tensor<B, 2>> {
    fn from(tensor: Tensor<B, 2>) -> Self {
        Self::Float(tensor)
    }
}

impl<T> From<BlockMatrix> for Weight<T> {
    fn from(blocks: BlockMatrix) -> Self {
        Self::Blocks(blocks)
    }
}

impl<B: Backend> Weight<Tensor<B, 2>> {
    /// `[d_input, d_output]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(tensor) => tensor.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// The transpose, over the same memory: this ties a head to an embedding.
    pub fn transpose(self) -> Self {
        match self {
            Self::Float(tensor) => Self::Float(tensor.transpose()),
            Self::Blocks(blocks) => Self::Blocks(blocks.transpose()),
        }
    }

    /// All elements as floats of a given type.
    pub fn to_tensor(&self, device: &B::Device, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(tensor) => tensor.clone().cast(dtype),
            Self::Blocks(blocks) => {
                Tensor::from_data(TensorData::new(blocks.to_floats(), blocks.dims()), (device, dtype))
            }
        }
    }
}

impl<B: Kernels> Weight<Tensor<B, 2>> {
    /// Some rows, in f32: an embedding lookup. A GPU gives zeros for numbers past the last row of a quantized weight.
    ///
    /// # Shapes
    /// - rows: `[tokens]`, below `d_input`
    /// - output: `[tokens, d_output]`
    #[track_caller]
    pub fn rows(&self, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        ops::rows_of(self.clone(), rows)
    }

    /// `x·w + bias`; see [`linear`](crate::linear).
    ///
    /// # Shapes
    /// - x: `[tokens, d_input]`, bias: `[d_output]`
    /// - output: `[tokens, d_output]`
    #[track_caller]
    pub fn linear(self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        ops::linear_of(x, self, bias)
    }

    /// `gelu(x·w + bias)`; see [`linear_gelu`](crate::linear_gelu).
    ///
    /// # Shapes
    /// - x: `[tokens, d_input]`, bias: `[d_output]`
    /// - output: `[tokens, d_output]`
    #[track_caller]
    pub fn linear_gelu(self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, kind: Gelu) -> Tensor<B, 2> {
        ops::linear_gelu_of(x, self, bias, kind)
    }

    /// `x·w + bias + scale·dropout(x)·a·b`; see [`linear_lora`](crate::linear_lora).
    ///
    /// # Shapes
    /// - x: `[tokens, d_input]`, bias: `[d_output]`
    /// - factors: `[d_input, rank]` and `[rank, d_output]`
    /// - output: `[tokens, d_output]`
    #[track_caller]
    pub fn linear_lora(
        self,
        x: Tensor<B, 2>,
        factors: [Tensor<B, 2>; 2],
        bias: Option<Tensor<B, 1>>,
        spec: LoraSpec,
    ) -> Tensor<B, 2> {
        ops::linear_lora_of(x, self, factors, bias, spec)
    }
}
