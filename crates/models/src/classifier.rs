//! Sequence classification and regression: an encoder, its pooler, and a head.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::activation::relu;
use lowrank_adapters::{AdapterSet, Mode, Site};
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_atomic, write_safetensors};
use lowrank_kernels::{Kernels, dropout};
use lowrank_spec::Stream;

use crate::adapt::Adaptable;
use crate::architecture::{ENCODER_BUFFERS, EncoderArchitecture};
use crate::batch::TokenBatch;
use crate::config::EncoderConfig;
use crate::encoder::{Encoder, Rows};
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::params::{Layout, Loader, ParamIo, Saver};

/// An encoder with a sequence classification head.
///
/// `output(dropout(act(dense(first token))))`, with the parts that
/// [`HeadNames`](crate::architecture::HeadNames) says.
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
    /// Keys that the checkpoint did not hold and that kept fresh values.
    fresh: Vec<String>,
    /// Whether the first map is trained and saved with the head.
    dense_in_head: bool,
}

impl<B: Backend> SequenceClassifier<B> {
    /// A model of fresh weights, drawn from `seed`.
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
        let info = Info { config, sites: sites.sites.clone(), fresh: Vec::new(), dense_in_head: true };
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
        model.encoder.walk(&mut loader);
        model.dense.walk(architecture.head.dense, &mut loader);
        if head_fits {
            model.output.walk(output_path, &mut loader);
        }
        let is_head = |k: &str| k.starts_with(architecture.head.dense) || k.starts_with(output_path);
        let mut fresh = loader.finish(|k| !is_head(k), |name| is_extra(name, architecture))?;
        if !head_fits {
            fresh.extend(["weight", "bias"].map(|leaf| format!("{output_path}.{leaf}")));
        }
        let dense_is_fresh = fresh.iter().any(|k| k.starts_with(architecture.head.dense));
        model.info.dense_in_head = dense_is_fresh || architecture.head.dense_is_head;
        model.info.fresh = fresh;
        Ok(model)
    }

    /// The shape and labels.
    pub fn config(&self) -> &EncoderConfig {
        &self.info.config
    }

    /// Embeddings and layers.
    pub fn encoder(&self) -> &Encoder<B> {
        &self.encoder
    }

    /// Every linear map that an adapter can serve.
    pub fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    /// Keys that kept fresh values because the checkpoint did not hold them.
    pub fn fresh(&self) -> &[String] {
        &self.info.fresh
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let head = &self.info.config.architecture.head;
        self.encoder.walk(io);
        self.dense.walk(head.dense, io);
        self.output.walk(head.output, io);
    }

    fn walk_head<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let head = &self.info.config.architecture.head;
        if self.info.dense_in_head {
            self.dense.walk(head.dense, io);
        }
        self.output.walk(head.output, io);
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
        let mut saver = Saver::default();
        self.clone().walk_head(&mut saver);
        saver.tensors
    }

    /// Writes a Hugging Face folder: weights but for [`fresh`](Self::fresh) ones, config, and the tokenizer files of
    /// `source`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path, source: &Path) -> Result<()> {
        let file_error = |path: &Path, e: std::io::Error| ModelError::File {
            path: path.to_path_buf(),
            reason: e.to_string(),
        };
        std::fs::create_dir_all(dir).map_err(|e| file_error(dir, e))?;
        let mut saver = Saver::default();
        self.clone().walk(&mut saver);
        // What was neither loaded nor trained is drawn anew by whoever loads the model.
        saver.tensors.retain(|tensor| !self.info.fresh.contains(&tensor.name));
        write_safetensors(dir.join("model.safetensors"), saver.tensors, FloatType::F32, &BTreeMap::new())?;
        let mut raw = self.info.config.raw.clone();
        if self.info.fresh.is_empty() {
            let class = format!("{}ForSequenceClassification", self.info.config.architecture.class);
            raw.insert("architectures".into(), vec![class].into());
        }
        let json = serde_json::to_string_pretty(&raw).map_err(|e| file_error(dir, e.into()))?;
        write_atomic(dir.join("config.json"), json.as_bytes())?;
        for name in TOKENIZER_FILES {
            let from = source.join(name);
            if from.is_file() && source != dir {
                let bytes = std::fs::read(&from).map_err(|e| file_error(&from, e))?;
                write_atomic(dir.join(name), &bytes)?;
            }
        }
        Ok(())
    }

    /// The model with a head of zeros: what is learnt over it is the head's whole answer.
    pub fn with_zero_head(mut self) -> Self {
        let head = self.info.config.architecture.head.output;
        self.output.walk(head, &mut Zero);
        self.info.fresh.retain(|key| !key.starts_with(head));
        self
    }

    /// Marks what is trained.
    pub fn with_trainable(mut self, trainable: Trainable) -> Self {
        // A factor that others borrow is their copy too: trained here alone, it would no longer be theirs.
        let mut borrowed = Borrowed::default();
        self.walk(&mut borrowed);
        self.walk(&mut Flag(|key| match trainable {
            Trainable::All => !borrowed.0.contains(key),
            Trainable::Head => false,
            Trainable::Bias => key.ends_with(".bias"),
        }));
        self.walk_head(&mut Flag(|_| true));
        // What was drawn is what training starts from.
        self.info.fresh.clear();
        self
    }
}

