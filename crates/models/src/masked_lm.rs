//! Masked language modelling: BERT's pre-training head over the encoder, tied to the word embeddings.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_checkpoint::{FloatType, write_atomic, write_safetensors};
use lowrank_kernels::{Kernels, linear};

use crate::batch::TokenBatch;
use crate::config::{Activation, Architecture, EncoderConfig};
use crate::encoder::{Encoder, LayerNorm, Rows};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, SiteList};
use crate::params::{Layout, ParamIo, Saver, lazy_full};

/// `decoder(norm(act(transform(h))))`, the decoder being the word embedding plus a bias.
#[derive(Module, Debug)]
pub struct MaskedLm<B: Backend> {
    encoder: Encoder<B>,
    transform: Linear<B>,
    norm: LayerNorm<B>,
    /// Shape `[vocab_size]`.
    bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    config: EncoderConfig,
}

impl<B: Backend> MaskedLm<B> {
    /// A model of fresh weights, drawn from `seed`.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an architecture other than BERT.
    pub fn init(config: EncoderConfig, seed: u64, device: &B::Device) -> Result<Self> {
        if config.architecture != Architecture::Bert {
            return Err(ModelError::Input("masked language modelling is there for BERT only".into()));
        }
        let mut sites = SiteList::default();
        let encoder = Encoder::init(&config, "bert.", &mut sites, seed, device);
        let d = config.d_model;
        Ok(Self {
            encoder,
            transform: sites.linear("cls.predictions.transform.dense", None, [d, d], true, seed, device),
            norm: LayerNorm::init(d, config.norm_eps, device),
            bias: lazy_full([config.vocab_size], 0.0, device),
            config,
        })
    }

    /// The shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        self.encoder.walk("bert.", io);
        self.transform.walk("cls.predictions.transform.dense", io);
        self.norm.walk("cls.predictions.transform.LayerNorm", io);
        io.param("cls.predictions.bias", Layout::Same, &mut self.bias);
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
        let kind = match self.config.activation {
            Activation::Gelu(kind) => kind,
            _ => lowrank_kernels::Gelu::Erf,
        };
        let x = self.transform.forward_gelu(hidden, kind, &adapters, mode);
        let x = self.norm.forward(x, None, None);
        linear(x, self.encoder.word_embedding().transpose(), Some(self.bias.val()))
    }
}
