//! Loading and saving of parameters by visiting a model.

mod visitors;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::{DType, TensorData, bf16, f16};
use lowrank_adapters::peft::host_values;
use lowrank_checkpoint::{Checkpoint, Dtype, HostTensor};
use lowrank_kernels::{BlockFormat, BlockMatrix, KernelError};
use lowrank_spec::names::{WeightPart, is_router, old_prefix};
use lowrank_spec::rng::normal_values;
use lowrank_spec::{LowrankSection, transpose};

use crate::error::{ModelError, Result, summary};
use crate::linear::block_format;
use crate::stored::Stored;
use crate::visit::{Layout, ParamVisitor, Parameter, Part};

pub use self::visitors::{Choose, Gather, ToBlocks, ToFloats};

/// The storage type of matrices; arithmetic is always in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes: 11 bits of precision, up to 65504.
    F16,
    /// 2 bytes: 8 bits of precision, the range of f32.
    Bf16,
    /// Dense linear maps inside the layers, except routers, are quantized and frozen; other matrices keep the
    /// type of the file. Rows that are not a multiple of the format's blocks take the [fallback
    /// format](BlockFormat::fitting).
    Blocks(BlockFormat),
}

impl WeightType {
    /// Whether a backend can keep weights in this type.
    pub fn is_kept_by<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, self.dtype(None))
    }

    /// The float type; `stored` is that of the file.
    fn dtype(self, stored: Option<Dtype>) -> DType {
        match (self, stored) {
            (Self::F16, _) | (Self::Blocks(_), Some(Dtype::F16)) => DType::F16,
            (Self::Bf16, _) | (Self::Blocks(_), Some(Dtype::BF16)) => DType::BF16,
            (Self::F32 | Self::Blocks(_), _) => DType::F32,
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
            _ => {
                let format = BlockFormat::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name));
                let known = || BlockFormat::ALL.map(BlockFormat::name).join(", ");
                format.map(Self::Blocks).ok_or_else(|| {
                    format!(
                        "unknown type of weights '{name}'; expected f32, f16, bf16, or one of {}",
                        known()
                    )
                })
            }
        }
    }
}

/// A parameter that is randomly initialized (normal, standard deviation `std`) unless a value is loaded.
pub(crate) fn lazy_normal<B: Backend, const D: usize>(
    seed: u64,
    key: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let key = key.to_string();
    lazy(shape, device, move |n| normal_values(seed, &key, n, std))
}

/// A parameter that is filled with `value` unless a value is loaded.
pub(crate) fn lazy_full<B: Backend, const D: usize>(
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

/// Whether `missing` is the beginning of a prefix, in whole parts.
pub(crate) fn is_beginning(missing: &str, prefix: &str) -> bool {
    prefix.starts_with(missing) && (missing.is_empty() || missing.ends_with('.'))
}

/// Magnitude from which f16 rounds to infinity: halfway between its largest number and the next power of two.
const F16_LIMIT: f32 = 65_520.0;

/// Loads a model from a checkpoint, one tensor at a time, and records mismatches.
pub struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    device: &'a B::Device,
    prefix: &'a str,
    /// The part of the prefix that the checkpoint's names have.
    stored_prefix: &'a str,
    weights: WeightType,
    /// The quantized parts of modules.
    section: Option<&'a LowrankSection>,
    used: BTreeSet<String>,
    /// Loaded factors, by their names in the file: others may share them.
    factors: BTreeMap<String, Stored<B>>,
    /// Keys that are read from a tensor of another name if the checkpoint does not contain them.
    aliases: BTreeMap<String, String>,
    missing: Vec<String>,
    problems: Vec<String>,
}

/// Differences between a checkpoint and a model.
#[derive(Clone, Debug, Default)]
pub struct Unmatched {
    /// Parameters of the model that the checkpoint does not contain.
    pub newly_initialized: Vec<String>,
    /// Tensors of the checkpoint that belong to a head that the model does not have.
    pub ignored: Vec<String>,
}

/// Prefixes of heads that a checkpoint may contain beside the one that is loaded.
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

