//! The blocks that encoders share: self-attention, feed-forward parts, and layers with their norms before or after them.

use burn::prelude::*;
use lowrank_kernels::{AttentionSpec, Dropout, Kernels, RopeSpec, add, relative_attention, rope};
use lowrank_spec::Stream;

use super::relative::{Layer as RelativeLayer, PositionMaps, RelativeTable};
use crate::batch::{Rows, TokenBatch};
use crate::config::{Activation, EncoderConfig, EncoderLayerKind, EncoderNames, QkvNames};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::rope::Angles;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor};

/// Multi-head self-attention and its output projection.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// The maps to queries, keys and values: one each, or one for all.
    qkv: Vec<Linear<B>>,
    /// From relative positions.
    maps: PositionMaps<B>,
    output: Linear<B>,
    n_heads: usize,
    head_dim: usize,
    /// Multiplier on the attention scores before the softmax.
    scale: f32,
    #[module(skip)]
    kind: EncoderLayerKind,
    #[module(skip)]
    rope: Option<RopeSpec>,
    dropout: f64,
}

/// The feed-forward part: `down(act(up(x)))`, or with a gate `down(act(gate(x)) ∘ up(x))`.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    gate: Option<Linear<B>>,
    up: Linear<B>,
    down: Linear<B>,
    /// Whether `up` gives gate and inner values in one.
    up_has_gate: bool,
    /// Whether the gate comes last there.
    gate_is_last: bool,
    #[module(skip)]
    activation: Activation,
    dropout: f64,
}

/// One transformer layer: `h = norm(x + attention(x))` and `norm(h + feed_forward(h))`, or with norms before the parts
/// `h = x + attention(norm(x))` and `h + feed_forward(norm(h))`.
#[derive(Module, Debug)]
pub struct EncoderLayer<B: Backend> {
    attention: SelfAttention<B>,
    attention_norm: Option<Norm<B>>,
    feed_forward: FeedForward<B>,
    feed_forward_norm: Norm<B>,
    norms_before: bool,
    /// Dropout after the attention and after the feed-forward part.
    dropouts: [f64; 2],
    index: usize,
}

impl<B: Backend> EncoderLayer<B> {
    /// Newly initialized weights of the stored layer `index`.
    pub(super) fn init(
        config: &EncoderConfig,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let (d, d_ff, names) = (config.d_model, config.d_ff, &config.architecture.names);
        let (biases, dropouts, kind) = (config.biases, config.dropouts, config.layers[index]);
        let mut linear = |name: &str, shape, bias| {
            let path = &names.in_layer(index, config.groups[1], name);
            let spec = LinearSpec { path, layer: Some(index), shape, bias, head: false, conv1d: false };
            sites.linear(spec, seed, device)
        };
        let fused = if let QkvNames::Fused { .. } = names.qkv { 3 } else { 1 };
        let head_dim = config.head_dim;
        let d_heads = config.n_heads * head_dim;
        let qkv =
            names.qkv.paths().iter().map(|name| linear(name, [d, fused * d_heads], biases.qkv)).collect();
        let rope = kind.rope.map(|rope| &config.ropes[rope]).filter(|rope| rope.rotary_dim > 0);
        let maps = PositionMaps::init(config, &mut |name| linear(name, [d, d], biases.qkv));
        let attention = SelfAttention {
            qkv,
            maps,
            output: linear(names.output, [d_heads, d], biases.output),
            n_heads: config.n_heads,
            head_dim,
            scale: config.score_scale,
            kind,
            rope: rope.map(|rope| RopeSpec {
                n_heads: config.n_heads,
                rotary_dim: rope.rotary_dim,
                interleaved: rope.interleaved,
            }),
            dropout: dropouts.attention,
        };
        let [up, down] = names.feed_forward;
        let inner = if names.up_has_gate { 2 * d_ff } else { d_ff };
        let feed_forward = FeedForward {
            gate: names.gate.map(|gate| linear(gate, [d, d_ff], biases.up)),
            up: linear(up, [d, inner], biases.up),
            down: linear(down, [d_ff, d], biases.down),
            up_has_gate: names.up_has_gate,
            gate_is_last: names.gate_is_last,
            activation: config.activation,
            dropout: dropouts.inner,
        };
        let norm = || Norm::init(config.norm_kind(), d, config.norm_eps, device);
        Self {
            attention,
            attention_norm: kind.attention_norm.then(norm),
            feed_forward,
            feed_forward_norm: norm(),
            norms_before: names.norms_before,
            dropouts: [dropouts.attention_output, dropouts.output],
            index,
        }
    }

