//! Loading and saving of parameters, by the visit of a model.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::{DType, TensorData, bf16, f16};
use lowrank_adapters::peft::host_values;
use lowrank_checkpoint::{Checkpoint, Dtype, HostTensor};
use lowrank_spec::names::WeightPart;
use lowrank_spec::rng::normal_values;
use lowrank_spec::transpose;

use crate::error::{ModelError, Result, summary};
use crate::visit::{Layout, ParamVisitor, Parameter};

/// The type in which matrices are kept; arithmetic is in f32 whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes: 11 bits of precision, up to 65504.
    F16,
    /// 2 bytes: 8 bits of precision, the range of f32.
    Bf16,
}

impl WeightType {
    const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl std::str::FromStr for WeightType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("unknown type of weights '{name}'; expected f32, f16 or bf16")),
        }
    }
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

/// Magnitude from which f16 rounds to infinity: halfway between its largest number and the next power of two.
const F16_LIMIT: f32 = 65_520.0;

/// Fills a model from a checkpoint, a tensor at a time, and notes what does not fit.
pub struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    device: &'a B::Device,
    prefix: &'a str,
    /// Whether the checkpoint's names have the prefix.
    is_prefixed: bool,
    weights: WeightType,
    used: BTreeSet<String>,
    /// Factors that have been loaded, by their names in the file: others may share them.
    factors: BTreeMap<String, Tensor<B, 2>>,
    /// Keys that are read from a tensor of another name where the checkpoint does not hold them.
    aliases: BTreeMap<String, String>,
    missing: Vec<String>,
    problems: Vec<String>,
}

/// What a checkpoint and a model do not share.
#[derive(Clone, Debug, Default)]
pub struct Unmatched {
    /// Parameters of the model that the checkpoint does not hold.
    pub newly_initialized: Vec<String>,
    /// Tensors of the checkpoint that belong to a head that the model does not have.
    pub ignored: Vec<String>,
}

/// Beginnings of the names of heads that a checkpoint may hold beside the one that is loaded.
const OTHER_HEADS: [&str; 9] = [
    "qa_outputs.",
    "v_head.",
    "value_head.",
    "reward_head.",
    "score.",
    "classifier.",
    "pre_classifier.",
    "discriminator_predictions.",
    "generator_predictions.",
];

/// End of the names of entries in which some layers keep state other than parameters.
const EXTRA_STATE: &str = "_extra_state";

impl<'a, B: Backend> Loader<'a, B> {
    /// A loader from `checkpoint` onto `device`; the checkpoint may hold the keys with or without `prefix`.
    pub fn new(checkpoint: &'a Checkpoint, prefix: &'a str, device: &'a B::Device) -> Self {
        Self {
            checkpoint,
            device,
            prefix,
            is_prefixed: checkpoint.names().any(|name| name.starts_with(prefix)),
            weights: WeightType::F32,
            used: BTreeSet::new(),
            factors: BTreeMap::new(),
            aliases: BTreeMap::new(),
            missing: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Reads `key` from the tensor `other` where the checkpoint does not hold it.
    pub(crate) fn alias(&mut self, key: String, other: String) {
        self.aliases.insert(key, other);
    }

    /// Keeps matrices in this type.
    ///
    /// # Errors
    /// [`ModelError::Input`] where the backend has no tensors of it.
    pub fn with_weights(mut self, weights: WeightType) -> Result<Self> {
        if weights != WeightType::F32 && !B::supports_dtype(self.device, weights.dtype()) {
            return Err(ModelError::Input(format!(
                "the backend {} cannot keep weights in {:?}; keep them in f32",
                B::name(self.device),
                weights.dtype()
            )));
        }
        self.weights = weights;
        Ok(self)
    }

    /// The name under which the checkpoint would hold `key`.
    pub fn stored_key<'k>(&self, key: &'k str) -> &'k str {
        if self.is_prefixed { key } else { key.strip_prefix(self.prefix).unwrap_or(key) }
    }

