//! Relative positions: a table that all layers read, and the terms of their scores.

use burn::prelude::*;
use lowrank_kernels::{Distances, Kernels};
use lowrank_spec::Stream;

use crate::batch::int_tensor;
use crate::config::{DistanceBuckets, EncoderConfig, EncoderNames, RelativeKind, RelativePositions};
use crate::embedding::Embedding;
use crate::linear::{Linear, SiteList};
use crate::norm::Norm;
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// The table of relative positions.
#[derive(Module, Debug)]
pub struct RelativeTable<B: Backend> {
    /// Shape `[buckets, n_heads]` of biases, or `[buckets, d_model]`.
    table: Embedding<B>,
    norm: Option<Norm<B>>,
    #[module(skip)]
    buckets: DistanceBuckets,
    #[module(skip)]
    kind: RelativeKind,
    /// Dropout on the rows, in every layer.
    dropout: f64,
}

/// The maps of a layer from relative positions to keys and queries, where they are not those of its tokens.
#[derive(Module, Debug)]
pub struct PositionMaps<B: Backend> {
    key: Option<Linear<B>>,
    query: Option<Linear<B>>,
}

/// The distances of a batch.
#[derive(Clone, Debug)]
pub(crate) struct BatchDistances<B: Backend> {
    /// The buckets, counted from the first row that occurs.
    pub(crate) distances: Distances,
    /// The rows of the table that occur; shape `[buckets]`.
    rows: Tensor<B, 1, Int>,
}

impl<B: Backend> RelativeTable<B> {
    /// Newly initialized weights of a table at `path`, of biases for each head, or with vectors as wide as the hidden states.
    pub(crate) fn init(
        path: &str,
        relative: &RelativePositions,
        width: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let table = Embedding::init(path, [relative.buckets.rows(), width], sites, seed, device);
        Self { table, norm: None, buckets: relative.buckets, kind: relative.kind, dropout: 0.0 }
    }

    /// That of an encoder; `None` for a model without relative positions.
    pub(super) fn of_encoder(
        config: &EncoderConfig,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Option<Self> {
        let (relative, names) = (config.relative.as_ref()?, &config.architecture.names);
        let path = format!("{}{}", names.prefix, names.relative?.table);
        let (width, has_norm) = match relative.kind {
            RelativeKind::Bias => (config.n_heads, false),
            RelativeKind::Disentangled { norm, .. } => (config.d_model, norm),
        };
        let norm = has_norm.then(|| Norm::init(config.norm_kind(), width, config.norm_eps, device));
        let table = Self::init(&path, relative, width, sites, seed, device);
        Some(Self { norm, dropout: config.dropouts.relative, ..table })
    }

    /// Visits every parameter; the paths are those of the table and of its norm.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, [table, norm]: [&str; 2], visitor: &mut V) {
        self.table.visit_as(table, Part::Relative, visitor);
        if let Some(layer_norm) = &mut self.norm {
            layer_norm.visit_params(ModulePath::new(norm, Part::Relative), visitor);
        }
    }

    /// The distances in sequences of at most `longest` tokens.
    pub(crate) fn distances(&self, longest: usize, device: &B::Device) -> BatchDistances<B> {
        BatchDistances::of(longest, |distance| self.buckets.row(distance), device)
    }
}

impl<B: Backend> BatchDistances<B> {
    /// Those in sequences of at most `longest` tokens, by the row of each `key - query`.
    pub(crate) fn of(longest: usize, row: impl Fn(isize) -> usize, device: &B::Device) -> Self {
        let longest = longest.max(1);
        let rows = || (1 - longest as isize..longest as isize).map(&row);
        let first = rows().min().unwrap_or(0);
        let last = rows().max().unwrap_or(0);
        Self {
            distances: Distances::new(longest, |d| (row(d) - first) as u32),
            rows: int_tensor((first..=last).map(|row| row as i32).collect(), device),
        }
    }
}

impl<B: Backend> PositionMaps<B> {
    /// Newly initialized weights of the stored layer `index`.
    pub(super) fn init(config: &EncoderConfig, linear: &mut impl FnMut(&str) -> Linear<B>) -> Self {
        let (mut key, mut query) = (None, None);
        let kind = config.relative.as_ref().map(|relative| relative.kind);
        if let (
            Some(RelativeKind::Disentangled {
                content_to_position,
                position_to_content,
                shares_maps: false,
                ..
            }),
            Some(names),
        ) = (kind, config.architecture.names.relative)
        {
            key = content_to_position.then(|| linear(names.key));
            query = position_to_content.then(|| linear(names.query));
        }
        Self { key, query }
    }

