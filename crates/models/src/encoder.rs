//! The transformer encoder that BERT, RoBERTa and DistilBERT share, on packed tokens.
//!
//! | dimension | meaning |
//! |---|---|
//! | tokens | sum of the sequence lengths |
//! | d_model | hidden width |
//! | d_embedding | width of the embeddings, d_model where they are not projected |
//! | n_heads | attention heads of d_model / n_heads |
//! | d_ff | inner width of the feed-forward part |

use burn::prelude::*;
use lowrank_kernels::{AttentionSpec, Kernels, attention};
use lowrank_spec::Stream;

use crate::batch::{Limits, Rows, TokenBatch, Tokens};
use crate::config::{Activation, EncoderConfig, EncoderNames, NormKind};
use crate::embedding::Embedding;
use crate::error::Result;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// Word, position and type embeddings, normalized.
#[derive(Module, Debug)]
pub struct Embeddings<B: Backend> {
    /// Shape `[vocab_size, d_embedding]`.
    pub word: Embedding<B>,
    /// Shape `[max_positions, d_embedding]`.
    pub position: Embedding<B>,
    /// Shape `[type_vocab_size, d_embedding]`; DistilBERT has none.
    pub token_type: Option<Embedding<B>>,
    /// Over the sum.
    pub norm: Norm<B>,
    /// Shape `[d_embedding, d_model]`, where the two differ.
    pub projection: Option<Linear<B>>,
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
    /// The layer of each run: in order, or one several times.
    order: Vec<usize>,
    /// Layers of a group that shares weights.
    in_group: usize,
    #[module(skip)]
    names: &'static EncoderNames,
    #[module(skip)]
    limits: Limits,
}

const WORD: &str = "word_embeddings";
const POSITION: &str = "position_embeddings";
const TYPE: &str = "token_type_embeddings";

impl<B: Backend> Encoder<B> {
    /// Fresh weights under the names of the config's architecture.
    pub fn init(config: &EncoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, &config.architecture.names);
        let norm = || Norm::init(NormKind::Layer, d, config.norm_eps, device);
        let mut table = |name: &str, rows: usize| {
            let path = format!("{}embeddings.{name}", names.prefix);
            Embedding::init(&path, [rows, config.embedding_size], sites, seed, device)
        };
        let mut embeddings = Embeddings {
            word: table(WORD, config.vocab_size),
            position: table(POSITION, config.max_positions),
            token_type: names.has_types.then(|| table(TYPE, config.type_vocab_size)),
            norm: Norm::init(NormKind::Layer, config.embedding_size, config.norm_eps, device),
            projection: None,
            dropout: config.hidden_dropout,
        };
        if let Some(name) =
            names.embedding_projection.filter(|_| names.projects_equal_widths || config.embedding_size != d)
        {
            let path = &format!("{}{name}", names.prefix);
            let shape = [config.embedding_size, d];
            let spec = LinearSpec { path, layer: None, shape, bias: true, head: false, conv1d: false };
            embeddings.projection = Some(sites.linear(spec, seed, device));
        }
        let [groups, in_group] = config.groups;
        let layers = (0..groups * in_group)
            .map(|index| {
                let mut linear = |name: &str, shape| {
                    let path = &names.in_layer(index, in_group, name);
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
                    dropout: if names.drops_feed_forward { config.hidden_dropout } else { 0.0 },
                };
                EncoderLayer { attention, feed_forward, index }
            })
            .collect();
        let limits = Limits {
            vocab_size: config.vocab_size,
            max_tokens: Some(config.max_tokens()),
            types: names.has_types.then_some(config.type_vocab_size),
            first_position: Some(config.position_offset),
        };
        let order = (0..config.n_layers).map(|index| config.stored_layer(index)).collect();
        Self { embeddings, layers, order, in_group, names, limits }
    }

    /// The word embedding.
    pub(crate) fn word_embedding(&self) -> &Embedding<B> {
        &self.embeddings.word
    }

    /// Visits every parameter.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let (e, names, in_group) = (&mut self.embeddings, self.names, self.in_group);
        let path = |name: &str| format!("{}embeddings.{name}", names.prefix);
        e.word.visit_params(&path(WORD), visitor);
        e.position.visit_params(&path(POSITION), visitor);
        if let Some(types) = &mut e.token_type {
            types.visit_params(&path(TYPE), visitor);
        }
        e.norm.visit_params(ModulePath::new(&path("LayerNorm"), Part::Embeddings), visitor);
        if let (Some(projection), Some(name)) = (&mut e.projection, names.embedding_projection) {
            let path = format!("{}{name}", names.prefix);
            projection.visit_params(ModulePath::new(&path, Part::Embeddings), visitor);
        }
        for layer in &mut self.layers {
            let index = layer.index;
            let path = |name: &str| names.in_layer(index, in_group, name);
            let a = &mut layer.attention;
            for (linear, name) in
                [&mut a.query, &mut a.key, &mut a.value, &mut a.output].into_iter().zip(names.attention)
            {
                linear.visit_params(ModulePath::in_layer(&path(name), index), visitor);
            }
            a.norm.visit_params(ModulePath::in_layer(&path(names.attention_norm), index), visitor);
            let f = &mut layer.feed_forward;
            for (linear, name) in [&mut f.up, &mut f.down].into_iter().zip(names.feed_forward) {
                linear.visit_params(ModulePath::in_layer(&path(name), index), visitor);
            }
            f.norm.visit_params(ModulePath::in_layer(&path(names.feed_forward_norm), index), visitor);
        }
    }

    /// Makes room for a vocabulary of another size.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        let word = &mut self.embeddings.word;
        let [_, width] = word.projection.dims();
        word.projection = word.projection.with_shape([rows, width])?;
        self.limits.vocab_size = rows;
        Ok(())
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.limits.max_tokens
    }

    pub(crate) fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        Ok(TokenBatch::new(&self.limits, tokens, std::iter::repeat(0), device)?.0)
    }
}