/// Suffix of a table of rotary angles that some checkpoints hold.
const SINUSOIDS: &str = "encoder.embed_positions.weight";

/// Rounding to bf16 changes a number of size 1 by up to 2⁻⁸.
const SINUSOID_TOLERANCE: f64 = 5e-3;

/// Suffix of entries in which some layers store state other than parameters.
const EXTRA_STATE: &str = "_extra_state";

/// A key without the prefix of its stack.
pub(crate) fn without_prefix<'k>(key: &'k str, prefix: &str) -> &'k str {
    key.strip_prefix(prefix).or_else(|| key.strip_prefix(old_prefix(prefix)?)).unwrap_or(key)
}

impl<'a, B: Backend> Loader<'a, B> {
    /// A loader from `checkpoint` onto `device`; the checkpoint may have the keys with `prefix`, its end, an older one, or
    /// without.
    pub fn new(checkpoint: &'a Checkpoint, prefix: &'a str, device: &'a B::Device) -> Self {
        let mut stored_prefix = prefix;
        while !checkpoint.names().any(|name| name.starts_with(stored_prefix)) {
            stored_prefix = stored_prefix.split_once('.').map_or("", |(_, end)| end);
        }
        let loader = Self {
            checkpoint,
            device,
            prefix,
            stored_prefix,
            weights: WeightType::F32,
            section: None,
            used: BTreeSet::new(),
            factors: BTreeMap::new(),
            aliases: BTreeMap::new(),
            missing: Vec::new(),
            problems: Vec::new(),
        };
        match old_prefix(prefix) {
            Some(old) => loader.with_other_prefix(old),
            None => loader,
        }
    }

    /// The same for a checkpoint that may have the keys with this prefix too.
    pub(crate) fn with_other_prefix(mut self, other: &'a str) -> Self {
        let has = |prefix: &str| self.checkpoint.names().any(|name| name.starts_with(prefix));
        if self.stored_prefix.is_empty() && has(other) {
            self.stored_prefix = other;
        }
        self
    }

    /// Reads `key` from the tensor `other` if the checkpoint does not contain it.
    pub fn alias(&mut self, key: String, other: String) {
        self.aliases.insert(key, other);
    }

    /// Reads the parts that the section of the model's config lists as quantized without conversion.
    pub(crate) fn with_section(mut self, section: &'a LowrankSection) -> Self {
        self.section = Some(section);
        self
    }

    /// Stores matrices in this type.
    ///
    /// # Errors
    /// [`ModelError::Input`] if the backend does not support it.
    pub fn with_weights(mut self, weights: WeightType) -> Result<Self> {
        if !weights.is_kept_by::<B>(self.device) {
            return Err(ModelError::Input(format!(
                "the backend {} cannot keep weights in {:?}; keep them in f32",
                B::name(self.device),
                weights.dtype(None)
            )));
        }
        self.weights = weights;
        Ok(self)
    }

