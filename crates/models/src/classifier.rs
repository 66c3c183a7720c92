//! Classification and regression over any stack: of whole sequences, of every token, or of the spans that answer questions.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_adapters::peft::AdapterFolder;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_spec::names::WeightPart;
use lowrank_spec::{HostTensor, Stream};
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::architecture::is_encoder_buffer;
use crate::batch::{Rows, TokenBatch, int_tensor};
use crate::body::Body;
use crate::config::{
    BodyConfig, ClassifierConfig, EncoderConfig, HeadInput, HeadLevel, HeadNames, MaskedLmNames, read_object,
};
use crate::error::{ModelError, Result};
use crate::folder::SentencePooling;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::{Choose, Gather, Loader, ToFloats, Unmatched, WeightType, without_prefix};
use crate::run::Run;
use crate::stack::{Parameters, Stack, stack_of_body};
use crate::stored::Stored;
use crate::visit::{Module as ModulePath, ParamVisitor, Parameter, Part, Role};

/// A stack with a classification head.
///
/// A head over sequences is, on an encoder, `output(dropout(norm(act(dense(first token)))))`, or of the mean over tokens,
/// with the parts that [`HeadNames`](crate::config::HeadNames) says; on a decoder `score(last token)`, the last one that
/// is not padding. A head over tokens is `output(dropout(h))` for the hidden state `h` of every token, after dense map and
/// norm where the architecture has them there too; so is a head over spans, with two outputs for the start and the end.
#[derive(Module, Debug)]
pub struct Classifier<B: Backend> {
    body: Body<B>,
    /// BERT's pooler, RoBERTa's `classifier.dense`, DistilBERT's `pre_classifier`; `None` over decoders and mostly for tokens.
    dense: Option<Linear<B>>,
    /// After that, in heads that have one (ModernBERT).
    norm: Option<Norm<B>>,
    /// To the labels.
    output: Linear<B>,
    #[module(skip)]
    info: Info,
}

/// What a classifier knows besides its weights.
#[derive(Clone, Debug)]
struct Info {
    config: ClassifierConfig,
    sites: Vec<Site>,
    /// Keys missing from the checkpoint, which are newly initialized.
    newly_initialized: Vec<String>,
    /// Tensors of other heads in the checkpoint.
    ignored: Vec<String>,
    /// Whether the first map is trained and saved with the head.
    dense_in_head: bool,
    /// Rows of the checkpoint's head, where it was made for another number of labels.
    other_width: Option<usize>,
}

/// Path of a decoder's head over sequences.
const SCORE: &str = "score";

/// Path of a decoder's head over spans.
const DECODER_SPANS: &str = "qa_outputs";

/// Path of an encoder's head over tokens.
const TOKEN_CLASSIFIER: &str = "classifier";

impl Info {
    fn names(&self) -> Option<&'static HeadNames> {
        names(&self.config)
    }

    fn output(&self) -> &'static str {
        output(&self.config)
    }
}

/// The names of a head with more than the map to the labels.
fn names(config: &ClassifierConfig) -> Option<&'static HeadNames> {
    let BodyConfig::Encoder(encoder) = &config.body else { return None };
    let head = &encoder.architecture.head;
    (!head.is_bare && (config.level == HeadLevel::Sequence || head.for_tokens)).then_some(head)
}

/// Path of the map to the labels.
fn output(config: &ClassifierConfig) -> &'static str {
    match (&config.body, config.level) {
        (BodyConfig::Encoder(config), HeadLevel::Sequence) => config.architecture.head.output,
        (BodyConfig::Encoder(_), HeadLevel::Token) => TOKEN_CLASSIFIER,
        (BodyConfig::Encoder(config), HeadLevel::Span) => config.architecture.head.spans,
        (BodyConfig::Decoder(_), HeadLevel::Sequence) => SCORE,
        (BodyConfig::Decoder(config), HeadLevel::Token) => config.architecture.token_head.path,
        (BodyConfig::Decoder(_), HeadLevel::Span) => DECODER_SPANS,
    }
}

/// Whether the map to the labels has a bias.
fn has_bias(config: &ClassifierConfig) -> bool {
    let is_off = |key| config.raw().get(key).and_then(Value::as_bool) == Some(false);
    match (&config.body, config.level) {
        (BodyConfig::Encoder(_), _) => true,
        (BodyConfig::Decoder(_), HeadLevel::Sequence) => false,
        // The key belongs to the heads of this name.
        (BodyConfig::Decoder(_), HeadLevel::Token) => {
            output(config) != SCORE || !is_off("token_classification_bias")
        }
        (BodyConfig::Decoder(_), HeadLevel::Span) => true,
    }
}

