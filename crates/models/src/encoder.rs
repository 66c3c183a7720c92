//! The transformer encoder that BERT, RoBERTa and DistilBERT share, on packed tokens.
//!
//! | dimension | meaning |
//! |---|---|
//! | tokens | sum of the sequence lengths |
//! | d_model | hidden width |
//! | n_heads | attention heads of d_model / n_heads |
//! | d_ff | inner width of the feed-forward part |

use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_kernels::{AttentionSpec, Kernels, attention, dropout};
use lowrank_spec::{PackedTokens, Stream};

use crate::batch::TokenBatch;
use crate::config::{Activation, EncoderConfig};
use crate::embedding::Embedding;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::{Norm, NormKind};
use crate::params::ParamIo;

/// Word, position and type embeddings, normalised.
#[derive(Module, Debug)]
pub struct Embeddings<B: Backend> {
    /// Shape `[vocab_size, d_model]`.
    pub word: Embedding<B>,
    /// Shape `[max_positions, d_model]`.
    pub position: Embedding<B>,
    /// Shape `[type_vocab_size, d_model]`; DistilBERT has none.
    pub token_type: Option<Embedding<B>>,
    /// Over the sum.
    pub norm: Norm<B>,
    dropout: f64,
}

/// Multi-head self-attention, its output projection and norm.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    norm: Norm<B>,
    n_heads: usize,
    head_dim: usize,
    output_dropout: f64,
    attention_dropout: f64,
}

/// The two maps of the feed-forward part and their norm.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    up: Linear<B>,
    down: Linear<B>,
    norm: Norm<B>,
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
    #[module(skip)]
    names: &'static EncoderNames,
}

const WORD: &str = "word_embeddings";
const POSITION: &str = "position_embeddings";
const TYPE: &str = "token_type_embeddings";

