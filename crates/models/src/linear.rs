//! Linear maps of a model: a projection with several representations, a bias, and room for an adapter.

use burn::module::Param;
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode, Site};
use lowrank_kernels::{Gelu, Kernels, linear, linear_gelu};

use crate::params::{Layout, ParamIo, lazy_full, lazy_normal};

/// A weight as one matrix.
#[derive(Module, Debug)]
pub struct Dense<B: Backend> {
    /// Shape `[d_input, d_output]`.
    pub weight: Param<Tensor<B, 2>>,
}

/// A weight as two factors, `W = A·B`.
#[derive(Module, Debug)]
pub struct LowRank<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub b: Param<Tensor<B, 2>>,
}

/// A linear map in one of its representations; forward passes multiply by what is there.
#[derive(Module, Debug)]
pub enum Projection<B: Backend> {
    /// One matrix.
    Dense(Dense<B>),
    /// Two factors.
    LowRank(LowRank<B>),
}

/// `y = x·W + b`, at a site that an adapter may serve.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// The weight.
    pub projection: Projection<B>,
    /// Shape `[d_output]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Index into the model's list of sites.
    pub site: usize,
}

/// Standard deviation of fresh weights, BERT's `initializer_range`.
pub const INIT_STD: f64 = 0.02;

/// Hands out sites while a model is built.
#[derive(Debug, Default)]
pub struct SiteList {
    /// The sites so far.
    pub sites: Vec<Site>,
}

impl SiteList {
    /// Builds a linear map with bias, fresh weights and a site of its own.
    pub fn linear<B: Backend>(
        &mut self,
        path: &str,
        layer: Option<usize>,
        [d_input, d_output]: [usize; 2],
        head: bool,
        seed: u64,
        device: &B::Device,
    ) -> Linear<B> {
        let weight = lazy_normal(seed, &format!("{path}.weight"), [d_input, d_output], INIT_STD, device);
        self.sites.push(Site { path: path.into(), layer, d_input, d_output, head });
        Linear {
            projection: Projection::Dense(Dense { weight }),
            bias: Some(lazy_full([d_output], 0.0, device)),
            site: self.sites.len() - 1,
        }
    }
}

impl<B: Backend> Linear<B> {
    /// Visits weight and bias under `<key>.weight`, `<key>.bias`; factors under `<key>.lowrank_a.weight`
    /// `(r, in)` and `<key>.lowrank_b.weight` `(out, r)`.
    pub fn walk<IO: ParamIo<B>>(&mut self, key: &str, io: &mut IO) {
        match &mut self.projection {
            Projection::Dense(dense) => {
                io.param(&format!("{key}.weight"), Layout::Transposed, &mut dense.weight)
            }
            Projection::LowRank(factors) => {
                io.param(&format!("{key}.lowrank_a.weight"), Layout::Transposed, &mut factors.a);
                io.param(&format!("{key}.lowrank_b.weight"), Layout::Transposed, &mut factors.b);
            }
        }
        if let Some(bias) = &mut self.bias {
            io.param(&format!("{key}.bias"), Layout::Same, bias);
        }
    }
}

impl<B: Kernels> Linear<B> {
    /// # Shapes
    /// - input: `[tokens, d_input]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, x: Tensor<B, 2>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let y = self.base(x.clone());
        adapters.apply(self.site, &x, y, mode)
    }

    /// `gelu(forward(x))`, in one step where no adapter comes between.
    pub fn forward_gelu(
        &self,
        x: Tensor<B, 2>,
        kind: Gelu,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        match &self.projection {
            Projection::Dense(dense) if !adapters.covers(self.site) => {
                linear_gelu(x, dense.weight.val(), self.bias.as_ref().map(Param::val), kind)
            }
            _ => lowrank_kernels::gelu(self.forward(x, adapters, mode), kind),
        }
    }

    fn base(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let bias = self.bias.as_ref().map(Param::val);
        match &self.projection {
            Projection::Dense(dense) => linear(x, dense.weight.val(), bias),
            Projection::LowRank(factors) => linear(linear(x, factors.a.val(), None), factors.b.val(), bias),
        }
    }
}
