//! LoRA: `ΔW = scale·A·B`, a pair of factors for one site.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, dropout, linear};

use crate::init::kaiming;
use crate::site::Site;

/// The pair of one site (Hu et al. 2021, arXiv:2106.09685).
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub b: Param<Tensor<B, 2>>,
    /// Factor on the update.
    pub scale: f64,
}

impl<B: Backend> Lora<B> {
    /// A fresh pair: `A` Kaiming-uniform (a = √5), `B` zero, so that the update is zero.
    pub fn init(site: &Site, rank: usize, scale: f64, seed: u64, device: &B::Device) -> Self {
        let a = kaiming(seed, &format!("{}.lora_A", site.path), [site.d_input, rank], device);
        Self::from_factors(a, Tensor::zeros([rank, site.d_output], device), scale)
    }

    /// A pair of given factors: `a` `[d_input, rank]`, `b` `[rank, d_output]`.
    pub fn from_factors(a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) -> Self {
        Self { a: Param::from_tensor(a), b: Param::from_tensor(b), scale }
    }

    /// The inner width.
    pub fn rank(&self) -> usize {
        self.b.dims()[0]
    }

    /// `ΔW`, shape `[d_input, d_output]`; for merging, not for forward passes.
    pub fn delta_weight(&self) -> Tensor<B, 2> {
        self.a.val().matmul(self.b.val()) * self.scale
    }
}

impl<B: Kernels> Lora<B> {
    /// `scale·(x·A)·B`, on the factors.
    ///
    /// # Shapes
    /// - input: `[tokens, d_input]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, x: Tensor<B, 2>, drop: Option<Dropout>) -> Tensor<B, 2> {
        let x = match drop {
            Some(d) => dropout(x, d),
            None => x,
        };
        let inner = linear(x, self.a.val(), None) * self.scale; // [tokens, rank]
        linear(inner, self.b.val(), None)
    }
}