impl<B: Backend> Classifier<B> {
    /// A newly initialized model.
    pub fn init(config: impl Into<ClassifierConfig>, seed: u64, device: &B::Device) -> Self {
        Self::build(config.into(), seed, device).0
    }

    fn build(config: ClassifierConfig, seed: u64, device: &B::Device) -> (Self, SiteList) {
        let d = config.d_model();
        let mut sites = SiteList::new(config.lowrank().clone());
        let body = Body::init(&config.body, &mut sites, seed, device);
        let spec =
            LinearSpec { layer: None, bias: true, conv1d: false, path: SCORE, shape: [d, d], head: true };
        let head = names(&config);
        let options = match &config.body {
            BodyConfig::Encoder(config) => Some(config.head),
            BodyConfig::Decoder(_) => None,
        };
        let dense = head.map(|head| {
            let bias = options.is_none_or(|options| options.bias);
            let spec = LinearSpec { path: head.dense, head: head.dense_is_head, bias, ..spec };
            sites.linear(spec, seed, device)
        });
        let norm = match &config.body {
            BodyConfig::Encoder(config) => head
                .and_then(|head| head.norm)
                .map(|_| Norm::init(config.norm_kind(), d, config.norm_eps, device)),
            BodyConfig::Decoder(_) => None,
        };
        let shape = [d, config.labels.len()];
        let output = LinearSpec { path: output(&config), bias: has_bias(&config), shape, ..spec };
        let output = sites.linear(output, seed, device);
        let info = Info {
            config,
            sites: sites.sites.clone(),
            newly_initialized: Vec::new(),
            ignored: Vec::new(),
            dense_in_head: true,
            other_width: None,
        };
        (Self { body, dense, norm, output, info }, sites)
    }

