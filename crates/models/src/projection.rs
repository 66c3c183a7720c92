//! A weight `W` `[d_input, d_output]` in one of its representations. Every product is taken on what is
//! stored; `W` itself is never formed.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_kernels::{Kernels, linear};

use crate::error::{ModelError, Result};
use crate::params::lazy_normal;
use crate::tensor_train::TensorTrain;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Parameter, Role};
use lowrank_spec::Representation;
use lowrank_spec::names::WeightPart;

/// A weight as one matrix.
#[derive(Module, Debug)]
pub struct Dense<B: Backend> {
    /// Shape `[d_input, d_output]`.
    pub weight: Param<Tensor<B, 2>>,
}

/// A weight as two factors, `W = A·B`, or three, `W = A·C·B`.
#[derive(Module, Debug)]
pub struct LowRank<B: Backend> {
    /// Shape `[d_input, rank_a]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank_a, rank_b]`; without it the two ranks are one.
    pub core: Option<Param<Tensor<B, 2>>>,
    /// Shape `[rank_b, d_output]`.
    pub b: Param<Tensor<B, 2>>,
    /// The modules that own `a` and `b`, where this one only shares them.
    #[module(skip)]
    owners: [Option<String>; 2],
}

/// A linear map in one of its representations; forward passes multiply by what is stored.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful in each layer; burn's modules cannot be boxed")]
pub enum Projection<B: Backend> {
    /// One matrix.
    Dense(Dense<B>),
    /// Two factors, or three.
    LowRank(LowRank<B>),
    /// A train of cores.
    TensorTrain(TensorTrain<B>),
}

/// Whose weight a projection is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightOf<'a> {
    pub(crate) module: ModulePath<'a>,
    pub(crate) site: usize,
}

impl<'a> WeightOf<'a> {
    pub(crate) const fn part(self, part: WeightPart, layout: Layout) -> Parameter<'a> {
        self.module.parameter(Role::Weight(part), layout, Some(self.site))
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
        let matrix = |part: WeightPart, shape, std| lazy_normal(seed, &part.key(path), shape, std, device);
        match representation {
            Representation::Dense => {
                Self::Dense(Dense { weight: matrix(WeightPart::Dense, [d_input, d_output], INIT_STD) })
            }
            Representation::LowRank { ranks, a_of, b_of } => {
                let (first, last) = (ranks[0], ranks[ranks.len() - 1]);
                // Each further factor keeps the size of what goes through it.
                Self::LowRank(LowRank {
                    a: matrix(WeightPart::FactorA, [d_input, first], INIT_STD),
                    core: (ranks.len() == 2)
                        .then(|| matrix(WeightPart::FactorC, [first, last], (first as f64).powf(-0.5))),
                    b: matrix(WeightPart::FactorB, [last, d_output], (last as f64).powf(-0.5)),
                    owners: [a_of.clone(), b_of.clone()],
                })
            }
            Representation::TensorTrain { cores } => {
                Self::TensorTrain(TensorTrain::init(path, [d_input, d_output], cores, seed, device))
            }
        }
    }

    /// Visits what is stored under the keys of [`WeightPart`]; `dense` is the layout of a single matrix in the file.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(
        &mut self,
        at: WeightOf<'_>,
        dense: Layout,
        visitor: &mut V,
    ) {
        let WeightOf { module, site } = at;
        match self {
            Self::Dense(one) => {
                visitor.visit(&at.part(WeightPart::Dense, dense), &mut one.weight);
            }
            Self::LowRank(factors) => {
                let [a_of, b_of] = &factors.owners;
                let mut factor =
                    |part: WeightPart, owner: Option<&String>, param: &mut Param<Tensor<B, 2>>| {
                        let layout = Layout::Transposed;
                        match owner {
                            Some(path) => {
                                let owner = WeightOf { module: ModulePath { path, ..module }, site };
                                visitor.visit_shared(&owner.part(part, layout), param);
                            }
                            None => visitor.visit(&at.part(part, layout), param),
                        }
                    };
                factor(WeightPart::FactorA, a_of.as_ref(), &mut factors.a);
                if let Some(core) = &mut factors.core {
                    factor(WeightPart::FactorC, None, core);
                }
                factor(WeightPart::FactorB, b_of.as_ref(), &mut factors.b);
            }
            Self::TensorTrain(train) => train.visit_params(at, visitor),
        }
    }

    /// The same weight turned round, `Wᵀ`, on the same tensors: a head of the weights of an embedding.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a tensor train, or for factors that other modules share.
    pub fn transposed(&self) -> Result<Self> {
        let turn = |param: &Param<Tensor<B, 2>>| Param::initialized(ParamId::new(), param.val().transpose());
        match self {
            Self::Dense(Dense { weight }) => Ok(Self::Dense(Dense { weight: turn(weight) })),
            _ => Err(ModelError::Input(
                "the head is tied to an embedding in factors; it cannot get weights of its own".into(),
            )),
        }
    }

    /// One matrix of zeros of another shape, for a vocabulary of another size.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a weight in factors.
    pub fn with_shape(&self, shape: [usize; 2]) -> Result<Self> {
        match self {
            Self::Dense(Dense { weight }) => {
                let zeros = Tensor::zeros(shape, (&weight.lazy_device(), weight.val().dtype()));
                Ok(Self::Dense(Dense { weight: Param::initialized(ParamId::new(), zeros) }))
            }
            _ => Err(ModelError::Input("an embedding in factors keeps its vocabulary".into())),
        }
    }

    /// `[d_input, d_output]`.
    pub fn dims(&self) -> [usize; 2] {
        let dims = |param: &Param<Tensor<B, 2>>| -> [usize; 2] { param.lazy_shape().dims() };
        match self {
            Self::Dense(dense) => dims(&dense.weight),
            Self::LowRank(factors) => [dims(&factors.a)[0], dims(&factors.b)[1]],
            Self::TensorTrain(train) => train.dims(),
        }
    }
}

