//! What is trained: a classifier and its adapters as one burn module whose record holds trained tensors only.

use std::fmt;

use burn::module::{AutodiffModule, Devices, Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::record::{PrecisionSettings, Record};
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_data::pack::{Labels, PackedBatch};
use lowrank_kernels::{Kernels, cross_entropy};
use lowrank_models::batch::int_tensor;
use lowrank_models::{SequenceClassifier, TokenBatch};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::metrics::{EvalOutput, StepOutput};

/// A classifier with its adapters; parameters with a gradient are trained, the others are the frozen base.
#[derive(Clone, Debug)]
pub struct FineTuner<B: Backend> {
    parts: Parts<B>,
}

#[derive(Module, Debug)]
struct Parts<B: Backend> {
    model: SequenceClassifier<B>,
    adapters: AdapterSet<B>,
}

impl<B: Backend> FineTuner<B> {
    /// `model` with its trainable weights marked, and the adapters to train over it.
    pub fn new(model: SequenceClassifier<B>, adapters: AdapterSet<B>) -> Self {
        Self { parts: Parts { model, adapters } }
    }

    /// The classifier.
    pub fn model(&self) -> &SequenceClassifier<B> {
        &self.parts.model
    }

    /// The adapters.
    pub fn adapters(&self) -> &AdapterSet<B> {
        &self.parts.adapters
    }

    /// Full-size corrections brought back to their rank after a step; any other method stays as it is.
    ///
    /// # Errors
    /// A step that led to values that are not finite.
    pub fn project(mut self) -> Result<Self> {
        if self.parts.adapters.needs_projection() {
            self.parts.adapters = self.parts.adapters.project()?;
        }
        Ok(self)
    }

    /// Takes the two apart.
    pub fn into_parts(self) -> (SequenceClassifier<B>, AdapterSet<B>) {
        (self.parts.model, self.parts.adapters)
    }

    /// Numbers of trained and of all parameters.
    pub fn count(&self) -> (usize, usize) {
        #[derive(Default)]
        struct Count(usize, usize);
        impl<B: Backend> ModuleVisitor<B> for Count {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                let n = param.lazy_shape().num_elements();
                self.1 += n;
                if param.is_require_grad() {
                    self.0 += n;
                }
            }
        }
        let mut count = Count::default();
        self.visit(&mut count);
        (count.0, count.1)
    }
}

/// Whether a parameter path belongs to the task head, which has a learning rate of its own.
pub(crate) fn is_head(path: &str) -> bool {
    path.starts_with("model.dense") || path.starts_with("model.output")
}

/// Whether a parameter path belongs to the second factor of a LoRA, which LoRA+ moves faster.
pub(crate) fn is_lora_b(path: &str) -> bool {
    path.starts_with("adapters.") && path.contains(".Lora.") && path.ends_with(".b")
}

/// Trained tensors by parameter path.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainedRecord {
    /// Path and value.
    pub tensors: Vec<(String, TensorData)>,
}

impl<B: Backend> Record<B> for TrainedRecord {
    type Item<S: PrecisionSettings> = Self;

    fn into_item<S: PrecisionSettings>(self) -> Self {
        self
    }

    fn from_item<S: PrecisionSettings>(item: Self, _device: &B::Device) -> Self {
        item
    }
}

/// The path of the parameter that a visitor or mapper is at.
#[derive(Default)]
pub(crate) struct PathStack(Vec<String>);

impl PathStack {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn path(&self) -> String {
        self.0.join(".")
    }
}

struct Collect {
    path: PathStack,
    record: TrainedRecord,
}

impl<B: Backend> ModuleVisitor<B> for Collect {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            self.record.tensors.push((self.path.path(), param.val().into_data()));
        }
    }
}

struct Restore<'a> {
    path: PathStack,
    record: &'a TrainedRecord,
    next: usize,
}

impl<B: Backend> ModuleMapper<B> for Restore<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        match self.record.tensors.get(self.next) {
            Some((path, data)) if *path == self.path.path() && data.shape == param.lazy_shape() => {
                self.next += 1;
                let device = param.lazy_device();
                param.map(|_| Tensor::from_data(data.clone(), &device).require_grad())
            }
            // A record of another model; the caller compares the numbers of tensors.
            _ => param,
        }
    }
}

impl<B: Backend> FineTuner<B> {
    /// Restores trained tensors, all of them or none.
    ///
    /// # Errors
    /// [`TrainError::Batch`] when the record belongs to another model or method.
    pub fn restore(&mut self, record: &TrainedRecord) -> Result<()> {
        let mut count = Paths { path: PathStack::default(), paths: Vec::new() };
        self.visit(&mut count);
        if !count.paths.iter().eq(record.tensors.iter().map(|(path, _)| path)) {
            return Err(TrainError::Batch("the checkpoint holds other trained tensors than this run".into()));
        }
        let mut mapper = Restore { path: PathStack::default(), record, next: 0 };
        *self = self.clone().map(&mut mapper);
        if mapper.next == record.tensors.len() {
            Ok(())
        } else {
            Err(TrainError::Batch(
                "the checkpoint holds trained tensors of other shapes than this run".into(),
            ))
        }
    }
}

struct Paths {
    path: PathStack,
    paths: Vec<String>,
}

impl<B: Backend> ModuleVisitor<B> for Paths {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            self.paths.push(self.path.path());
        }
    }
}