    /// Divides the parameters as loading from a checkpoint does: a pooler that the checkpoint holds belongs to the body, not to
    /// the head.
    #[must_use]
    pub fn divided_as_in(mut self, checkpoint: &Checkpoint) -> Self {
        if let Some(head) = self.info.names() {
            let key = format!("{}.weight", head.dense);
            let is_it = |name: &str| {
                name.strip_suffix(&key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            self.info.dense_in_head = head.dense_is_head || !checkpoint.names().any(is_it);
        }
        self
    }

    /// Loads a Hugging Face folder: with this head, with another head, or without any.
    ///
    /// Head tensors that are missing, or made for another number of labels or [level](HeadLevel), keep values drawn from
    /// `seed`; so does BERT's pooler where the checkpoint has none, and it is then trained with the head.
    ///
    /// # Errors
    /// Tensors of the stack that are missing or misshaped, tensors that belong to no known part, a `lowrank`
    /// section that does not fit the model.
    pub fn load(
        folder: &Path,
        config: impl Into<ClassifierConfig>,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self> {
        Self::load_as(folder, config, WeightType::F32, seed, device)
    }

    /// As [`load`](Self::load), with matrices kept in a type.
    ///
    /// # Errors
    /// As [`load`](Self::load); a type that the backend does not support.
    pub fn load_as(
        folder: &Path,
        config: impl Into<ClassifierConfig>,
        weights: WeightType,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self> {
        let mut config: ClassifierConfig = config.into();
        let checkpoint = Checkpoint::open(folder)?;
        let head = names(&config);
        let output_path = output(&config);
        let width = config.labels.len();
        let entry = config.lowrank().find(output_path).map(|(_, entry)| entry);
        let in_blocks = entry.is_some_and(|entry| entry.formats.contains_key(WeightPart::FactorB.name()));
        // The first dimension of a weight, or of the factor on the output's side unless it is in blocks, is that of the labels.
        let rows = [".bias", ".weight", ".lowrank_b.weight"]
            .iter()
            .filter(|leaf| !(in_blocks && **leaf == ".lowrank_b.weight"))
            .find_map(|leaf| checkpoint.info(&format!("{output_path}{leaf}"))?.shape.first().copied());
        // The weights may come from another folder than the config. Without a class, a head is what its name says.
        let stored_level = read_object(folder, "config.json").ok().and_then(|raw| HeadLevel::named(&raw));
        let is_this_head = stored_level.is_none_or(|level| level == config.level);
        let head_fits = is_this_head
            && match rows {
                Some(rows) => rows == width,
                None => config.lowrank().modules.contains_key(output_path),
            };
        let other_width = rows.filter(|_| is_this_head && !head_fits);
        let config_error = |reason| ModelError::Config { path: folder.join("config.json"), reason };
        if !head_fits && config.lowrank_mut().modules.remove(output_path).is_some() {
            let section = config.lowrank().clone();
            section.write(config.raw_mut()).map_err(|e| config_error(e.to_string()))?;
        }
        let (mut model, sites) = Self::build(config, seed, device);
        sites.finish().map_err(config_error)?;

        let section = model.info.config.lowrank().clone();
        let mut loader = Loader::new(&checkpoint, model.info.config.prefix(), device)
            .with_other_prefix(model.info.config.other_prefix())
            .with_section(&section)
            .with_weights(weights)?;
        model.body.visit_params(&mut loader);
        model.visit_dense(Part::Head, &mut loader);
        if head_fits {
            model.output.visit_params(ModulePath::new(output_path, Part::Head), &mut loader);
        }
        let paths = [head.map(|head| head.dense), head.and_then(|head| head.norm)];
        let is_dense = |key: &str| paths.into_iter().flatten().any(|path| key.starts_with(path));
        let is_head = |key: &str| is_dense(key) || key.starts_with(output_path);
        let is_extra = |name: &str| is_extra(name, &model.info.config) || name.starts_with(output_path);
        let Unmatched { newly_initialized: mut fresh, ignored } =
            loader.finish(|key| !is_head(key), is_extra)?;
        if !head_fits {
            let leaves = if has_bias(&model.info.config) { &["weight", "bias"][..] } else { &["weight"] };
            fresh.extend(leaves.iter().map(|leaf| format!("{output_path}.{leaf}")));
        }
        let dense_is_fresh = fresh.iter().any(|key| is_dense(key));
        model.info.dense_in_head = dense_is_fresh || head.is_some_and(|head| head.dense_is_head);
        model.info.newly_initialized = fresh;
        model.info.ignored = ignored;
        model.info.other_width = other_width;
        Ok(model)
    }

    /// The shape and labels.
    pub fn config(&self) -> &ClassifierConfig {
        &self.info.config
    }

    /// Rows of the checkpoint's head, where it was made for another number of labels and was not loaded.
    pub fn other_head_width(&self) -> Option<usize> {
        self.info.other_width
    }

    /// Visits what the head has before its map to the labels.
    fn visit_dense<V: ParamVisitor<B>>(&mut self, part: Part, visitor: &mut V) {
        let Some(head) = self.info.names() else { return };
        if let Some(dense) = &mut self.dense {
            dense.visit_params(ModulePath::new(head.dense, part), visitor);
        }
        if let (Some(norm), Some(path)) = (&mut self.norm, head.norm) {
            norm.visit_params(ModulePath::new(path, part), visitor);
        }
    }

    fn visit_head<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        if self.info.dense_in_head {
            self.visit_dense(Part::Head, visitor);
        }
        self.output.visit_params(ModulePath::new(self.info.output(), Part::Head), visitor);
    }

    /// Names for PEFT's `modules_to_save`.
    pub fn head_modules(&self) -> Vec<String> {
        let Some(head) = self.info.names() else { return vec![self.info.output().into()] };
        match (head.saved_as, self.info.dense_in_head) {
            (Some(name), _) => vec![name.into()],
            (None, true) => {
                let parts = [Some(head.dense), head.norm, Some(head.output)];
                parts.into_iter().flatten().map(str::to_string).collect()
            }
            (None, false) => vec![head.output.into()],
        }
    }

    /// The head's tensors, in PyTorch's layout.
    pub fn head_tensors(&self) -> Vec<HostTensor<'static>> {
        let mut gather = Gather::new(|_: &Parameter<'_>| true);
        let mut head = self.clone();
        head.visit_head(&mut ToFloats);
        head.visit_head(&mut gather);
        gather.tensors
    }

    /// The model with a head of zeros, so that its output is only what is learned.
    pub fn with_zero_head(mut self) -> Self {
        let output = self.info.output();
        self.output.visit_params(ModulePath::new(output, Part::Head), &mut ToFloats);
        self.output.visit_params(ModulePath::new(output, Part::Head), &mut Zero);
        self.info.newly_initialized.retain(|key| !key.starts_with(output));
        self
    }

    /// The model with the rows of its head in another order: the new class `i` is the old class `places[i]`.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a head that is stored as a tensor train.
    pub fn with_label_order(mut self, places: &[usize]) -> Result<Self> {
        let output = self.info.output();
        self.output.visit_params(ModulePath::new(output, Part::Head), &mut ToFloats);
        let mut reorder = Reorder { places, is_train: false };
        self.output.visit_params(ModulePath::new(output, Part::Head), &mut reorder);
        if reorder.is_train {
            return Err(ModelError::Input(format!(
                "{output}: the head is a tensor train, whose labels cannot change places; order the data's labels as \
                 config.json does"
            )));
        }
        Ok(self)
    }

    /// Sets which parameters are trained.
    pub fn with_trainable(mut self, trainable: Trainable) -> Self {
        // A factor that others borrow is their copy too: trained here alone, it would no longer be theirs.
        let mut borrowed = Borrowed::default();
        self.visit_params(&mut borrowed);
        self.choose_trained(|at, _| match trainable {
            Trainable::All => !borrowed.0.contains(&at.key()),
            Trainable::Head => false,
            Trainable::Bias => at.is_bias(),
        });
        self.visit_head(&mut ToFloats);
        self.visit_head(&mut Choose(|_: &Parameter<'_>, _| true));
        // What was drawn is what training starts from.
        self.info.newly_initialized.clear();
        self
    }
}

impl<B: Backend> Parameters<B> for Classifier<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        self.body.visit_params(visitor);
        // A pooler that the checkpoint holds is the encoder's own, and has its learning rate.
        self.visit_dense(if self.info.dense_in_head { Part::Head } else { Part::Body }, visitor);
        self.output.visit_params(ModulePath::new(self.info.output(), Part::Head), visitor);
    }

    fn fuses_experts(&self) -> bool {
        match &self.info.config.body {
            BodyConfig::Decoder(decoder) => decoder.fuses_experts(),
            BodyConfig::Encoder(_) => false,
        }
    }

    fn config_json(&self) -> Map<String, Value> {
        let config = &self.info.config;
        let mut raw = config.raw().clone();
        if self.info.newly_initialized.is_empty() {
            raw.insert("architectures".into(), vec![config.class_name()].into());
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

impl<B: Backend> Adaptable<B> for Classifier<B> {
    fn tasks(&self) -> &'static [&'static str] {
        match self.info.config.level {
            HeadLevel::Sequence => &["SEQ_CLS", "FEATURE_EXTRACTION"],
            HeadLevel::Token => &["TOKEN_CLS", "FEATURE_EXTRACTION"],
            HeadLevel::Span => &["QUESTION_ANS", "FEATURE_EXTRACTION"],
        }
    }

    fn uncalled(&self) -> Option<(String, &'static [&'static str])> {
        let called = match &self.info.config.body {
            BodyConfig::Encoder(config) => config.architecture.words_copies,
            BodyConfig::Decoder(_) => &[],
        };
        let words = &self.info.sites[self.body.word_site()?];
        (!called.is_empty()).then(|| (words.path.clone(), called))
    }

    fn leave_out_unused(&mut self, folder: &mut AdapterFolder) {
        let BodyConfig::Encoder(config) = &self.info.config.body else { return };
        let is_used = |name: &str| !is_unused_pooler(name, config, self.info.config.level);
        let left_out: Vec<String> = folder.tensors.keys().filter(|name| !is_used(name)).cloned().collect();
        folder.tensors.retain(|name, _| is_used(name));
        self.info.ignored.extend(left_out);
    }

    fn vocabulary(&self) -> Option<&Site> {
        Some(&self.info.sites[self.body.word_site()?])
    }

    fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        self.body.resize_vocabulary(rows)?;
        if let Some(site) = self.body.word_site() {
            self.info.sites[site].d_input = rows;
        }
        self.info.config.set_vocab_size(rows);
        Ok(())
    }

    fn loaded(&mut self, keys: &[String]) {
        self.info.newly_initialized.retain(|key| !keys.contains(key));
    }
}

stack_of_body!(Classifier);

/// Keys of the factors that some module borrows from another.
#[derive(Default)]
struct Borrowed(BTreeSet<String>);

impl<B: Backend> ParamVisitor<B> for Borrowed {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_shared(&mut self, at: &Parameter<'_>, _stored: &mut Stored<B>) {
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

/// Brings the classes of a head into another order: the last dimension of all that ends in logits.
struct Reorder<'a> {
    places: &'a [usize],
    is_train: bool,
}

impl<B: Backend> ParamVisitor<B> for Reorder<'_> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        match at.role {
            Role::Bias | Role::Weight(WeightPart::Dense | WeightPart::FactorB) => {
                let places: Vec<i32> = self.places.iter().map(|&place| place as i32).collect();
                *param = param.clone().map(|tensor| {
                    let places = int_tensor(places, &tensor.device());
                    tensor.select(D - 1, places)
                });
            }
            Role::Weight(WeightPart::Core(_)) => self.is_train = true,
            _ => {}
        }
    }
}

/// Which of a model's own weights are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// Every weight: full fine-tuning.
    All,
    /// The head, and all parameters missing from the checkpoint.
    Head,
    /// The biases (BitFit, Ben Zaken et al. 2021) and the head.
    Bias,
}

