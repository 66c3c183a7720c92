//! The tensors that a model keeps in memory, queried without copying them to the host.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use lowrank_kernels::BlockMatrix;
use lowrank_spec::names::WeightPart;

use crate::stored::Stored;
use crate::visit::{Layout, ParamVisitor, Parameter};

/// A quantized matrix of a model.
#[derive(Clone, Debug)]
pub struct InBlocks {
    /// Path of its module.
    pub module: String,
    /// Its part of the module's weight.
    pub part: WeightPart,
    /// The blocks, in the form of the forward pass.
    pub matrix: BlockMatrix,
    /// Whether its rows are in the file's order; otherwise it cannot be saved.
    pub is_in_order: bool,
}

impl InBlocks {
    /// A matrix of a visit, if it is quantized.
    pub(crate) fn of<B: Backend>(at: &Parameter<'_>, part: WeightPart, stored: &Stored<B>) -> Option<Self> {
        let matrix = stored.blocks()?;
        let layout = if matrix.is_transposed() { Layout::Transposed } else { Layout::Same };
        Some(Self {
            module: at.module.path.to_string(),
            part,
            matrix: matrix.clone(),
            is_in_order: at.blocks_layout() == Some(layout),
        })
    }

    /// Its key in a checkpoint.
    pub fn key(&self) -> String {
        self.part.key(&self.module)
    }
}

/// Collects the quantized matrices selected by a predicate; a shared factor at its owner.
pub(crate) struct GatherBlocks<F> {
    pub(crate) wanted: F,
    pub(crate) blocks: Vec<InBlocks>,
}

impl<B: Backend, F: Fn(&Parameter<'_>) -> bool> ParamVisitor<B> for GatherBlocks<F> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if let Some(part) = at.weight().filter(|_| (self.wanted)(at)) {
            self.blocks.extend(InBlocks::of(at, part, stored));
        }
    }
}

/// Sums the bytes of parameters; a shared factor counts at its owner.
#[derive(Default)]
pub(crate) struct Bytes(pub(crate) usize);

impl<B: Backend> ParamVisitor<B> for Bytes {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let size = match param.val().dtype() {
            DType::F64 => 8,
            DType::F16 | DType::BF16 => 2,
            _ => 4,
        };
        self.0 += param.lazy_shape().num_elements() * size;
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        match stored {
            Stored::Float(param) => self.visit(at, param),
            stored => self.0 += stored.blocks().map_or(0, |matrix| matrix.bytes().len()),
        }
    }
}
