//! Sequence classification and regression: an encoder, its pooler, and a head.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_spec::{HostTensor, Stream};
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::architecture::ENCODER_BUFFERS;
use crate::batch::{Rows, TokenBatch};
use crate::config::{EncoderArchitecture, EncoderConfig};
use crate::encoder::{Encoder, encoder_stack};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::params::{Choose, Gather, Loader};
use crate::run::Run;
use crate::stack::{Parameters, Stack};
use crate::visit::{Module as ModulePath, ParamVisitor, Parameter, Part};

/// An encoder with a sequence classification head.
///
/// `output(dropout(act(dense(first token))))`, with the parts that
/// [`HeadNames`](crate::config::HeadNames) says.
#[derive(Module, Debug)]
pub struct SequenceClassifier<B: Backend> {
    encoder: Encoder<B>,
    /// BERT's pooler, RoBERTa's `classifier.dense`, DistilBERT's `pre_classifier`.
    dense: Linear<B>,
    /// To the labels.
    output: Linear<B>,
    #[module(skip)]
    info: Info,
}

/// What a classifier knows beside its weights.
#[derive(Clone, Debug)]
struct Info {
    config: EncoderConfig,
    sites: Vec<Site>,
    /// Keys that the checkpoint did not hold: their values are drawn.
    newly_initialized: Vec<String>,
    /// Whether the first map is trained and saved with the head.
    dense_in_head: bool,
}

impl<B: Backend> SequenceClassifier<B> {
    /// A model with newly initialized weights, drawn from `seed`.
    pub fn init(config: EncoderConfig, seed: u64, device: &B::Device) -> Self {
        Self::build(config, seed, device).0
    }

    fn build(config: EncoderConfig, seed: u64, device: &B::Device) -> (Self, SiteList) {
        let (d, head) = (config.d_model, &config.architecture.head);
        let mut sites = SiteList::new(config.lowrank.clone());
        let encoder = Encoder::init(&config, &mut sites, seed, device);
        let spec = LinearSpec { layer: None, bias: true, conv1d: false, path: "", shape: [d, d], head: true };
        let dense = LinearSpec { path: head.dense, head: head.dense_is_head, ..spec };
        let dense = sites.linear(dense, seed, device);
        let output = LinearSpec { path: head.output, shape: [d, config.labels.len()], ..spec };
        let output = sites.linear(output, seed, device);
        let info =
            Info { config, sites: sites.sites.clone(), newly_initialized: Vec::new(), dense_in_head: true };
        (Self { encoder, dense, output, info }, sites)
    }

    /// Loads a Hugging Face folder: with this head, with another number of labels, or without any.
    ///
    /// Head tensors that are missing, or made for another number of labels, keep fresh values drawn from
    /// `seed`; so does BERT's pooler where the checkpoint has none, and it is then trained with the head.
    ///
    /// # Errors
    /// Encoder tensors that are missing or misshaped, tensors that belong to no known part, a `lowrank`
    /// section that does not fit the model.
    pub fn load(folder: &Path, mut config: EncoderConfig, seed: u64, device: &B::Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let architecture = config.architecture;
        let output_path = architecture.head.output;
        let labels = [config.labels.len()];
        let head_fits =
            checkpoint.info(&format!("{output_path}.bias")).is_some_and(|bias| bias.shape == labels);
        let config_error = |reason| ModelError::Config { path: folder.join("config.json"), reason };
        if !head_fits && config.lowrank.modules.remove(output_path).is_some() {
            config.lowrank.write(&mut config.raw).map_err(|e| config_error(e.to_string()))?;
        }
        let (mut model, sites) = Self::build(config, seed, device);
        sites.finish().map_err(config_error)?;

        let mut loader = Loader::new(&checkpoint, architecture.names.prefix, device);
        model.encoder.visit_params(&mut loader);
        let module = |path| ModulePath::new(path, Part::Head);
        model.dense.visit_params(module(architecture.head.dense), &mut loader);
        if head_fits {
            model.output.visit_params(module(output_path), &mut loader);
        }
        let is_head = |k: &str| k.starts_with(architecture.head.dense) || k.starts_with(output_path);
        let mut fresh = loader.finish(|k| !is_head(k), |name| is_extra(name, architecture))?;
        if !head_fits {
            fresh.extend(["weight", "bias"].map(|leaf| format!("{output_path}.{leaf}")));
        }
        let dense_is_fresh = fresh.iter().any(|k| k.starts_with(architecture.head.dense));
        model.info.dense_in_head = dense_is_fresh || architecture.head.dense_is_head;
        model.info.newly_initialized = fresh;
        Ok(model)
    }

    /// The shape and labels.
    pub fn config(&self) -> &EncoderConfig {
        &self.info.config
    }

