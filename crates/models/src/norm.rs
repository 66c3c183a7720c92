//! Norms over the hidden width.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, layer_norm, rms_norm};

use crate::params::{Layout, ParamIo, lazy_full};

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Layer norm with gain and offset (Ba et al. 2016).
    Layer,
    /// RMS norm with gain (Zhang & Sennrich 2019).
    Rms,
}

/// A norm with its gain, and its offset where it has one.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// Shape `[d_model]`.
    pub gamma: Param<Tensor<B, 1>>,
    /// Shape `[d_model]`; an RMS norm has none.
    pub beta: Option<Param<Tensor<B, 1>>>,
    eps: f64,
}

impl<B: Backend> Norm<B> {
    /// Gain 1, offset 0.
    pub fn init(kind: NormKind, d_model: usize, eps: f64, device: &B::Device) -> Self {
        let beta = (kind == NormKind::Layer).then(|| lazy_full([d_model], 0.0, device));
        Self { gamma: lazy_full([d_model], 1.0, device), beta, eps }
    }

    pub(crate) fn walk<IO: ParamIo<B>>(&mut self, key: &str, io: &mut IO) {
        io.param(&format!("{key}.weight"), Layout::Same, &mut self.gamma);
        if let Some(beta) = &mut self.beta {
            io.param(&format!("{key}.bias"), Layout::Same, beta);
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
