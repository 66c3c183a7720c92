//! The transformer encoder that all architectures share, on packed tokens.
//!
//! | dimension | meaning |
//! |---|---|
//! | tokens | sum of the sequence lengths |
//! | d_model | hidden width |
//! | d_embedding | width of the embeddings, d_model where they are not projected |
//! | n_heads | attention heads of head_dim, d_model / n_heads in most models |
//! | d_ff | inner width of the feed-forward part |

mod convolution;
mod layer;
mod patches;
mod relative;

use std::sync::Arc;

use burn::prelude::*;
use lowrank_kernels::Kernels;
use lowrank_spec::Stream;

use crate::batch::{Limits, Rows, TokenBatch, Tokens, int_tensor};
use crate::config::{EncoderConfig, EncoderNames};
use crate::embedding::Embedding;
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::rope::Rotary;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

pub use convolution::Convolution;
pub use layer::EncoderLayer;
pub use patches::PatchEmbeddings;
pub(crate) use relative::{BatchDistances, of_queries};
pub use relative::{PositionMaps, RelativeTable};

/// Word, position and type embeddings, normalized.
#[derive(Module, Debug)]
pub struct Embeddings<B: Backend> {
    /// Shape `[vocab_size, d_embedding]`.
    pub words: Embedding<B>,
    /// Shape `[max_positions, d_embedding]`; models with rotary or relative positions have none.
    pub positions: Option<Embedding<B>>,
    /// Shape `[type_vocab_size, d_embedding]`; DistilBERT has none.
    pub types: Option<Embedding<B>>,
    /// Shape `[task_types, d_embedding]`, of which the first row is added to every token (ERNIE).
    pub tasks: Option<Embedding<B>>,
    /// Over the sum; XLM-R XL has none.
    pub norm: Option<Norm<B>>,
    /// Shape `[d_embedding, d_model]`, where the two differ.
    pub projection: Option<Linear<B>>,
    dropout: f64,
    /// Multiplier on the words.
    scale: f64,
}

/// What the first layer reads.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one in each model; burn's modules cannot be boxed")]
enum Inputs<B: Backend> {
    Tokens(Embeddings<B>),
    Pictures(PatchEmbeddings<B>),
}

/// Embeddings and layers.
#[derive(Module, Debug)]
pub struct Encoder<B: Backend> {
    embeddings: Inputs<B>,
    layers: Vec<EncoderLayer<B>>,
    /// Relative positions, which all layers read.
    relative: Option<RelativeTable<B>>,
    /// Beside the first layer.
    convolution: Option<Convolution<B>>,
    /// After the last layer, in models with norms before the parts of a layer.
    norm: Option<Norm<B>>,
    /// After that norm.
    last_dropout: f64,
    /// The layer of each run: in order, or one several times.
    order: Vec<usize>,
    /// Layers of a group that shares weights.
    in_group: usize,
    #[module(skip)]
    names: &'static EncoderNames,
    #[module(skip)]
    rotary: Arc<[Rotary]>,
    #[module(skip)]
    limits: Limits,
    /// The token that has a row of the position embedding for itself and is not counted, where there is one.
    #[module(skip)]
    padding: Option<u32>,
}

