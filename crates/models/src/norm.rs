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
    gamma: Option<Param<Tensor<B, 1>>>,
    /// Shape `[d_model]`.
    beta: Option<Param<Tensor<B, 1>>>,
    eps: f64,
    #[module(skip)]
    kind: NormKind,
}

impl<B: Backend> Norm<B> {
    /// Gain 1, offset 0.
    pub fn init(kind: NormKind, d_model: usize, eps: f64, device: &B::Device) -> Self {
        let gain = if kind.is_plus_one() { 0.0 } else { 1.0 };
        let gamma = kind.has_gain().then(|| lazy_full([d_model], gain, device));
        let beta = kind.has_offset().then(|| lazy_full([d_model], 0.0, device));
        Self { gamma, beta, eps, kind }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, at: ModulePath<'_>, visitor: &mut V) {
        if let Some(gamma) = &mut self.gamma {
            visitor.visit(&at.parameter(Role::Gain, Layout::Same, None), gamma);
        }
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
        if self.kind.is_centered() {
            return self.forward_residual(x, None, None);
        }
        let gain = self.gain(&x);
        rms_norm(x, gain, self.eps)
    }

    /// What normed rows of the width of `x` are multiplied with.
    fn gain(&self, x: &Tensor<B, 2>) -> Tensor<B, 1> {
        match &self.gamma {
            Some(gamma) if self.kind.is_plus_one() => gamma.val() + 1.0,
            Some(gamma) => gamma.val(),
            None => Tensor::ones([x.dims()[1]], (&x.device(), x.dtype())),
        }
    }

    /// `norm(dropout(x) + residual)` of a layer norm.
    pub(crate) fn forward_residual(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2> {
        let gain = self.gain(&x);
        layer_norm(x, residual, gain, self.beta.as_ref().map(Param::val), self.eps, drop)
    }
}
