//! A model of which only one part is in memory: its embeddings, or one layer.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::{AdapterSet, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_models::params::Loader;
use lowrank_models::{
    Adaptable, Classifier, Decoder, DecoderConfig, EncoderConfig, HeadInput, LanguageModel, Layout,
    ModelFolder, ModelKind, ParamVisitor, Parameter, Parameters, Rows, Run, Stack, Stored, TokenBatch,
};
use lowrank_spec::{ModuleEntry, transpose};

use crate::error::{CompressError, Result};
use crate::options::CompressedModule;
use crate::weights::settle_tie;

/// Packed sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Token ids, all sequences concatenated; none of pictures.
    pub ids: Vec<u32>,
    /// Token types, as many; ignored by a decoder.
    pub type_ids: Vec<u32>,
    /// Number of tokens of each sequence; of a picture, its patches and the class token.
    pub lengths: Vec<usize>,
    /// Values of the patches of all pictures, for a model of pictures.
    pub pixels: Vec<f32>,
}

impl Tokens {
    /// Number of tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    pub(super) fn view(&self) -> lowrank_models::Tokens<'_> {
        let Self { ids, type_ids, lengths, pixels } = self;
        lowrank_models::Tokens { ids, type_ids, lengths, pixels }
    }
}

/// A config of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Config {
    Decoder(Box<DecoderConfig>),
    /// With what its head reads; the hidden states of all tokens where it has none for sequences.
    Classifier(Box<EncoderConfig>, Option<HeadInput>),
}

/// A model of either kind.
pub(crate) enum Network<B: Backend> {
    Decoder(Box<Decoder<B>>),
    /// With what its head reads; the hidden states of all tokens where it has none for sequences.
    Classifier(Box<Classifier<B>>, Option<HeadInput>),
}

/// The parameters to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The part before the layers.
    Outside,
    /// The part after them.
    Head,
    /// One layer.
    Layer(usize),
}

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let model = ModelFolder::open(folder)?;
        Ok(if model.kind().is_decoder() {
            let mut config = model.decoder_config()?;
            if config.tied {
                let mut raw = config.raw.clone();
                raw.insert("tie_word_embeddings".into(), true.into());
                config.tied = settle_tie(&Checkpoint::open(folder)?, &mut raw)?;
                config.raw = raw;
            }
            Self::Decoder(Box::new(config))
        } else {
            let config = model.encoder_config()?;
            let input = has_sequence_head(&model)?.then_some(config.head.input);
            Self::Classifier(Box::new(config), input)
        })
    }

    pub(crate) fn n_layers(&self) -> usize {
        match self {
            Self::Decoder(config) => config.n_layers,
            Self::Classifier(config, _) => config.n_layers,
        }
    }

    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Decoder(config) => config.d_model,
            Self::Classifier(config, _) => config.d_model,
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Decoder(config) => config.names().prefix,
            Self::Classifier(config, _) => config.architecture.names.prefix,
        }
    }

    /// Path of the norm after an encoder's last layer, where it has one.
    fn final_norm(&self) -> Option<String> {
        let Self::Classifier(config, _) = self else { return None };
        let names = &config.architecture.names;
        names.final_norm.map(|name| format!("{}{name}", names.prefix))
    }
}

/// Whether an encoder's checkpoint has a head for sequences.
fn has_sequence_head(model: &ModelFolder) -> Result<bool> {
    let has_head = model.checkpoint()?.names().any(|name| name.starts_with("classifier."));
    let is_of_tokens = matches!(model.kind(), ModelKind::TokenClassifier | ModelKind::QuestionAnswering);
    Ok(has_head && !is_of_tokens)
}

/// The maximum number of tokens per sequence for the model of a folder.
///
/// # Errors
/// A folder without a model of a known architecture.
pub fn token_limit(folder: &Path) -> Result<usize> {
    Ok(match Config::read(folder)? {
        Config::Decoder(config) => config.max_positions,
        Config::Classifier(config, _) => config.max_tokens(),
    })
}