impl<B: Kernels> Embeddings<B> {
    fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let mut x = self.word.forward(batch.ids.clone(), run.adapters); // [tokens, d_model]
        for (table, rows) in
            [(Some(&self.position), &batch.positions), (self.token_type.as_ref(), &batch.type_ids)]
        {
            if let (Some(table), Some(rows)) = (table, rows) {
                x = x + table.forward(rows.clone(), run.adapters);
            }
        }
        let x = run.drop(self.norm.forward(x), self.dropout, Stream::Embeddings);
        match &self.projection {
            Some(projection) => projection.forward(x, run),
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
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let x_query = batch.select(x.clone(), rows);
        let q = self.query.forward(x_query.clone(), run); // [rows, d_model]
        let k = self.key.forward(x.clone(), run); // [tokens, d_model]
        let v = self.value.forward(x, run); // [tokens, d_model]
        let spec = AttentionSpec {
            queries: batch.queries(rows),
            dropout: run.dropout(self.attention_dropout, Stream::Layer { layer, place: 0 }),
            ..AttentionSpec::encoder(batch.packed.clone(), self.n_heads, self.head_dim)
        };
        let context = attention(q, k, v, &spec); // [rows, d_model]
        let y = self.output.forward(context, run);
        let drop = run.dropout(self.output_dropout, Stream::Layer { layer, place: 1 });
        self.norm.forward_residual(y, Some(x_query), drop)
    }
}

impl<B: Kernels> FeedForward<B> {
    fn forward(&self, x: Tensor<B, 2>, layer: usize, run: Run<'_, B>) -> Tensor<B, 2> {
        let inner = self.up.forward_activated(x.clone(), self.activation, run); // [tokens, d_ff]
        let y = self.down.forward(inner, run);
        let drop = run.dropout(self.dropout, Stream::Layer { layer, place: 2 });
        self.norm.forward_residual(y, Some(x), drop)
    }
}

impl<B: Kernels> Encoder<B> {
    /// Embedded tokens.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    pub(crate) fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        self.embeddings.forward(batch, run)
    }

    /// What comes after the last layer: nothing, since layers end in norms.
    pub(crate) fn finish(&self, x: Tensor<B, 2>, _run: Run<'_, B>) -> Tensor<B, 2> {
        x
    }

    /// One layer; `rows` says which of its outputs are wanted.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]`
    #[track_caller]
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let layer = &self.layers[self.order[index]];
        let x = layer.attention.forward(x, batch, rows, index, run);
        layer.feed_forward.forward(x, index, run)
    }
}
