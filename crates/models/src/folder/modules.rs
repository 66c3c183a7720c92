//! The modules of a sentence embedder after its pooling.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::{gelu, relu, sigmoid, silu};
use lowrank_checkpoint::Checkpoint;
use serde_json::Value;

use crate::config::{lookup, read_json};
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

/// `act(x·Wᵀ + b)`, to which `x`, or `x·Rᵀ`, may be added.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    weight: Matrix,
    bias: Option<Vec<f32>>,
    activation: Activation,
    residual: Residual,
}

/// `[out, in]`, row-major.
#[derive(Clone, Debug, PartialEq)]
struct Matrix {
    rows: usize,
    values: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq)]
enum Residual {
    None,
    Same,
    Mapped(Matrix),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
    Silu,
}

/// Classes of `torch.nn`.
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("Identity", Activation::Identity),
    ("Tanh", Activation::Tanh),
    ("ReLU", Activation::Relu),
    ("GELU", Activation::Gelu),
    ("Sigmoid", Activation::Sigmoid),
    ("SiLU", Activation::Silu),
];

/// Minimum norm by which an embedding is divided.
const LEAST_NORM: f64 = 1e-12;
/// PyTorch's epsilon of a layer norm.
const LAYER_NORM_EPS: f64 = 1e-5;

impl EmbeddingStep {
    /// The module of a kind in a folder, for vectors of `width` numbers if that is known, and the width of its output. `None`
    /// for a module that changes nothing.
    ///
    /// # Errors
    /// A kind that is not supported, configs and weights that are missing or do not fit.
    pub(super) fn read(kind: &str, folder: &Path) -> Result<Option<Self>> {
        match kind {
            "Normalize" => Ok(Some(Self::Normalize)),
            "Dropout" => Ok(None),
            "Dense" => Dense::read(folder).map(|dense| Some(Self::Dense(dense))),
            _ => {
                let checkpoint = Checkpoint::open(folder)?;
                let [weight, bias] = ["norm.weight", "norm.bias"].map(|name| checkpoint.read_f32(name));
                Ok(Some(Self::LayerNorm { weight: weight?, bias: bias? }))
            }
        }
    }

    /// Whether modules of this kind are supported.
    pub(super) fn knows(kind: &str) -> bool {
        ["Normalize", "Dropout", "Dense", "LayerNorm"].contains(&kind)
    }

    /// The width of the output for inputs of `width`.
    ///
    /// # Errors
    /// The width that is expected instead.
    pub(super) fn output_width(&self, width: usize) -> std::result::Result<usize, usize> {
        match self {
            Self::Normalize => Ok(width),
            Self::Dense(dense) => {
                let expected = dense.weight.columns();
                if expected == width { Ok(dense.weight.rows) } else { Err(expected) }
            }
            Self::LayerNorm { weight, .. } => {
                if weight.len() == width {
                    Ok(width)
                } else {
                    Err(weight.len())
                }
            }
        }
    }

    /// The step on rows.
    ///
    /// # Shapes
    /// - x: `[sequences, width]`
    /// - output: `[sequences, width of the output]`
    pub(super) fn apply<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Normalize => {
                let norm = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(LEAST_NORM); // [sequences, 1]
                x / norm
            }
            Self::Dense(dense) => dense.apply(x),
            Self::LayerNorm { weight, bias } => {
                let [weight, bias] = [weight, bias].map(|values| row(values, &x.device()));
                let centred = x.clone() - x.mean_dim(1);
                let variance = centred.clone().powi_scalar(2).mean_dim(1);
                centred / (variance + LAYER_NORM_EPS).sqrt() * weight + bias
            }
        }
    }
}

fn row<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), device)
}

impl Matrix {
    fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let values = checkpoint.read_f32(name)?;
        let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        match shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok(Self { rows, values }),
            _ => Err(ModelError::Tensors {
                path: checkpoint.path().to_path_buf(),
                details: format!("'{name}' has the shape {shape:?}; expected a matrix"),
            }),
        }
    }

    fn columns(&self) -> usize {
        self.values.len() / self.rows
    }

    /// `x·Wᵀ`.
    fn map<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let data = TensorData::new(self.values.clone(), [self.rows, self.columns()]);
        let weight = Tensor::<B, 2>::from_data(data, &x.device());
        x.matmul(weight.transpose())
    }
}

impl Dense {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let wrong = |reason: String| ModelError::Config { path: path.clone(), reason };
        let config =
            read_json(&path)?.ok_or_else(|| wrong("no such file; modules.json names its folder".into()))?;
        for (key, usual) in
            [("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding")]
        {
            if let Some(name) = config[key].as_str().filter(|name| *name != usual) {
                return Err(wrong(format!("{key} '{name}' is not supported; expected {usual}")));
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
        let bias = is_on("bias", true)?.then(|| checkpoint.read_f32("linear.bias")).transpose()?;
        let residual = match (is_on("use_residual", false)?, weight.rows == weight.columns()) {
            (false, _) => Residual::None,
            (true, true) => Residual::Same,
            (true, false) => Residual::Mapped(Matrix::read(&checkpoint, "residual.weight")?),
        };
        let fits = bias.as_ref().is_none_or(|bias| bias.len() == weight.rows)
            && match &residual {
                Residual::Mapped(map) => (map.rows, map.columns()) == (weight.rows, weight.columns()),
                _ => true,
            };
        if !fits {
            return Err(ModelError::Tensors {
                path: folder.to_path_buf(),
                details: format!("the bias or residual map does not fit the {} outputs", weight.rows),
            });
        }
        Ok(Self { weight, bias, activation, residual })
    }

    fn apply<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let mut y = self.weight.map(x.clone());
        if let Some(bias) = &self.bias {
            y = y + row(bias, &x.device());
        }
        let y = match self.activation {
            Activation::Identity => y,
            Activation::Tanh => y.tanh(),
            Activation::Relu => relu(y),
            Activation::Gelu => gelu(y),
            Activation::Sigmoid => sigmoid(y),
            Activation::Silu => silu(y),
        };
        match &self.residual {
            Residual::None => y,
            Residual::Same => y + x,
            Residual::Mapped(map) => y + map.map(x),
        }
    }
}
