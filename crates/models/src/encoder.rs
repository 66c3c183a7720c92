//! The transformer encoder that BERT and RoBERTa share, on packed tokens.
//!
//! | dimension | meaning |
//! |---|---|
//! | tokens | sum of the sequence lengths |
//! | d_model | hidden width |
//! | n_heads | attention heads of d_model / n_heads |
//! | d_ff | inner width of the feed-forward part |

use std::sync::Arc;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::activation::{relu, silu};
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_kernels::{AttentionSpec, Dropout, Kernels, attention, dropout, layer_norm};

use crate::batch::TokenBatch;
use crate::config::{Activation, EncoderConfig};
use crate::linear::{INIT_STD, Linear, SiteList};
use crate::params::{Layout, ParamIo, lazy_full, lazy_normal};

/// Layer normalisation over the hidden width.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// Shape `[d_model]`.
    pub gamma: Param<Tensor<B, 1>>,
    /// Shape `[d_model]`.
    pub beta: Param<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Gain 1, offset 0.
    pub fn init(d_model: usize, eps: f64, device: &B::Device) -> Self {
        Self { gamma: lazy_full([d_model], 1.0, device), beta: lazy_full([d_model], 0.0, device), eps }
    }

    pub(crate) fn walk<IO: ParamIo<B>>(&mut self, key: &str, io: &mut IO) {
        io.param(&format!("{key}.weight"), Layout::Same, &mut self.gamma);
        io.param(&format!("{key}.bias"), Layout::Same, &mut self.beta);
    }
}

impl<B: Kernels> LayerNorm<B> {
    /// `norm(dropout(x) + residual)`.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2> {
        layer_norm(x, residual, self.gamma.val(), Some(self.beta.val()), self.eps, drop)
    }
}

/// Word, position and type embeddings, normalised.
#[derive(Module, Debug)]
pub struct Embeddings<B: Backend> {
    /// Shape `[vocab_size, d_model]`.
    pub word: Param<Tensor<B, 2>>,
    /// Shape `[max_positions, d_model]`.
    pub position: Param<Tensor<B, 2>>,
    /// Shape `[type_vocab_size, d_model]`.
    pub token_type: Param<Tensor<B, 2>>,
    /// Over the sum.
    pub norm: LayerNorm<B>,
    dropout: f64,
}

/// Multi-head self-attention, its output projection and norm.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    norm: LayerNorm<B>,
    n_heads: usize,
    head_dim: usize,
    hidden_dropout: f64,
    attention_dropout: f64,
}

/// The two maps of the feed-forward part and their norm.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    up: Linear<B>,
    down: Linear<B>,
    norm: LayerNorm<B>,
    #[module(skip)]
    activation: Activation,
    dropout: f64,
}

/// One transformer layer.
#[derive(Module, Debug)]
pub struct EncoderLayer<B: Backend> {
    attention: SelfAttention<B>,
    feed_forward: FeedForward<B>,
    index: usize,
}

/// Embeddings and layers.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    embeddings: Embeddings<B>,
    layers: Vec<EncoderLayer<B>>,
}

/// Which rows of the last layer are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every token.
    All,
    /// The first token of each sequence; the last layer then computes nothing else.
    First,
}

impl<B: Backend> Encoder<B> {
    /// Fresh weights; `prefix` heads the module paths (`bert.`).
    pub fn init(
        config: &EncoderConfig,
        prefix: &str,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let d = config.d_model;
        let table = |name: &str, rows: usize| {
            lazy_normal(seed, &format!("{prefix}embeddings.{name}.weight"), [rows, d], INIT_STD, device)
        };
        let embeddings = Embeddings {
            word: table("word_embeddings", config.vocab_size),
            position: table("position_embeddings", config.max_positions),
            token_type: table("token_type_embeddings", config.type_vocab_size),
            norm: LayerNorm::init(d, config.norm_eps, device),
            dropout: config.hidden_dropout,
        };
        let layers = (0..config.n_layers)
            .map(|index| {
                let path = format!("{prefix}encoder.layer.{index}");
                let mut linear = |name: &str, shape| {
                    sites.linear(&format!("{path}.{name}"), Some(index), shape, false, seed, device)
                };
                let attention = SelfAttention {
                    query: linear("attention.self.query", [d, d]),
                    key: linear("attention.self.key", [d, d]),
                    value: linear("attention.self.value", [d, d]),
                    output: linear("attention.output.dense", [d, d]),
                    norm: LayerNorm::init(d, config.norm_eps, device),
                    n_heads: config.n_heads,
                    head_dim: d / config.n_heads,
                    hidden_dropout: config.hidden_dropout,
                    attention_dropout: config.attention_dropout,
                };
                let feed_forward = FeedForward {
                    up: linear("intermediate.dense", [d, config.d_ff]),
                    down: linear("output.dense", [config.d_ff, d]),
                    norm: LayerNorm::init(d, config.norm_eps, device),
                    activation: config.activation,
                    dropout: config.hidden_dropout,
                };
                EncoderLayer { attention, feed_forward, index }
            })
            .collect();
        Self { embeddings, layers }
    }

