//! The decoder of an encoder-decoder model, which embeds its tokens with the encoder's table of words.

use burn::module::Module;
use burn::prelude::*;
use lowrank_kernels::{Kernels, Keys};
use lowrank_spec::Stream;

use crate::batch::{Limits, Rows, TokenBatch, Tokens};
use crate::cache::KvCache;
use crate::config::{DecoderNames, Seq2SeqConfig};
use crate::decoder::DecoderLayer;
use crate::decoder::cross::Beside;
use crate::embedding::Embedding;
use crate::encoder::RelativeTable;
use crate::error::Result;
use crate::linear::SiteList;
use crate::norm::Norm;
use crate::run::Run;
use crate::seq2seq::Memory;
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// A decoder without its table of words and its head.
#[derive(Module, Debug)]
pub(super) struct CrossDecoder<B: Backend> {
    /// Shape `[max_positions + offset, d_model]`, if positions are not relative.
    positions: Option<Embedding<B>>,
    embedding_norm: Option<Norm<B>>,
    /// Biases by relative position, which all layers read.
    relative: Option<RelativeTable<B>>,
    layers: Vec<DecoderLayer<B>>,
    norm: Option<Norm<B>>,
    embedding_scale: f64,
    /// Multiplier on the finished states.
    scale: f64,
    /// After the embeddings, and at the end.
    dropouts: [f64; 2],
    #[module(skip)]
    names: DecoderNames,
    #[module(skip)]
    relative_name: Option<&'static str>,
    #[module(skip)]
    limits: Limits,
}

impl<B: Backend> CrossDecoder<B> {
    pub(super) fn init(config: &Seq2SeqConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (relative_name, config) = (config.architecture.relative, &config.decoder);
        let (d, names) = (config.d_model, config.architecture.names);
        let rows = config.max_positions + config.position_offset;
        let positions = names
            .positions
            .map(|name| Embedding::init(&format!("{}{name}", names.prefix), [rows, d], sites, seed, device));
        let relative = config.relative.zip(relative_name).map(|(buckets, path)| {
            RelativeTable::of_biases(path, buckets, config.n_heads, sites, seed, device)
        });
        let layers = (0..config.n_layers).map(|i| DecoderLayer::init(config, i, sites, seed, device));
        let norm = || Norm::init(config.norm, d, config.norm_eps, device);
        Self {
            positions,
            embedding_norm: names.embedding_norm.map(|_| norm()),
            relative,
            layers: layers.collect(),
            norm: config.final_norm.then(norm),
            embedding_scale: config.embedding_scale,
            scale: config.logit_scale,
            dropouts: [config.dropouts.embeddings, config.dropouts.last],
            names,
            relative_name,
            limits: Limits {
                vocab_size: config.vocab_size,
                max_tokens: config.is_bounded().then_some(config.max_positions),
                types: None,
                first_position: names.positions.map(|_| config.position_offset),
            },
        }
    }

    pub(super) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = self.names;
        let path = |name: &str| format!("{}{name}", names.prefix);
        if let (Some(positions), Some(name)) = (&mut self.positions, names.positions) {
            positions.visit_params(&path(name), visitor);
        }
        if let (Some(norm), Some(name)) = (&mut self.embedding_norm, names.embedding_norm) {
            norm.visit_params(ModulePath::new(&path(name), Part::Embeddings), visitor);
        }
        if let (Some(relative), Some(name)) = (&mut self.relative, self.relative_name) {
            relative.visit_table(name, visitor);
        }
        for layer in &mut self.layers {
            layer.visit_params(visitor);
        }
        if let Some(norm) = &mut self.norm {
            norm.visit_params(ModulePath::new(&path(names.norm), Part::Body), visitor);
        }
    }

    /// Tokens that follow `past` others of their sequence.
    pub(super) fn batch(
        &self,
        tokens: Tokens<'_>,
        past: impl Iterator<Item = usize> + Clone,
        device: &B::Device,
    ) -> Result<TokenBatch<B>> {
        let longest = tokens.lengths.iter().zip(past.clone()).map(|(n, past)| n + past).max();
        let (mut batch, _) = TokenBatch::new(&self.limits, tokens, past, device)?;
        batch.distances = self.relative.as_ref().map(|table| table.distances(longest.unwrap_or(0), device));
        Ok(batch)
    }
}

impl<B: Kernels> CrossDecoder<B> {
    /// Keys and values of an encoder's states, by layer.
    pub(super) fn keys_values(&self, states: &Tensor<B, 2>, run: Run<'_, B>) -> Vec<[Tensor<B, 2>; 2]> {
        let cross = self.layers.iter().filter_map(DecoderLayer::cross);
        cross.map(|cross| cross.keys_values(states, run)).collect()
    }

    /// Hidden states, as the head takes them.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    pub(super) fn forward(
        &self,
        words: &Embedding<B>,
        batch: &TokenBatch<B>,
        (memory, keys): (&Memory<B>, Keys),
        rows: Rows,
        mut cache: Option<&mut KvCache<B>>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let mut x = words.forward(batch.ids.clone(), run.adapters); // [tokens, d_model]
        if self.embedding_scale != 1.0 {
            x = x * self.embedding_scale;
        }
        if let (Some(table), Some(rows)) = (&self.positions, &batch.positions) {
            x = x + table.forward(rows.clone(), run.adapters);
        }
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(x);
        }
        x = run.drop(x, self.dropouts[0], Stream::Outside(0));
        let beside = Beside { relative: self.relative.as_ref(), keys_values: &memory.keys_values, keys };
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = if index + 1 == self.layers.len() { rows } else { Rows::All };
            x = layer.forward(x, batch, rows, cache.as_deref_mut(), Some(&beside), run);
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(x);
        }
        let x = run.drop(x, self.dropouts[1], Stream::Outside(2));
        if self.scale == 1.0 { x } else { x * self.scale }
    }
}
