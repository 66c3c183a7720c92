//! A weight `W` `[d_input, d_output]` in one of its forms, whose leaves are matrices in any storage. Every product is
//! computed on the stored matrices; `W` itself is never formed.
//!
//! | form | leaves | quantized |
//! |---|---|---|
//! | dense | `W` | yes |
//! | low rank | `A`, `B`, and `C` between them | `A`, `B` |
//! | sum | `M`, `A`, `B` of `W = M + A·B` | yes |
//! | tensor train | cores | no: their rows are shorter than a block |

use burn::prelude::*;
use burn::tensor::DType;
use lowrank_kernels::{Kernels, LoraSpec, Weight};

use crate::error::{ModelError, Result};
use crate::params::lazy_normal;
use crate::stored::Stored;
use crate::tensor_train::TensorTrain;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Parameter, Role};
use lowrank_spec::Representation;
use lowrank_spec::names::WeightPart;

/// A weight as one matrix.
#[derive(Module, Debug)]
pub struct Dense<B: Backend> {
    /// Shape `[d_input, d_output]`.
    pub weight: Stored<B>,
}

/// A weight as two factors, `W = A·B`, or three, `W = A·C·B`.
#[derive(Module, Debug)]
pub struct LowRank<B: Backend> {
    /// Shape `[d_input, rank_a]`.
    pub a: Stored<B>,
    /// Shape `[rank_a, rank_b]`; without it the two ranks are equal.
    pub core: Option<Stored<B>>,
    /// Shape `[rank_b, d_output]`.
    pub b: Stored<B>,
    /// The modules that own `a` and `b`, if this one only shares them.
    #[module(skip)]
    owners: [Option<String>; 2],
}

/// A matrix and two factors that correct it, `W = M + A·B`.
#[derive(Module, Debug)]
pub struct Sum<B: Backend> {
    /// `M`.
    pub dense: Dense<B>,
    /// `A·B`.
    pub low_rank: LowRank<B>,
}

/// A linear map in one of its forms; forward passes multiply by the stored matrices.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful in each layer; burn's modules cannot be boxed")]
pub enum Projection<B: Backend> {
    /// One matrix.
    Dense(Dense<B>),
    /// Two factors, or three.
    LowRank(LowRank<B>),
    /// One matrix and two factors.
    Sum(Sum<B>),
    /// A train of cores.
    TensorTrain(TensorTrain<B>),
}

/// The module of a projection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightOf<'a> {
    pub(crate) module: ModulePath<'a>,
    pub(crate) site: usize,
    pub(crate) is_table: bool,
}

impl<'a> WeightOf<'a> {
    pub(crate) const fn part(self, part: WeightPart, layout: Layout) -> Parameter<'a> {
        let parameter = self.module.parameter(Role::Weight(part), layout, Some(self.site));
        Parameter { is_table: self.is_table, ..parameter }
    }
}

/// Standard deviation of newly initialized weights, BERT's `initializer_range`.
pub const INIT_STD: f64 = 0.02;

impl<B: Backend> Projection<B> {
    /// A weight `[d_input, d_output]` with newly initialized values; `representation` has been checked against the shape.
    pub fn init(
        path: &str,
        [d_input, d_output]: [usize; 2],
        representation: &Representation,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let matrix = |part: WeightPart, shape, std| -> Stored<B> {
            lazy_normal(seed, &part.key(path), shape, std, device).into()
        };
        match representation {
            Representation::Dense => {
                Self::Dense(Dense { weight: matrix(WeightPart::Dense, [d_input, d_output], INIT_STD) })
            }
            Representation::LowRank { ranks, a_of, b_of, .. } => {
                let (first, last) = (ranks[0], ranks[ranks.len() - 1]);
                // Each further factor preserves the scale of its input.
                Self::LowRank(LowRank {
                    a: matrix(WeightPart::FactorA, [d_input, first], INIT_STD),
                    core: (ranks.len() == 2)
                        .then(|| matrix(WeightPart::FactorC, [first, last], (first as f64).powf(-0.5))),
                    b: matrix(WeightPart::FactorB, [last, d_output], (last as f64).powf(-0.5)),
                    owners: [a_of.clone(), b_of.clone()],
                })
            }
            Representation::Sum { rank } => {
                let of = |part: &Representation| Self::init(path, [d_input, d_output], part, seed, device);
                let parts = (of(&Representation::Dense), of(&Representation::low_rank(*rank)));
                let (Self::Dense(dense), Self::LowRank(low_rank)) = parts else {
                    unreachable!("each representation has its own form")
                };
                Self::Sum(Sum { dense, low_rank })
            }
            Representation::TensorTrain { cores } => {
                Self::TensorTrain(TensorTrain::init(path, [d_input, d_output], cores, seed, device))
            }
        }
    }

