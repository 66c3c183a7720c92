//! The blocks that decoders share: attention with grouped heads, layers.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{
    Alibi, AttentionSpec, Kernels, Keys, RopeSpec, add, relative_attention, rope, sink_attention,
};
use lowrank_spec::Stream;

use crate::batch::{Rows, TokenBatch};
use crate::cache::KvCache;
use crate::config::{
    DecoderConfig, DecoderDropouts, DecoderNames, LayerKind, NormKind, QkNorm, QkvNames, Residual,
};
use crate::decoder::cross::{CrossAttention, CrossInputs};
use crate::decoder::mlp::FeedForward;
use crate::encoder::of_queries;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::lazy_full;
use crate::rope::Angles;
use crate::run::Run;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Role};

/// What a layer of a decoder reads beside its tokens.
pub(crate) struct LayerInputs<'a, B: Backend> {
    /// Biases of the self-attention by relative position, `[n_heads, 1, buckets]`.
    pub(crate) biases: Option<Tensor<B, 3>>,
    /// Of an encoder's states.
    pub(crate) cross: Option<CrossInputs<'a, B>>,
}

impl<B: Backend> LayerInputs<'_, B> {
    /// Of a decoder that reads its tokens alone.
    pub(crate) const NONE: Self = Self { biases: None, cross: None };
}

/// Causal self-attention with grouped heads.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// The maps to queries, keys and values: one each, or one for all.
    qkv: Vec<Linear<B>>,
    /// Norms of queries and keys.
    qk_norms: Option<[Norm<B>; 2]>,
    /// Gains of their heads; shapes `[n_heads, head_dim]` and `[n_kv_heads, head_dim]`.
    qk_gains: Option<[Param<Tensor<B, 2>>; 2]>,
    /// A logit of each head in the softmax, `[n_heads]`, and its name.
    sinks: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    sinks_name: &'static str,
    output: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// Whether a fused map has queries, key and value of a key head side by side, not of all heads.
    by_head: bool,
    #[module(skip)]
    qk_norm: Option<QkNorm>,
    #[module(skip)]
    clip: Option<f64>,
    #[module(skip)]
    softcap: Option<f32>,
    #[module(skip)]
    alibi: Option<Alibi>,
    dropout: f64,
    #[module(skip)]
    kind: LayerKind,
    #[module(skip)]
    rope: Option<Rotation>,
}

/// How a layer rotates its queries and keys.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    /// Which of the batch's angles.
    angles: usize,
    rotary_dim: usize,
    interleaved: bool,
}

/// One transformer layer.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    attention_norm: Option<Norm<B>>,
    attention: Attention<B>,
    attention_output_norm: Option<Norm<B>>,
    /// Over the states of an encoder.
    cross: Option<CrossAttention<B>>,
    mlp_norm: Option<Norm<B>>,
    mlp: FeedForward<B>,
    mlp_output_norm: Option<Norm<B>>,
    residual_scale: f64,
    #[module(skip)]
    dropouts: DecoderDropouts,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    names: DecoderNames,
    index: usize,
    /// Number of layers before the first of the decoder.
    first_layer: usize,
}

