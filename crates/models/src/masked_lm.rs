//! Masked language modelling: the pre-training head over an encoder, tied to the word embeddings.

use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::architecture::is_encoder_buffer;
use crate::batch::{Rows, TokenBatch};
use crate::config::{EncoderConfig, MaskedLmOptions};
use crate::encoder::Encoder;
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::{Loader, lazy_full, without_prefix};
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
    bias: Option<Param<Tensor<B, 1>>>,
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
        if config.patches.is_some() {
            return Err(ModelError::Input(
                "a model of pictures has no masked language modelling head".into(),
            ));
        }
        let mut sites = SiteList::new(config.lowrank.clone());
        let body = Encoder::init(&config, &mut sites, seed, device);
        let (d, width) = (config.d_model, config.embedding_size);
        let path = config.architecture.masked_lm.transform;
        let MaskedLmOptions { transform_bias: bias, .. } = config.masked_lm;
        let spec = LinearSpec { path, layer: None, shape: [d, width], bias, head: true, conv1d: false };
        let transform = sites.linear(spec, seed, device);
        let sites = sites.finish().map_err(ModelError::Input)?;
        Ok(Self {
            body,
            transform,
            norm: Norm::init(config.norm_kind(), width, config.norm_eps, device),
            bias: config.masked_lm.bias.then(|| lazy_full([config.vocab_size], 0.0, device)),
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
            let bare = without_prefix(name, architecture.names.prefix);
            [head.bias_copy, head.decoder].contains(&name)
                || is_encoder_buffer(bare)
                || architecture.extras.iter().any(|extra| bare.starts_with(extra))
                || ["pooler.", "cls.seq_relationship.", "discriminator_predictions.", "sop_classifier."]
                    .iter()
                    .any(|part| bare.starts_with(part))
        };
        let words = format!("{}{}.weight", architecture.names.prefix, architecture.names.embeddings.words);
        let words = loader.stored_key(&words).into_owned();
        loader.finish(|_| true, is_extra)?;
        model.check_tied(&checkpoint, &words)?;
        Ok(model)
    }

    /// Refuses a checkpoint whose head has a table that is not that of the words.
    fn check_tied(&self, checkpoint: &Checkpoint, table: &str) -> Result<()> {
        let decoder = self.config.architecture.masked_lm.decoder;
        let has_both = [table, decoder].iter().all(|name| checkpoint.contains(name));
        if !has_both || checkpoint.read_f32(table)? == checkpoint.read_f32(decoder)? {
            return Ok(());
        }
        Err(ModelError::Tensors {
            path: checkpoint.path().to_path_buf(),
            details: format!("'{decoder}' differs from '{table}'; expected a head that is tied to the words"),
        })
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
        if let Some(bias) = &mut self.bias {
            visitor.visit(&module(head.bias).parameter(Role::Bias, Layout::Same, None), bias);
        }
    }

    fn config_json(&self) -> Map<String, Value> {
        let mut raw = self.config.raw.clone();
        let class = format!("{}ForMaskedLM", self.config.class());
        raw.insert("architectures".into(), vec![class].into());
        raw
    }
}

impl<B: Backend> Adaptable<B> for MaskedLm<B> {
    fn tied(&self) -> Option<[String; 2]> {
        let words = self.body.word_embedding()?;
        let decoder = self.config.architecture.masked_lm.decoder;
        let head = decoder.strip_suffix(".weight").unwrap_or(decoder);
        Some([self.sites[words.site].path.clone(), head.to_string()])
    }

    fn untie(&mut self) -> Result<()> {
        Err(ModelError::Input(
            "the adapter changes the word embedding or the decoder of a masked language model, but not both, and the two are \
             one table here; keep the adapter beside the model, or adapt other layers"
                .into(),
        ))
    }
}

stack_of_body!(MaskedLm);

impl<B: Kernels> MaskedLm<B> {
    /// Logits at the rows `masked` of the packed batch.
    ///
    /// # Shapes
    /// - `masked`: `[n]`
    /// - output: `[n, vocab_size]`
    pub fn forward(&self, batch: &TokenBatch<B>, masked: Tensor<B, 1, Int>, run: Run<'_, B>) -> Tensor<B, 2> {
        let hidden = self.hidden_states(batch, Rows::All, run).select(0, masked); // [n, d_model]
        let x = self.transform.forward_activated(hidden, self.config.masked_lm.activation, run);
        let Some(words) = self.body.word_embedding() else { unreachable!("init refuses models of pictures") };
        let logits = words.logits(self.norm.forward(x));
        match &self.bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        }
    }
}
