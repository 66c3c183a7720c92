//! LoTR: `ΔW_s = scale·L·M_s·R`, with `L` and `R` shared by all slices `s` of a group.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, dropout, linear};

use crate::init::normal;

/// One group of slices (Bershatsky et al. 2024, arXiv:2402.01376).
///
/// The stack of updates is a Tucker2 tensor: parameters `r·(d_input + d_output) + slices·r²`.
#[derive(Module, Debug)]
pub struct Lotr<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub left: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub right: Param<Tensor<B, 2>>,
    /// A core `[rank, rank]` for each slice.
    pub cores: Vec<Param<Tensor<B, 2>>>,
    /// Factor on the update.
    pub scale: f64,
}

impl<B: Backend> Lotr<B> {
    /// A fresh group: `L`, `R` normal, `M_s` zero, so that the update is zero.
    ///
    /// `L` has variance 1/d_input, so that `x·L` keeps the size of `x`; `R` has variance 1/rank.
    pub fn init(
        [d_input, d_output]: [usize; 2],
        slices: usize,
        rank: usize,
        scale: f64,
        seed: u64,
        key: &str,
        device: &B::Device,
    ) -> Self {
        let left_std = 1.0 / (d_input as f64).sqrt();
        let right_std = 1.0 / (rank as f64).sqrt();
        Self::from_factors(
            normal(seed, &format!("{key}.left"), [d_input, rank], left_std, device),
            normal(seed, &format!("{key}.right"), [rank, d_output], right_std, device),
            (0..slices).map(|_| Tensor::zeros([rank, rank], device)).collect(),
            scale,
        )
    }

    /// A group of given factors.
    pub fn from_factors(
        left: Tensor<B, 2>,
        right: Tensor<B, 2>,
        cores: Vec<Tensor<B, 2>>,
        scale: f64,
    ) -> Self {
        Self {
            left: Param::from_tensor(left),
            right: Param::from_tensor(right),
            cores: cores.into_iter().map(Param::from_tensor).collect(),
            scale,
        }
    }

    /// The inner width.
    pub fn rank(&self) -> usize {
        self.right.dims()[0]
    }

    /// `ΔW` of a slice, shape `[d_input, d_output]`; for merging, not for forward passes.
    pub fn delta_weight(&self, slice: usize) -> Tensor<B, 2> {
        self.left.val().matmul(self.cores[slice].val()).matmul(self.right.val()) * self.scale
    }

    /// The same update as a LoRA pair, exactly: `A = L`, `B = M_s·R`.
    pub fn lora_factors(&self, slice: usize) -> (Tensor<B, 2>, Tensor<B, 2>) {
        (self.left.val(), self.cores[slice].val().matmul(self.right.val()))
    }
}

impl<B: Kernels> Lotr<B> {
    /// `scale·((x·L)·M_s)·R`, on the factors.
    ///
    /// # Shapes
    /// - input: `[tokens, d_input]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, slice: usize, x: Tensor<B, 2>, drop: Option<Dropout>) -> Tensor<B, 2> {
        let x = match drop {
            Some(d) => dropout(x, d),
            None => x,
        };
        let inner = linear(x, self.left.val(), None); // [tokens, rank]
        let inner = linear(inner, self.cores[slice].val(), None) * self.scale;
        linear(inner, self.right.val(), None)
    }
}