impl<B: Backend> DecoderLayer<B> {
    /// Drawn weights of layer `index`.
    pub(crate) fn init(
        config: &DecoderConfig,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let (names, kind) = (config.names(), config.layers[index]);
        let d = config.d_model;
        let [q_width, kv_width] = [config.n_heads, config.n_kv_heads].map(|n| n * config.head_dim);
        let mut linear = |name: &str, shape, bias| {
            let path = &names.in_layer(index, name);
            let spec =
                LinearSpec { path, layer: Some(index), shape, bias, head: false, conv1d: names.conv1d };
            sites.linear(spec, seed, device)
        };
        let (qkv, by_head) = match names.qkv {
            QkvNames::Separate([q, k, v]) => {
                let mut map = |name, width| linear(name, [d, width], config.qkv_bias);
                (vec![map(q, q_width), map(k, kv_width), map(v, kv_width)], false)
            }
            QkvNames::Fused { name, by_head } => {
                (vec![linear(name, [d, q_width + 2 * kv_width], config.qkv_bias)], by_head)
            }
        };
        let norm_of = |width| Norm::init(config.norm, width, config.norm_eps, device);
        let qk_norms = config.qk_norm.map(|norm| match norm {
            QkNorm::Head | QkNorm::HeadAfterRotation => [config.head_dim; 2].map(norm_of),
            QkNorm::HeadGains => [config.head_dim; 2]
                .map(|width| Norm::init(NormKind::LayerPlain, width, config.norm_eps, device)),
            QkNorm::All => [q_width, kv_width].map(norm_of),
        });
        let qk_gains = (config.qk_norm == Some(QkNorm::HeadGains)).then(|| {
            [config.n_heads, config.n_kv_heads].map(|heads| lazy_full([heads, config.head_dim], 1.0, device))
        });
        let rope = kind.rope.map(|angles| {
            let rope = &config.ropes[angles];
            Rotation { angles, rotary_dim: rope.rotary_dim, interleaved: rope.interleaved }
        });
        let attention = Attention {
            qkv,
            qk_norms,
            qk_gains,
            sinks: config.sinks.map(|_| lazy_full([config.n_heads], 0.0, device)),
            sinks_name: config.sinks.unwrap_or_default(),
            output: linear(names.output, [q_width, d], config.output_bias),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            by_head,
            qk_norm: config.qk_norm,
            clip: config.clip_qkv,
            softcap: config.attention_softcap,
            alibi: config.alibi.clone(),
            dropout: config.dropouts.attention,
            kind,
            rope: rope.filter(|rope| rope.rotary_dim > 0),
        };
        let mlp = FeedForward::init(config, index, sites, seed, device);
        let norm = |name: Option<&str>| name.map(|_| norm_of(d));
        Self {
            attention_norm: norm(kind.norms.attention),
            attention,
            attention_output_norm: norm(kind.norms.attention_output),
            cross: names.cross.map(|cross| CrossAttention::init(config, cross, index, sites, seed, device)),
            mlp_norm: norm(kind.norms.mlp),
            mlp,
            mlp_output_norm: norm(kind.norms.mlp_output),
            residual_scale: config.residual_scale,
            dropouts: config.dropouts,
            residual: config.residual,
            names,
            index,
            first_layer: config.first_layer,
        }
    }

    /// The attention over an encoder's states.
    pub(crate) fn cross(&self) -> Option<&CrossAttention<B>> {
        self.cross.as_ref()
    }

    /// Visits every parameter.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let (names, index, kind) = (self.names, self.index, self.attention.kind);
        let path = |name: &str| names.in_layer(index, name);
        let norm = |norm: &mut Option<Norm<B>>, name: Option<&str>, visitor: &mut V| {
            if let (Some(norm), Some(name)) = (norm, name) {
                norm.visit_params(ModulePath::in_layer(&path(name), index), visitor);
            }
        };
        norm(&mut self.attention_norm, kind.norms.attention, visitor);
        for (map, name) in self.attention.qkv.iter_mut().zip(names.qkv.paths()) {
            map.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
        for (norm, name) in self.attention.qk_norms.iter_mut().flatten().zip(names.qk_norms) {
            norm.visit_params(ModulePath::in_layer(&path(name), index), visitor);
        }
        for (gain, name) in self.attention.qk_gains.iter_mut().flatten().zip(names.qk_norms) {
            let path = path(name);
            let module = ModulePath::in_layer(&path, index);
            visitor.visit(&module.parameter(Role::Gain, Layout::Same, None), gain);
        }
        if let Some(sinks) = &mut self.attention.sinks {
            let path = path(self.attention.sinks_name);
            let module = ModulePath::in_layer(&path, index);
            visitor.visit(&module.parameter(Role::Bare, Layout::Same, None), sinks);
        }
        self.attention.output.visit_params(ModulePath::in_layer(&path(names.output), index), visitor);
        norm(&mut self.attention_output_norm, kind.norms.attention_output, visitor);
        if let Some(cross) = &mut self.cross {
            cross.visit_params((&path(""), index), visitor);
        }
        norm(&mut self.mlp_norm, kind.norms.mlp, visitor);
        self.mlp.visit_params((&path(""), index), visitor);
        norm(&mut self.mlp_output_norm, kind.norms.mlp_output, visitor);
    }
}