impl<B: Backend> Embeddings<B> {
    fn init(config: &EncoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, &config.architecture.names);
        let norm_of = |width| Norm::init(config.norm_kind(), width, config.norm_eps, device);
        let has_types = config.type_vocab_size > 0;
        let mut table = |name: &str, rows: usize| {
            let path = format!("{}{name}", names.prefix);
            Embedding::init(&path, [rows, config.embedding_size], sites, seed, device)
        };
        let tables = &names.embeddings;
        let mut embeddings = Self {
            words: table(tables.words, config.vocab_size),
            positions: tables
                .positions
                .filter(|_| config.has_positions)
                .map(|name| table(name, config.max_positions)),
            types: tables.types.filter(|_| has_types).map(|name| table(name, config.type_vocab_size)),
            tasks: tables.tasks.filter(|_| config.task_types > 0).map(|name| table(name, config.task_types)),
            norm: tables.norm.map(|_| norm_of(config.embedding_size)),
            projection: None,
            dropout: config.dropouts.embeddings,
            scale: config.embedding_scale,
        };
        if let Some(name) =
            names.embedding_projection.filter(|_| names.projects_equal_widths || config.embedding_size != d)
        {
            let path = &format!("{}{name}", names.prefix);
            let shape = [config.embedding_size, d];
            let spec = LinearSpec { path, layer: None, shape, bias: true, head: false, conv1d: false };
            embeddings.projection = Some(sites.linear(spec, seed, device));
        }
        embeddings
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, names: &EncoderNames, visitor: &mut V) {
        let tables = &names.embeddings;
        let path = |name: &str| format!("{}{name}", names.prefix);
        let optional = [
            (&mut self.positions, tables.positions),
            (&mut self.types, tables.types),
            (&mut self.tasks, tables.tasks),
        ];
        self.words.visit_params(&path(tables.words), visitor);
        for (table, name) in optional {
            if let (Some(table), Some(name)) = (table, name) {
                table.visit_params(&path(name), visitor);
            }
        }
        if let (Some(norm), Some(name)) = (&mut self.norm, tables.norm) {
            norm.visit_params(ModulePath::new(&path(name), Part::Embeddings), visitor);
        }
        if let (Some(projection), Some(name)) = (&mut self.projection, names.embedding_projection) {
            projection.visit_params(ModulePath::new(&path(name), Part::Embeddings), visitor);
        }
    }
}

impl<B: Backend> Encoder<B> {
    /// Newly initialized weights under the names of the config's architecture.
    pub fn init(config: &EncoderConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let (d, names) = (config.d_model, &config.architecture.names);
        let norm_of = |width| Norm::init(config.norm_kind(), width, config.norm_eps, device);
        let embeddings = match PatchEmbeddings::init(config, sites, seed, device) {
            Some(patches) => Inputs::Pictures(patches),
            None => Inputs::Tokens(Embeddings::init(config, sites, seed, device)),
        };
        let [groups, in_group] = config.groups;
        let layers = (0..groups * in_group)
            .map(|index| EncoderLayer::init(config, index, sites, seed, device))
            .collect();
        let relative = RelativeTable::of_encoder(config, sites, seed, device);
        let convolution = Convolution::init(config, seed, device);
        let limits = Limits {
            vocab_size: config.vocab_size,
            max_tokens: config.has_positions.then(|| config.max_tokens()),
            types: (config.type_vocab_size > 0).then_some(config.type_vocab_size),
            first_position: config.has_positions.then_some(config.position_offset),
        };
        // Its row is the last before those of the positions.
        let padding = config.position_offset.checked_sub(1).map(|id| id as u32);
        let padding = padding.filter(|_| config.architecture.positions_after_padding);
        let order = (0..config.n_layers).map(|index| config.stored_layer(index)).collect();
        let norm = names.final_norm.map(|_| norm_of(d));
        let rotary = config.ropes.iter().map(Rotary::new).collect();
        Self {
            embeddings,
            layers,
            relative,
            convolution,
            norm,
            last_dropout: config.dropouts.last,
            order,
            in_group,
            names,
            rotary,
            limits,
            padding,
        }
    }

    /// The word embedding, in models that have one.
    pub(crate) fn word_embedding(&self) -> Option<&Embedding<B>> {
        match &self.embeddings {
            Inputs::Tokens(tokens) => Some(&tokens.words),
            Inputs::Pictures(_) => None,
        }
    }