    /// The word embedding, shape `[vocab_size, d_model]`.
    pub fn word_embedding(&self) -> Tensor<B, 2> {
        self.embeddings.word.val()
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, prefix: &str, io: &mut IO) {
        let e = &mut self.embeddings;
        let key = |name: &str| format!("{prefix}embeddings.{name}");
        io.param(&key("word_embeddings.weight"), Layout::Same, &mut e.word);
        io.param(&key("position_embeddings.weight"), Layout::Same, &mut e.position);
        io.param(&key("token_type_embeddings.weight"), Layout::Same, &mut e.token_type);
        e.norm.walk(&key("LayerNorm"), io);
        for layer in &mut self.layers {
            let key = |name: &str| format!("{prefix}encoder.layer.{}.{name}", layer.index);
            let a = &mut layer.attention;
            a.query.walk(&key("attention.self.query"), io);
            a.key.walk(&key("attention.self.key"), io);
            a.value.walk(&key("attention.self.value"), io);
            a.output.walk(&key("attention.output.dense"), io);
            a.norm.walk(&key("attention.output.LayerNorm"), io);
            let f = &mut layer.feed_forward;
            f.up.walk(&key("intermediate.dense"), io);
            f.down.walk(&key("output.dense"), io);
            f.norm.walk(&key("output.LayerNorm"), io);
        }
    }
}

impl<B: Kernels> Embeddings<B> {
    fn forward(&self, batch: &TokenBatch<B>, mode: Mode) -> Tensor<B, 2> {
        let x = self.word.val().select(0, batch.ids.clone())
            + self.position.val().select(0, batch.positions.clone())
            + self.token_type.val().select(0, batch.type_ids.clone()); // [tokens, d_model]
        let x = self.norm.forward(x, None, None);
        match mode.dropout(self.dropout, 0) {
            Some(d) => dropout(x, d),
            None => x,
        }
    }
}

impl<B: Kernels> SelfAttention<B> {
    fn forward(
        &self,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        layer: usize,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let (x_query, q_lengths) = match rows {
            Rows::All => (x.clone(), batch.lengths.clone()),
            Rows::First => {
                (x.clone().select(0, batch.starts.clone()), Arc::from(vec![1; batch.n_sequences()]))
            }
        };
        let q = self.query.forward(x_query.clone(), adapters, mode); // [rows, d_model]
        let k = self.key.forward(x.clone(), adapters, mode); // [tokens, d_model]
        let v = self.value.forward(x, adapters, mode); // [tokens, d_model]
        let spec = AttentionSpec {
            q_lengths,
            dropout: mode.dropout(self.attention_dropout, stream(layer, 0)),
            ..AttentionSpec::encoder(batch.lengths.clone(), self.n_heads, self.head_dim)
        };
        let context = attention(q, k, v, &spec); // [rows, d_model]
        let y = self.output.forward(context, adapters, mode);
        self.norm.forward(y, Some(x_query), mode.dropout(self.hidden_dropout, stream(layer, 1)))
    }
}

impl<B: Kernels> FeedForward<B> {
    fn forward(&self, x: Tensor<B, 2>, layer: usize, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let inner = match self.activation {
            Activation::Gelu(kind) => self.up.forward_gelu(x.clone(), kind, adapters, mode),
            Activation::Relu => relu(self.up.forward(x.clone(), adapters, mode)),
            Activation::Silu => silu(self.up.forward(x.clone(), adapters, mode)),
        }; // [tokens, d_ff]
        let y = self.down.forward(inner, adapters, mode);
        self.norm.forward(y, Some(x), mode.dropout(self.dropout, stream(layer, 2)))
    }
}

impl<B: Kernels> Encoder<B> {
    /// Hidden states of the last layer.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for [`Rows::First`]
    pub fn forward(
        &self,
        batch: &TokenBatch<B>,
        rows: Rows,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let mut x = self.embeddings.forward(batch, mode);
        let last = self.layers.len() - 1;
        for layer in &self.layers {
            let rows = if layer.index == last { rows } else { Rows::All };
            x = layer.attention.forward(x, batch, rows, layer.index, adapters, mode);
            x = layer.feed_forward.forward(x, layer.index, adapters, mode);
        }
        x
    }
}

/// Dropout stream of a place in a layer; stream 0 belongs to the embeddings.
fn stream(layer: usize, place: u64) -> u64 {
    1 + layer as u64 * 4 + place
}