/// Tensors that a checkpoint may hold beside ours: buffers, language-modelling heads, a pooler that the head does not use.
fn is_extra(name: &str, config: &ClassifierConfig) -> bool {
    match &config.body {
        BodyConfig::Encoder(encoder) => is_extra_of_encoder(name, encoder, config.level),
        BodyConfig::Decoder(config) => {
            let names = &config.architecture.names;
            let is_head = name.strip_prefix(names.head).is_some_and(|rest| rest.starts_with('.'));
            is_head || names.buffers.iter().any(|buffer| name.ends_with(buffer))
        }
    }
}

fn is_extra_of_encoder(name: &str, config: &EncoderConfig, level: HeadLevel) -> bool {
    let architecture = config.architecture;
    let bare = without_prefix(name, architecture.names.prefix);
    let MaskedLmNames { transform, norm, bias, bias_copy, decoder, .. } = architecture.masked_lm;
    is_encoder_buffer(bare)
        || architecture.extras.iter().any(|extra| bare.starts_with(extra))
        || is_unused_pooler(name, config, level)
        || ["cls.", "lm_head.", "sop_classifier.", transform, norm, bias, bias_copy, decoder]
            .iter()
            .any(|p| name.starts_with(p))
}

/// Whether a tensor belongs to a pooler that the head does not read.
fn is_unused_pooler(name: &str, config: &EncoderConfig, level: HeadLevel) -> bool {
    let head = &config.architecture.head;
    let is_used = level == HeadLevel::Sequence && !head.is_bare && head.dense.contains("pooler");
    without_prefix(name, config.architecture.names.prefix).starts_with("pooler.") && !is_used
}

