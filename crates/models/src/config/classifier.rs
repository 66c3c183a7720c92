//! The config of a classifier over an encoder or a decoder.

use serde_json::{Map, Value};

use crate::architecture::renamed_prefix;
use crate::config::decoder::DecoderConfig;
use crate::config::encoder::{EncoderConfig, PatchOptions};
use crate::config::labels::{self, HeadLevel, Problem};
use lowrank_spec::LowrankSection;

/// The stack under a head.
#[derive(Clone, Debug, PartialEq)]
pub enum BodyConfig {
    /// An encoder.
    Encoder(EncoderConfig),
    /// A decoder.
    Decoder(DecoderConfig),
}

/// A classifier: the stack, and the labels of its head.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierConfig {
    /// The stack.
    pub body: BodyConfig,
    /// Label names by class index.
    pub labels: Vec<String>,
    /// What the logits mean.
    pub problem: Problem,
    /// What is labelled.
    pub level: HeadLevel,
}

/// Key of a model that may give no answer, named as the option of transformers' question answering pipeline.
const NO_ANSWER: &str = "handle_impossible_answer";

impl ClassifierConfig {
    /// A head at another level. Where the checkpoint has one at the level so far, it is not this head.
    pub fn at_level(mut self, level: HeadLevel) -> Self {
        self.level = level;
        if let BodyConfig::Decoder(config) = &mut self.body {
            config.prefix = renamed_prefix(config.architecture.model_type, level);
        }
        if level != HeadLevel::Span {
            return self.with_no_answer(false);
        }
        labels::remove(self.raw_mut());
        (self.labels, self.problem) = (labels::of_spans(), Problem::SingleLabel);
        self
    }

    /// Whether the model was trained on questions without an answer, so that it may give none.
    pub fn may_not_answer(&self) -> bool {
        self.raw().get(NO_ANSWER).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Sets whether the model may give no answer, in a key of `config.json` that transformers ignores.
    pub fn with_no_answer(mut self, may_not_answer: bool) -> Self {
        if may_not_answer {
            self.raw_mut().insert(NO_ANSWER.into(), true.into());
        } else {
            self.raw_mut().shift_remove(NO_ANSWER);
        }
        self
    }

    /// Whether the head predicts a number.
    pub fn is_regression(&self) -> bool {
        self.problem == Problem::Regression
    }

    /// Sets the labels of the task at hand; one label with `regression` predicts a number.
    pub fn with_labels(self, labels: Vec<String>, regression: bool) -> Self {
        self.with_problem(labels, if regression { Problem::Regression } else { Problem::SingleLabel })
    }

    /// Sets the labels of the task at hand and what the logits mean.
    pub fn with_problem(mut self, labels: Vec<String>, problem: Problem) -> Self {
        labels::write(self.raw_mut(), &labels, problem);
        Self { labels, problem, ..self }
    }

    /// Rows of the word embedding.
    pub const fn vocab_size(&self) -> usize {
        match &self.body {
            BodyConfig::Encoder(config) => config.vocab_size,
            BodyConfig::Decoder(config) => config.vocab_size,
        }
    }

    /// Sets the rows of the word embedding.
    pub(crate) fn set_vocab_size(&mut self, rows: usize) {
        match &mut self.body {
            BodyConfig::Encoder(config) => config.vocab_size = rows,
            BodyConfig::Decoder(config) => config.vocab_size = rows,
        }
        self.raw_mut().insert("vocab_size".into(), rows.into());
    }

    /// Width of the hidden states that a head reads.
    pub const fn d_model(&self) -> usize {
        match &self.body {
            BodyConfig::Encoder(config) => config.d_model,
            BodyConfig::Decoder(config) => config.embedding_width,
        }
    }

    /// Attention heads.
    pub const fn n_heads(&self) -> usize {
        match &self.body {
            BodyConfig::Encoder(config) => config.n_heads,
            BodyConfig::Decoder(config) => config.n_heads,
        }
    }

    /// Transformer layers.
    pub const fn n_layers(&self) -> usize {
        match &self.body {
            BodyConfig::Encoder(config) => config.n_layers,
            BodyConfig::Decoder(config) => config.n_layers,
        }
    }

    /// Maximum sequence length of the model.
    pub const fn max_tokens(&self) -> usize {
        match &self.body {
            BodyConfig::Encoder(config) => config.max_tokens(),
            BodyConfig::Decoder(config) => config.max_positions,
        }
    }

    /// Prefix of the keys of the stack.
    pub fn prefix(&self) -> &'static str {
        match &self.body {
            BodyConfig::Encoder(config) => config.architecture.names.prefix,
            BodyConfig::Decoder(config) => config.names().prefix,
        }
    }

    /// Prefix of these keys in a file with another head.
    pub(crate) fn other_prefix(&self) -> &'static str {
        match &self.body {
            BodyConfig::Encoder(config) => config.architecture.names.prefix,
            BodyConfig::Decoder(config) if config.prefix.is_some() => config.architecture.names.prefix,
            BodyConfig::Decoder(config) => renamed_prefix(config.architecture.model_type, HeadLevel::Span)
                .unwrap_or(config.architecture.names.prefix),
        }
    }

    /// Which modules are factors.
    pub const fn lowrank(&self) -> &LowrankSection {
        match &self.body {
            BodyConfig::Encoder(config) => &config.lowrank,
            BodyConfig::Decoder(config) => &config.lowrank,
        }
    }

    pub(crate) const fn lowrank_mut(&mut self) -> &mut LowrankSection {
        match &mut self.body {
            BodyConfig::Encoder(config) => &mut config.lowrank,
            BodyConfig::Decoder(config) => &mut config.lowrank,
        }
    }

    /// The whole `config.json`.
    pub const fn raw(&self) -> &Map<String, Value> {
        match &self.body {
            BodyConfig::Encoder(config) => &config.raw,
            BodyConfig::Decoder(config) => &config.raw,
        }
    }

    pub(crate) const fn raw_mut(&mut self) -> &mut Map<String, Value> {
        match &mut self.body {
            BodyConfig::Encoder(config) => &mut config.raw,
            BodyConfig::Decoder(config) => &mut config.raw,
        }
    }

    /// How pictures are cut into patches, in models that read them.
    pub const fn patches(&self) -> Option<PatchOptions> {
        match &self.body {
            BodyConfig::Encoder(config) => config.patches,
            BodyConfig::Decoder(_) => None,
        }
    }

    /// Name of the model's class in transformers.
    pub fn class_name(&self) -> String {
        let head = if self.patches().is_some() { labels::OF_PICTURES } else { self.level.class() };
        format!("{}{head}", self.class())
    }

    /// Beginning of the names of the model's classes in transformers.
    pub fn class(&self) -> &'static str {
        match &self.body {
            BodyConfig::Encoder(config) => config.class(),
            BodyConfig::Decoder(config) => config.architecture.class,
        }
    }
}

impl From<EncoderConfig> for ClassifierConfig {
    fn from(config: EncoderConfig) -> Self {
        let level = HeadLevel::named(&config.raw).unwrap_or_default();
        let (labels, problem) = (config.labels.clone(), config.problem);
        Self { labels, problem, level, body: BodyConfig::Encoder(config) }.at_level(level)
    }
}
