//! AdamW with parameter groups and clipping by the global norm.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::prelude::*;
use burn::record::{PrecisionSettings, Record};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use lowrank_kernels::{AdamW, AdamWState, Kernels, adamw_step};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::tuner::{PathStack, is_head, is_lora_b};

/// AdamW (Loshchilov & Hutter 2019): decay on matrices only, learning rates of their own for the head and (LoRA+) for
/// `B`, the gradient of all parameters together clipped to a norm.
#[derive(Clone, Debug)]
pub struct GroupedAdamW<B: Backend> {
    weight_decay: f64,
    head_ratio: f64,
    lora_plus: f64,
    max_grad_norm: f64,
    step: usize,
    /// First and second moments by parameter path, flat.
    moments: HashMap<String, AdamWState<Tensor<B, 1>>>,
}

/// Adam's decay rates and the term that keeps the quotient finite: PyTorch's defaults.
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

impl<B: Backend> GroupedAdamW<B> {
    /// An optimizer without history.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            weight_decay: config.weight_decay,
            head_ratio: config.head_lr.map_or(1.0, |lr| lr / config.lr),
            lora_plus: config.lora_plus.unwrap_or(1.0),
            max_grad_norm: config.max_grad_norm,
            step: 0,
            moments: HashMap::new(),
        }
    }
}

/// Moments by parameter path, and how many steps made them.
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
    path: PathStack,
}

impl<B> ModuleMapper<B> for Update<'_, B>
where
    B: AutodiffBackend,
    B::InnerBackend: Kernels,
{
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else { return param };
        let path = self.path.path();
        let optimizer = &mut *self.optimizer;
        let lr = match () {
            () if is_head(&path) => self.lr * optimizer.head_ratio,
            () if is_lora_b(&path) => self.lr * optimizer.lora_plus,
            () => self.lr,
        };
        let settings = AdamW {
            lr,
            beta1: BETA_1,
            beta2: BETA_2,
            eps: EPSILON,
            // Biases and the gains and offsets of norms are vectors.
            weight_decay: if D >= 2 { optimizer.weight_decay } else { 0.0 },
            grad_scale: self.clip,
            step: optimizer.step,
        };
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.shape();
        let n = shape.num_elements();
        let device = tensor.device();
        let zeros = || Tensor::zeros([n], &device);
        let state =
            optimizer.moments.remove(&path).unwrap_or_else(|| AdamWState { mean: zeros(), square: zeros() });
        let value = tensor.inner().reshape([n]);
        let (value, state) = adamw_step(value, grad.reshape([n]), state, &settings);
        optimizer.moments.insert(path, state);
        let updated = Tensor::from_inner(value.reshape(shape)).require_grad();
        Param::from_mapped_value(id, updated, mapper)
    }
}

impl<M, B> Optimizer<M, B> for GroupedAdamW<B::InnerBackend>
where
    M: AutodiffModule<B>,
    B: AutodiffBackend,
    B::InnerBackend: Kernels,
{
    type Record = AdamWRecord;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.step += 1;
        let mut clip = 1.0;
        if self.max_grad_norm > 0.0 {
            let mut norm = SquaredNorm::<B> { grads: &grads, sum: None };
            module.visit(&mut norm);
            let square = norm.sum.and_then(|s| s.into_data().iter::<f64>().next()).unwrap_or(0.0);
            // As in PyTorch: the small term keeps a norm of zero harmless.
            clip = (self.max_grad_norm / (square.sqrt() + 1e-6)).min(1.0);
        }
        module.map(&mut Update::<B> { optimizer: self, grads, lr, clip, path: PathStack::default() })
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let mut grads = grads;
        let mut sum = GradientsParams::new();
        module.visit(&mut SumDevices { grads: &mut grads, sum: &mut sum });
        self.step(lr, module, sum)
    }

    fn to_record(&self) -> AdamWRecord {
        let mut moments: Vec<_> = self
            .moments
            .iter()
            .map(|(path, state)| {
                (path.clone(), state.mean.clone().into_data(), state.square.clone().into_data())
            })
            .collect();
        moments.sort_by(|a, b| a.0.cmp(&b.0));
        AdamWRecord { step: self.step, moments }
    }

    fn load_record(mut self, record: AdamWRecord) -> Self {
        let device = Default::default();
        self.step = record.step;
        self.moments = record
            .moments
            .into_iter()
            .map(|(path, mean, square)| {
                let [mean, square] = [mean, square].map(|data| Tensor::from_data(data, &device));
                (path, AdamWState { mean, square })
            })
            .collect();
        self
    }
}

/// Adds up the gradients of several devices.
struct SumDevices<'a> {
    grads: &'a mut MultiGradientsParams,
    sum: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for SumDevices<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some((grad, _)) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.sum.register(param.id, grad);
        }
    }
}
