//! The common part of decoders below their heads: embeddings, layers, final norm.

use std::sync::Arc;

use burn::module::Module;
use burn::prelude::*;
use lowrank_kernels::Kernels;
use lowrank_spec::Stream;

use crate::batch::{Limits, Rows, TokenBatch, Tokens};
use crate::config::{DecoderConfig, DecoderNames};
use crate::decoder::layer::DecoderLayer;
use crate::embedding::Embedding;
use crate::error::Result;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::rope::Rotary;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// A decoder without a head.
#[derive(Module, Debug)]
pub(crate) struct DecoderBody<B: Backend> {
    pub(crate) embedding: Embedding<B>,
    embedding_norm: Option<Norm<B>>,
    /// From the width of the embedding and back, if it differs from the hidden width.
    projections: Option<[Linear<B>; 2]>,
    /// `[max_positions + offset, d_model]`, if positions are not rotary.
    positions: Option<Embedding<B>>,
    layers: Vec<DecoderLayer<B>>,
    norm: Option<Norm<B>>,
    embedding_scale: f64,
    /// After the embeddings.
    dropout: f64,
    #[module(skip)]
    names: DecoderNames,
    #[module(skip)]
    rotary: Arc<[Rotary]>,
    #[module(skip)]
    limits: Limits,
    /// The padding token of other implementations, if there is one.
    #[module(skip)]
    padding: Option<u32>,
}

impl<B: Backend> DecoderBody<B> {
    pub(crate) fn init(config: &DecoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, config.architecture.names);
        let path = |name: &str| format!("{}{name}", names.prefix);
        let mut table = |name, shape| Embedding::init(&path(name), shape, sites, seed, device);
        let embedding = table(names.embedding, [config.vocab_size, config.embedding_width]);
        let rows = config.max_positions + config.position_offset;
        let positions = names.positions.map(|name| table(name, [rows, d]));
        let norm_of = |width| Norm::init(config.norm, width, config.norm_eps, device);
        let width = config.embedding_width;
        let projections = (width != d).then(|| {
            let [there, back] = names.embedding_projections;
            [(there, [width, d]), (back, [d, width])].map(|(name, shape)| {
                let path = &path(name);
                let spec = LinearSpec { path, layer: None, shape, bias: false, head: false, conv1d: false };
                sites.linear(spec, seed, device)
            })
        });
        Self {
            embedding,
            embedding_norm: names.embedding_norm.map(|_| norm_of(width)),
            projections,
            positions,
            layers: (0..config.n_layers)
                .map(|i| DecoderLayer::init(config, i, sites, seed, device))
                .collect(),
            norm: config.final_norm.then(|| norm_of(d)),
            embedding_scale: config.embedding_scale,
            dropout: config.dropouts.embeddings,
            names,
            rotary: config.ropes.iter().map(Rotary::new).collect(),
            limits: Limits {
                vocab_size: config.vocab_size,
                max_tokens: config.is_bounded().then_some(config.max_positions),
                types: None,
                first_position: names.positions.map(|_| config.position_offset),
            },
            padding: config.padding,
        }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = self.names;
        let path = |name: &str| format!("{}{name}", names.prefix);
        self.embedding.visit_params(&path(names.embedding), visitor);
        if let (Some(norm), Some(name)) = (&mut self.embedding_norm, names.embedding_norm) {
            norm.visit_params(ModulePath::new(&path(name), Part::Embeddings), visitor);
        }
        for (map, name) in self.projections.iter_mut().flatten().zip(names.embedding_projections) {
            map.visit_params(ModulePath::new(&path(name), Part::Body), visitor);
        }
        if let (Some(positions), Some(name)) = (&mut self.positions, names.positions) {
            positions.visit_params(&path(name), visitor);
        }
        for layer in &mut self.layers {
            layer.visit_params(visitor);
        }
        if let Some(norm) = &mut self.norm {
            norm.visit_params(ModulePath::new(&path(names.norm), Part::Body), visitor);
        }
    }

    /// Resizes the vocabulary.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        let [_, width] = self.embedding.projection.dims();
        self.embedding.projection = self.embedding.projection.with_shape([rows, width])?;
        self.limits.vocab_size = rows;
        Ok(())
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.limits.max_tokens
    }

    /// Tokens that follow `past` others of their sequence.
    pub(crate) fn batch_after(
        &self,
        tokens: Tokens<'_>,
        past: impl Iterator<Item = usize> + Clone,
        device: &B::Device,
    ) -> Result<TokenBatch<B>> {
        let (mut batch, positions) = TokenBatch::new(&self.limits, tokens, past, device)?;
        let rotary = self.rotary.iter();
        batch.angles = rotary.map(|rotary| rotary.angles(tokens.lengths, &positions, device)).collect();
        batch.note_padding(tokens.ids, self.padding);
        Ok(batch)
    }

    pub(crate) fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        self.batch_after(tokens, std::iter::repeat(0), device)
    }
}

impl<B: Kernels> DecoderBody<B> {
    pub(crate) fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.embedding.forward(batch.ids.clone(), run.adapters);
        let x = if self.embedding_scale == 1.0 { x } else { x * self.embedding_scale };
        let x = match &self.embedding_norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let x = match &self.projections {
            Some([there, _]) => there.forward(x, run),
            None => x,
        };
        let x = match (&self.positions, &batch.positions) {
            (Some(table), Some(rows)) => x + table.forward(rows.clone(), run.adapters),
            _ => x,
        };
        run.drop(x, self.dropout, Stream::Embeddings)
    }

    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        self.layers[index].forward(x, batch, rows, None, None, run)
    }

    pub(crate) fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match &self.projections {
            Some([_, back]) => back.forward(x, run),
            None => x,
        }
    }

    /// Hidden states of the last token of each sequence, whose keys and values a cache holds.
    pub(crate) fn step(
        &self,
        batch: &TokenBatch<B>,
        cache: &mut crate::cache::KvCache<B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let mut x = self.embed(batch, run);
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = if index + 1 == self.layers.len() { Rows::Last } else { Rows::All };
            x = layer.forward(x, batch, rows, Some(cache), None, run);
        }
        self.finish(x, run)
    }
}
