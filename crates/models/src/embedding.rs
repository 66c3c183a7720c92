//! Embeddings: a table in any representation, looked up by rows, and used again by a tied head.

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;

use crate::linear::SiteList;
use crate::projection::{Projection, WeightOf};
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Part};

/// A table `[vocab_size, d_model]`.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// The table: `d_input` is the vocabulary.
    pub projection: Projection<B>,
    /// Index into the model's list of sites.
    pub site: usize,
}

impl<B: Backend> Embedding<B> {
    /// Newly initialized values, in the representation given by the config's `lowrank` section.
    pub fn init(path: &str, shape: [usize; 2], sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        let representation = sites.representation(path, shape, true);
        let projection = Projection::init(path, shape, &representation, seed, device);
        Self { projection, site: sites.embedding(path, shape) }
    }

    /// Visits the table; a single matrix is stored as it is.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, path: &str, visitor: &mut V) {
        self.visit_as(path, Part::Embeddings, visitor);
    }

    /// Visits the table as one of another part of the model.
    pub(crate) fn visit_as<V: ParamVisitor<B>>(&mut self, path: &str, part: Part, visitor: &mut V) {
        let module = ModulePath::new(path, part);
        self.projection.visit_params(
            WeightOf { module, site: self.site, is_table: true },
            Layout::Same,
            visitor,
        );
    }
}

impl<B: Kernels> Embedding<B> {
    /// # Shapes
    /// - ids: `[tokens]`
    /// - output: `[tokens, d_model]`
    pub fn forward(&self, ids: Tensor<B, 1, Int>, adapters: &AdapterSet<B>) -> Tensor<B, 2> {
        let rows = self.projection.rows(ids.clone());
        adapters.embed(self.site, &ids, rows, |x| self.projection.forward_exact(x))
    }

    /// Logits of a head tied to the table; an adapter of the embedding has no part in them, as in PEFT.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, vocab_size]`
    pub fn logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.projection.forward_transposed(x)
    }
}