    /// The name under which the checkpoint holds `key`, also by the old names of layer norms.
    fn resolve(&self, key: &str) -> Option<String> {
        let alias = self.aliases.get(key).filter(|other| self.checkpoint.contains(other));
        let key = self.stored_key(key);
        if self.checkpoint.contains(key) {
            return Some(key.to_string());
        }
        let old = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];
        old.iter()
            .find_map(|(new, old)| key.strip_suffix(new).map(|path| format!("{path}{old}")))
            .filter(|name| self.checkpoint.contains(name))
            .or_else(|| alias.cloned())
    }

    fn load<const D: usize>(
        &mut self,
        name: &str,
        at: &Parameter<'_>,
        param: &mut Param<Tensor<B, D>>,
    ) -> Result<()> {
        let layout = at.layout;
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
        // Vectors are small, and their arithmetic is not that of the matrix kernels.
        let dtype = if D >= 2 { self.weights.dtype() } else { DType::F32 };
        let data = self.read(name, layout, dtype, shape)?;
        let tensor: Tensor<B, D> = Tensor::from_data(data, (self.device, dtype));
        if matches!(at.weight(), Some(WeightPart::FactorA | WeightPart::FactorB)) {
            self.factors
                .insert(name.to_string(), tensor.clone().reshape([tensor.dims()[0], tensor.dims()[1]]));
        }
        *param = Param::initialized(param.id, tensor);
        Ok(())
    }

    /// The elements of a tensor in a type.
    fn read(&self, name: &str, layout: Layout, dtype: DType, shape: Vec<usize>) -> Result<TensorData> {
        let stored = self.checkpoint.info(name).map(|info| info.dtype);
        match (stored, dtype) {
            (Some(Dtype::F16), DType::F16) => {
                Ok(TensorData::new(self.read_halves(name, layout, f16::from_bits)?, shape))
            }
            (Some(Dtype::BF16), DType::BF16) => {
                Ok(TensorData::new(self.read_halves(name, layout, bf16::from_bits)?, shape))
            }
            _ => {
                let values = match layout {
                    Layout::Same => self.checkpoint.read_f32(name)?,
                    Layout::Transposed => self.checkpoint.read_f32_transposed(name)?,
                };
                let data = TensorData::new(values, shape);
                if dtype == DType::F16 && data.iter::<f32>().any(|x| x.is_finite() && x.abs() >= F16_LIMIT) {
                    return Err(ModelError::Input(format!(
                        "'{name}' has values beyond the range of f16; keep the weights in bf16 or f32"
                    )));
                }
                Ok(if dtype == DType::F32 { data } else { data.convert_dtype(dtype) })
            }
        }
    }

    /// Elements of two bytes as they are stored, without a detour over f32, which would take twice the memory.
    fn read_halves<T>(&self, name: &str, layout: Layout, from_bits: impl Fn(u16) -> T) -> Result<Vec<T>> {
        let bits = match layout {
            Layout::Same => self.checkpoint.read_bits(name)?,
            Layout::Transposed => self.checkpoint.read_bits_transposed(name)?,
        };
        // The standard library collects into the same memory.
        Ok(bits.into_iter().map(from_bits).collect())
    }

    /// Ends the loading: an error if anything was misshaped, a key in `required` was missing, or the
    /// checkpoint holds a tensor that `is_extra` does not excuse and that belongs to no other head.
    pub fn finish(
        mut self,
        required: impl Fn(&str) -> bool,
        is_extra: impl Fn(&str) -> bool,
    ) -> Result<Unmatched> {
        let (missing, newly_initialized): (Vec<_>, Vec<_>) =
            self.missing.into_iter().partition(|k| required(k));
        let unused = self.checkpoint.names().filter(|n| !self.used.contains(*n) && !is_extra(n));
        let unused = unused.filter(|n| !n.ends_with(EXTRA_STATE));
        let is_head = |name: &&str| OTHER_HEADS.iter().any(|head| name.starts_with(head));
        let (ignored, unexpected): (Vec<&str>, Vec<&str>) = unused.partition(is_head);
        let ignored = ignored.into_iter().map(str::to_string).collect();
        self.problems.extend(missing.iter().map(|k| format!("missing '{k}'")));
        self.problems.extend(unexpected.into_iter().map(|n| format!("unexpected '{n}'")));
        if self.problems.is_empty() {
            return Ok(Unmatched { newly_initialized, ignored });
        }
        let path = self.checkpoint.path().to_path_buf();
        Err(ModelError::Tensors { path, details: summary(&self.problems) })
    }
}

impl<B: Backend> ParamVisitor<B> for Loader<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let key = at.key();
        let Some(name) = self.resolve(&key) else {
            self.missing.push(key);
            return;
        };
        if let Err(error) = self.load(&name, at, param) {
            self.problems.push(error.to_string());
        }
        self.used.insert(name);
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, 2>>) {
        let shape: [usize; 2] = param.lazy_shape().dims();
        match self.factors.get(self.stored_key(&at.key())) {
            Some(tensor) if tensor.dims() == shape => {
                *param = Param::initialized(param.id, tensor.clone());
            }
            _ => self.visit(at, param),
        }
    }
}

/// Reads a parameter as it lies in the checkpoint.
pub fn host_tensor<B: Backend, const D: usize>(
    at: &Parameter<'_>,
    param: &Param<Tensor<B, D>>,
) -> HostTensor<'static> {
    let mut shape: Vec<usize> = param.dims().to_vec();
    let mut data = host_values(param.val());
    if at.layout == Layout::Transposed {
        data = transpose(&data, shape[0], shape[1]);
        shape.reverse();
    }
    HostTensor::new(at.key(), shape, data)
}

/// Gathers the tensors that a predicate wants, in PyTorch's layout; a shared factor at its owner.
pub struct Gather<F> {
    wanted: F,
    /// What was gathered.
    pub tensors: Vec<HostTensor<'static>>,
}

impl<F: Fn(&Parameter<'_>) -> bool> Gather<F> {
    /// Gathers where `wanted` says so.
    pub const fn new(wanted: F) -> Self {
        Self { wanted, tensors: Vec::new() }
    }
}

impl<B: Backend, F: Fn(&Parameter<'_>) -> bool> ParamVisitor<B> for Gather<F> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if (self.wanted)(at) {
            self.tensors.push(host_tensor(at, param));
        }
    }
}

/// Calls a function for each parameter, with whether it is trained, and sets whether it is.
pub struct Choose<F>(
    /// The choice.
    pub F,
);

impl<B: Backend, F: FnMut(&Parameter<'_>, bool) -> bool> ParamVisitor<B> for Choose<F> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let was = param.is_require_grad();
        let trained = (self.0)(at, was);
        if trained != was {
            *param = param.clone().set_require_grad(trained);
        }
    }
}