    /// The name under which the checkpoint would store `key`.
    pub fn stored_key<'k>(&self, key: &'k str) -> Cow<'k, str> {
        match key.strip_prefix(self.prefix) {
            Some(rest) if self.prefix != self.stored_prefix => format!("{}{rest}", self.stored_prefix).into(),
            _ => key.into(),
        }
    }

    /// The name under which the checkpoint stores `key`, including the old names of layer norms.
    fn resolve(&self, key: &str) -> Option<String> {
        let alias = self.aliases.get(key).filter(|other| self.checkpoint.contains(other));
        let key = self.stored_key(key);
        if self.checkpoint.contains(&key) {
            return Some(key.into_owned());
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
        self.check_shape(name, &shape, layout)?;
        // Only the kernels of weights read other types; everything else takes part in f32 arithmetic.
        let stored = self.checkpoint.info(name).map(|info| info.dtype);
        let dtype = if D >= 2 && at.weight().is_some() { self.weights.dtype(stored) } else { DType::F32 };
        let dtype = if B::supports_dtype(self.device, dtype) { dtype } else { DType::F32 };
        let data = self.read(name, layout, dtype, shape)?;
        let tensor: Tensor<B, D> = Tensor::from_data(data, (self.device, dtype));
        *param = Param::initialized(param.id, tensor);
        Ok(())
    }

    /// Checks the shape of a tensor in the file against that in the model.
    fn check_shape(&self, name: &str, shape: &[usize], layout: Layout) -> Result<()> {
        let wanted = layout.in_file(shape);
        let Some(info) = self.checkpoint.info(name) else { return Ok(()) };
        if info.dtype == Dtype::U8 && shape.len() == 2 {
            return Err(ModelError::Input(format!(
                "'{name}' is {} bytes, and config.json names no block format for it",
                info.dtype
            )));
        }
        if info.shape != wanted {
            let got = &info.shape;
            return Err(ModelError::Input(format!("'{name}' has shape {got:?}, expected {wanted:?}")));
        }
        Ok(())
    }

    /// Loads a matrix in its storage type.
    fn load_stored(&mut self, name: &str, at: &Parameter<'_>, stored: &mut Stored<B>) -> Result<()> {
        let entry = self.section.and_then(|section| section.find(at.module.path));
        let format = at.weight().zip(entry).and_then(|(part, (_, entry))| entry.formats.get(part.name()));
        let layout = at.blocks_layout();
        let typed = match self.checkpoint.info(name).map(|info| info.dtype) {
            Some(Dtype::Block(format)) => Some(format),
            _ => None,
        };
        if let (Some(format), Some(layout)) = (typed, layout) {
            *stored = self.read_blocks(name, stored.dims(), layout, format)?.into();
        } else if let (Some(format), Some(layout)) = (format, layout) {
            let format = block_format(format).map_err(ModelError::Input)?;
            *stored = self.read_blocks(name, stored.dims(), layout, format)?.into();
        } else if let (Some(format), Some(layout)) = (self.rounds_to(at), layout)
            && let [rows, columns] = in_rows(stored.dims(), layout)
            && let Some(format) = format.fitting(columns)
        {
            self.check_shape(name, &stored.dims(), at.layout)?;
            let values = if layout.is_transposed() == at.layout.is_transposed() {
                self.checkpoint.read_f32(name)?
            } else {
                self.checkpoint.read_f32_transposed(name)?
            };
            let matrix = quantize(format, [rows, columns], &values)
                .map_err(|e| ModelError::Input(format!("'{name}': {e}")))?;
            *stored = oriented(matrix, layout).into();
        } else if let Stored::Float(param) = stored {
            self.load(name, at, param)?;
        }
        if matches!(at.weight(), Some(WeightPart::FactorA | WeightPart::FactorB)) {
            self.factors.insert(name.to_string(), stored.clone());
        }
        Ok(())
    }

    /// The format to which a float matrix is quantized.
    fn rounds_to(&self, at: &Parameter<'_>) -> Option<BlockFormat> {
        let is_map = at.module.part == Part::Body && at.module.layer.is_some() && !is_router(at.module.path);
        match self.weights {
            WeightType::Blocks(format) if is_map && at.weight() == Some(WeightPart::Dense) => Some(format),
            _ => None,
        }
    }

    /// A quantized matrix: bytes of the shape `(rows, bytes of a row)`.
    fn read_blocks(
        &self,
        name: &str,
        dims: [usize; 2],
        layout: Layout,
        format: BlockFormat,
    ) -> Result<BlockMatrix> {
        let [rows, columns] = in_rows(dims, layout);
        let in_bytes = [rows, columns / format.block_len() * format.block_bytes()];
        if let Some(info) = self.checkpoint.info(name) {
            let fits = match info.dtype {
                Dtype::Block(_) => info.shape == [rows, columns],
                dtype => dtype == Dtype::U8 && info.shape == in_bytes,
            };
            if !fits {
                let (dtype, shape) = (info.dtype, &info.shape);
                return Err(ModelError::Input(match dtype {
                    Dtype::Block(_) => {
                        format!("'{name}' has shape {shape:?}, expected {:?}", [rows, columns])
                    }
                    _ => format!(
                        "'{name}' is {dtype} {shape:?}, expected U8 {in_bytes:?} for {rows} x {columns} elements in {format}"
                    ),
                }));
            }
        }
        let bytes = self.checkpoint.read_bytes(name)?;
        let matrix = BlockMatrix::new(format, [rows, columns], std::sync::Arc::new(bytes), 0);
        Ok(oriented(matrix.map_err(|e| ModelError::Input(format!("'{name}': {e}")))?, layout))
    }

    /// The elements of a tensor in a type.
    fn read(&self, name: &str, layout: Layout, dtype: DType, shape: Vec<usize>) -> Result<TensorData> {
        let stored = self.checkpoint.info(name).map(|info| info.dtype);
        if let Some(stored) = stored.filter(|stored| !stored.is_float()) {
            return Err(ModelError::Input(format!("'{name}' is stored as {stored}; expected floats")));
        }
        match (stored, dtype) {
            (Some(Dtype::F16), DType::F16) if !matches!(layout, Layout::Kernel(_)) => {
                Ok(TensorData::new(self.read_halves(name, layout, f16::from_bits)?, shape))
            }
            (Some(Dtype::BF16), DType::BF16) if !matches!(layout, Layout::Kernel(_)) => {
                Ok(TensorData::new(self.read_halves(name, layout, bf16::from_bits)?, shape))
            }
            _ => {
                let values = match layout {
                    Layout::Same => self.checkpoint.read_f32(name)?,
                    Layout::Transposed => self.checkpoint.read_f32_transposed(name)?,
                    Layout::Kernel(_) => {
                        let [inputs, outputs] = [shape[0], shape[1]];
                        transpose(&self.checkpoint.read_f32(name)?, outputs, inputs)
                    }
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

    /// Two-byte elements in their stored type, without conversion to f32, which would take twice the memory.
    fn read_halves<T>(&self, name: &str, layout: Layout, from_bits: impl Fn(u16) -> T) -> Result<Vec<T>> {
        let bits = match layout {
            Layout::Same => self.checkpoint.read_bits(name)?,
            Layout::Transposed | Layout::Kernel(_) => self.checkpoint.read_bits_transposed(name)?,
        };
        // The standard library collects into the same memory.
        Ok(bits.into_iter().map(from_bits).collect())
    }

    /// Passes over a parameter that is not loaded, whose tensor is nevertheless one of the model's.
    pub fn skip(&mut self, at: &Parameter<'_>) {
        self.used.extend(self.resolve(&at.key()));
    }

    /// Finishes loading: an error if anything was misshaped, a key in `required` was missing, or the
    /// checkpoint contains a tensor that `is_extra` does not accept and that belongs to no other head.
    pub fn finish(
        mut self,
        required: impl Fn(&str) -> bool,
        is_extra: impl Fn(&str) -> bool,
    ) -> Result<Unmatched> {
        self.check_sinusoids();
        let (missing, newly_initialized): (Vec<_>, Vec<_>) =
            self.missing.into_iter().partition(|k| required(k));
        let unused = self.checkpoint.names().filter(|n| !self.used.contains(*n) && !is_extra(n));
        // A zero bias, which some quantizers write for every map, counts as absent.
        let is_nothing = |n: &str| {
            let values = || self.checkpoint.read_f32(n).unwrap_or_default();
            n.ends_with(".bias") && self.used.contains(&format!("{}weight", &n[..n.len() - 4])) && {
                let values = values();
                !values.is_empty() && values.iter().all(|&x| x == 0.0)
            }
        };
        let unused = unused.filter(|n| !n.ends_with(EXTRA_STATE) && !is_nothing(n));
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

impl<B: Backend> Loader<'_, B> {
    /// Records a stored table of sines and cosines that are not those of the model, which computes its own (RoFormer): in
    /// row `p` of width `d`, `sin(p / 10000^(2i/d))` for `i` below `d / 2`, then the cosines.
    fn check_sinusoids(&mut self) {
        let is_stored = |name: &&str| name.ends_with(SINUSOIDS) && !self.used.contains(*name);
        let Some(name) = self.checkpoint.names().find(is_stored) else { return };
        let Some(&[_, width]) = self.checkpoint.info(name).map(|info| &info.shape[..]) else { return };
        let Ok(table) = self.checkpoint.read_f32(name) else { return };
        let half = width / 2;
        let is_off = |(at, &x): (usize, &f32)| {
            let (row, column) = (at / width, at % width);
            let angle = row as f64 / 10_000f64.powf(2.0 * (column % half.max(1)) as f64 / width as f64);
            let expected = if column < half { angle.sin() } else { angle.cos() };
            (f64::from(x) - expected).abs() > SINUSOID_TOLERANCE || !x.is_finite()
        };
        if table.iter().enumerate().any(is_off) {
            self.problems
                .push(format!("'{name}' is not the table of sines and cosines that the model computes"));
        }
    }

    /// Loads a parameter from the tensor of its name, and records what was missing or wrong.
    fn fill(&mut self, at: &Parameter<'_>, load: impl FnOnce(&mut Self, &str) -> Result<()>) {
        let key = at.key();
        let Some(name) = self.resolve(&key) else {
            self.missing.push(key);
            return;
        };
        if let Err(error) = load(self, &name) {
            self.problems.push(error.to_string());
        }
        self.used.insert(name);
    }
}

impl<B: Backend> ParamVisitor<B> for Loader<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        self.fill(at, |loader, name| loader.load(name, at, param));
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        self.fill(at, |loader, name| loader.load_stored(name, at, stored));
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        match self.factors.get(self.stored_key(&at.key()).as_ref()) {
            Some(factor) if factor.dims() == stored.dims() => {
                *stored = match (factor, &*stored) {
                    // A separate parameter over the same memory.
                    (Stored::Float(owner), Stored::Float(own)) => {
                        Param::initialized(own.id, owner.val()).into()
                    }
                    (factor, _) => factor.clone(),
                };
            }
            _ => self.visit_stored(at, stored),
        }
    }
}

/// [`BlockMatrix::quantize`], with the rows distributed over the processor's cores.
fn quantize(
    format: BlockFormat,
    [rows, columns]: [usize; 2],
    values: &[f32],
) -> std::result::Result<BlockMatrix, KernelError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let each = rows.div_ceil(threads).max(1) * columns.max(1);
    let parts: Vec<Option<Vec<u8>>> = std::thread::scope(|scope| {
        let part = |values: &[f32]| format.quantize([values.len() / columns.max(1), columns], values).ok();
        let handles: Vec<_> = values.chunks(each).map(|values| scope.spawn(move || part(values))).collect();
        handles.into_iter().map(|handle| handle.join().ok().flatten()).collect()
    });
    // The error names the position in the whole matrix.
    let Some(bytes) = parts.into_iter().collect::<Option<Vec<Vec<u8>>>>() else {
        return BlockMatrix::quantize(format, [rows, columns], values);
    };
    BlockMatrix::new(format, [rows, columns], std::sync::Arc::new(bytes.concat()), 0)
}

/// `[rows, columns]` of the matrix that is divided into blocks, from the shape in the model.
pub(crate) fn in_rows(dims: [usize; 2], layout: Layout) -> [usize; 2] {
    match layout {
        Layout::Same => dims,
        Layout::Transposed | Layout::Kernel(_) => [dims[1], dims[0]],
    }
}

/// A quantized matrix as used by the model's products.
pub(crate) fn oriented(matrix: BlockMatrix, layout: Layout) -> BlockMatrix {
    match layout {
        Layout::Same => matrix,
        Layout::Transposed | Layout::Kernel(_) => matrix.transpose(),
    }
}

/// Reads a parameter in the checkpoint's layout.
pub(crate) fn host_tensor<B: Backend, const D: usize>(
    at: &Parameter<'_>,
    param: &Param<Tensor<B, D>>,
) -> HostTensor<'static> {
    let shape: Vec<usize> = param.dims().to_vec();
    let mut data = host_values(param.val());
    if at.layout.is_transposed() {
        data = transpose(&data, shape[0], shape[1]);
    }
    HostTensor::new(at.key(), at.layout.in_file(&shape), data)
}
