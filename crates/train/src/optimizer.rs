//! AdamW with parameter groups and clipping by the global norm.

use std::collections::HashMap;

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::record::{PrecisionSettings, Record};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use lowrank_kernels::{AdamW, AdamWState, AdamWStep, Kernels, adamw_steps, clip_factor};
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

    /// One step for the parameters that have a gradient, or have had one, at the base rate `lr`. On GPUs nothing of it is
    /// read by the host.
    pub fn step<A, M>(&mut self, lr: f64, module: M, grads: GradientsParams) -> M
    where
        A: AutodiffBackend<InnerBackend = B>,
        M: AutodiffModule<A>,
    {
        self.step += 1;
        let mut taken = Take::<A> { optimizer: self, grads, lr, params: Vec::new(), steps: Vec::new() };
        let module = module.map(&mut taken);
        let Take { params, steps, .. } = taken;
        let clip = (self.max_grad_norm > 0.0).then(|| {
            let grads = steps.iter().filter_map(|step| step.grad.clone()).collect();
            clip_factor(grads, self.max_grad_norm)
        });
        let updated = adamw_steps(steps, clip.flatten());
        let mut put = Put::<B> { values: HashMap::with_capacity(params.len()) };
        for ((id, shape), (value, state)) in params.into_iter().zip(updated) {
            self.moments.insert(id, state);
            put.values.insert(id, (value, shape));
        }
        module.map(&mut put)
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

/// Takes the parameters that move out of the module, each with the only handle on its values, so that they can be updated
/// in place.
struct Take<'a, B: AutodiffBackend> {
    optimizer: &'a mut GroupedAdamW<B::InnerBackend>,
    grads: GradientsParams,
    lr: f64,
    params: Vec<(ParamId, Shape)>,
    /// As vectors.
    steps: Vec<AdamWStep<Tensor<B::InnerBackend, 1>>>,
}

impl<B> ModuleMapper<B> for Take<'_, B>
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
        let id = param.id;
        let group = optimizer.groups.get(id, D);
        let lr = match group.rate {
            Rate::Base => self.lr,
            Rate::Head => self.lr * optimizer.head_ratio,
            Rate::SecondFactor => self.lr * optimizer.lora_plus,
        };
        let options = AdamW {
            lr,
            beta1: BETA_1,
            beta2: BETA_2,
            eps: EPSILON,
            weight_decay: if group.decays { optimizer.weight_decay } else { 0.0 },
            grad_scale: 1.0,
            step: optimizer.step,
        };
        param.map(|tensor| {
            let (shape, device) = (tensor.shape(), tensor.device());
            let n = shape.num_elements();
            let zeros = || Tensor::zeros([n], &device);
            let state = optimizer.moments.remove(&id);
            let state = state.unwrap_or_else(|| AdamWState { mean: zeros(), square: zeros() });
            let (param, grad) = (tensor.inner().reshape([n]), grad.map(|grad| grad.reshape([n])));
            self.params.push((id, shape));
            self.steps.push(AdamWStep { param, grad, state, options });
            Tensor::empty([0; D], &device)
        })
    }
}

/// Puts the parameters back.
struct Put<B: Backend> {
    values: HashMap<ParamId, (Tensor<B, 1>, Shape)>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Put<B::InnerBackend> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        match self.values.remove(&param.id) {
            Some((value, shape)) => param.map(|_| Tensor::from_inner(value.reshape(shape)).require_grad()),
            None => param,
        }
    }
}
