//! The feed-forward layer: one gated or ungated map, or a mixture of experts.

use burn::prelude::*;
use lowrank_kernels::Kernels;
use lowrank_spec::Stream;

use crate::config::{Activation, DecoderConfig, MlpNames};
use crate::decoder::experts::Experts;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor};

/// `down(act(gate(x)) ∘ up(x))`, or `down(act(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    gate: Option<Linear<B>>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    names: MlpNames,
    /// On the inner values.
    dropout: f64,
    /// Index of the layer among all of the model.
    layer: usize,
}

/// The feed-forward layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one in each layer; burn's modules cannot be boxed")]
pub(crate) enum FeedForward<B: Backend> {
    /// One for all tokens.
    Dense(Mlp<B>),
    /// Several, of which each token uses a few.
    Experts(Experts<B>),
}

impl<B: Backend> FeedForward<B> {
    /// Newly initialized weights of layer `index`.
    pub(crate) fn init(
        config: &DecoderConfig,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        match &config.experts {
            Some(experts) if config.layers[index].experts => {
                Self::Experts(Experts::init(config, experts, index, sites, seed, device))
            }
            _ => {
                let names = config.names();
                let at = names.in_layer(index, "");
                Self::Dense(Mlp::init(config, names.mlp(), (&at, index), config.d_ff, sites, seed, device))
            }
        }
    }

    /// Visits every parameter; `at` is the path of the layer with its final dot, and its index.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, at: (&str, usize), visitor: &mut V) {
        match self {
            Self::Dense(mlp) => mlp.visit_params(at, visitor),
            Self::Experts(experts) => experts.visit_params(at, visitor),
        }
    }
}

impl<B: Kernels> FeedForward<B> {
    /// # Shapes
    /// - x, output: `[rows, d_model]`
    pub(crate) fn forward(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, run),
            Self::Experts(experts) => experts.forward(x, run),
        }
    }
}

impl<B: Backend> Mlp<B> {
    /// Newly initialized weights of inner width `d_ff`; `at` is the prefix of the maps' names, and the layer.
    pub(crate) fn init(
        config: &DecoderConfig,
        names: MlpNames,
        (at, layer): (&str, usize),
        d_ff: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let (d, bias) = (config.d_model, config.mlp_bias);
        let conv1d = config.names().conv1d;
        let mut linear = |name: &str, shape| {
            let path = &format!("{at}{name}");
            let spec = LinearSpec { path, layer: Some(layer), shape, bias, head: false, conv1d };
            sites.linear(spec, seed, device)
        };
        let inner = if names.up_has_gate { 2 * d_ff } else { d_ff };
        Self {
            gate: names.gate.map(|gate| linear(gate, [d, d_ff])),
            up: linear(names.up, [d, inner]),
            down: linear(names.down, [d_ff, d]),
            activation: config.activation,
            names,
            dropout: config.dropouts.mlp_inner,
            layer: config.first_layer + layer,
        }
    }

    /// Visits every parameter.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, (at, layer): (&str, usize), visitor: &mut V) {
        let names = self.names;
        let maps = [
            names.gate.zip(self.gate.as_mut()),
            Some((names.up, &mut self.up)),
            Some((names.down, &mut self.down)),
        ];
        for (name, map) in maps.into_iter().flatten() {
            map.visit_params(ModulePath::in_layer(&format!("{at}{name}"), layer), visitor);
        }
    }
}

impl<B: Kernels> Mlp<B> {
    /// # Shapes
    /// - x, output: `[rows, d_model]`
    pub(crate) fn forward(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let inner = match &self.gate {
            None if self.names.up_has_gate => {
                let both = self.up.forward(x, run);
                let width = both.dims()[1] / 2;
                self.activation.gated(both.clone().narrow(1, 0, width), both.narrow(1, width, width))
            }
            None => self.up.forward_activated(x, self.activation, run),
            Some(gate) => {
                let up = self.up.forward(x.clone(), run);
                match self.activation {
                    Activation::Silu | Activation::ClampedSilu { .. } => {
                        self.activation.gated(gate.forward(x, run), up)
                    }
                    // The activation in one operation with the map.
                    activation => gate.forward_activated(x, activation, run) * up,
                }
            }
        }; // [rows, d_ff]
        let inner = run.drop(inner, self.dropout, Stream::Layer { layer: self.layer, place: 3 });
        self.down.forward(inner, run)
    }
}
