//! Masked language modelling: the pre-training head over an encoder, tied to the word embeddings.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_checkpoint::{Checkpoint, FloatType, write_atomic, write_safetensors};
use lowrank_kernels::Kernels;

use crate::architecture::ENCODER_BUFFERS;
use crate::batch::TokenBatch;
use crate::config::EncoderConfig;
use crate::encoder::{Encoder, Rows};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::{Norm, NormKind};
use crate::params::{Layout, Loader, ParamIo, Saver, lazy_full};

/// `decoder(norm(act(transform(h))))`, the decoder being the word embedding plus a bias.
#[derive(Module, Debug)]
pub struct MaskedLm<B: Backend> {
    encoder: Encoder<B>,
    transform: Linear<B>,
    norm: Norm<B>,
    /// Shape `[vocab_size]`.
    bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    config: EncoderConfig,
}

impl<B: Backend> MaskedLm<B> {
    /// A model of fresh weights, drawn from `seed`.
    ///
    /// # Errors
    /// None for a config without a `lowrank` section; one whose modules are not this model's.
    pub fn init(config: EncoderConfig, seed: u64, device: &B::Device) -> Result<Self> {
        let mut sites = SiteList::new(config.lowrank.clone());
        let encoder = Encoder::init(&config, &mut sites, seed, device);
        let d = config.d_model;
        let path = config.architecture.masked_lm.transform;
        let spec = LinearSpec { path, layer: None, shape: [d, d], bias: true, head: true, conv1d: false };
        let transform = sites.linear(spec, seed, device);
        sites.finish().map_err(ModelError::Input)?;
        Ok(Self {
            encoder,
            transform,
            norm: Norm::init(NormKind::Layer, d, config.norm_eps, device),
            bias: lazy_full([config.vocab_size], 0.0, device),
            config,
        })
    }

    /// Loads a Hugging Face folder with its masked language modelling head.
    ///
    /// # Errors
    /// Tensors that are missing, misshaped, or belong to no known part.
    pub fn load(folder: &Path, config: EncoderConfig, device: &B::Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let architecture = config.architecture;
        let mut model = Self::init(config, 0, device)?;
        let mut loader = Loader::new(&checkpoint, architecture.names.prefix, device);
        model.walk(&mut loader);
        let head = &architecture.masked_lm;
        let is_extra = |name: &str| {
            let bare = name.strip_prefix(architecture.names.prefix).unwrap_or(name);
            [head.bias_copy, head.decoder].contains(&name)
                || ENCODER_BUFFERS.contains(&bare)
                || ["pooler.", "cls.seq_relationship."].iter().any(|part| bare.starts_with(part))
        };
        loader.finish(|_| true, is_extra)?;
        Ok(model)
    }

    /// The shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let head = &self.config.architecture.masked_lm;
        self.encoder.walk(io);
        self.transform.walk(head.transform, io);
        self.norm.walk(head.norm, io);
        io.param(head.bias, Layout::Same, &mut self.bias);
    }

    /// Writes weights and config of a Hugging Face folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let error = |e: std::io::Error| ModelError::File { path: dir.to_path_buf(), reason: e.to_string() };
        std::fs::create_dir_all(dir).map_err(error)?;
        let mut saver = Saver::default();
        self.clone().walk(&mut saver);
        write_safetensors(dir.join("model.safetensors"), saver.tensors, FloatType::F32, &BTreeMap::new())?;
        let json = serde_json::to_string_pretty(&self.config.raw).map_err(|e| error(e.into()))?;
        write_atomic(dir.join("config.json"), format!("{json}\n").as_bytes())?;
        Ok(())
    }
}

impl<B: Kernels> MaskedLm<B> {
    /// Logits at the rows `masked` of the packed batch.
    ///
    /// # Shapes
    /// - `masked`: `[n]`
    /// - output: `[n, vocab_size]`
    pub fn forward(&self, batch: &TokenBatch<B>, masked: Tensor<B, 1, Int>, mode: Mode) -> Tensor<B, 2> {
        let adapters = AdapterSet::empty();
        let hidden = self.encoder.forward(batch, Rows::All, &adapters, mode).select(0, masked); // [n, d_model]
        let x = self.transform.forward_activated(hidden, self.config.activation, &adapters, mode);
        let x = self.norm.forward(x);
        self.encoder.word_embedding().logits(x) + self.bias.val().unsqueeze()
    }
}
