//! Masked language modelling: the pre-training head over an encoder, tied to the word embeddings.

use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::architecture::ENCODER_BUFFERS;
use crate::batch::{Rows, TokenBatch};
use crate::config::{EncoderConfig, NormKind};
use crate::encoder::Encoder;
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::{Loader, lazy_full};
use crate::run::Run;
use crate::stack::{Parameters, Stack, stack_of_body};
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Part, Role};

/// `decoder(norm(act(transform(h))))`, the decoder being the word embedding plus a bias.
#[derive(Module, Debug)]
pub struct MaskedLm<B: Backend> {
    body: Encoder<B>,
    transform: Linear<B>,
    norm: Norm<B>,
    /// Shape `[vocab_size]`.
    bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    config: EncoderConfig,
    #[module(skip)]
    sites: Vec<Site>,
}

impl<B: Backend> MaskedLm<B> {
    /// A model with newly initialized weights, drawn from `seed`.
    ///
    /// # Errors
    /// A `lowrank` section that does not fit the model.
    pub fn init(config: EncoderConfig, seed: u64, device: &B::Device) -> Result<Self> {
        let mut sites = SiteList::new(config.lowrank.clone());
        let body = Encoder::init(&config, &mut sites, seed, device);
        let (d, width) = (config.d_model, config.embedding_size);
        let path = config.architecture.masked_lm.transform;
        let spec = LinearSpec { path, layer: None, shape: [d, width], bias: true, head: true, conv1d: false };
        let transform = sites.linear(spec, seed, device);
        let sites = sites.finish().map_err(ModelError::Input)?;
        Ok(Self {
            body,
            transform,
            norm: Norm::init(NormKind::Layer, width, config.norm_eps, device),
            bias: lazy_full([config.vocab_size], 0.0, device),
            config,
            sites,
        })
    }

    /// Loads a Hugging Face folder with its masked language modelling head.
    ///
    /// # Errors
    /// Tensors that are missing, misshaped, or belong to no known part.
    pub fn load(folder: &Path, config: EncoderConfig, device: &B::Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let architecture = config.architecture;
        let section = config.lowrank.clone();
        let mut model = Self::init(config, 0, device)?;
        let mut loader = Loader::new(&checkpoint, architecture.names.prefix, device).with_section(&section);
        model.visit_params(&mut loader);
        let head = &architecture.masked_lm;
        let is_extra = |name: &str| {
            let bare = name.strip_prefix(architecture.names.prefix).unwrap_or(name);
            [head.bias_copy, head.decoder].contains(&name)
                || ENCODER_BUFFERS.contains(&bare)
                || ["pooler.", "cls.seq_relationship.", "discriminator_predictions.", "sop_classifier."]
                    .iter()
                    .any(|part| bare.starts_with(part))
        };
        loader.finish(|_| true, is_extra)?;
        Ok(model)
    }

    /// The shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

impl<B: Backend> Parameters<B> for MaskedLm<B> {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let head = &self.config.architecture.masked_lm;
        let module = |path| ModulePath::new(path, Part::Head);
        self.body.visit_params(visitor);
        self.transform.visit_params(module(head.transform), visitor);
        self.norm.visit_params(module(head.norm), visitor);
        visitor.visit(&module(head.bias).parameter(Role::Bias, Layout::Same, None), &mut self.bias);
    }

    fn config_json(&self) -> Map<String, Value> {
        let mut raw = self.config.raw.clone();
        let class = format!("{}ForMaskedLM", self.config.class());
        raw.insert("architectures".into(), vec![class].into());
        raw
    }
}

impl<B: Backend> Adaptable<B> for MaskedLm<B> {}

stack_of_body!(MaskedLm);

impl<B: Kernels> MaskedLm<B> {
    /// Logits at the rows `masked` of the packed batch.
    ///
    /// # Shapes
    /// - `masked`: `[n]`
    /// - output: `[n, vocab_size]`
    pub fn forward(&self, batch: &TokenBatch<B>, masked: Tensor<B, 1, Int>, run: Run<'_, B>) -> Tensor<B, 2> {
        let hidden = self.hidden_states(batch, Rows::All, run).select(0, masked); // [n, d_model]
        let x = self.transform.forward_activated(hidden, self.config.activation, run);
        let x = self.norm.forward(x);
        self.body.word_embedding().logits(x) + self.bias.val().unsqueeze()
    }
}