    /// Visits the stored tensors under the keys of [`WeightPart`]; `dense` is the layout of a single matrix
    /// in the file.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(
        &mut self,
        at: WeightOf<'_>,
        dense: Layout,
        visitor: &mut V,
    ) {
        match self {
            Self::Dense(one) => {
                visitor.visit_stored(&at.part(WeightPart::Dense, dense), &mut one.weight);
            }
            Self::LowRank(factors) => factors.visit_params(at, visitor),
            Self::Sum(sum) => {
                visitor.visit_stored(&at.part(WeightPart::Dense, dense), &mut sum.dense.weight);
                sum.low_rank.visit_params(at, visitor);
            }
            Self::TensorTrain(train) => train.visit_params(at, visitor),
        }
    }

    /// The transposed weight, `Wᵀ`, over the same tensors: a head tied to an embedding.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a tensor train, or for factors shared with other modules.
    pub fn transposed(&self) -> Result<Self> {
        match self {
            Self::Dense(Dense { weight }) => Ok(Self::Dense(Dense { weight: weight.transposed() })),
            _ => Err(ModelError::Input(
                "the head is tied to an embedding in factors; it cannot be given separate weights".into(),
            )),
        }
    }

    /// A zero matrix of another shape, for a vocabulary of another size.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a factored weight.
    pub(crate) fn with_shape(&self, shape: [usize; 2]) -> Result<Self> {
        match self {
            Self::Dense(Dense { weight }) => {
                let zeros = match weight {
                    Stored::Float(param) => Tensor::zeros(shape, (&param.lazy_device(), param.val().dtype())),
                    Stored::Blocks(_) => Tensor::zeros(shape, &B::Device::default()),
                };
                Ok(Self::Dense(Dense { weight: Stored::of_tensor(zeros) }))
            }
            _ => Err(ModelError::Input("an embedding in factors keeps its vocabulary".into())),
        }
    }

    /// `[d_input, d_output]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) | Self::Sum(Sum { dense, .. }) => dense.weight.dims(),
            Self::LowRank(factors) => [factors.a.dims()[0], factors.b.dims()[1]],
            Self::TensorTrain(train) => train.dims(),
        }
    }
}

impl<B: Backend> LowRank<B> {
    fn visit_params<V: ParamVisitor<B>>(&mut self, at: WeightOf<'_>, visitor: &mut V) {
        let [a_of, b_of] = &self.owners;
        let mut factor = |part: WeightPart, owner: Option<&String>, stored: &mut Stored<B>| {
            let layout = Layout::Transposed;
            match owner {
                Some(path) => {
                    let owner = WeightOf { module: ModulePath { path, ..at.module }, ..at };
                    visitor.visit_shared(&owner.part(part, layout), stored);
                }
                None => visitor.visit_stored(&at.part(part, layout), stored),
            }
        };
        factor(WeightPart::FactorA, a_of.as_ref(), &mut self.a);
        if let Some(core) = &mut self.core {
            factor(WeightPart::FactorC, None, core);
        }
        factor(WeightPart::FactorB, b_of.as_ref(), &mut self.b);
    }