    pub(super) fn visit_params<V: ParamVisitor<B>>(
        &mut self,
        names: &EncoderNames,
        layer: usize,
        path: impl Fn(&str) -> String,
        visitor: &mut V,
    ) {
        let Some(relative) = names.relative else { return };
        for (map, name) in [(&mut self.key, relative.key), (&mut self.query, relative.query)] {
            if let Some(map) = map {
                map.visit_params(ModulePath::in_layer(&path(name), layer), visitor);
            }
        }
    }
}

/// What a layer has at hand for the terms of its scores.
pub(super) struct Layer<'a, B: Backend> {
    pub(super) index: usize,
    pub(super) n_heads: usize,
    /// Factor on the products.
    pub(super) scale: f32,
    /// Maps of the tokens' queries and keys, one each.
    pub(super) query_and_key: Option<[&'a Linear<B>; 2]>,
    /// Maps of the distances' own.
    pub(super) maps: &'a PositionMaps<B>,
}

impl<B: Kernels> RelativeTable<B> {
    /// The biases of these distances, the same for every query.
    ///
    /// # Shapes
    /// - output: `[n_heads, 1, buckets]`
    pub(crate) fn biases(&self, batch: &BatchDistances<B>, run: Run<'_, B>) -> Tensor<B, 3> {
        let rows = self.table.forward(batch.rows.clone(), run.adapters); // [buckets, n_heads]
        let [buckets, heads] = rows.dims();
        rows.transpose().reshape([heads, 1, buckets])
    }

    /// The terms of a layer's scores, by query and by key, of these queries and keys `[rows, d_model]`.
    ///
    /// # Shapes
    /// - output: `[n_heads, queries, buckets]` and `[n_heads, keys, buckets]`
    pub(super) fn terms(
        &self,
        layer: &Layer<'_, B>,
        q: &Tensor<B, 2>,
        k: &Tensor<B, 2>,
        batch: &BatchDistances<B>,
        run: Run<'_, B>,
    ) -> [Option<Tensor<B, 3>>; 2] {
        if self.kind == RelativeKind::Bias {
            return [Some(of_queries(&self.biases(batch, run), q.dims()[0])), None];
        }
        let rows = self.table.forward(batch.rows.clone(), run.adapters); // [buckets, width]
        let (content_to_position, position_to_content) = match self.kind {
            RelativeKind::Bias => (false, false),
            RelativeKind::Disentangled { content_to_position, position_to_content, .. } => {
                (content_to_position, position_to_content)
            }
        };
        let rows = match &self.norm {
            Some(norm) => norm.forward(rows),
            None => rows,
        };
        let rows = run.drop(rows, self.dropout, Stream::Layer { layer: layer.index, place: 3 });
        let shared = layer.query_and_key;
        let term = |wanted: bool, own: Option<&Linear<B>>, shared: Option<&Linear<B>>, x: &Tensor<B, 2>| {
            let map = own.or(shared).filter(|_| wanted)?;
            let positions = map.forward(rows.clone(), run) * layer.scale; // [buckets, d_model]
            Some(by_head(x, layer.n_heads).matmul(by_head(&positions, layer.n_heads).transpose()))
        };
        let (own_key, own_query) = (layer.maps.key.as_ref(), layer.maps.query.as_ref());
        [
            term(content_to_position, own_key, shared.map(|[_, key]| key), q),
            term(position_to_content, own_query, shared.map(|[query, _]| query), k),
        ]
    }
}

/// Biases `[n_heads, 1, buckets]` as the term of each of `queries` queries, `[n_heads, queries, buckets]`.
pub(crate) fn of_queries<B: Backend>(biases: &Tensor<B, 3>, queries: usize) -> Tensor<B, 3> {
    let [heads, _, buckets] = biases.dims();
    biases.clone().expand([heads, queries, buckets])
}

/// `[rows, d_model]` to `[n_heads, rows, head_dim]`.
fn by_head<B: Backend>(x: &Tensor<B, 2>, n_heads: usize) -> Tensor<B, 3> {
    let [rows, width] = x.dims();
    x.clone().reshape([rows, n_heads, width / n_heads]).swap_dims(0, 1)
}
