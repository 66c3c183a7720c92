//! The blocks that decoders share: attention with grouped heads, feed-forward parts, layers.

use std::sync::Arc;

use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_kernels::{AttentionSpec, Kernels, Keys, RopeSpec, attention, rope, swiglu};

use crate::architecture::{DecoderNames, QkvNames};
use crate::config::Activation;
use crate::decoder::cache::{KvCache, Writes};
use crate::decoder::config::{DecoderConfig, Residual};
use crate::decoder::rope::Angles;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::ParamIo;

/// What all layers of a step share.
#[derive(Clone, Debug)]
pub struct Step<B: Backend> {
    /// Tokens of each sequence in this step.
    pub lengths: Arc<[usize]>,
    /// Angles of the tokens' positions, where positions are rotary.
    pub angles: Option<Angles<B>>,
    /// Where the step's keys and values go in a cache.
    pub(crate) writes: Option<Writes>,
}

/// Causal self-attention with grouped heads.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// The maps to queries, keys and values: one each, or one for all.
    qkv: Vec<Linear<B>>,
    output: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// Whether a fused map has query, key and value of a head side by side, not of all heads.
    by_head: bool,
    rotary_dim: usize,
    scale: f64,
    window: Option<usize>,
}

/// The feed-forward part: `down(act(gate(x)) ∘ up(x))`, or `down(act(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    gate: Option<Linear<B>>,
    up: Linear<B>,
    down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

/// One transformer layer.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    attention_norm: Norm<B>,
    attention: Attention<B>,
    mlp_norm: Option<Norm<B>>,
    mlp: Mlp<B>,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    names: &'static DecoderNames,
    index: usize,
}

impl<B: Backend> DecoderLayer<B> {
    /// Fresh weights of layer `index`.
    pub(crate) fn init(
        config: &DecoderConfig,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let names = &config.architecture.names;
        let (d, d_ff) = (config.d_model, config.d_ff);
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
        let attention = Attention {
            qkv,
            output: linear(names.output, [q_width, d], config.output_bias),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            by_head,
            rotary_dim: config.rope.as_ref().map_or(0, |rope| rope.rotary_dim),
            scale: f64::from(config.score_scales[index]),
            window: config.windows[index],
        };
        let mlp = Mlp {
            gate: names.gate.map(|gate| linear(gate, [d, d_ff], config.mlp_bias)),
            up: linear(names.up, [d, d_ff], config.mlp_bias),
            down: linear(names.down, [d_ff, d], config.mlp_bias),
            activation: config.activation,
        };
        let norm = || Norm::init(config.norm, d, config.norm_eps, device);
        let mlp_norm = (config.residual != Residual::ParallelOneNorm).then(norm);
        let residual = config.residual;
        Self { attention_norm: norm(), attention, mlp_norm, mlp, residual, names, index }
    }

    /// Visits every parameter under its Hugging Face key.
    pub(crate) fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let (names, index) = (self.names, self.index);
        let key = |name: &str| names.in_layer(index, name);
        self.attention_norm.walk(&key(names.attention_norm), io);
        for (map, name) in self.attention.qkv.iter_mut().zip(names.qkv.paths()) {
            map.walk(&key(name), io);
        }
        self.attention.output.walk(&key(names.output), io);
        if let Some(norm) = &mut self.mlp_norm {
            norm.walk(&key(names.mlp_norm), io);
        }
        if let (Some(gate), Some(name)) = (&mut self.mlp.gate, names.gate) {
            gate.walk(&key(name), io);
        }
        self.mlp.up.walk(&key(names.up), io);
        self.mlp.down.walk(&key(names.down), io);
    }
}

impl<B: Kernels> Attention<B> {
    /// Queries `[tokens, n_heads * head_dim]`, keys and values `[tokens, n_kv_heads * head_dim]`.
    fn split(&self, x: Tensor<B, 2>, adapters: &AdapterSet<B>, mode: Mode) -> [Tensor<B, 2>; 3] {
        let [q_width, kv_width] = [self.n_heads, self.n_kv_heads].map(|n| n * self.head_dim);
        if let [q, k, v] = &self.qkv[..] {
            return [q, k, v].map(|map| map.forward(x.clone(), adapters, mode));
        }
        let all = self.qkv[0].forward(x, adapters, mode);
        let [tokens, _] = all.dims();
        if self.by_head {
            let all = all.reshape([tokens, self.n_heads, 3, self.head_dim]);
            return [0, 1, 2].map(|i| all.clone().narrow(2, i, 1).reshape([tokens, q_width]));
        }
        let (k, v) = (q_width, q_width + kv_width);
        [(0, q_width), (k, kv_width), (v, kv_width)].map(|(start, width)| all.clone().narrow(1, start, width))
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        step: &Step<B>,
        cache: Option<(&mut KvCache<B>, usize)>,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let [mut q, mut k, v] = self.split(x, adapters, mode);
        if let Some(Angles { cos, sin }) = &step.angles {
            let rotate = |x, n_heads| {
                let spec = RopeSpec { n_heads, rotary_dim: self.rotary_dim, interleaved: false };
                rope(x, cos.clone(), sin.clone(), spec)
            };
            (q, k) = (rotate(q, self.n_heads), rotate(k, self.n_kv_heads));
        }
        let mut spec = AttentionSpec {
            scale: self.scale as f32,
            window: self.window,
            ..AttentionSpec::decoder(step.lengths.clone(), self.n_heads, self.n_kv_heads, self.head_dim)
        };
        let context = match (cache, &step.writes) {
            (Some((cache, layer)), Some(writes)) => {
                let [k, v] = cache.write(layer, writes, [k, v]);
                spec.keys = Keys::Cached(writes.keys.clone());
                attention(q, k, v, &spec)
            }
            _ => attention(q, k, v, &spec),
        }; // [tokens, n_heads * head_dim]
        self.output.forward(context, adapters, mode)
    }
}

impl<B: Kernels> Mlp<B> {
    fn forward(&self, x: Tensor<B, 2>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let inner = match &self.gate {
            None => self.up.forward_activated(x, self.activation, adapters, mode),
            Some(gate) => {
                let up = self.up.forward(x.clone(), adapters, mode);
                match self.activation {
                    Activation::Silu => swiglu(gate.forward(x, adapters, mode), up),
                    activation => gate.forward_activated(x, activation, adapters, mode) * up,
                }
            }
        }; // [tokens, d_ff]
        self.down.forward(inner, adapters, mode)
    }
}

impl<B: Kernels> DecoderLayer<B> {
    /// # Shapes
    /// - x, output: `[tokens, d_model]`
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        step: &Step<B>,
        cache: Option<&mut KvCache<B>>,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let cache = cache.map(|cache| (cache, self.index));
        let normed = self.attention_norm.forward(x.clone());
        let attended = self.attention.forward(normed.clone(), step, cache, adapters, mode);
        let (stream, mlp_input) = match (self.residual, &self.mlp_norm) {
            (Residual::Sequential, Some(norm)) => {
                let h = x + attended;
                (h.clone(), norm.forward(h))
            }
            (_, Some(norm)) => (x.clone() + attended, norm.forward(x)),
            (_, None) => (x + attended, normed),
        };
        stream + self.mlp.forward(mlp_input, adapters, mode)
    }
}