    fn exact(&self) -> Self {
        let Self { a, core, b, owners } = self;
        let core = core.as_ref().map(Stored::exact);
        Self { a: a.exact(), core, b: b.exact(), owners: owners.clone() }
    }

    /// The two factors, if they are in f32 and can be applied in one operation with another matrix.
    fn floats(&self) -> Option<[Tensor<B, 2>; 2]> {
        let float = |stored: &Stored<B>| match stored {
            Stored::Float(param) => Some(param.val()).filter(|tensor| tensor.dtype() == DType::F32),
            Stored::Blocks(_) => None,
        };
        self.core.is_none().then_some(())?;
        Some([float(&self.a)?, float(&self.b)?])
    }
}

impl<B: Kernels> LowRank<B> {
    fn forward(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        let inner = self.a.weight().linear(x, None); // [tokens, rank_a]
        self.through(inner, bias)
    }

    /// From the first factor's output on.
    fn through(&self, mut inner: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        if let Some(core) = &self.core {
            inner = core.weight().linear(inner, None); // [tokens, rank_b]
        }
        self.b.weight().linear(inner, bias)
    }

    fn forward_transposed(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let turned = |stored: &Stored<B>| -> Weight<Tensor<B, 2>> { stored.weight().transpose() };
        let mut inner = turned(&self.b).linear(x, None);
        if let Some(core) = &self.core {
            inner = turned(core).linear(inner, None);
        }
        turned(&self.a).linear(inner, None)
    }

    fn rows(&self, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.through(self.a.weight().rows(rows), None)
    }
}

impl<B: Backend> Dense<B> {
    fn exact(&self) -> Self {
        Self { weight: self.weight.exact() }
    }
}

impl<B: Kernels> Projection<B> {
    /// `x·W` without rounding `x`, as products of few rows with blocks do with activations.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_exact(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => Self::Dense(dense.exact()).forward(x, None),
            Self::LowRank(factors) => factors.exact().forward(x, None),
            Self::Sum(Sum { dense, low_rank }) => {
                Self::Sum(Sum { dense: dense.exact(), low_rank: low_rank.exact() }).forward(x, None)
            }
            Self::TensorTrain(train) => train.forward(x, None),
        }
    }

    /// `x·W + bias`.
    ///
    /// # Shapes
    /// - x: `[tokens, d_input]`, bias: `[d_output]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => dense.weight.weight().linear(x, bias),
            Self::LowRank(factors) => factors.forward(x, bias),
            Self::Sum(Sum { dense, low_rank }) => {
                let weight = dense.weight.weight();
                match low_rank.floats() {
                    Some(factors) => {
                        weight.linear_lora(x, factors, bias, LoraSpec { scale: 1.0, dropout: None })
                    }
                    None => weight.linear(x.clone(), bias) + low_rank.forward(x, None),
                }
            }
            Self::TensorTrain(train) => train.forward(x, bias),
        }
    }

    /// `x·Wᵀ`: the product of a head tied to an embedding.
    ///
    /// # Shapes
    /// - x: `[tokens, d_output]`
    /// - output: `[tokens, d_input]`
    pub(crate) fn forward_transposed(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => dense.weight.weight().transpose().linear(x, None),
            Self::LowRank(factors) => factors.forward_transposed(x),
            Self::Sum(Sum { dense, low_rank }) => {
                dense.weight.weight().transpose().linear(x.clone(), None) + low_rank.forward_transposed(x)
            }
            Self::TensorTrain(train) => train.forward_transposed(x),
        }
    }

    /// Rows of `W`: an embedding lookup.
    ///
    /// # Shapes
    /// - rows: `[tokens]`, below `d_input`
    /// - output: `[tokens, d_output]`
    pub fn rows(&self, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => dense.weight.weight().rows(rows),
            Self::LowRank(factors) => factors.rows(rows),
            Self::Sum(Sum { dense, low_rank }) => {
                dense.weight.weight().rows(rows.clone()) + low_rank.rows(rows)
            }
            Self::TensorTrain(train) => train.rows(rows),
        }
    }
}
