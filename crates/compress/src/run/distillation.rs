//! Distillation of one layer, as an objective of the training loop.

use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_kernels::Kernels;
use lowrank_models::{ParamVisitor, Parameter};
use lowrank_train::{
    Alone, MicroBatch, Objective, SchedulerKind, Shard, Start, StepBatches, StepReport, TrainConfig,
    TrainError, Training, Watch, train,
};

use super::network::{Context, Network};
use super::recover::DistillOptions;
use crate::error::Result;
use crate::options::Progress;

/// The trained part of a layer: its own parameters, or adapters over it.
///
/// Only one layer of the network is loaded, and visiting the network as a module would initialize the others.
#[derive(Module, Debug)]
pub(super) struct Layer<B: Backend> {
    /// The layer's parameters, flat and in visiting order; empty if adapters are trained.
    parameters: Vec<Param<Tensor<B, 1>>>,
    adapters: AdapterSet<B>,
}

impl<B: Backend> Layer<B> {
    /// The adapters, or without them every parameter of the layer.
    pub(super) fn new(network: &mut Network<B>, layer: usize, adapters: Option<AdapterSet<B>>) -> Self {
        let mut take = Take { layer, parameters: Vec::new() };
        if adapters.is_none() {
            network.visit_params(&mut take);
        }
        Self { parameters: take.parameters, adapters: adapters.unwrap_or_else(AdapterSet::empty) }
    }
}

/// Copies the parameters out of a layer.
struct Take<B: Backend> {
    layer: usize,
    parameters: Vec<Param<Tensor<B, 1>>>,
}

impl<B: Backend> ParamVisitor<B> for Take<B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if at.module.layer == Some(self.layer) {
            let value = param.val();
            let flat = value.shape().num_elements();
            self.parameters.push(Param::from_tensor(value.detach().reshape([flat])));
        }
    }
}

/// Copies the parameters back into the layer.
struct Put<'a, B: Backend> {
    layer: usize,
    parameters: std::slice::Iter<'a, Param<Tensor<B, 1>>>,
    /// Whether they stay in the autodiff graph.
    is_tracked: bool,
}

impl<B: AutodiffBackend> ParamVisitor<B> for Put<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if at.module.layer != Some(self.layer) {
            return;
        }
        let Some(flat) = self.parameters.next() else { return };
        let shape: [usize; D] = param.dims();
        let value = if self.is_tracked { flat.val() } else { Tensor::from_inner(flat.val().inner()) };
        *param = Param::initialized(param.id, value.reshape(shape));
    }
}

/// `‖C(h̃) − D(h)‖² / ‖D(h)‖²`, one batch per step.
pub(super) struct Distillation<'a, B: AutodiffBackend + Kernels> {
    network: RefCell<Network<B>>,
    layer: usize,
    /// Per batch: the dense layer's output and the compressed layer's input.
    states: &'a [[Tensor<B, 2>; 2]],
    contexts: &'a [Context<B>],
}

impl<'a, B: AutodiffBackend + Kernels> Distillation<'a, B>
where
    B::InnerBackend: Kernels,
{
    pub(super) fn new(
        network: Network<B>,
        layer: usize,
        states: &'a [[Tensor<B, 2>; 2]],
        contexts: &'a [Context<B>],
    ) -> Self {
        Self { network: RefCell::new(network), layer, states, contexts }
    }

    /// Trains, and returns the network with the trained parameters, or unchanged if the loss is not finite.
    pub(super) fn run(
        self,
        model: Layer<B>,
        options: &DistillOptions,
        progress: &dyn Progress,
    ) -> Result<Network<B>> {
        let config = TrainConfig {
            lr: options.lr,
            max_steps: options.steps,
            warmup_ratio: 0.0,
            scheduler: SchedulerKind::Cosine,
            max_grad_norm: 0.0,
            eval_every: options.steps,
            ..TrainConfig::default()
        };
        let before = model.clone();
        let mut watch = Told { progress, layer: self.layer };
        let training = Training {
            config: &config,
            checkpoints: None,
            start: Start::Fresh,
            keep_last: false,
            watch: &mut watch,
            team: &Alone,
        };
        let (model, diverged) = match train::<B, _>(&self, model, training) {
            Ok((model, _)) => (model, false),
            Err(TrainError::Diverged { .. }) => (before, true),
            Err(error) => return Err(error.into()),
        };
        self.put(&model, false);
        let mut network = self.network.into_inner();
        if !diverged && model.parameters.is_empty() {
            network.merge(&model.adapters)?;
        }
        Ok(network)
    }

    fn put(&self, model: &Layer<B>, is_tracked: bool) {
        if !model.parameters.is_empty() {
            let parameters = model.parameters.iter();
            self.network.borrow_mut().visit_params(&mut Put { layer: self.layer, parameters, is_tracked });
        }
    }
}

impl<B: AutodiffBackend + Kernels> Objective<B> for Distillation<'_, B>
where
    B::InnerBackend: Kernels,
{
    type Model = Layer<B>;
    type Batch = usize;

    fn batches(&self, step: usize, shard: Shard) -> lowrank_train::Result<StepBatches<usize>> {
        let data = step % self.states.len();
        let tokens = self.states[data][1].dims()[0];
        let epoch = (step + 1) as f64 / self.states.len() as f64;
        // A layer's states are not divided.
        let micro = (shard.index() == 0).then_some(MicroBatch { data, weight: 1.0, tokens });
        Ok(StepBatches { micro: micro.into_iter().collect(), epoch })
    }

    fn loss(&self, model: &Layer<B>, &batch: &usize, _mode: Mode) -> lowrank_train::Result<Tensor<B, 1>> {
        self.put(model, true);
        let [target, x] = self.states[batch].clone();
        let network = self.network.borrow();
        let y = network.layer(self.layer, x, &self.contexts[batch], &model.adapters);
        let norm = target.clone().powf_scalar(2.0).mean();
        Ok((y - target).powf_scalar(2.0).mean() / norm)
    }
}

/// Forwards the steps to the job's progress.
struct Told<'a> {
    progress: &'a dyn Progress,
    layer: usize,
}

impl Watch for Told<'_> {
    fn step(&mut self, _report: &StepReport) -> lowrank_train::Result<()> {
        self.progress.done(&format!("layer {}", self.layer), None, 1);
        Ok(())
    }
}