    /// Visits every parameter; groups of layers hold `in_group` each.
    pub(super) fn visit_params<V: ParamVisitor<B>>(
        &mut self,
        names: &EncoderNames,
        in_group: usize,
        visitor: &mut V,
    ) {
        let index = self.index;
        let path = |name: &str| names.in_layer(index, in_group, name);
        for (linear, name) in self.attention.qkv.iter_mut().zip(names.qkv.paths()) {
            linear.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
        self.attention.maps.visit_params(names, index, path, visitor);
        self.attention.output.visit_params(ModulePath::in_layer(&path(names.output), index), visitor);
        if let Some(norm) = &mut self.attention_norm {
            norm.visit_params(ModulePath::in_layer(&path(names.attention_norm), index), visitor);
        }
        let f = &mut self.feed_forward;
        if let (Some(gate), Some(name)) = (&mut f.gate, names.gate) {
            gate.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
        for (linear, name) in [&mut f.up, &mut f.down].into_iter().zip(names.feed_forward) {
            linear.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
        let norm = path(names.feed_forward_norm);
        self.feed_forward_norm.visit_params(ModulePath::in_layer(&norm, index), visitor);
    }
}

impl<B: Kernels> SelfAttention<B> {
    /// Queries of the wanted rows, keys and values of all tokens; each `[rows, n_heads · head_dim]`.
    fn project(
        &self,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> [Tensor<B, 2>; 3] {
        if let [q, k, v] = &self.qkv[..] {
            let x_query = batch.select(x.clone(), rows);
            return [q.forward(x_query, run), k.forward(x.clone(), run), v.forward(x, run)];
        }
        let all = self.qkv[0].forward(x, run); // [tokens, 3 · d_model]
        let d = self.n_heads * self.head_dim;
        let [q, k, v] = [0, 1, 2].map(|i| all.clone().narrow(1, i * d, d));
        [batch.select(q, rows), k, v]
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        layer: usize,
        relative: Option<&RelativeTable<B>>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let [mut q, mut k, v] = self.project(x, batch, rows, run);
        let angles = self.kind.rope.and_then(|index| batch.angles.get(index));
        if let (Some(spec), Some(Angles { cos, sin, query_factors })) = (self.rope, angles) {
            let [q_cos, q_sin] = [cos, sin].map(|table| batch.select(table.clone(), rows));
            q = rope(q, q_cos, q_sin, spec);
            k = rope(k, cos.clone(), sin.clone(), spec);
            if let Some(factors) = query_factors {
                q = q * batch.select(factors.clone(), rows);
            }
        }
        let relative = relative.zip(batch.distances.as_ref());
        let terms = relative.map(|(relative, distances)| {
            let layer = RelativeLayer {
                index: layer,
                n_heads: self.n_heads,
                scale: self.scale,
                query_and_key: match &self.qkv[..] {
                    [query, key, _] => Some([query, key]),
                    _ => None,
                },
                maps: &self.maps,
            };
            relative.terms(&layer, &q, &k, distances, run)
        });
        let spec = AttentionSpec {
            queries: batch.queries(rows),
            queries_first: rows == Rows::First,
            scale: self.scale,
            window: self.kind.window,
            distances: relative.map(|(_, distances)| distances.distances.clone()),
            dropout: run.dropout(self.dropout, Stream::Layer { layer, place: 0 }),
            ..AttentionSpec::encoder(batch.packed.clone(), self.n_heads, self.head_dim)
        };
        let context = relative_attention(q, k, v, terms.unwrap_or_default(), &spec); // [rows, d_model]
        self.output.forward(context, run)
    }
}

impl<B: Kernels> FeedForward<B> {
    fn forward(&self, x: Tensor<B, 2>, layer: usize, run: Run<'_, B>) -> Tensor<B, 2> {
        let inner = self.inner(x, run); // [tokens, d_ff]
        let inner = run.drop(inner, self.dropout, Stream::Layer { layer, place: 3 });
        self.down.forward(inner, run)
    }

    fn inner(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let (gate, up) = match &self.gate {
            None if !self.up_has_gate => return self.up.forward_activated(x, self.activation, run),
            None => {
                let both = self.up.forward(x, run); // [tokens, 2 · d_ff]
                let width = both.dims()[1] / 2;
                let (first, last) = (both.clone().narrow(1, 0, width), both.narrow(1, width, width));
                if self.gate_is_last { (last, first) } else { (first, last) }
            }
            Some(gate) => (gate.forward(x.clone(), run), self.up.forward(x, run)),
        };
        self.activation.gated(gate, up)
    }
}

/// `x + dropout(y)`.
fn added<B: Kernels>(x: Tensor<B, 2>, y: Tensor<B, 2>, drop: Option<Dropout>) -> Tensor<B, 2> {
    let y = match drop {
        Some(drop) => lowrank_kernels::dropout(y, drop),
        None => y,
    };
    add(x, y)
}

impl<B: Kernels> EncoderLayer<B> {
    /// The layer, run as layer `layer`.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        layer: usize,
        relative: Option<&RelativeTable<B>>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let drop = |part: usize| {
            let place = part as u64 + 1;
            run.dropout(self.dropouts[part], Stream::Layer { layer, place })
        };
        let residual = batch.select(x.clone(), rows);
        if self.norms_before {
            let normed = match &self.attention_norm {
                Some(norm) => norm.forward(x),
                None => x,
            };
            let y = self.attention.forward(normed, batch, rows, layer, relative, run);
            let h = added(residual, y, drop(0));
            let y = self.feed_forward.forward(self.feed_forward_norm.forward(h.clone()), layer, run);
            return added(h, y, drop(1));
        }
        let y = self.attention.forward(x, batch, rows, layer, relative, run);
        let h = match &self.attention_norm {
            Some(norm) => norm.forward_residual(y, Some(residual), drop(0)),
            None => added(residual, y, drop(0)),
        };
        let y = self.feed_forward.forward(h.clone(), layer, run);
        self.feed_forward_norm.forward_residual(y, Some(h), drop(1))
    }
}
