//! The blocks that decoders share: attention with grouped heads, layers.

use burn::prelude::*;
use lowrank_kernels::{AttentionSpec, Kernels, Keys, RopeSpec, attention, rope};

use crate::batch::{Rows, TokenBatch};
use crate::cache::KvCache;
use crate::config::{DecoderConfig, DecoderNames, LayerKind, QkNorm, QkvNames, Residual};
use crate::decoder::mlp::FeedForward;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::rope::Angles;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor};

/// Causal self-attention with grouped heads.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// The maps to queries, keys and values: one each, or one for all.
    qkv: Vec<Linear<B>>,
    /// Norms of queries and keys.
    qk_norms: Option<[Norm<B>; 2]>,
    output: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// Whether a fused map has query, key and value of a head side by side, not of all heads.
    by_head: bool,
    /// Whether queries and keys are normed head by head.
    norms_heads: bool,
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
    mlp_norm: Option<Norm<B>>,
    mlp: FeedForward<B>,
    mlp_output_norm: Option<Norm<B>>,
    residual_scale: f64,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    names: DecoderNames,
    index: usize,
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
        let (names, kind) = (config.architecture.names, config.layers[index]);
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
            QkNorm::Head => [config.head_dim, config.head_dim].map(norm_of),
            QkNorm::All => [q_width, kv_width].map(norm_of),
        });
        let rope = kind.rope.map(|angles| {
            let rope = &config.ropes[angles];
            Rotation { angles, rotary_dim: rope.rotary_dim, interleaved: rope.interleaved }
        });
        let attention = Attention {
            qkv,
            qk_norms,
            output: linear(names.output, [q_width, d], config.output_bias),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            by_head,
            norms_heads: config.qk_norm == Some(QkNorm::Head),
            kind,
            rope: rope.filter(|rope| rope.rotary_dim > 0),
        };
        let mlp = FeedForward::init(config, index, sites, seed, device);
        let norm = |name: Option<&str>| name.map(|_| norm_of(d));
        Self {
            attention_norm: norm(kind.norms.attention),
            attention,
            attention_output_norm: norm(kind.norms.attention_output),
            mlp_norm: norm(kind.norms.mlp),
            mlp,
            mlp_output_norm: norm(kind.norms.mlp_output),
            residual_scale: config.residual_scale,
            residual: config.residual,
            names,
            index,
        }
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
        self.attention.output.visit_params(ModulePath::in_layer(&path(names.output), index), visitor);
        norm(&mut self.attention_output_norm, kind.norms.attention_output, visitor);
        norm(&mut self.mlp_norm, kind.norms.mlp, visitor);
        self.mlp.visit_params((&path(""), index), visitor);
        norm(&mut self.mlp_output_norm, kind.norms.mlp_output, visitor);
    }
}

impl<B: Kernels> Attention<B> {
    /// Queries of `x_query` `[rows, n_heads * head_dim]`, keys and values of `x` `[tokens, n_kv_heads * head_dim]`.
    fn project(&self, x_query: Tensor<B, 2>, x: Tensor<B, 2>, run: Run<'_, B>) -> [Tensor<B, 2>; 3] {
        if let [q, k, v] = &self.qkv[..] {
            return [q.forward(x_query, run), k.forward(x.clone(), run), v.forward(x, run)];
        }
        let [q_width, kv_width] = [self.n_heads, self.n_kv_heads].map(|n| n * self.head_dim);
        let all = self.qkv[0].forward(x, run);
        let [tokens, _] = all.dims();
        if self.by_head {
            let all = all.reshape([tokens, self.n_heads, 3, self.head_dim]);
            return [0, 1, 2].map(|i| all.clone().narrow(2, i, 1).reshape([tokens, q_width]));
        }
        let (k, v) = (q_width, q_width + kv_width);
        [(0, q_width), (k, kv_width), (v, kv_width)].map(|(start, width)| all.clone().narrow(1, start, width))
    }

    /// The norms of queries or keys.
    fn normed(&self, x: Tensor<B, 2>, norm: &Norm<B>) -> Tensor<B, 2> {
        if !self.norms_heads {
            return norm.forward(x);
        }
        let [rows, width] = x.dims();
        let heads = width / self.head_dim;
        norm.forward(x.reshape([rows * heads, self.head_dim])).reshape([rows, width])
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
        batch: &TokenBatch<B>,
        rows: Rows,
        cache: Option<(&mut KvCache<B>, usize)>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        // A fused map computes all rows at once; its queries are picked afterwards.
        let is_fused = self.qkv.len() == 1;
        let x_query = if is_fused { x.clone() } else { batch.select(x.clone(), rows) };
        let [mut q, mut k, v] = self.project(x_query, x, run);
        if is_fused {
            q = batch.select(q, rows);
        }
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            (q, k) = (self.normed(q, q_norm), self.normed(k, k_norm));
        }
        if let Some((rotation, Angles { cos, sin })) =
            self.rope.and_then(|rotation| Some((rotation, batch.angles.get(rotation.angles)?)))
        {
            let of_queries = [cos, sin].map(|table| batch.select(table.clone(), rows));
            q = self.rotated(q, self.n_heads, rotation, of_queries);
            k = self.rotated(k, self.n_kv_heads, rotation, [cos.clone(), sin.clone()]);
        }
        let mut spec = AttentionSpec {
            queries: batch.queries(rows),
            scale: self.kind.scale,
            window: self.kind.window,
            ..AttentionSpec::decoder(batch.packed.clone(), self.n_heads, self.n_kv_heads, self.head_dim)
        };
        let context = match (cache, &batch.writes) {
            (Some((cache, layer)), Some(writes)) => {
                let [k, v] = cache.write(layer, writes, [k, v]);
                spec.keys = Keys::Cached(writes.keys.clone());
                attention(q, k, v, &spec)
            }
            _ => attention(q, k, v, &spec),
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
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let cache = cache.map(|cache| (cache, self.index));
        let before = normed(self.attention_norm.as_ref(), x.clone());
        let attended = self.attention.forward(before.clone(), batch, rows, cache, run);
        let attended = self.added(self.attention_output_norm.as_ref(), attended);
        let x = batch.select(x, rows);
        let h = x.clone() + attended;
        let mlp_input = match (self.residual, &self.mlp_norm) {
            (Residual::Sequential, norm) => normed(norm.as_ref(), h.clone()),
            (Residual::Parallel, Some(norm)) => norm.forward(x),
            (Residual::Parallel, None) => batch.select(before, rows),
        };
        let inner = self.mlp.forward(mlp_input, run);
        h + self.added(self.mlp_output_norm.as_ref(), inner)
    }
}
