//! The common part of decoders below their heads: embeddings, layers, final norm.

use std::sync::Arc;

use burn::module::Module;
use burn::prelude::*;
use lowrank_kernels::{Kernels, Keys};
use lowrank_spec::{PackedTokens, Stream};

use crate::batch::{Limits, Rows, TokenBatch, Tokens};
use crate::cache::KvCache;
use crate::config::{DecoderConfig, DecoderNames, RelativeKind, RelativePositions};
use crate::decoder::cross::{CrossAttention, CrossInputs};
use crate::decoder::layer::{DecoderLayer, LayerInputs};
use crate::embedding::Embedding;
use crate::encoder::RelativeTable;
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
    /// From the width of the embedding and back, if it differs from the hidden width.
    projections: Option<[Linear<B>; 2]>,
    pub(super) trunk: DecoderTrunk<B>,
}

/// A decoder between its table of words and its head. In an encoder-decoder model the encoder owns the table.
#[derive(Module, Debug)]
pub(crate) struct DecoderTrunk<B: Backend> {
    /// `[max_positions + offset, d_model]`, in models with learned positions.
    positions: Option<Embedding<B>>,
    embedding_norm: Option<Norm<B>>,
    /// Biases by relative position, which all layers read.
    relative: Option<RelativeTable<B>>,
    layers: Vec<DecoderLayer<B>>,
    norm: Option<Norm<B>>,
    embedding_scale: f64,
    /// After the embeddings, and at the end.
    dropouts: [f64; 2],
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
        let (d, names) = (config.d_model, config.names());
        let path = |name: &str| format!("{}{name}", names.prefix);
        let width = config.embedding_width;
        let table = [config.vocab_size, width];
        let embedding = Embedding::init(&path(names.embedding), table, sites, seed, device);
        let projections = (width != d).then(|| {
            let [there, back] = names.embedding_projections;
            [(there, [width, d]), (back, [d, width])].map(|(name, shape)| {
                let path = &path(name);
                let spec = LinearSpec { path, layer: None, shape, bias: false, head: false, conv1d: false };
                sites.linear(spec, seed, device)
            })
        });
        Self { embedding, projections, trunk: DecoderTrunk::init(config, sites, seed, device) }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = self.trunk.names;
        let path = |name: &str| format!("{}{name}", names.prefix);
        self.embedding.visit_params(&path(names.embedding), visitor);
        for (map, name) in self.projections.iter_mut().flatten().zip(names.embedding_projections) {
            map.visit_params(ModulePath::new(&path(name), Part::Body), visitor);
        }
        self.trunk.visit_params(visitor);
    }

    /// Resizes the vocabulary.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        let [_, width] = self.embedding.projection.dims();
        self.embedding.projection = self.embedding.projection.with_shape([rows, width])?;
        self.trunk.limits.vocab_size = rows;
        Ok(())
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.trunk.layers.len()
    }

    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.trunk.limits.max_tokens
    }

    pub(crate) fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        self.trunk.batch(tokens, device)
    }
}

impl<B: Backend> DecoderTrunk<B> {
    pub(crate) fn init(config: &DecoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, config.names());
        let rows = config.max_positions + config.position_offset;
        let positions = names
            .positions
            .map(|name| Embedding::init(&format!("{}{name}", names.prefix), [rows, d], sites, seed, device));
        let relative = config.relative.zip(names.relative).map(|(buckets, name)| {
            let relative = RelativePositions { buckets, kind: RelativeKind::Bias };
            let path = format!("{}{name}", names.prefix);
            RelativeTable::init(&path, &relative, config.n_heads, sites, seed, device)
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
            dropouts: [config.dropouts.embeddings, config.dropouts.last],
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
        if let (Some(norm), Some(name)) = (&mut self.embedding_norm, names.embedding_norm) {
            norm.visit_params(ModulePath::new(&path(name), Part::Embeddings), visitor);
        }
        if let (Some(positions), Some(name)) = (&mut self.positions, names.positions) {
            positions.visit_params(&path(name), visitor);
        }
        if let (Some(relative), Some(name)) = (&mut self.relative, names.relative) {
            relative.visit_params([&path(name), ""], visitor);
        }
        for layer in &mut self.layers {
            layer.visit_params(visitor);
        }
        if let Some(norm) = &mut self.norm {
            norm.visit_params(ModulePath::new(&path(names.norm), Part::Body), visitor);
        }
    }

    /// Tokens that follow `past` others of their sequence, without their distances.
    fn batch_after(
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

    /// Whole sequences.
    pub(crate) fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        let mut batch = self.batch_after(tokens, std::iter::repeat(0), device)?;
        let longest = tokens.lengths.iter().copied().max().unwrap_or(0);
        batch.distances = self.relative.as_ref().map(|table| table.distances(longest, device));
        Ok(batch)
    }

    /// The next tokens of the sequences `active[i]` of a cache.
    pub(crate) fn step(
        &self,
        tokens: Tokens<'_>,
        active: &[usize],
        cache: &mut KvCache<B>,
        device: &B::Device,
    ) -> Result<TokenBatch<B>> {
        let past: Vec<usize> = active.iter().map(|&sequence| cache.length(sequence)).collect();
        let mut batch = self.batch_after(tokens, past.into_iter(), device)?;
        batch.writes = Some(cache.begin(active, tokens.lengths));
        batch.distances =
            self.relative.as_ref().map(|table| cache.distances(|longest| table.distances(longest, device)));
        Ok(batch)
    }
}

impl<B: Kernels> DecoderBody<B> {
    pub(crate) fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.embedding.forward(batch.ids.clone(), run.adapters);
        let x = match &self.projections {
            Some([there, _]) => there.forward(x, run),
            None => x,
        };
        self.trunk.embed(x, batch, run)
    }

    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        self.trunk.layers[index].forward(x, batch, rows, None, &LayerInputs::NONE, run)
    }

    pub(crate) fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.trunk.finish(x, run);
        match &self.projections {
            Some([_, back]) => back.forward(x, run),
            None => x,
        }
    }

    /// Hidden states of the last token of each sequence, whose keys and values a cache holds.
    pub(crate) fn advance(
        &self,
        batch: &TokenBatch<B>,
        cache: &mut KvCache<B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let x = self.embed(batch, run);
        let x = self.trunk.layers(x, batch, Rows::Last, Some(cache), None, run);
        self.finish(x, run)
    }
}

