//! Adam over parameters that are visited one by one.

use std::collections::HashMap;

use burn::module::{ModuleMapper, Param, ParamId};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_models::{ParamVisitor, Parameter};

const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// First and second moments, flat.
type Moments<B> = [Tensor<<B as AutodiffBackend>::InnerBackend, 1>; 2];

/// Adam (Kingma, Ba 2015). As a visitor of a model it updates the parameters of one layer, as a mapper all of a module.
pub(crate) struct Adam<B: AutodiffBackend> {
    layer: usize,
    step: i32,
    lr: f64,
    moments: HashMap<ParamId, Moments<B>>,
    grads: Option<B::Gradients>,
}

impl<B: AutodiffBackend> Adam<B> {
    /// For a layer, before its first step.
    pub(crate) fn new(layer: usize) -> Self {
        Self { layer, step: 0, lr: 0.0, moments: HashMap::new(), grads: None }
    }

    /// Begins a step.
    pub(crate) fn begin(&mut self, grads: B::Gradients, lr: f64) {
        self.grads = Some(grads);
        self.step += 1;
        self.lr = lr;
    }

    fn update<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Option<Param<Tensor<B, D>>> {
        let value = param.val();
        let grad = value.grad(self.grads.as_ref()?)?;
        let shape: [usize; D] = value.dims();
        let grad = grad.reshape([shape.iter().product::<usize>()]);
        let zeros = || [grad.zeros_like(), grad.zeros_like()];
        let [m, v] = self.moments.remove(&param.id).unwrap_or_else(zeros);
        let m = m * BETAS[0] + grad.clone() * (1.0 - BETAS[0]);
        let v = v * BETAS[1] + grad.clone() * grad * (1.0 - BETAS[1]);
        let correct = |beta: f64| 1.0 - beta.powi(self.step);
        let update =
            m.clone() * (self.lr / correct(BETAS[0])) / ((v.clone() / correct(BETAS[1])).sqrt() + EPSILON);
        self.moments.insert(param.id, [m, v]);
        let next = value.inner() - update.reshape(shape);
        Some(Param::initialized(param.id, Tensor::from_inner(next).require_grad()))
    }
}

impl<B: AutodiffBackend> ParamVisitor<B> for Adam<B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if at.module.layer == Some(self.layer)
            && let Some(next) = self.update(param)
        {
            *param = next;
        }
    }
}

impl<B: AutodiffBackend> ModuleMapper<B> for Adam<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        self.update(&param).unwrap_or(param)
    }
}
