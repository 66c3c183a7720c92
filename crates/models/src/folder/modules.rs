//! The modules of a sentence embedder after its pooling.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::sigmoid;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::{Gelu, Kernels, layer_norm, linear};
use serde_json::Value;

use crate::config::{Activation, lookup, read_json};
use crate::error::{ModelError, Result};

/// A step from the pooled vector to the embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbeddingStep {
    /// Division by the norm.
    Normalize,
    /// A linear map with an activation (`Dense` of sentence-transformers).
    Dense(Dense),
    /// Layer normalization.
    LayerNorm {
        /// Factors, `[width]`.
        weight: Vec<f32>,
        /// Offsets, `[width]`.
        bias: Vec<f32>,
    },
}

/// `act(x·W + b)`, to which `x`, or `x·R`, may be added.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    weight: Matrix,
    bias: Option<Vec<f32>>,
    activation: DenseActivation,
    residual: Residual,
}

/// `[d_input, d_output]`, row-major.
#[derive(Clone, Debug, PartialEq)]
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq)]
enum Residual {
    None,
    Same,
    Mapped(Matrix),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DenseActivation {
    Identity,
    Sigmoid,
    Of(Activation),
}

/// Classes of `torch.nn`.
const ACTIVATIONS: [(&str, DenseActivation); 6] = [
    ("Identity", DenseActivation::Identity),
    ("Tanh", DenseActivation::Of(Activation::Tanh)),
    ("ReLU", DenseActivation::Of(Activation::Relu)),
    ("GELU", DenseActivation::Of(Activation::Gelu(Gelu::Erf))),
    ("Sigmoid", DenseActivation::Sigmoid),
    ("SiLU", DenseActivation::Of(Activation::Silu)),
];

/// Reads a module from its folder; `None` for one that changes nothing.
type Reader = fn(&Path) -> Result<Option<EmbeddingStep>>;

/// The supported modules by class name.
pub(super) const MODULES: [(&str, Reader); 4] = [
    ("Dense", |folder| Dense::read(folder).map(|dense| Some(EmbeddingStep::Dense(dense)))),
    ("LayerNorm", |folder| {
        let checkpoint = Checkpoint::open(folder)?;
        let [weight, bias] = ["norm.weight", "norm.bias"].map(|name| checkpoint.read_f32(name));
        let (weight, bias) = (weight?, bias?);
        if weight.len() != bias.len() {
            return Err(ModelError::Tensors {
                path: folder.to_path_buf(),
                details: format!("norm.weight has {} numbers, norm.bias {}", weight.len(), bias.len()),
            });
        }
        Ok(Some(EmbeddingStep::LayerNorm { weight, bias }))
    }),
    ("Dropout", |_| Ok(None)),
    ("Normalize", |_| Ok(Some(EmbeddingStep::Normalize))),
];

/// Minimum norm by which an embedding is divided.
const LEAST_NORM: f64 = 1e-12;
/// PyTorch's epsilon of a layer norm.
const LAYER_NORM_EPS: f64 = 1e-5;

impl EmbeddingStep {
    /// The width of the output for inputs of `width`.
    ///
    /// # Errors
    /// The width that is expected instead.
    pub(super) fn output_width(&self, width: usize) -> std::result::Result<usize, usize> {
        let (expected, output) = match self {
            Self::Normalize => (width, width),
            Self::Dense(dense) => (dense.weight.shape[0], dense.weight.shape[1]),
            Self::LayerNorm { weight, .. } => (weight.len(), weight.len()),
        };
        if expected == width { Ok(output) } else { Err(expected) }
    }

    /// The step on rows.
    ///
    /// # Shapes
    /// - x: `[sequences, width]`
    /// - output: `[sequences, width of the output]`
    pub(super) fn apply<B: Kernels>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Normalize => {
                let norm = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(LEAST_NORM); // [sequences, 1]
                x / norm
            }
            Self::Dense(dense) => dense.apply(x),
            Self::LayerNorm { weight, bias } => {
                let [weight, bias] = [weight, bias].map(|values| vector(values, &x.device()));
                layer_norm(x, None, weight, Some(bias), LAYER_NORM_EPS, None)
            }
        }
    }
}

fn vector<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_floats(values, device)
}

impl Matrix {
    fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        if shape.contains(&0) {
            return Err(ModelError::Tensors {
                path: checkpoint.path().to_path_buf(),
                details: format!("'{name}' has shape {shape:?}; expected a matrix with elements"),
            });
        }
        // Its errors name a missing tensor, or one that is not a matrix.
        let values = checkpoint.read_f32_transposed(name)?;
        let columns = shape.last().copied().unwrap_or(1);
        Ok(Self { shape: [columns, values.len() / columns], values })
    }

    fn map<B: Kernels>(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        let weight = Tensor::from_data(TensorData::new(self.values.clone(), self.shape), &x.device());
        linear(x, weight, bias)
    }
}

impl Dense {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let wrong = |reason: String| ModelError::Config { path: path.clone(), reason };
        let config =
            read_json(&path)?.ok_or_else(|| wrong("no such file; modules.json names its folder".into()))?;
        for key in ["module_input_name", "module_output_name"] {
            if let Some(name) = config[key].as_str().filter(|name| *name != "sentence_embedding") {
                return Err(wrong(format!("{key} '{name}' is not supported; expected sentence_embedding")));
            }
        }
        let class = config["activation_function"].as_str().unwrap_or("torch.nn.Tanh");
        let name = class.rsplit('.').next().unwrap_or_default();
        let activation = lookup("activation_function", name, &ACTIVATIONS).map_err(wrong)?;
        if !class.starts_with("torch.nn.") {
            return Err(wrong(format!(
                "activation_function '{class}' is not supported; expected a class of torch.nn"
            )));
        }
        let is_on = |key: &str, default: bool| match &config[key] {
            Value::Null => Ok(default),
            Value::Bool(value) => Ok(*value),
            other => Err(wrong(format!("{key} is {other}; expected true or false"))),
        };
        let checkpoint = Checkpoint::open(folder)?;
        let weight = Matrix::read(&checkpoint, "linear.weight")?;
        let [d_input, d_output] = weight.shape;
        let bias = is_on("bias", true)?.then(|| checkpoint.read_f32("linear.bias")).transpose()?;
        let residual = match is_on("use_residual", false)? {
            false => Residual::None,
            true if d_input == d_output => Residual::Same,
            true => Residual::Mapped(Matrix::read(&checkpoint, "residual.weight")?),
        };
        let fits = bias.as_ref().is_none_or(|bias| bias.len() == d_output)
            && match &residual {
                Residual::Mapped(map) => map.shape == weight.shape,
                Residual::None | Residual::Same => true,
            };
        if !fits {
            return Err(ModelError::Tensors {
                path: folder.to_path_buf(),
                details: format!("the bias or residual map does not fit the {d_output} outputs"),
            });
        }
        Ok(Self { weight, bias, activation, residual })
    }

    fn apply<B: Kernels>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let bias = self.bias.as_ref().map(|bias| vector(bias, &x.device()));
        let y = self.weight.map(x.clone(), bias);
        let y = match self.activation {
            DenseActivation::Identity => y,
            DenseActivation::Sigmoid => sigmoid(y),
            DenseActivation::Of(activation) => activation.apply(y),
        };
        match &self.residual {
            Residual::None => y,
            Residual::Same => y + x,
            Residual::Mapped(map) => y + map.map(x, None),
        }
    }
}