impl<B: Kernels> Attention<B> {
    /// What the maps to queries, keys and values give, cut to the bound.
    fn clipped(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.clip {
            Some(bound) => x.clamp(-bound, bound),
            None => x,
        }
    }

    /// Queries of `x_query` `[rows, n_heads * head_dim]`, keys and values of `x` `[tokens, n_kv_heads * head_dim]`.
    fn project(&self, x_query: Tensor<B, 2>, x: Tensor<B, 2>, run: Run<'_, B>) -> [Tensor<B, 2>; 3] {
        if let [q, k, v] = &self.qkv[..] {
            return [q.forward(x_query, run), k.forward(x.clone(), run), v.forward(x, run)]
                .map(|x| self.clipped(x));
        }
        let [q_width, kv_width] = [self.n_heads, self.n_kv_heads].map(|n| n * self.head_dim);
        let all = self.clipped(self.qkv[0].forward(x, run));
        let [tokens, _] = all.dims();
        if self.by_head {
            let group = self.n_heads / self.n_kv_heads;
            let all = all.reshape([tokens, self.n_kv_heads, group + 2, self.head_dim]);
            return [(0, group, q_width), (group, 1, kv_width), (group + 1, 1, kv_width)]
                .map(|(start, n, width)| all.clone().narrow(2, start, n).reshape([tokens, width]));
        }
        let (k, v) = (q_width, q_width + kv_width);
        [(0, q_width), (k, kv_width), (v, kv_width)].map(|(start, width)| all.clone().narrow(1, start, width))
    }

    /// Normed queries and keys.
    fn normed(&self, [q, k]: [Tensor<B, 2>; 2]) -> [Tensor<B, 2>; 2] {
        let Some([q_norm, k_norm]) = &self.qk_norms else { return [q, k] };
        if self.qk_norm == Some(QkNorm::All) {
            return [q_norm.forward(q), k_norm.forward(k)];
        }
        let by_head = |x: Tensor<B, 2>, norm: &Norm<B>| {
            let [rows, width] = x.dims();
            let heads = width / self.head_dim;
            norm.forward(x.reshape([rows * heads, self.head_dim])).reshape([rows, width])
        };
        let [q, k] = [by_head(q, q_norm), by_head(k, k_norm)];
        match &self.qk_gains {
            Some([of_q, of_k]) => {
                let row = |gain: &Param<Tensor<B, 2>>| gain.val().reshape([1, -1]);
                [q * row(of_q), k * row(of_k)]
            }
            None => [q, k],
        }
    }

