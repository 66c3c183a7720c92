//! AdamW with parameter groups and clipping by the global norm.

use std::collections::HashMap;

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::record::{PrecisionSettings, Record};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use lowrank_kernels::{AdamW, AdamWState, Kernels, adamw_step};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::groups::{Groups, Rate};
use crate::record::PathStack;

/// AdamW (Loshchilov & Hutter 2019) over [`Groups`], with all gradients clipped to a joint norm.
#[derive(Clone, Debug)]
pub struct GroupedAdamW<B: Backend> {
    weight_decay: f64,
    head_ratio: f64,
    lora_plus: f64,
    max_grad_norm: f64,
    groups: Groups,
    step: usize,
    /// First and second moments, flat.
    moments: HashMap<ParamId, AdamWState<Tensor<B, 1>>>,
}

/// Adam's decay rates and the ε of its denominator: PyTorch's defaults.
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Moments by parameter path, and the number of steps behind them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AdamWRecord {
    step: usize,
    moments: Vec<(String, TensorData, TensorData)>,
}

impl<B: Backend> Record<B> for AdamWRecord {
    type Item<S: PrecisionSettings> = Self;

    fn into_item<S: PrecisionSettings>(self) -> Self {
        self
    }

    fn from_item<S: PrecisionSettings>(item: Self, _device: &B::Device) -> Self {
        item
    }
}

impl<B: Kernels> GroupedAdamW<B> {
    /// An optimizer without history.
    pub fn new(config: &TrainConfig, groups: Groups) -> Self {
        Self {
            weight_decay: config.weight_decay,
            head_ratio: config.head_lr.map_or(1.0, |lr| lr / config.lr),
            lora_plus: config.lora_plus.unwrap_or(1.0),
            max_grad_norm: config.max_grad_norm,
            groups,
            step: 0,
            moments: HashMap::new(),
        }
    }

    /// One step for the parameters that have a gradient, or have had one, at the base rate `lr`.
    pub fn step<A, M>(&mut self, lr: f64, module: M, grads: GradientsParams) -> M
    where
        A: AutodiffBackend<InnerBackend = B>,
        M: AutodiffModule<A>,
    {
        self.step += 1;
        let mut clip = 1.0;
        if self.max_grad_norm > 0.0 {
            let mut norm = SquaredNorm::<A> { grads: &grads, sum: None };
            module.visit(&mut norm);
            let square = norm.sum.and_then(|s| s.into_data().iter::<f64>().next()).unwrap_or(0.0);
            // As in PyTorch: the small term makes a norm of zero harmless.
            clip = (self.max_grad_norm / (square.sqrt() + 1e-6)).min(1.0);
        }
        module.map(&mut Update::<A> { optimizer: self, grads, lr, clip })
    }

    /// The moments of the parameters of `module`.
    pub fn to_record<A: Backend>(&self, module: &impl Module<A>) -> AdamWRecord {
        let moments = paths(module).into_iter().filter_map(|(path, id)| {
            let state = self.moments.get(&id)?;
            Some((path, state.mean.clone().into_data(), state.square.clone().into_data()))
        });
        AdamWRecord { step: self.step, moments: moments.collect() }
    }

    /// The optimizer with the history of a record; `module` gives the paths of the parameters.
    pub fn load_record<A: Backend>(
        mut self,
        record: AdamWRecord,
        module: &impl Module<A>,
        device: &Device<B>,
    ) -> Self {
        let ids: HashMap<String, ParamId> = paths(module).into_iter().collect();
        self.step = record.step;
        let state = |(path, mean, square): (String, TensorData, TensorData)| {
            let [mean, square] = [mean, square].map(|data| Tensor::from_data(data, device));
            Some((*ids.get(&path)?, AdamWState { mean, square }))
        };
        self.moments = record.moments.into_iter().filter_map(state).collect();
        self
    }
}

/// Paths and ids of the trained parameters.
fn paths<B: Backend>(module: &impl Module<B>) -> Vec<(String, ParamId)> {
    struct Paths(PathStack, Vec<(String, ParamId)>);
    impl<B: Backend> ModuleVisitor<B> for Paths {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.enter(name);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.is_require_grad() {
                self.1.push((self.0.path(), param.id));
            }
        }
    }
    let mut paths = Paths(PathStack::default(), Vec::new());
    module.visit(&mut paths);
    paths.1
}

/// Sum of squares of all gradients.
struct SquaredNorm<'a, B: AutodiffBackend> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for SquaredNorm<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            let square = (grad.clone() * grad).sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Update<'a, B: AutodiffBackend> {
    optimizer: &'a mut GroupedAdamW<B::InnerBackend>,
    grads: GradientsParams,
    lr: f64,
    clip: f64,
}

impl<B> ModuleMapper<B> for Update<'_, B>
where
    B: AutodiffBackend,
    B::InnerBackend: Kernels,
{
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let grad = self.grads.remove::<B::InnerBackend, D>(param.id);
        let optimizer = &mut *self.optimizer;
        // An expert without tokens in this step has a gradient of 0 and keeps moving by its moments, as in transformers, where
        // the experts of a layer are one tensor.
        if grad.is_none() && !optimizer.moments.contains_key(&param.id) {
            return param;
        }
        let group = optimizer.groups.get(param.id, D);
        let lr = match group.rate {
            Rate::Base => self.lr,
            Rate::Head => self.lr * optimizer.head_ratio,
            Rate::SecondFactor => self.lr * optimizer.lora_plus,
        };
        let settings = AdamW {
            lr,
            beta1: BETA_1,
            beta2: BETA_2,
            eps: EPSILON,
            weight_decay: if group.decays { optimizer.weight_decay } else { 0.0 },
            grad_scale: self.clip,
            step: optimizer.step,
        };
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.shape();
        let n = shape.num_elements();
        let device = tensor.device();
        let zeros = || Tensor::zeros([n], &device);
        let state =
            optimizer.moments.remove(&id).unwrap_or_else(|| AdamWState { mean: zeros(), square: zeros() });
        let value = tensor.inner().reshape([n]);
        let grad = grad.map_or_else(zeros, |grad| grad.reshape([n]));
        let (value, state) = adamw_step(value, grad, state, &settings);
        optimizer.moments.insert(id, state);
        let updated = Tensor::from_inner(value.reshape(shape)).require_grad();
        Param::from_mapped_value(id, updated, mapper)
    }
}
