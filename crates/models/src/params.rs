//! Parameters by their checkpoint keys: one walk over a model serves loading and saving.

use std::borrow::Cow;
use std::collections::BTreeSet;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::init::normal_values;
use lowrank_adapters::peft::{host_values, transpose};
use lowrank_checkpoint::{Checkpoint, NamedTensor};

use crate::error::{ModelError, Result};

/// How a tensor lies in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As in the model.
    Same,
    /// A linear weight: `(out, in)` in the file, `[in, out]` in the model.
    Transposed,
}

/// Something that visits every parameter of a model under its checkpoint key.
pub trait ParamIo<B: Backend> {
    /// Visits the parameter stored under `key`.
    fn param<const D: usize>(&mut self, key: &str, layout: Layout, param: &mut Param<Tensor<B, D>>);
}

/// A parameter that is drawn (normal, standard deviation `std`) only if nothing is loaded into it.
pub fn lazy_normal<B: Backend, const D: usize>(
    seed: u64,
    key: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let key = key.to_string();
    lazy(shape, device, move |n| normal_values(seed, &key, n, std))
}

/// A parameter that is filled with `value` only if nothing is loaded into it.
pub fn lazy_full<B: Backend, const D: usize>(
    shape: [usize; D],
    value: f32,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    lazy(shape, device, move |n| vec![value; n])
}

fn lazy<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
    values: impl Fn(usize) -> Vec<f32> + Send + Sync + 'static,
) -> Param<Tensor<B, D>> {
    let init = move |device: &B::Device, require_grad: bool| {
        let data = TensorData::new(values(shape.iter().product()), shape);
        Tensor::from_data(data, device).set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), false, shape.into())
}

/// Fills a model from a checkpoint, a tensor at a time, and notes what does not fit.
pub struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    device: &'a B::Device,
    used: BTreeSet<String>,
    missing: Vec<String>,
    problems: Vec<String>,
}

impl<'a, B: Backend> Loader<'a, B> {
    /// A loader from `checkpoint` onto `device`.
    pub fn new(checkpoint: &'a Checkpoint, device: &'a B::Device) -> Self {
        Self { checkpoint, device, used: BTreeSet::new(), missing: Vec::new(), problems: Vec::new() }
    }

    /// The name under which the checkpoint holds `key`: as it is, or with the old names of layer norms.
    fn resolve(&self, key: &str) -> Option<String> {
        if self.checkpoint.contains(key) {
            return Some(key.to_string());
        }
        let old = key.strip_suffix("LayerNorm.weight").map(|p| format!("{p}LayerNorm.gamma"));
        let old = old.or_else(|| key.strip_suffix("LayerNorm.bias").map(|p| format!("{p}LayerNorm.beta")));
        old.filter(|name| self.checkpoint.contains(name))
    }

    fn load<const D: usize>(
        &mut self,
        name: &str,
        layout: Layout,
        param: &mut Param<Tensor<B, D>>,
    ) -> Result<()> {
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        let mut wanted = shape.clone();
        if layout == Layout::Transposed {
            wanted.reverse();
        }
        let got = self.checkpoint.info(name).map(|i| i.shape.clone()).unwrap_or_default();
        if got != wanted {
            self.problems.push(format!("'{name}' has shape {got:?}, expected {wanted:?}"));
            return Ok(());
        }
        let values = match layout {
            Layout::Same => self.checkpoint.read_f32(name)?,
            Layout::Transposed => self.checkpoint.read_f32_transposed(name)?,
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        *param = Param::initialized(param.id, tensor);
        Ok(())
    }

    /// Ends the loading: an error if anything was misshaped, a key in `required` was missing, or the
    /// checkpoint holds a tensor that `is_extra` does not excuse. Returns the keys that kept their fresh
    /// values.
    pub fn finish(
        mut self,
        required: impl Fn(&str) -> bool,
        is_extra: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let (missing, fresh): (Vec<_>, Vec<_>) = self.missing.into_iter().partition(|k| required(k));
        let unexpected = self.checkpoint.names().filter(|n| !self.used.contains(*n) && !is_extra(n));
        self.problems.extend(missing.iter().map(|k| format!("missing '{k}'")));
        self.problems.extend(unexpected.map(|n| format!("unexpected '{n}'")));
        if self.problems.is_empty() {
            return Ok(fresh);
        }
        const SHOWN: usize = 12;
        let more = self.problems.len().saturating_sub(SHOWN);
        let mut details = self.problems[..self.problems.len() - more].join(", ");
        if more > 0 {
            details.push_str(&format!(", and {more} more"));
        }
        Err(ModelError::Tensors { path: self.checkpoint.path().to_path_buf(), details })
    }
}

impl<B: Backend> ParamIo<B> for Loader<'_, B> {
    fn param<const D: usize>(&mut self, key: &str, layout: Layout, param: &mut Param<Tensor<B, D>>) {
        let Some(name) = self.resolve(key) else {
            self.missing.push(key.to_string());
            return;
        };
        if let Err(error) = self.load(&name, layout, param) {
            self.problems.push(error.to_string());
        }
        self.used.insert(name);
    }
}

/// Gathers a model's tensors for a checkpoint, in PyTorch's layout.
#[derive(Default)]
pub struct Saver {
    /// What was gathered.
    pub tensors: Vec<NamedTensor<'static>>,
}

impl<B: Backend> ParamIo<B> for Saver {
    fn param<const D: usize>(&mut self, key: &str, layout: Layout, param: &mut Param<Tensor<B, D>>) {
        let mut shape: Vec<usize> = param.dims().to_vec();
        let mut data = host_values(param.val());
        if layout == Layout::Transposed {
            data = transpose(&data, shape[0], shape[1]);
            shape.reverse();
        }
        self.tensors.push(NamedTensor { name: key.to_string(), shape, data: Cow::Owned(data) });
    }
}