    fn rotated(
        &self,
        x: Tensor<B, 2>,
        n_heads: usize,
        rotation: Rotation,
        [cos, sin]: [Tensor<B, 2>; 2],
    ) -> Tensor<B, 2> {
        let spec = RopeSpec { n_heads, rotary_dim: rotation.rotary_dim, interleaved: rotation.interleaved };
        rope(x, cos, sin, spec)
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        (batch, rows): (&TokenBatch<B>, Rows),
        (index, layer): (usize, usize),
        cache: Option<&mut KvCache<B>>,
        biases: Option<&Tensor<B, 3>>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        // A fused map computes all rows at once; its queries are picked afterwards.
        let is_fused = self.qkv.len() == 1;
        let x_query = if is_fused { x.clone() } else { batch.select(x.clone(), rows) };
        let [mut q, mut k, mut v] = self.project(x_query, x, run);
        if is_fused {
            q = batch.select(q, rows);
        }
        let norms_last = self.qk_norm == Some(QkNorm::HeadAfterRotation);
        if !norms_last {
            [q, k] = self.normed([q, k]);
        }
        if let Some((rotation, Angles { cos, sin, query_factors })) =
            self.rope.and_then(|rotation| Some((rotation, batch.angles.get(rotation.angles)?)))
        {
            let of_queries = [cos, sin].map(|table| batch.select(table.clone(), rows));
            q = self.rotated(q, self.n_heads, rotation, of_queries);
            k = self.rotated(k, self.n_kv_heads, rotation, [cos.clone(), sin.clone()]);
            if let Some(factors) = query_factors {
                q = q * batch.select(factors.clone(), rows);
            }
        }
        if norms_last {
            [q, k] = self.normed([q, k]);
        }
        let terms = [biases.map(|biases| of_queries(biases, q.dims()[0])), None];
        let mut spec = AttentionSpec {
            queries: batch.queries(rows),
            scale: self.kind.scale,
            window: self.kind.window,
            softcap: self.softcap,
            alibi: self.alibi.clone(),
            distances: biases.and(batch.distances.as_ref()).map(|batch| batch.distances.clone()),
            dropout: run.dropout(self.dropout, Stream::Layer { layer, place: 0 }),
            ..AttentionSpec::decoder(batch.packed.clone(), self.n_heads, self.n_kv_heads, self.head_dim)
        };
        if let (Some(cache), Some(writes)) = (cache, &batch.writes) {
            [k, v] = cache.write(index, writes, [k, v]);
            spec.keys = Keys::Cached(writes.keys.clone());
        }
        let context = match &self.sinks {
            Some(sinks) => sink_attention(q, k, v, sinks.val(), &spec),
            None => relative_attention(q, k, v, terms, &spec),
        }; // [rows, n_heads * head_dim]
        self.output.forward(context, run)
    }
}

/// `norm(x)`, or `x` where there is no norm.
fn normed<B: Kernels>(norm: Option<&Norm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

impl<B: Kernels> DecoderLayer<B> {
    /// What a part adds to the residual stream.
    fn added(&self, norm: Option<&Norm<B>>, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = normed(norm, y);
        if self.residual_scale == 1.0 { y } else { y * self.residual_scale }
    }

    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        cache: Option<&mut KvCache<B>>,
        inputs: &LayerInputs<'_, B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        // The two parts, each with its dropout.
        let layer = self.first_layer + self.index;
        let drop = |y, p, place| run.drop(y, p, Stream::Layer { layer, place });
        let feed_forward = |x: Tensor<B, 2>| {
            let place = if self.dropouts.shares_mask { 1 } else { 2 };
            drop(self.mlp.forward(x, run), self.dropouts.mlp_output, place)
        };
        let before = match self.residual {
            Residual::PostNorm => x.clone(),
            _ => normed(self.attention_norm.as_ref(), x.clone()),
        };
        let places = (self.index, layer);
        let biases = inputs.biases.as_ref();
        let attended = self.attention.forward(before.clone(), (batch, rows), places, cache, biases, run);
        let attended = drop(attended, self.dropouts.attention_output, 1);
        let attended = self.added(self.attention_output_norm.as_ref(), attended);
        let x = batch.select(x, rows);
        let h = add(x.clone(), attended);
        let h = match self.residual {
            Residual::PostNorm => normed(self.attention_norm.as_ref(), h),
            _ => h,
        };
        let h = match (&self.cross, &inputs.cross) {
            (Some(cross), Some(inputs)) => cross.forward(h, &batch.queries(rows), inputs, run),
            _ => h,
        };
        if self.residual == Residual::PostNorm {
            let inner = feed_forward(h.clone());
            return normed(self.mlp_norm.as_ref(), add(h, self.added(None, inner)));
        }
        let mlp_input = match (self.residual, &self.mlp_norm) {
            (Residual::Sequential | Residual::PostNorm, norm) => normed(norm.as_ref(), h.clone()),
            (Residual::Parallel, Some(norm)) => norm.forward(x),
            (Residual::Parallel, None) => batch.select(before, rows),
        };
        let inner = feed_forward(mlp_input);
        add(h, self.added(self.mlp_output_norm.as_ref(), inner))
    }
}
