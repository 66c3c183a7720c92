//! The trained tensors of a module on the host: the contents of a checkpoint.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::record::{PrecisionSettings, Record};
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

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

impl TrainedRecord {
    /// The parameters of `module` that require a gradient.
    pub fn of<B: Backend>(module: &impl Module<B>) -> Self {
        let mut collect = Collect { path: PathStack::default(), record: Self::default() };
        module.visit(&mut collect);
        collect.record
    }

    /// `module` with these values in place of all its trained ones.
    ///
    /// # Errors
    /// [`TrainError::Batch`] for a record of another model or method.
    pub fn restore<B: Backend, M: Module<B>>(&self, module: M) -> Result<M> {
        let other = |what: &str| {
            TrainError::Batch(format!(
                "the trained tensors of the checkpoint have other {what} than this run; use its settings"
            ))
        };
        let own = trained_shapes(&module);
        if !own.iter().map(|(path, _)| path).eq(self.tensors.iter().map(|(path, _)| path)) {
            return Err(other("names"));
        }
        if own.iter().zip(&self.tensors).any(|((_, shape), (_, data))| *shape != data.shape) {
            return Err(other("shapes"));
        }
        Ok(module.map(&mut Restore { record: self, next: 0 }))
    }
}

/// Numbers of trained and of all parameters.
pub fn count<B: Backend>(module: &impl Module<B>) -> (usize, usize) {
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
    let mut count = Count(0, 0);
    module.visit(&mut count);
    (count.0, count.1)
}

/// The path of the current parameter of a visitor.
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

/// Paths and shapes of the trained parameters.
fn trained_shapes<B: Backend>(module: &impl Module<B>) -> Vec<(String, Shape)> {
    struct Shapes(PathStack, Vec<(String, Shape)>);
    impl<B: Backend> ModuleVisitor<B> for Shapes {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.enter(name);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.is_require_grad() {
                self.1.push((self.0.path(), param.lazy_shape()));
            }
        }
    }
    let mut shapes = Shapes(PathStack::default(), Vec::new());
    module.visit(&mut shapes);
    shapes.1
}

/// Sets the trained parameters, in order.
struct Restore<'a> {
    record: &'a TrainedRecord,
    next: usize,
}

impl<B: Backend> ModuleMapper<B> for Restore<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if !param.is_require_grad() {
            return param;
        }
        let Some((_, data)) = self.record.tensors.get(self.next) else { return param };
        self.next += 1;
        let device = param.lazy_device();
        param.map(|_| Tensor::from_data(data.clone(), &device).require_grad())
    }
}
