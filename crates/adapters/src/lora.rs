//! LoRA: `ΔW = scale·A·B`, a pair of factors for one site; DoRA's magnitude on top of it.

use burn::module::Param;
use burn::prelude::*;

use crate::init::{kaiming, normal};
use lowrank_spec::Site;

/// The pair of one site (Hu et al. 2021, arXiv:2106.09685).
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub b: Param<Tensor<B, 2>>,
    /// Where the pair started, if not at an update of zero; the update is counted from there.
    pub start: Option<Start<B>>,
    /// DoRA's magnitudes.
    pub magnitude: Option<Magnitude<B>>,
    /// Factor on the update.
    pub scale: f64,
}

/// Initial values of a pair that starts from the weight (PiSSA, OLoRA). They stand for what those methods take
/// out of the base: the base itself stays as it is, and `ΔW = scale·(A·B − A₀·B₀)`.
#[derive(Module, Debug)]
pub struct Start<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Shape `[rank, d_output]`.
    pub b: Tensor<B, 2>,
}

/// DoRA (Liu et al. 2024, arXiv:2402.09353): the columns of `W + ΔW`, of norm 1, times a trained magnitude.
#[derive(Module, Debug)]
pub struct Magnitude<B: Backend> {
    /// Shape `[d_output]`.
    pub value: Param<Tensor<B, 1>>,
    /// Squared norms of the columns of the frozen `W`, shape `[d_output]`.
    pub base_norms: Tensor<B, 1>,
}

impl<B: Backend> Magnitude<B> {
    /// Magnitudes at the norms of `weight`'s columns, so that nothing changes.
    ///
    /// # Shapes
    /// - `weight`: `[d_input, d_output]`
    pub fn of_weight(weight: Tensor<B, 2>) -> Self {
        let base_norms = squared_norms(weight);
        Self { value: Param::from_tensor(base_norms.clone().sqrt()), base_norms }
    }
}

/// Squared norms of the columns, `[d_input, d_output]` → `[d_output]`.
pub(crate) fn squared_norms<B: Backend>(weight: Tensor<B, 2>) -> Tensor<B, 1> {
    let [_, d_output] = weight.dims();
    weight.clone().mul(weight).sum_dim(0).reshape([d_output])
}

impl<B: Backend> Lora<B> {
    /// A fresh pair whose update is zero: `A` Kaiming-uniform (a = √5) and `B` zero; at an embedding, as PEFT
    /// has it, `A` zero and `B` normal.
    pub fn init(site: &Site, rank: usize, scale: f64, seed: u64, device: &B::Device) -> Self {
        let key = |name: &str| format!("{}.{name}", site.path);
        let (a_shape, b_shape) = ([site.d_input, rank], [rank, site.d_output]);
        if site.embedding {
            let b = normal(seed, &key("lora_embedding_B"), b_shape, 1.0, device);
            return Self::from_factors(Tensor::zeros(a_shape, device), b, scale);
        }
        Self::from_factors(
            kaiming(seed, &key("lora_A"), a_shape, device),
            Tensor::zeros(b_shape, device),
            scale,
        )
    }

    /// A fresh pair with `A` normal, of standard deviation 1/rank, and `B` zero.
    pub fn gaussian(site: &Site, rank: usize, scale: f64, seed: u64, device: &B::Device) -> Self {
        let a =
            normal(seed, &format!("{}.lora_A", site.path), [site.d_input, rank], 1.0 / rank as f64, device);
        Self::from_factors(a, Tensor::zeros([rank, site.d_output], device), scale)
    }

    /// A pair of given factors: `a` `[d_input, rank]`, `b` `[rank, d_output]`.
    pub fn from_factors(a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) -> Self {
        Self { a: Param::from_tensor(a), b: Param::from_tensor(b), start: None, magnitude: None, scale }
    }

    /// A pair that starts at given factors with an update of zero.
    pub fn from_start(a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) -> Self {
        let start = Some(Start { a: a.clone(), b: b.clone() });
        Self { start, ..Self::from_factors(a, b, scale) }
    }

    /// The same with `A` frozen (LoRA-FA, Zhang et al. 2023, arXiv:2308.03303).
    pub fn with_frozen_a(self) -> Self {
        Self { a: self.a.set_require_grad(false), ..self }
    }

    /// The inner width of the trained pair.
    pub fn rank(&self) -> usize {
        self.b.dims()[0]
    }

    /// Factors whose product, times the scale, is `ΔW`: the pair itself, or pair and start side by side.
    pub fn factors(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match &self.start {
            None => (self.a.val(), self.b.val()),
            Some(start) => (
                Tensor::cat(vec![self.a.val(), start.a.clone()], 1),
                Tensor::cat(vec![self.b.val(), start.b.clone().neg()], 0),
            ),
        }
    }
}
