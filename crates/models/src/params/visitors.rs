//! What is done to all parameters of a model: collecting them, choosing which are trained, changing their storage.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use lowrank_adapters::peft::host_values;
use lowrank_checkpoint::HostTensor;
use lowrank_kernels::BlockFormat;

use super::{host_tensor, in_rows, oriented, quantize};
use crate::kept::InBlocks;
use crate::stored::Stored;
use crate::visit::{Layout, ParamVisitor, Parameter, Role};

/// Collects the tensors selected by a predicate, in PyTorch's layout; a shared factor at its owner.
pub struct Gather<F> {
    wanted: F,
    /// The floats.
    pub tensors: Vec<HostTensor<'static>>,
    /// The quantized matrices.
    pub blocks: Vec<InBlocks>,
}

impl<F: Fn(&Parameter<'_>) -> bool> Gather<F> {
    /// Collects the tensors selected by `wanted`.
    pub const fn new(wanted: F) -> Self {
        Self { wanted, tensors: Vec::new(), blocks: Vec::new() }
    }
}

impl<B: Backend, F: Fn(&Parameter<'_>) -> bool> ParamVisitor<B> for Gather<F> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if (self.wanted)(at) {
            self.tensors.push(host_tensor(at, param));
        }
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        match (stored, at.weight()) {
            (Stored::Float(param), _) => self.visit(at, param),
            (stored, Some(part)) if (self.wanted)(at) => self.blocks.extend(InBlocks::of(at, part, stored)),
            _ => {}
        }
    }
}

/// Calls a function for each parameter with its current trainability, and sets the returned one.
pub struct Choose<F>(
    /// The choice.
    pub F,
);

impl<B: Backend, F: FnMut(&Parameter<'_>, bool) -> bool> ParamVisitor<B> for Choose<F> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let was = param.is_require_grad();
        let trained = at.role != Role::Constant && (self.0)(at, was);
        if trained != was {
            // A trained parameter is in f32, as its gradient and its moments are.
            let floats = match param.val().dtype() {
                DType::F32 => param.clone(),
                _ if trained => param.clone().map(|value| value.cast(DType::F32)),
                _ => param.clone(),
            };
            *param = floats.set_require_grad(trained);
        }
    }
}

/// Dequantizes matrices that are to be changed or trained.
pub struct ToFloats;

impl<B: Backend> ParamVisitor<B> for ToFloats {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, _at: &Parameter<'_>, stored: &mut Stored<B>) {
        if stored.blocks().is_some() {
            *stored = Stored::of_tensor(stored.to_tensor());
        }
    }
}

/// Quantizes float matrices to the formats chosen by a function.
pub struct ToBlocks<F> {
    choose: F,
    /// Matrices that could not be quantized.
    pub problems: Vec<String>,
}

impl<F: Fn(&Parameter<'_>) -> Option<BlockFormat>> ToBlocks<F> {
    /// Quantizes to the formats returned by `choose`.
    pub const fn new(choose: F) -> Self {
        Self { choose, problems: Vec::new() }
    }
}

impl<B: Backend, F: Fn(&Parameter<'_>) -> Option<BlockFormat>> ParamVisitor<B> for ToBlocks<F> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        let (Some(layout), Some(format), None) = (at.blocks_layout(), (self.choose)(at), stored.blocks())
        else {
            return;
        };
        let values = stored.to_tensor();
        let values = if layout == Layout::Transposed { values.transpose() } else { values };
        match quantize(format, in_rows(stored.dims(), layout), &host_values(values.detach())) {
            Ok(matrix) => *stored = oriented(matrix, layout).into(),
            Err(error) => self.problems.push(format!("'{}': {error}", at.key())),
        }
    }
}