impl<B: Kernels> Projection<B> {
    /// `x·W + bias`.
    ///
    /// # Shapes
    /// - x: `[tokens, d_input]`, bias: `[d_output]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => linear(x, dense.weight.val(), bias),
            Self::LowRank(LowRank { a, core, b, .. }) => {
                let mut inner = linear(x, a.val(), None); // [tokens, rank_a]
                if let Some(core) = core {
                    inner = linear(inner, core.val(), None); // [tokens, rank_b]
                }
                linear(inner, b.val(), bias)
            }
            Self::TensorTrain(train) => train.forward(x, bias),
        }
    }

    /// `x·Wᵀ`: what a head tied to an embedding computes.
    ///
    /// # Shapes
    /// - x: `[tokens, d_output]`
    /// - output: `[tokens, d_input]`
    pub fn forward_transposed(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Dense(dense) => linear(x, dense.weight.val().transpose(), None),
            Self::LowRank(LowRank { a, core, b, .. }) => {
                let mut inner = linear(x, b.val().transpose(), None);
                if let Some(core) = core {
                    inner = linear(inner, core.val().transpose(), None);
                }
                linear(inner, a.val().transpose(), None)
            }
            Self::TensorTrain(train) => train.forward_transposed(x),
        }
    }

    /// Rows of `W`: what an embedding looks up.
    ///
    /// # Shapes
    /// - rows: `[tokens]`, below `d_input`
    /// - output: `[tokens, d_output]`
    pub fn rows(&self, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let select =
            |table: &Param<Tensor<B, 2>>| table.val().select(0, rows.clone()).cast(burn::tensor::DType::F32);
        match self {
            Self::Dense(dense) => select(&dense.weight),
            Self::LowRank(LowRank { a, core, b, .. }) => {
                let mut inner = select(a);
                if let Some(core) = core {
                    inner = linear(inner, core.val(), None);
                }
                linear(inner, b.val(), None)
            }
            Self::TensorTrain(train) => train.rows(rows),
        }
    }
}
