//! Norms over the hidden width.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, layer_norm, rms_norm};

use crate::config::NormKind;
use crate::params::lazy_full;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Role};

/// A norm with its gain, and its offset where it has one.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// Shape `[d_model]`.
    pub gamma: Param<Tensor<B, 1>>,
    /// Shape `[d_model]`; an RMS norm has none.
    pub beta: Option<Param<Tensor<B, 1>>>,
    eps: f64,
    /// Whether the gain is stored as its difference from 1.
    plus_one: bool,
}

impl<B: Backend> Norm<B> {
    /// Gain 1, offset 0.
    pub fn init(kind: NormKind, d_model: usize, eps: f64, device: &B::Device) -> Self {
        let beta = (kind == NormKind::Layer).then(|| lazy_full([d_model], 0.0, device));
        let plus_one = kind == NormKind::RmsPlusOne;
        let gamma = lazy_full([d_model], if plus_one { 0.0 } else { 1.0 }, device);
        Self { gamma, beta, eps, plus_one }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, at: ModulePath<'_>, visitor: &mut V) {
        visitor.visit(&at.parameter(Role::Gain, Layout::Same, None), &mut self.gamma);
        if let Some(beta) = &mut self.beta {
            visitor.visit(&at.parameter(Role::Offset, Layout::Same, None), beta);
        }
    }
}

impl<B: Kernels> Norm<B> {
    /// The norm of `x`.
    ///
    /// # Shapes
    /// - x, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.beta {
            Some(_) => self.forward_residual(x, None, None),
            None if self.plus_one => rms_norm(x, self.gamma.val() + 1.0, self.eps),
            None => rms_norm(x, self.gamma.val(), self.eps),
        }
    }

    /// `norm(dropout(x) + residual)` of a layer norm.
    pub(crate) fn forward_residual(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2> {
        layer_norm(x, residual, self.gamma.val(), self.beta.as_ref().map(Param::val), self.eps, drop)
    }
}