impl<B: Backend> Adaptable<B> for SequenceClassifier<B> {
    fn adapter_sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn walk_params<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        self.walk(io);
    }

    fn tasks(&self) -> &'static [&'static str] {
        &["SEQ_CLS", "FEATURE_EXTRACTION"]
    }

    fn loaded(&mut self, keys: &[String]) {
        self.info.fresh.retain(|key| !keys.contains(key));
    }
}

/// Sets which parameters have a gradient, by key.
struct Flag<F: Fn(&str) -> bool>(F);

impl<B: Backend, F: Fn(&str) -> bool> ParamIo<B> for Flag<F> {
    fn param<const D: usize>(&mut self, key: &str, _layout: Layout, param: &mut Param<Tensor<B, D>>) {
        let require_grad = (self.0)(key);
        replace(param, |p| p.set_require_grad(require_grad));
    }
}

/// Keys of the factors that some module borrows from another.
#[derive(Default)]
struct Borrowed(BTreeSet<String>);

impl<B: Backend> ParamIo<B> for Borrowed {
    fn param<const D: usize>(&mut self, _key: &str, _layout: Layout, _param: &mut Param<Tensor<B, D>>) {}

    fn shared(&mut self, key: &str, _layout: Layout, _param: &mut Param<Tensor<B, 2>>) {
        self.0.insert(key.to_string());
    }
}

/// Sets parameters to zero.
struct Zero;

impl<B: Backend> ParamIo<B> for Zero {
    fn param<const D: usize>(&mut self, _key: &str, _layout: Layout, param: &mut Param<Tensor<B, D>>) {
        replace(param, |param| param.map(|tensor| tensor.zeros_like()));
    }
}

/// Maps a parameter in place.
fn replace<B: Backend, const D: usize>(
    param: &mut Param<Tensor<B, D>>,
    map: impl FnOnce(Param<Tensor<B, D>>) -> Param<Tensor<B, D>>,
) {
    *param = map(param.clone());
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

const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
];

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
    pub fn forward(&self, batch: &TokenBatch<B>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let config = &self.info.config;
        let head = &config.architecture.head;
        let drop = |x: Tensor<B, 2>, place: u64| match mode
            .dropout(config.classifier_dropout, Stream::Head(place))
        {
            Some(d) => dropout(x, d),
            None => x,
        };
        let mut x = self.encoder.forward(batch, Rows::First, adapters, mode); // [sequences, d_model]
        if head.drops_input {
            x = drop(x, 0);
        }
        let x = self.dense.forward(x, adapters, mode);
        let x = if head.is_tanh { x.tanh() } else { relu(x) };
        self.output.forward(drop(x, 1), adapters, mode)
    }

    /// Hidden states of the encoder's last layer.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    pub fn hidden_states(&self, batch: &TokenBatch<B>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        self.encoder.forward(batch, Rows::All, adapters, mode)
    }
}