/// Where an architecture keeps what.
#[derive(Debug)]
pub struct EncoderNames {
    /// Prefix of the encoder's keys in a checkpoint with a head.
    pub prefix: &'static str,
    /// The layers, below the prefix.
    pub layers: &'static str,
    /// Query, key, value and output, below a layer.
    pub attention: [&'static str; 4],
    /// Norm after the attention.
    pub attention_norm: &'static str,
    /// The two maps of the feed-forward part.
    pub feed_forward: [&'static str; 2],
    /// Norm after the feed-forward part.
    pub feed_forward_norm: &'static str,
    /// Whether there is a token-type embedding.
    pub has_types: bool,
    /// Whether there is dropout between the attention's output map and its norm.
    pub drops_attention_output: bool,
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
    /// Fresh weights under the names of the config's architecture.
    pub fn init(config: &EncoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, &config.architecture.names);
        let norm = || Norm::init(NormKind::Layer, d, config.norm_eps, device);
        let mut table = |name: &str, rows: usize| {
            Embedding::init(&format!("{}embeddings.{name}", names.prefix), [rows, d], sites, seed, device)
        };
        let embeddings = Embeddings {
            word: table(WORD, config.vocab_size),
            position: table(POSITION, config.max_positions),
            token_type: names.has_types.then(|| table(TYPE, config.type_vocab_size)),
            norm: norm(),
            dropout: config.hidden_dropout,
        };
        let layers = (0..config.n_layers)
            .map(|index| {
                let path = format!("{}{}.{index}", names.prefix, names.layers);
                let mut linear = |name: &str, shape| {
                    let path = &format!("{path}.{name}");
                    let spec = LinearSpec {
                        path,
                        layer: Some(index),
                        shape,
                        bias: true,
                        head: false,
                        conv1d: false,
                    };
                    sites.linear(spec, seed, device)
                };
                let [query, key, value, output] = names.attention.map(|name| linear(name, [d, d]));
                let attention = SelfAttention {
                    query,
                    key,
                    value,
                    output,
                    norm: norm(),
                    n_heads: config.n_heads,
                    head_dim: d / config.n_heads,
                    output_dropout: if names.drops_attention_output { config.hidden_dropout } else { 0.0 },
                    attention_dropout: config.attention_dropout,
                };
                let [up, down] = names.feed_forward;
                let feed_forward = FeedForward {
                    up: linear(up, [d, config.d_ff]),
                    down: linear(down, [config.d_ff, d]),
                    norm: norm(),
                    activation: config.activation,
                    dropout: config.hidden_dropout,
                };
                EncoderLayer { attention, feed_forward, index }
            })
            .collect();
        Self { embeddings, layers, names }
    }

    /// The word embedding.
    pub fn word_embedding(&self) -> &Embedding<B> {
        &self.embeddings.word
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let (e, names) = (&mut self.embeddings, self.names);
        let key = |name: &str| format!("{}embeddings.{name}", names.prefix);
        e.word.walk(&key(WORD), io);
        e.position.walk(&key(POSITION), io);
        if let Some(types) = &mut e.token_type {
            types.walk(&key(TYPE), io);
        }
        e.norm.walk(&key("LayerNorm"), io);
        for layer in &mut self.layers {
            let key = |name: &str| format!("{}{}.{}.{name}", names.prefix, names.layers, layer.index);
            let a = &mut layer.attention;
            for (linear, name) in
                [&mut a.query, &mut a.key, &mut a.value, &mut a.output].into_iter().zip(names.attention)
            {
                linear.walk(&key(name), io);
            }
            a.norm.walk(&key(names.attention_norm), io);
            let f = &mut layer.feed_forward;
            f.up.walk(&key(names.feed_forward[0]), io);
            f.down.walk(&key(names.feed_forward[1]), io);
            f.norm.walk(&key(names.feed_forward_norm), io);
        }
    }
}

impl<B: Kernels> Embeddings<B> {
    fn forward(&self, batch: &TokenBatch<B>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let mut x = self.word.forward(batch.ids.clone(), adapters)
            + self.position.forward(batch.positions.clone(), adapters); // [tokens, d_model]
        if let Some(types) = &self.token_type {
            x = x + types.forward(batch.type_ids.clone(), adapters);
        }
        let x = self.norm.forward(x);
        match mode.dropout(self.dropout, Stream::Embeddings) {
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
        let (x_query, queries) = match rows {
            Rows::All => (x.clone(), PackedTokens::from(batch.lengths.clone())),
            Rows::First => (
                x.clone().select(0, batch.starts.clone()),
                std::iter::repeat_n(1, batch.n_sequences()).collect(),
            ),
        };
        let q = self.query.forward(x_query.clone(), adapters, mode); // [rows, d_model]
        let k = self.key.forward(x.clone(), adapters, mode); // [tokens, d_model]
        let v = self.value.forward(x, adapters, mode); // [tokens, d_model]
        let spec = AttentionSpec {
            queries,
            dropout: mode.dropout(self.attention_dropout, Stream::Layer { layer, place: 0 }),
            ..AttentionSpec::encoder(batch.lengths.clone(), self.n_heads, self.head_dim)
        };
        let context = attention(q, k, v, &spec); // [rows, d_model]
        let y = self.output.forward(context, adapters, mode);
        self.norm.forward_residual(
            y,
            Some(x_query),
            mode.dropout(self.output_dropout, Stream::Layer { layer, place: 1 }),
        )
    }
}

impl<B: Kernels> FeedForward<B> {
    fn forward(&self, x: Tensor<B, 2>, layer: usize, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let inner = self.up.forward_activated(x.clone(), self.activation, adapters, mode); // [tokens, d_ff]
        let y = self.down.forward(inner, adapters, mode);
        self.norm.forward_residual(y, Some(x), mode.dropout(self.dropout, Stream::Layer { layer, place: 2 }))
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
        let last = self.layers.len() - 1;
        self.layers.iter().fold(self.begin(batch, adapters, mode), |x, layer| {
            let rows = if layer.index == last { rows } else { Rows::All };
            self.layer(layer.index, x, batch, rows, adapters, mode)
        })
    }

    /// Embedded tokens. Layer by layer, this is [`forward`](Self::forward).
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    pub fn begin(&self, batch: &TokenBatch<B>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        self.embeddings.forward(batch, adapters, mode)
    }

    /// One layer; `rows` says which of its outputs are wanted.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for [`Rows::First`]
    #[track_caller]
    pub fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        adapters: &AdapterSet<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let layer = &self.layers[index];
        let x = layer.attention.forward(x, batch, rows, index, adapters, mode);
        layer.feed_forward.forward(x, index, adapters, mode)
    }
}