impl<B: Backend> Module<B> for FineTuner<B> {
    type Record = TrainedRecord;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.parts.collect_devices(devices)
    }

    fn fork(self, device: &B::Device) -> Self {
        Self { parts: self.parts.fork(device) }
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self { parts: self.parts.to_device(device) }
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        self.parts.visit(visitor);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        Self { parts: self.parts.map(mapper) }
    }

    fn load_record(self, record: TrainedRecord) -> Self {
        let mut mapper = Restore { path: PathStack::default(), record: &record, next: 0 };
        self.map(&mut mapper)
    }

    fn into_record(self) -> TrainedRecord {
        let mut collect = Collect { path: PathStack::default(), record: TrainedRecord::default() };
        self.visit(&mut collect);
        collect.record
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for FineTuner<B> {
    type InnerModule = FineTuner<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        FineTuner { parts: self.parts.valid() }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self { parts: Parts::from_inner(module.parts) }
    }
}

impl<B: Backend> fmt::Display for FineTuner<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trained, total) = self.count();
        write!(f, "{trained} of {total} parameters are trained")
    }
}

/// One batch of a training step.
#[derive(Clone, Debug)]
pub struct TrainItem {
    /// Packed sequences with labels.
    pub batch: PackedBatch,
    /// Seed of this batch's dropout masks.
    pub seed: u64,
    /// Weight of this batch's loss in the step, 1 / number of accumulated batches.
    pub weight: f64,
    /// Epochs of data seen at the end of this batch.
    pub epoch: f64,
}

/// Mean loss of a batch: cross-entropy, or squared error for scores. Shape `[1]`.
///
/// # Errors
/// A batch that does not fit the model, or has no labels.
pub fn loss<B: Kernels>(logits: Tensor<B, 2>, labels: &Labels) -> Result<Tensor<B, 1>> {
    let device = logits.device();
    match labels {
        Labels::Classes(classes) => {
            let targets = int_tensor(classes.iter().map(|&c| c as i32).collect(), &device);
            Ok(cross_entropy(logits, targets))
        }
        Labels::Scores(scores) => {
            let n = scores.len();
            let targets = Tensor::<B, 1>::from_data(TensorData::new(scores.clone(), [n]), &device);
            Ok((logits.reshape([n]) - targets).powi_scalar(2).mean())
        }
        Labels::None => Err(TrainError::Batch("a batch without labels has no loss".into())),
    }
}

/// The packed batch on the device.
///
/// # Errors
/// Ids or lengths that the model does not take.
pub fn to_device<B: Backend>(
    model: &SequenceClassifier<B>,
    batch: &PackedBatch,
    device: &B::Device,
) -> Result<TokenBatch<B>> {
    Ok(TokenBatch::new(model.config(), &batch.ids, &batch.type_ids, &batch.lengths, device)?)
}

impl<B: Kernels> FineTuner<B> {
    /// Logits of a batch, shape `[sequences, labels]`.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn logits(&self, batch: &PackedBatch, mode: Mode) -> Result<Tensor<B, 2>> {
        let Some(device) = self.devices().into_iter().next() else {
            return Err(TrainError::Batch("the model has no parameters".into()));
        };
        let tokens = to_device(self.model(), batch, &device)?;
        Ok(self.model().forward(&tokens, self.adapters(), mode))
    }
}

impl<B> TrainStep for FineTuner<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Input = TrainItem;
    type Output = StepOutput<B::InnerBackend>;

    fn step(&self, item: TrainItem) -> TrainOutput<Self::Output> {
        // Batches are checked when they are made; burn-train's step has no way to return an error.
        #[allow(
            clippy::expect_used,
            reason = "the loader hands out labelled batches within the model's limits"
        )]
        let loss = self
            .logits(&item.batch, Mode::train(item.seed))
            .and_then(|logits| loss(logits, &item.batch.labels))
            .expect("a training batch fits its model");
        let output = StepOutput { loss: loss.clone().inner(), epoch: item.epoch };
        TrainOutput::new(self, (loss * item.weight).backward(), output)
    }
}

impl<B: Kernels> InferenceStep for FineTuner<B> {
    type Input = PackedBatch;
    type Output = EvalOutput;

    fn step(&self, _batch: PackedBatch) -> EvalOutput {
        // Metrics such as Matthews' correlation are no means over batches: the strategy evaluates a data set
        // as a whole and hands the result on as one item.
        EvalOutput::default()
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::Flex;
    use lowrank_adapters::{AdapterConfig, Method, NoWeights, Pattern, Site, Targets};

    use super::*;

    #[test]
    fn the_second_factor_of_a_lora_is_found_by_its_path() {
        let site = Site {
            path: "query".into(),
            layer: None,
            d_input: 4,
            d_output: 6,
            head: false,
            embedding: false,
        };
        let targets = Targets::new(Pattern::parse("query"));
        let config = AdapterConfig { rank: 2, ..AdapterConfig::new(Method::Lora, targets) };
        let set =
            AdapterSet::<Autodiff<Flex>>::init(&config, &[site], &NoWeights, &Default::default()).unwrap();
        let mut paths = Paths { path: PathStack::default(), paths: Vec::new() };
        paths.path.enter("adapters");
        set.visit(&mut paths);
        let found: Vec<bool> = paths.paths.iter().map(|path| is_lora_b(path)).collect();
        assert_eq!(found, [false, true], "{:?}", paths.paths);
    }
}