impl<B: Kernels> DecoderTrunk<B> {
    /// From embedded tokens to the input of the layers.
    ///
    /// # Shapes
    /// - x, output: `[tokens, d_model]`
    pub(crate) fn embed(&self, x: Tensor<B, 2>, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = if self.embedding_scale == 1.0 { x } else { x * self.embedding_scale };
        let x = match (&self.positions, &batch.positions) {
            (Some(table), Some(rows)) => x + table.forward(rows.clone(), run.adapters),
            _ => x,
        };
        let x = match &self.embedding_norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        // An encoder before it draws its own masks.
        let stream = if self.names.cross.is_some() { Stream::Outside(0) } else { Stream::Embeddings };
        run.drop(x, self.dropouts[0], stream)
    }

    /// Keys and values of an encoder's states, by layer.
    pub(crate) fn keys_values(&self, states: &Tensor<B, 2>, run: Run<'_, B>) -> Vec<[Tensor<B, 2>; 2]> {
        let cross = self.layers.iter().filter_map(DecoderLayer::cross);
        cross.map(|cross: &CrossAttention<B>| cross.keys_values(states, run)).collect()
    }

    /// The biases of the self-attention by relative position, which all layers read.
    fn biases(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Option<Tensor<B, 3>> {
        let relative = self.relative.as_ref().zip(batch.distances.as_ref());
        relative.map(|(table, distances)| table.biases(distances, run))
    }

    /// One layer over whole sequences and the states of an encoder, whose keys and values it computes.
    ///
    /// # Shapes
    /// - x, output: `[tokens, d_model]`
    /// - states: `[source tokens, d_model]`
    pub(crate) fn layer_over(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        (states, packed): (&Tensor<B, 2>, &PackedTokens),
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let layer = &self.layers[index];
        let keys_values = layer.cross().map(|cross| cross.keys_values(states, run));
        let keys = Keys::Packed(packed.clone());
        let cross = keys_values.as_ref().map(|keys_values| CrossInputs { keys_values, keys: &keys });
        let inputs = LayerInputs { biases: self.biases(batch, run), cross };
        layer.forward(x, batch, Rows::All, None, &inputs, run)
    }

    /// Through all layers, of the last of which only `rows`; `cross` are keys and values of an encoder's states by layer.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    pub(crate) fn layers(
        &self,
        mut x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        mut cache: Option<&mut KvCache<B>>,
        cross: Option<(&[[Tensor<B, 2>; 2]], &Keys)>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let biases = self.biases(batch, run);
        for (index, layer) in self.layers.iter().enumerate() {
            let cross = cross.map(|(by_layer, keys)| CrossInputs { keys_values: &by_layer[index], keys });
            let inputs = LayerInputs { biases: biases.clone(), cross };
            let rows = if index + 1 == self.layers.len() { rows } else { Rows::All };
            x = layer.forward(x, batch, rows, cache.as_deref_mut(), &inputs, run);
        }
        x
    }

    pub(crate) fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        run.drop(x, self.dropouts[1], Stream::Outside(2))
    }
}
