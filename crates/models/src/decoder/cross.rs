//! The attention of a decoder over the states of an encoder.

use burn::prelude::*;
use lowrank_kernels::{AttentionSpec, Kernels, Keys, add, attention};
use lowrank_spec::{PackedTokens, Stream};

use crate::config::{CrossNames, DecoderConfig, Residual};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor};

/// Multi-head attention whose keys and values are those of an encoder's states, its norm and its residual.
#[derive(Module, Debug)]
pub struct CrossAttention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    norm: Norm<B>,
    n_heads: usize,
    head_dim: usize,
    /// Multiplier on the attention scores before the softmax.
    scale: f32,
    /// Whether the norm comes after the sum.
    norm_last: bool,
    /// On attention probabilities, and after the output map.
    dropouts: [f64; 2],
    /// Index of the layer among all of the model.
    layer: usize,
    #[module(skip)]
    names: CrossNames,
}

/// What a layer's attention over an encoder's states reads of them.
pub(crate) struct CrossInputs<'a, B: Backend> {
    /// Keys and values, each `[tokens, n_heads * head_dim]`.
    pub(crate) keys_values: &'a [Tensor<B, 2>; 2],
    /// The rows of each sequence's keys.
    pub(crate) keys: &'a Keys,
}

impl<B: Backend> CrossAttention<B> {
    /// Newly initialized weights of layer `index`.
    pub(crate) fn init(
        config: &DecoderConfig,
        names: CrossNames,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let (d, width) = (config.d_model, config.n_heads * config.head_dim);
        let mut linear = |name: &str, shape, bias| {
            let path = &config.names().in_layer(index, name);
            let spec = LinearSpec { path, layer: Some(index), shape, bias, head: false, conv1d: false };
            sites.linear(spec, seed, device)
        };
        let [query, key, value] = names.qkv.map(|name| linear(name, [d, width], config.qkv_bias));
        Self {
            query,
            key,
            value,
            output: linear(names.output, [width, d], config.output_bias),
            norm: Norm::init(config.norm, d, config.norm_eps, device),
            n_heads: config.n_heads,
            head_dim: config.head_dim,
            scale: config.layers[index].scale,
            norm_last: config.residual == Residual::PostNorm,
            dropouts: [config.dropouts.attention, config.dropouts.attention_output],
            layer: config.first_layer + index,
            names,
        }
    }

    /// Visits every parameter; `at` is the path of the layer with its final dot, and its index.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, (at, index): (&str, usize), visitor: &mut V) {
        let CrossNames { qkv: [query, key, value], output, norm } = self.names;
        let path = |name: &str| format!("{at}{name}");
        self.norm.visit_params(ModulePath::in_layer(&path(norm), index), visitor);
        let maps = [
            (&mut self.query, query),
            (&mut self.key, key),
            (&mut self.value, value),
            (&mut self.output, output),
        ];
        for (map, name) in maps {
            map.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
    }
}

impl<B: Kernels> CrossAttention<B> {
    /// Keys and values of an encoder's states, of which every step reads the same.
    ///
    /// # Shapes
    /// - states: `[tokens, d_model]`
    /// - output: each `[tokens, n_heads * head_dim]`
    pub(crate) fn keys_values(&self, states: &Tensor<B, 2>, run: Run<'_, B>) -> [Tensor<B, 2>; 2] {
        [&self.key, &self.value].map(|map| map.forward(states.clone(), run))
    }

    /// The sublayer with its residual.
    ///
    /// # Shapes
    /// - h, output: `[queries, d_model]`
    pub(crate) fn forward(
        &self,
        h: Tensor<B, 2>,
        queries: &PackedTokens,
        inputs: &CrossInputs<'_, B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let stream = |place| Stream::Cross { layer: self.layer, place };
        let x = if self.norm_last { h.clone() } else { self.norm.forward(h.clone()) };
        let [k, v] = inputs.keys_values.clone();
        let spec = AttentionSpec {
            scale: self.scale,
            dropout: run.dropout(self.dropouts[0], stream(0)),
            ..AttentionSpec::cross(queries.clone(), inputs.keys.clone(), self.n_heads, self.head_dim)
        };
        let context = attention(self.query.forward(x, run), k, v, &spec); // [queries, n_heads * head_dim]
        let y = run.drop(self.output.forward(context, run), self.dropouts[1], stream(1));
        let h = add(h, y);
        if self.norm_last { self.norm.forward(h) } else { h }
    }
}