    /// Visits every parameter.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = self.names;
        match &mut self.embeddings {
            Inputs::Tokens(tokens) => tokens.visit_params(names, visitor),
            Inputs::Pictures(pictures) => pictures.visit_params(names, visitor),
        }
        if let (Some(relative), Some(at)) = (&mut self.relative, names.relative) {
            let [table, norm] = [at.table, at.norm].map(|name| format!("{}{name}", names.prefix));
            relative.visit_params([&table, &norm], visitor);
        }
        for layer in &mut self.layers {
            layer.visit_params(names, self.in_group, visitor);
        }
        if let Some(convolution) = &mut self.convolution {
            convolution.visit_params(names, visitor);
        }
        if let (Some(norm), Some(name)) = (&mut self.norm, names.final_norm) {
            norm.visit_params(ModulePath::new(&format!("{}{name}", names.prefix), Part::Body), visitor);
        }
    }

    /// Makes room for a vocabulary of another size.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        let Inputs::Tokens(Embeddings { words, .. }) = &mut self.embeddings else {
            return Err(ModelError::Input("a model of pictures has no vocabulary".into()));
        };
        let [_, width] = words.projection.dims();
        words.projection = words.projection.with_shape([rows, width])?;
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
        if let Inputs::Pictures(pictures) = &self.embeddings {
            return TokenBatch::of_pictures(pictures.options(), tokens, device);
        }
        let (mut batch, positions) = TokenBatch::new(&self.limits, tokens, std::iter::repeat(0), device)?;
        if let Some(padding) = self.padding.filter(|padding| tokens.ids.contains(padding)) {
            batch.positions = Some(int_tensor(positions_around(tokens, padding), device));
        }
        let rotary = self.rotary.iter();
        batch.angles = rotary.map(|rotary| rotary.angles(tokens.lengths, &positions, device)).collect();
        let longest = tokens.lengths.iter().copied().max().unwrap_or(0);
        batch.distances = self.relative.as_ref().map(|relative| relative.distances(longest, device));
        Ok(batch)
    }
}

/// Rows of the position embedding where `padding` has its own row, and the others are counted from the next on.
fn positions_around(tokens: Tokens<'_>, padding: u32) -> Vec<i32> {
    let mut rest = tokens.ids;
    let mut positions = Vec::with_capacity(rest.len());
    for &length in tokens.lengths {
        let (own, later) = rest.split_at(length);
        rest = later;
        let mut last = padding as i32;
        positions.extend(own.iter().map(|&id| {
            if id == padding {
                return padding as i32;
            }
            last += 1;
            last
        }));
    }
    positions
}

impl<B: Kernels> Embeddings<B> {
    fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let mut x = self.words.forward(batch.ids.clone(), run.adapters); // [tokens, d_embedding]
        if self.scale != 1.0 {
            x = x * self.scale;
        }
        for (table, rows) in [(&self.positions, &batch.positions), (&self.types, &batch.type_ids)] {
            if let (Some(table), Some(rows)) = (table, rows) {
                x = x + table.forward(rows.clone(), run.adapters);
            }
        }
        if let Some(tasks) = &self.tasks {
            x = x + tasks.forward(batch.ids.zeros_like(), run.adapters);
        }
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let x = run.drop(x, self.dropout, Stream::Embeddings);
        match &self.projection {
            Some(projection) => projection.forward(x, run),
            None => x,
        }
    }
}

impl<B: Kernels> Encoder<B> {
    /// Embedded tokens.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    pub(crate) fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        match &self.embeddings {
            Inputs::Tokens(tokens) => tokens.forward(batch, run),
            Inputs::Pictures(pictures) => pictures.forward(batch, run),
        }
    }

    /// What comes after the last layer: the final norm, where there is one.
    pub(crate) fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        run.drop(x, self.last_dropout, Stream::Outside(1))
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
        let relative = self.relative.as_ref();
        match self.convolution.as_ref().filter(|_| index == 0) {
            Some(convolution) => {
                let y = layer.forward(x.clone(), batch, Rows::All, index, relative, run);
                batch.select(convolution.forward(x, y, batch, run), rows)
            }
            None => layer.forward(x, batch, rows, index, relative, run),
        }
    }
}