    fn visit_head<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let head = &self.info.config.architecture.head;
        if self.info.dense_in_head {
            self.dense.visit_params(ModulePath::new(head.dense, Part::Head), visitor);
        }
        self.output.visit_params(ModulePath::new(head.output, Part::Head), visitor);
    }

    /// Names for PEFT's `modules_to_save`.
    pub fn head_modules(&self) -> Vec<String> {
        let head = &self.info.config.architecture.head;
        match (head.saved_as, self.info.dense_in_head) {
            (Some(name), _) => vec![name.into()],
            (None, true) => vec![head.dense.into(), head.output.into()],
            (None, false) => vec![head.output.into()],
        }
    }

    /// The head's tensors, in PyTorch's layout.
    pub fn head_tensors(&self) -> Vec<HostTensor<'static>> {
        let mut gather = Gather::new(|_: &Parameter<'_>| true);
        self.clone().visit_head(&mut gather);
        gather.tensors
    }

    /// The model with a head of zeros: what is learnt over it is the head's whole answer.
    pub fn with_zero_head(mut self) -> Self {
        let head = self.info.config.architecture.head.output;
        self.output.visit_params(ModulePath::new(head, Part::Head), &mut Zero);
        self.info.newly_initialized.retain(|key| !key.starts_with(head));
        self
    }

    /// Marks what is trained.
    pub fn with_trainable(mut self, trainable: Trainable) -> Self {
        // A factor that others borrow is their copy too: trained here alone, it would no longer be theirs.
        let mut borrowed = Borrowed::default();
        self.visit_params(&mut borrowed);
        self.choose_trained(|at, _| match trainable {
            Trainable::All => !borrowed.0.contains(&at.key()),
            Trainable::Head => false,
            Trainable::Bias => at.is_bias(),
        });
        self.visit_head(&mut Choose(|_: &Parameter<'_>, _| true));
        // What was drawn is what training starts from.
        self.info.newly_initialized.clear();
        self
    }
}

impl<B: Backend> Parameters<B> for SequenceClassifier<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let head = &self.info.config.architecture.head;
        self.encoder.visit_params(visitor);
        // A pooler that the checkpoint holds is the encoder's own, and has its learning rate.
        let part = if self.info.dense_in_head { Part::Head } else { Part::Body };
        self.dense.visit_params(ModulePath::new(head.dense, part), visitor);
        self.output.visit_params(ModulePath::new(head.output, Part::Head), visitor);
    }

    fn config_json(&self) -> Map<String, Value> {
        let mut raw = self.info.config.raw.clone();
        if self.info.newly_initialized.is_empty() {
            let class = format!("{}ForSequenceClassification", self.info.config.architecture.class);
            raw.insert("architectures".into(), vec![class].into());
        }
        raw
    }

    fn newly_initialized(&self) -> &[String] {
        &self.info.newly_initialized
    }
}

impl<B: Backend> Adaptable<B> for SequenceClassifier<B> {
    fn tasks(&self) -> &'static [&'static str] {
        &["SEQ_CLS", "FEATURE_EXTRACTION"]
    }

    fn loaded(&mut self, keys: &[String]) {
        self.info.newly_initialized.retain(|key| !keys.contains(key));
    }
}

encoder_stack!(SequenceClassifier);

/// Keys of the factors that some module borrows from another.
#[derive(Default)]
struct Borrowed(BTreeSet<String>);

impl<B: Backend> ParamVisitor<B> for Borrowed {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_shared(&mut self, at: &Parameter<'_>, _param: &mut Param<Tensor<B, 2>>) {
        self.0.insert(at.key());
    }
}

/// Sets parameters to zero.
struct Zero;

impl<B: Backend> ParamVisitor<B> for Zero {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        *param = param.clone().map(|tensor| tensor.zeros_like());
    }
}

/// Which of a model's own weights are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// Every weight: full fine-tuning.
    All,
    /// The head, and whatever the checkpoint did not hold.
    Head,
    /// The biases (BitFit, Ben Zaken et al. 2021) and the head.
    Bias,
}

/// Tensors that a checkpoint may hold beside ours: buffers, language-modelling heads, a head for another
/// number of labels, the pooler of an architecture whose head does not use it.
fn is_extra(name: &str, architecture: &EncoderArchitecture) -> bool {
    let bare = name.strip_prefix(architecture.names.prefix).unwrap_or(name);
    let pooler_is_used = architecture.head.dense.ends_with("pooler.dense");
    ENCODER_BUFFERS.contains(&bare)
        || (bare.starts_with("pooler.") && !pooler_is_used)
        || ["cls.", "lm_head.", "vocab_"].iter().any(|p| name.starts_with(p))
        || name.starts_with(architecture.head.output)
}

impl<B: Kernels> SequenceClassifier<B> {
    /// Logits of each sequence.
    ///
    /// # Shapes
    /// - output: `[sequences, labels]`
    pub fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let config = &self.info.config;
        let head = &config.architecture.head;
        let drop = |x, place| run.drop(x, config.classifier_dropout, Stream::Head(place));
        let mut x = self.hidden_states(batch, Rows::First, run); // [sequences, d_model]
        if head.drops_input {
            x = drop(x, 0);
        }
        let x = head.activation.apply(self.dense.forward(x, run));
        self.output.forward(drop(x, 1), run)
    }
}