impl HeadInput {
    /// The rows of the last layer that it needs.
    pub const fn rows(self) -> Rows {
        match self {
            Self::First => Rows::First,
            Self::Mean => Rows::All,
        }
    }

    /// What the head reads of these rows of the finished hidden states.
    ///
    /// # Shapes
    /// - x: `[rows, d_model]`, output: `[sequences, d_model]`
    pub fn read<B: Kernels>(self, x: Tensor<B, 2>, batch: &TokenBatch<B>) -> Tensor<B, 2> {
        match self {
            Self::First => x,
            Self::Mean => {
                let lengths: Vec<usize> = batch.packed().lengths().collect();
                SentencePooling::default().pool(x, &lengths, 0)
            }
        }
    }
}

impl<B: Kernels> Classifier<B> {
    /// Logits of each sequence, or of each token.
    ///
    /// # Shapes
    /// - output: `[sequences, labels]`, or `[tokens, labels]`; over spans `[tokens, 2]`
    pub fn forward(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let config = &self.info.config;
        let hidden = match (config.level, &config.body) {
            (HeadLevel::Token | HeadLevel::Span, _) => self.hidden_states(batch, Rows::All, run),
            (HeadLevel::Sequence, BodyConfig::Encoder(config)) => {
                let rows = config.head.input.rows();
                config.head.input.read(self.hidden_states(batch, rows, run), batch)
            }
            (HeadLevel::Sequence, BodyConfig::Decoder(_)) => {
                batch.select_last(self.hidden_states(batch, batch.last_rows(), run))
            }
        };
        self.head(hidden, run)
    }

    /// Logits after the hidden states that the head reads: those of all tokens, of the first of each sequence or their mean
    /// in an encoder, or of the last in a decoder.
    ///
    /// # Shapes
    /// - x: `[rows, d_model]`
    /// - output: `[rows, labels]`
    pub fn head(&self, mut x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let (level, drop) = (self.info.config.level, |x, p, place| run.drop(x, p, Stream::Head(place)));
        let config = match &self.info.config.body {
            BodyConfig::Encoder(config) => config,
            BodyConfig::Decoder(config) => {
                let x = if level == HeadLevel::Token { drop(x, config.dropouts.token_head, 0) } else { x };
                return self.output.forward(x, run);
            }
        };
        if level == HeadLevel::Sequence {
            x = drop(x, config.head.input_dropout, 0);
        }
        if let Some(dense) = &self.dense {
            x = config.head.activation.apply(dense.forward(x, run));
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(x);
        }
        let (p, place) = match level {
            HeadLevel::Token => (config.token_dropout, 0),
            HeadLevel::Span => (config.span_dropout, 0),
            HeadLevel::Sequence => (config.classifier_dropout, 1),
        };
        self.output.forward(drop(x, p, place), run)
    }
}
