//! What a step and an evaluation hand to burn-train's metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::train::metric::{
    Adaptor, ItemLazy, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};

/// The result of a training step, still on the device.
#[derive(Debug)]
pub struct StepOutput<B: Backend> {
    /// Mean loss, shape `[1]`.
    pub loss: Tensor<B, 1>,
    /// Epochs of data seen.
    pub epoch: f64,
}

/// The result of a training step on the host.
#[derive(Clone, Copy, Debug)]
pub struct StepValues {
    /// Mean loss.
    pub loss: f64,
    /// Epochs of data seen.
    pub epoch: f64,
}

impl<B: Backend> ItemLazy for StepOutput<B> {
    type ItemSync = StepValues;

    fn sync(self) -> StepValues {
        let loss = self.loss.into_data().iter::<f64>().next().unwrap_or(f64::NAN);
        StepValues { loss, epoch: self.epoch }
    }
}

/// The result of evaluating a whole data set: its loss and metrics by name.
#[derive(Clone, Debug, Default)]
pub struct EvalOutput {
    /// `loss` and the task's metrics.
    pub values: BTreeMap<String, f64>,
}

impl ItemLazy for EvalOutput {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl Adaptor<StepValues> for StepValues {
    fn adapt(&self) -> StepValues {
        *self
    }
}

impl Adaptor<EvalOutput> for EvalOutput {
    fn adapt(&self) -> EvalOutput {
        self.clone()
    }
}

/// A number taken as it is from each item: no average over items.
#[derive(Clone)]
pub struct Plain<I> {
    name: MetricName,
    higher_is_better: bool,
    read: fn(&str, &I, &MetricMetadata) -> f64,
    value: f64,
}

impl<I> Plain<I> {
    /// A metric called `name` whose value `read` takes from an item.
    pub fn new(name: &str, higher_is_better: bool, read: fn(&str, &I, &MetricMetadata) -> f64) -> Self {
        Self { name: Arc::new(name.to_string()), higher_is_better, read, value: f64::NAN }
    }
}

impl Plain<EvalOutput> {
    /// A metric of an evaluation.
    pub fn evaluation(name: &str, higher_is_better: bool) -> Self {
        Self::new(name, higher_is_better, |name, item, _| item.values.get(name).copied().unwrap_or(f64::NAN))
    }
}

impl<I: Clone + Send + Sync> Metric for Plain<I> {
    type Input = I;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: self.higher_is_better }.into()
    }

    fn update(&mut self, item: &I, metadata: &MetricMetadata) -> SerializedEntry {
        self.value = (self.read)(&self.name, item, metadata);
        SerializedEntry::new(format!("{:.4}", self.value), self.value.to_string())
    }

    fn clear(&mut self) {
        self.value = f64::NAN;
    }
}

impl<I> Numeric for Plain<I> {
    fn value(&self) -> NumericEntry {
        NumericEntry::Value(self.value)
    }

    fn running_value(&self) -> NumericEntry {
        self.value()
    }
}