impl<B: Backend> Network<B> {
    /// Loads a part of a checkpoint; `modules` replace those of the same names.
    pub(crate) fn load(
        config: &Config,
        checkpoint: &Checkpoint,
        part: Part,
        modules: &[CompressedModule],
        device: &B::Device,
    ) -> Result<Self> {
        Ok(Self::load_part(config, checkpoint, part, modules, device)?.0)
    }

    /// Loads the head; `None` if the checkpoint does not hold all of it.
    pub(crate) fn load_head(
        config: &Config,
        checkpoint: &Checkpoint,
        device: &B::Device,
    ) -> Result<Option<Self>> {
        let (head, is_whole) = Self::load_part(config, checkpoint, Part::Head, &[], device)?;
        Ok(is_whole.then_some(head))
    }

    fn load_part(
        config: &Config,
        checkpoint: &Checkpoint,
        part: Part,
        modules: &[CompressedModule],
        device: &B::Device,
    ) -> Result<(Self, bool)> {
        let entries = modules.iter().map(|m| (m.module.clone(), ModuleEntry::new(m.representation.clone())));
        let mut network = match config {
            Config::Decoder(config) => {
                let mut config = config.clone();
                config.lowrank.modules.extend(entries);
                Self::Decoder(Box::new(Decoder::init(*config, 0, device).map_err(CompressError::Input)?))
            }
            Config::Classifier(config, last) => {
                let mut config = config.clone();
                config.lowrank.modules.extend(entries);
                Self::Classifier(Box::new(Classifier::init(*config, 0, device)), *last)
            }
        };
        let own = modules.iter().flat_map(|m| {
            m.tensors.iter().map(|(suffix, shape, values)| {
                (format!("{}.{suffix}", m.module), (shape.as_slice(), values.as_slice()))
            })
        });
        let loader = Loader::new(checkpoint, config.prefix(), device);
        let is_decoder = matches!(config, Config::Decoder(_));
        let is_tied = matches!(config, Config::Decoder(config) if config.tied);
        let final_norm = config.final_norm().filter(|_| part == Part::Layer(config.n_layers() - 1));
        let mut io = PartLoader { loader, own: own.collect(), part, is_decoder, is_tied, final_norm, device };
        network.visit_params(&mut io);
        // Parts that are not wanted were not visited, so nothing else can be missing.
        let missing = io.loader.finish(|_| part != Part::Head, |_| true)?;
        Ok((network, missing.newly_initialized.is_empty()))
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        match self {
            Self::Decoder(model) => model.visit_params(visitor),
            Self::Classifier(model, _) => model.visit_params(visitor),
        }
    }

    /// Folds adapters into the factors under them, at the rank of the factors.
    pub(crate) fn merge(&mut self, adapters: &AdapterSet<B>) -> Result<()> {
        match self {
            Self::Decoder(model) => **model = model.merged(adapters)?,
            Self::Classifier(model, _) => **model = model.merged(adapters)?,
        }
        Ok(())
    }

    pub(crate) fn sites(&self) -> &[Site] {
        match self {
            Self::Decoder(model) => model.sites(),
            Self::Classifier(model, _) => model.sites(),
        }
    }
}

impl<B: Kernels> Network<B> {
    /// Embedded tokens.
    pub(crate) fn begin(&self, tokens: &Tokens, device: &B::Device) -> Result<(Tensor<B, 2>, TokenBatch<B>)> {
        let tokens = tokens.view();
        let none = AdapterSet::empty();
        let run = Run::eval(&none);
        Ok(match self {
            Self::Decoder(model) => {
                let batch = model.batch(tokens, device)?;
                (model.embed(&batch, run), batch)
            }
            Self::Classifier(model, _) => {
                let batch = model.batch(tokens, device)?;
                (model.embed(&batch, run), batch)
            }
        })
    }

