//! Token classification: a label for every token, over any stack.

use std::path::Path;

use burn::module::Module;
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_spec::Stream;
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::batch::{Rows, TokenBatch};
use crate::body::Body;
use crate::classifier::is_extra;
use crate::config::{BodyConfig, ClassifierConfig};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::params::{Loader, Unmatched};
use crate::run::Run;
use crate::stack::{Parameters, Stack, stack_of_body};
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// `output(dropout(h))` for the hidden state `h` of every token.
#[derive(Module, Debug)]
pub struct TokenClassifier<B: Backend> {
    body: Body<B>,
    output: Linear<B>,
    #[module(skip)]
    info: Info,
}

/// What a token classifier knows besides its weights.
#[derive(Clone, Debug)]
struct Info {
    config: ClassifierConfig,
    sites: Vec<Site>,
    /// Keys that the checkpoint did not hold: their values are drawn.
    newly_initialized: Vec<String>,
    /// Tensors of other heads in the checkpoint.
    ignored: Vec<String>,
}

/// Path of the head.
const fn output(config: &ClassifierConfig) -> &'static str {
    match config.body {
        BodyConfig::Encoder(_) => "classifier",
        BodyConfig::Decoder(_) => "score",
    }
}

/// Dropout before the head where a decoder's config names none.
const DECODER_DROPOUT: f64 = 0.1;

impl<B: Backend> TokenClassifier<B> {
    fn build(config: ClassifierConfig, seed: u64, device: &B::Device) -> (Self, SiteList) {
        let mut sites = SiteList::new(config.lowrank().clone());
        let body = Body::init(&config.body, &mut sites, seed, device);
        let shape = [config.d_model(), config.labels.len()];
        let path = output(&config);
        let spec = LinearSpec { path, layer: None, shape, bias: true, head: true, conv1d: false };
        let output = sites.linear(spec, seed, device);
        let info =
            Info { config, sites: sites.sites.clone(), newly_initialized: Vec::new(), ignored: Vec::new() };
        (Self { body, output, info }, sites)
    }

    /// Loads a Hugging Face folder: with this head, with another number of labels, or without any. A head that is
    /// missing, or made for another number of labels, keeps values drawn from `seed`.
    ///
    /// # Errors
    /// Tensors of the stack that are missing or misshaped, tensors that belong to no known part, a `lowrank`
    /// section that does not fit the model.
    pub fn load(folder: &Path, config: ClassifierConfig, seed: u64, device: &B::Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let path = output(&config);
        let width = [config.labels.len()];
        let head_fits = checkpoint.info(&format!("{path}.bias")).is_some_and(|bias| bias.shape == width);
        let (mut model, sites) = Self::build(config, seed, device);
        sites.finish().map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })?;
        let mut loader = Loader::new(&checkpoint, model.info.config.prefix(), device);
        model.body.visit_params(&mut loader);
        if head_fits {
            model.output.visit_params(ModulePath::new(path, Part::Head), &mut loader);
        }
        let is_head = |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        let pooler = format!("{}pooler.", model.info.config.prefix());
        let is_extra = |name: &str| {
            is_extra(name, &model.info.config)
                || is_head(name)
                || name.starts_with(&pooler)
                || name.starts_with("pooler.")
        };
        let Unmatched { mut newly_initialized, ignored } = loader.finish(|key| !is_head(key), is_extra)?;
        if !head_fits {
            newly_initialized.extend(["weight", "bias"].map(|leaf| format!("{path}.{leaf}")));
        }
        model.info = Info { newly_initialized, ignored, ..model.info };
        Ok(model)
    }

    /// The shape and labels.
    pub fn config(&self) -> &ClassifierConfig {
        &self.info.config
    }

    /// Names for PEFT's `modules_to_save`.
    pub fn head_modules(&self) -> Vec<String> {
        vec![output(&self.info.config).into()]
    }
}

impl<B: Backend> Parameters<B> for TokenClassifier<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        self.body.visit_params(visitor);
        let path = output(&self.info.config);
        self.output.visit_params(ModulePath::new(path, Part::Head), visitor);
    }

    fn config_json(&self) -> Map<String, Value> {
        let config = &self.info.config;
        let mut raw = config.raw().clone();
        if self.info.newly_initialized.is_empty() {
            raw.insert(
                "architectures".into(),
                vec![format!("{}ForTokenClassification", config.class())].into(),
            );
        }
        raw
    }

    fn newly_initialized(&self) -> &[String] {
        &self.info.newly_initialized
    }

    fn ignored(&self) -> &[String] {
        &self.info.ignored
    }
}

impl<B: Backend> Adaptable<B> for TokenClassifier<B> {
    fn tasks(&self) -> &'static [&'static str] {
        &["TOKEN_CLS", "FEATURE_EXTRACTION"]
    }

    fn loaded(&mut self, keys: &[String]) {
        self.info.newly_initialized.retain(|key| !keys.contains(key));
    }
}

stack_of_body!(TokenClassifier);

impl<B: Kernels> TokenClassifier<B> {
    /// Logits of each token.
    ///
    /// # Shapes
    /// - output: `[tokens, labels]`
    pub fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let p = match &self.info.config.body {
            BodyConfig::Encoder(config) => config.classifier_dropout,
            BodyConfig::Decoder(_) => DECODER_DROPOUT,
        };
        let hidden = self.hidden_states(batch, Rows::All, run); // [tokens, d_model]
        self.output.forward(run.drop(hidden, p, Stream::Head(0)), run)
    }
}
