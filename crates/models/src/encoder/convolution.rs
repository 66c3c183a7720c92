//! A convolution over neighbouring tokens beside the first layer (DeBERTa v2).

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Kernels, linear};
use lowrank_spec::Stream;
use lowrank_spec::names::WeightPart;

use crate::batch::{TokenBatch, int_tensor};
use crate::config::{Activation, EncoderConfig, EncoderNames};
use crate::norm::Norm;
use crate::params::{lazy_full, lazy_normal};
use crate::run::Run;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Role};

/// `norm(y + act(dropout(conv(x))))`, where `x` goes into the first layer and `y` comes out of it. Beyond the ends of a
/// sequence are zeros.
#[derive(Module, Debug)]
pub struct Convolution<B: Backend> {
    /// Shape `[d_model, d_model, kernel]`: outputs, inputs, neighbours.
    weight: Param<Tensor<B, 3>>,
    /// Shape `[d_model]`.
    bias: Param<Tensor<B, 1>>,
    norm: Norm<B>,
    #[module(skip)]
    activation: Activation,
    dropout: f64,
}

impl<B: Backend> Convolution<B> {
    /// Newly initialized weights; `None` for a model without.
    pub(super) fn init(config: &EncoderConfig, seed: u64, device: &B::Device) -> Option<Self> {
        let (options, names) = (config.convolution?, &config.architecture.names);
        let (d, [path, _]) = (config.d_model, names.convolution?);
        let key = format!("{}{path}.weight", names.prefix);
        Some(Self {
            weight: lazy_normal(seed, &key, [d, d, options.kernel], 0.02, device),
            bias: lazy_full([d], 0.0, device),
            norm: Norm::init(config.norm_kind(), d, config.norm_eps, device),
            activation: options.activation,
            dropout: config.dropouts.embeddings,
        })
    }

    /// Visits its parameters, which belong to the first layer.
    pub(super) fn visit_params<V: ParamVisitor<B>>(&mut self, names: &EncoderNames, visitor: &mut V) {
        let Some(paths) = names.convolution else { return };
        let [conv, norm] = paths.map(|path| format!("{}{path}", names.prefix));
        let module = ModulePath::in_layer(&conv, 0);
        let role = Role::Weight(WeightPart::Dense);
        visitor.visit(&module.parameter(role, Layout::Same, None), &mut self.weight);
        visitor.visit(&module.parameter(Role::Bias, Layout::Same, None), &mut self.bias);
        self.norm.visit_params(ModulePath::in_layer(&norm, 0), visitor);
    }
}

impl<B: Kernels> Convolution<B> {
    /// # Shapes
    /// - x, y, output: `[tokens, d_model]`
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        y: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let ([tokens, d], kernel) = (x.dims(), self.weight.dims()[2]);
        let device = x.device();
        // A row of zeros stands for what is beyond the ends.
        let padded = Tensor::cat(vec![x, Tensor::zeros([1, d], &device)], 0);
        let neighbours = (0..kernel).map(|offset| {
            let rows = batch.packed().all_rows().flat_map(|rows| {
                let neighbour = move |row: usize| (row + offset).checked_sub(kernel / 2);
                let of = rows.clone().map(neighbour);
                of.map(move |row| row.filter(|row| rows.contains(row)).unwrap_or(tokens) as i32)
            });
            padded.clone().select(0, int_tensor(rows.collect(), &device)) // [tokens, d]
        });
        let neighbours = Tensor::cat(neighbours.collect(), 1); // [tokens, kernel · d]
        let weight = self.weight.val().permute([2, 1, 0]).reshape([kernel * d, d]);
        let out = linear(neighbours, weight, Some(self.bias.val()));
        let out = run.drop(out, self.dropout, Stream::Convolution);
        self.norm.forward_residual(self.activation.apply(out), Some(y), None)
    }
}