    /// Hidden states after a layer; of an encoder's last layer, what its head reads.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        adapters: &AdapterSet<B>,
    ) -> Tensor<B, 2> {
        let run = Run::eval(adapters);
        match self {
            Self::Decoder(model) => model.layer(index, x, batch, Rows::All, run),
            Self::Classifier(model, _) if index + 1 < model.n_layers() => {
                model.layer(index, x, batch, Rows::All, run)
            }
            Self::Classifier(model, input) => {
                let rows = input.map_or(Rows::All, HeadInput::rows);
                let x = model.finish(model.layer(index, x, batch, rows, run), run);
                match input {
                    Some(input) => input.read(x, batch),
                    None => x,
                }
            }
        }
    }

    /// Logits after [`layer`](Self::layer) of the last one.
    pub(crate) fn finish(&self, x: Tensor<B, 2>, adapters: &AdapterSet<B>) -> Tensor<B, 2> {
        let run = Run::eval(adapters);
        match self {
            Self::Decoder(model) => model.logits(model.finish(x, run), run),
            Self::Classifier(model, _) => model.head(x, run),
        }
    }

    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens, from the hidden states of a decoder's last layer, as
    /// [`LanguageModel::nll_sum`].
    ///
    /// # Errors
    /// An encoder, which does not predict tokens.
    pub(crate) fn nll_sum(
        &self,
        x: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        weights: Tensor<B, 1>,
    ) -> Result<Tensor<B, 1>> {
        let none = AdapterSet::empty();
        match self {
            Self::Decoder(model) => {
                let run = Run::eval(&none);
                Ok(model.nll_sum(model.finish(x, run), targets, weights, run))
            }
            Self::Classifier(..) => {
                Err(CompressError::Input("an encoder does not predict next tokens".into()))
            }
        }
    }
}

/// Loads the parameters of a part and leaves the others uninitialized.
struct PartLoader<'a, B: Backend> {
    loader: Loader<'a, B>,
    own: HashMap<String, (&'a [usize], &'a [f32])>,
    part: Part,
    is_decoder: bool,
    is_tied: bool,
    /// Path of the norm after the last layer, which goes with that layer.
    final_norm: Option<String>,
    device: &'a B::Device,
}

impl<B: Backend> PartLoader<'_, B> {
    fn is_wanted(&self, at: &Parameter<'_>) -> bool {
        match self.part {
            // A decoder's embedding may be projected before the layers and after them.
            Part::Outside => match at.module.part {
                lowrank_models::Part::Embeddings => true,
                lowrank_models::Part::Body => self.is_decoder && at.module.layer.is_none(),
                lowrank_models::Part::Relative | lowrank_models::Part::Head => false,
            },
            // A tied head is the embedding.
            Part::Head => {
                let is_table = at.module.part == lowrank_models::Part::Embeddings;
                at.module.layer.is_none() && (self.is_tied || !is_table)
            }
            Part::Layer(wanted) => {
                at.module.layer == Some(wanted)
                    || at.module.part == lowrank_models::Part::Relative
                    || self.final_norm.as_deref() == Some(at.module.path)
            }
        }
    }

    /// Sets a parameter from a module that replaces the checkpoint's.
    fn set<const D: usize>(&self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) -> bool {
        let key = &*at.key();
        let own = self.own.get(key).or_else(|| self.own.get(&*self.loader.stored_key(key)));
        let Some((shape, values)) = own else { return false };
        let values = match (at.layout, *shape) {
            (Layout::Transposed, &[rows, columns]) => transpose(values, rows, columns),
            (Layout::Kernel(_), &[rows, ..]) => transpose(values, rows, values.len() / rows.max(1)),
            _ => values.to_vec(),
        };
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        *param = Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), self.device));
        true
    }
}

impl<B: Backend> PartLoader<'_, B> {
    fn set_stored(&self, at: &Parameter<'_>, stored: &mut Stored<B>) -> bool {
        match stored {
            Stored::Float(param) => self.set(at, param),
            Stored::Blocks(_) => false,
        }
    }
}

impl<B: Backend> ParamVisitor<B> for PartLoader<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if self.is_wanted(at) && !self.set(at, param) {
            self.loader.visit(at, param);
        }
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if self.is_wanted(at) && !self.set_stored(at, stored) {
            self.loader.visit_stored(at, stored);
        }
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        // The factor of another module, possibly of another layer: it is loaded with the module that uses it.
        if self.is_wanted(at) && !self.set_stored(at, stored) {
            self.loader.visit_shared(at, stored);
        }
    }
}
