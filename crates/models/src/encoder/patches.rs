//! The embedding of pictures: a map of their patches, a class token before them, learned positions.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::Kernels;
use lowrank_spec::Stream;

use crate::batch::TokenBatch;
use crate::config::{EncoderConfig, EncoderNames, PatchOptions};
use crate::linear::{Linear, SiteList};
use crate::params::lazy_normal;
use crate::projection::INIT_STD;
use crate::run::Run;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Part, Role};

/// A convolution whose stride is its kernel is a linear map of patches, and that is how it is computed.
#[derive(Module, Debug)]
pub struct PatchEmbeddings<B: Backend> {
    /// Shape `[channels · height · width, d_model]`.
    projection: Linear<B>,
    /// Shape `[1, 1, d_model]`.
    class: Param<Tensor<B, 3>>,
    /// Of the class token and the patches, row by row; shape `[1, 1 + patches, d_model]`.
    positions: Param<Tensor<B, 3>>,
    #[module(skip)]
    options: PatchOptions,
    dropout: f64,
}

impl<B: Backend> PatchEmbeddings<B> {
    /// Newly initialized weights; `None` for a model of texts.
    pub(super) fn init(
        config: &EncoderConfig,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Option<Self> {
        let (d, names) = (config.d_model, &config.architecture.names);
        let (options, paths) = (config.patches?, names.patches?);
        let path = |name: &str| format!("{}{name}", names.prefix);
        let bare = |name: &str, rows| lazy_normal(seed, &path(name), [1, rows, d], INIT_STD, device);
        Some(Self {
            projection: sites.patches(&path(paths.projection), options.kernel(), d, seed, device),
            class: bare(paths.class, 1),
            positions: bare(paths.positions, 1 + options.n_patches()),
            options,
            dropout: config.dropouts.embeddings,
        })
    }

    /// How pictures are cut.
    pub(super) const fn options(&self) -> &PatchOptions {
        &self.options
    }

    pub(super) fn visit_params<V: ParamVisitor<B>>(&mut self, names: &EncoderNames, visitor: &mut V) {
        let Some(paths) = names.patches else { return };
        let path = |name: &str| format!("{}{name}", names.prefix);
        for (name, param) in [(paths.class, &mut self.class), (paths.positions, &mut self.positions)] {
            let path = path(name);
            let module = ModulePath::new(&path, Part::Embeddings);
            visitor.visit(&module.parameter(Role::Bare, Layout::Same, None), param);
        }
        let projection = path(paths.projection);
        self.projection.visit_params(ModulePath::new(&projection, Part::Embeddings), visitor);
    }
}

impl<B: Kernels> PatchEmbeddings<B> {
    /// # Shapes
    /// - output: `[pictures · (1 + patches), d_model]`
    #[track_caller]
    pub(super) fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let Some(pixels) = batch.pixels.clone() else { unreachable!("a batch of this model holds pictures") };
        let (n, patches) = (batch.packed().n_sequences(), self.options.n_patches());
        let x = self.projection.forward(pixels, run); // [n · patches, d_model]
        let d = x.dims()[1];
        let class = self.class.val().expand([n, 1, d]);
        let x = Tensor::cat(vec![class, x.reshape([n, patches, d])], 1) + self.positions.val();
        run.drop(x.reshape([n * (1 + patches), d]), self.dropout, Stream::Embeddings)
    }
}
