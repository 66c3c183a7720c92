//! The common structure of encoders and decoders: tokens are embedded, processed by layers, and finished by a
//! last norm.

use std::path::Path;

use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::{FloatType, fuse_experts};
use lowrank_kernels::Kernels;
use lowrank_spec::HostTensor;
use serde_json::{Map, Value};

use crate::batch::{Rows, TokenBatch, Tokens};
use crate::config::read_object;
use crate::error::Result;
use crate::kept::{Bytes, GatherBlocks, InBlocks};
use crate::params::{Choose, Gather};
use crate::run::Run;
use crate::save;
use crate::visit::{ParamVisitor, Parameter};

/// A model whose parameters can be visited and saved.
pub trait Parameters<B: Backend>: Clone {
    /// Every map that an adapter can serve, in the order of their indices.
    fn sites(&self) -> &[Site];

    /// Visits every parameter.
    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V);

    /// The `config.json` that describes the model.
    fn config_json(&self) -> Map<String, Value>;

    /// Keys of parameters that were neither loaded nor trained; they are not saved.
    fn newly_initialized(&self) -> &[String] {
        &[]
    }

    /// Tensors of the loaded checkpoint that belong to a head that the model does not have.
    fn ignored(&self) -> &[String] {
        &[]
    }

    /// The key of a tensor that files hold under other names too, and these names.
    fn copied(&self) -> Option<(String, Vec<String>)> {
        None
    }

    /// Sets which parameters are trained; called with each one and its current state.
    fn choose_trained(&mut self, choose: impl FnMut(&Parameter<'_>, bool) -> bool) {
        self.visit_params(&mut Choose(choose));
    }

    /// The selected quantized matrices, which are never trained.
    fn blocks_where(&self, wanted: impl Fn(&Parameter<'_>) -> bool) -> Vec<InBlocks> {
        let mut gather = GatherBlocks { wanted, blocks: Vec::new() };
        self.clone().visit_params(&mut gather);
        gather.blocks
    }

    /// Whether files of the architecture store the experts of a layer in one tensor per map.
    fn fuses_experts(&self) -> bool {
        false
    }

    /// Bytes of the parameters in their storage types.
    fn kept_bytes(&self) -> usize {
        let mut bytes = Bytes::default();
        self.clone().visit_params(&mut bytes);
        bytes.0
    }

    /// The selected float parameters, in PyTorch's layout.
    fn tensors_where(&self, wanted: impl Fn(&Parameter<'_>) -> bool) -> Vec<HostTensor<'static>> {
        let mut gather = Gather::new(wanted);
        self.clone().visit_params(&mut gather);
        gather.tensors
    }

    /// Writes a Hugging Face folder: weights of type `dtype` except for the
    /// [newly initialized](Self::newly_initialized) ones, config, and the tokenizer and generation files of `source`.
    /// Quantized matrices are written unchanged, and the config's `lowrank` section lists them.
    ///
    /// # Errors
    /// If a file cannot be written, or a value is beyond the range of `dtype`.
    fn save(&self, dir: &Path, source: &Path, dtype: FloatType) -> Result<()> {
        self.save_beside(dir, source, dtype, Vec::new())
    }

    /// The same beside tensors of heads that the model does not have: with any, the folder is of the class of `source`.
    ///
    /// # Errors
    /// As [`Parameters::save`].
    fn save_beside(
        &self,
        dir: &Path,
        source: &Path,
        dtype: FloatType,
        others: Vec<HostTensor<'static>>,
    ) -> Result<()> {
        let left_out = self.newly_initialized();
        let mut gather = Gather::new(|at: &Parameter<'_>| !left_out.contains(&at.key()));
        self.clone().visit_params(&mut gather);
        if let Some((key, names)) = self.copied()
            && let Some(tensor) = gather.tensors.iter().find(|tensor| tensor.name == key).cloned()
        {
            gather.tensors.extend(names.into_iter().map(|name| HostTensor { name, ..tensor.clone() }));
        }
        let mut config = self.config_json();
        if !others.is_empty()
            && let Some(classes) = read_object(source, "config.json")?.remove("architectures")
        {
            config.insert("architectures".into(), classes);
        }
        let mut tensors: Vec<_> = gather.tensors.into_iter().chain(others).collect();
        if self.fuses_experts() && save::has_dense_experts(&config, &gather.blocks)? {
            tensors = fuse_experts(tensors)?;
        }
        save::write_folder(dir, source, tensors, &gather.blocks, config, dtype)
    }
}

/// A transformer, split into its stages.
pub trait Stack<B: Kernels>: Parameters<B> {
    /// Number of layers.
    fn n_layers(&self) -> usize;

    /// Maximum sequence length of the model; `None` if positions are unbounded.
    fn max_tokens(&self) -> Option<usize>;

    /// Validates packed tokens and moves them to the device. Everything after this assumes that they are
    /// valid.
    ///
    /// # Errors
    /// [`ModelError::Input`](crate::ModelError::Input) for an id outside the vocabulary, a sequence that is empty or
    /// longer than the model takes, or lengths that do not add up.
    fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>>;

    /// Embedded tokens.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2>;

    /// One layer; `rows` selects the outputs to compute.
    ///
    /// # Shapes
    /// - x: `[tokens, d_model]`
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]`
    fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2>;

    /// The part after the last layer and before any head: the final norm and the map to the width of the
    /// embedding, if present.
    ///
    /// # Shapes
    /// - x: `[rows, d_model]`
    /// - output: the same, or `[rows, embedding_width]` for a decoder whose embedding has another width
    fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2>;

    /// Hidden states of the whole model: embedded, through all layers, finished.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    fn hidden_states(&self, batch: &TokenBatch<B>, rows: Rows, run: Run<'_, B>) -> Tensor<B, 2> {
        let n = self.n_layers();
        let x = (0..n).fold(self.embed(batch, run), |x, index| {
            let rows = if index + 1 == n { rows } else { Rows::All };
            self.layer(index, x, batch, rows, run)
        });
        self.finish(x, run)
    }
}

/// The stack of a model whose embeddings and layers are in its field `body`.
macro_rules! stack_of_body {
    ($model:ident) => {
        impl<B: Kernels> $crate::Stack<B> for $model<B> {
            fn n_layers(&self) -> usize {
                self.body.n_layers()
            }

            fn max_tokens(&self) -> Option<usize> {
                self.body.max_tokens()
            }

            fn batch(
                &self,
                tokens: $crate::Tokens<'_>,
                device: &B::Device,
            ) -> $crate::Result<$crate::TokenBatch<B>> {
                self.body.batch(tokens, device)
            }

            fn embed(&self, batch: &$crate::TokenBatch<B>, run: $crate::Run<'_, B>) -> Tensor<B, 2> {
                self.body.embed(batch, run)
            }

            fn layer(
                &self,
                index: usize,
                x: Tensor<B, 2>,
                batch: &$crate::TokenBatch<B>,
                rows: $crate::Rows,
                run: $crate::Run<'_, B>,
            ) -> Tensor<B, 2> {
                self.body.layer(index, x, batch, rows, run)
            }

            fn finish(&self, x: Tensor<B, 2>, run: $crate::Run<'_, B>) -> Tensor<B, 2> {
                self.body.finish(x, run)
            }
        }
    };
}

pub(crate) use stack_of_body;
