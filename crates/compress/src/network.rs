//! A model of which only a part is in memory: its embeddings, or one layer.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::{AdapterSet, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_models::architecture;
use lowrank_models::params::Loader;
use lowrank_models::{
    Adaptable, Decoder, DecoderConfig, EncoderConfig, Layout, ParamVisitor, Parameter, Parameters, Rows, Run,
    SequenceClassifier, Stack, TokenBatch,
};
use lowrank_spec::{ModuleEntry, transpose};

use crate::error::{CompressError, Result};
use crate::options::CompressedModule;

/// Packed sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, sequence after sequence.
    pub ids: Vec<u32>,
    /// Token types, as many; a decoder takes no notice of them.
    pub type_ids: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
}

/// A config of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Config {
    Decoder(Box<DecoderConfig>),
    Classifier(Box<EncoderConfig>),
}

/// A model of either kind.
pub(crate) enum Network<B: Backend> {
    Decoder(Box<Decoder<B>>),
    Classifier(Box<SequenceClassifier<B>>),
}

/// Which parameters to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// What comes before the layers.
    Outside,
    /// One layer.
    Layer(usize),
}

impl Config {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let raw = crate::folder::read_config(folder)?;
        let kind = raw.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(if architecture::decoder(kind).is_ok() {
            Self::Decoder(Box::new(DecoderConfig::read(folder)?))
        } else {
            Self::Classifier(Box::new(EncoderConfig::read(folder)?))
        })
    }

    pub(crate) fn n_layers(&self) -> usize {
        match self {
            Self::Decoder(config) => config.n_layers,
            Self::Classifier(config) => config.n_layers,
        }
    }

    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Decoder(config) => config.d_model,
            Self::Classifier(config) => config.d_model,
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Decoder(config) => config.architecture.names.prefix,
            Self::Classifier(config) => config.architecture.names.prefix,
        }
    }
}

/// The most tokens of a sequence that a model folder's model takes.
///
/// # Errors
/// A folder that holds no model of a known architecture.
pub fn token_limit(folder: &Path) -> Result<usize> {
    Ok(match Config::read(folder)? {
        Config::Decoder(config) => config.max_positions,
        Config::Classifier(config) => config.max_tokens(),
    })
}

impl<B: Backend> Network<B> {
    /// Loads a part of a checkpoint; `modules` stand in for those of their names.
    pub(crate) fn load(
        config: &Config,
        checkpoint: &Checkpoint,
        part: Part,
        modules: &[CompressedModule],
        device: &B::Device,
    ) -> Result<Self> {
        let entries = modules.iter().map(|m| {
            (m.module.clone(), ModuleEntry { representation: m.representation.clone(), error: None })
        });
        let mut network = match config {
            Config::Decoder(config) => {
                let mut config = config.clone();
                config.lowrank.modules.extend(entries);
                Self::Decoder(Box::new(Decoder::init(*config, 0, device).map_err(CompressError::Input)?))
            }
            Config::Classifier(config) => {
                let mut config = config.clone();
                config.lowrank.modules.extend(entries);
                Self::Classifier(Box::new(SequenceClassifier::init(*config, 0, device)))
            }
        };
        let own = modules.iter().flat_map(|m| {
            m.tensors.iter().map(|(suffix, shape, values)| {
                (format!("{}.{suffix}", m.module), (shape.as_slice(), values.as_slice()))
            })
        });
        let loader = Loader::new(checkpoint, config.prefix(), device);
        let mut io = PartLoader { loader, own: own.collect(), part, device };
        network.visit_params(&mut io);
        // Parts that are not wanted were not visited, so nothing else can be missing.
        io.loader.finish(|_| true, |_| true)?;
        Ok(network)
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        match self {
            Self::Decoder(model) => model.visit_params(visitor),
            Self::Classifier(model) => model.visit_params(visitor),
        }
    }

    /// Folds adapters into the factors under them, at the factors' own rank.
    pub(crate) fn merge(&mut self, adapters: &AdapterSet<B>) -> Result<()> {
        match self {
            Self::Decoder(model) => **model = model.merged(adapters)?,
            Self::Classifier(model) => **model = model.merged(adapters)?,
        }
        Ok(())
    }

    pub(crate) fn sites(&self) -> &[Site] {
        match self {
            Self::Decoder(model) => model.sites(),
            Self::Classifier(model) => model.sites(),
        }
    }
}

impl<B: Kernels> Network<B> {
    /// Embedded tokens.
    pub(crate) fn begin(&self, tokens: &Tokens, device: &B::Device) -> Result<(Tensor<B, 2>, TokenBatch<B>)> {
        let Tokens { ids, type_ids, lengths } = tokens;
        let tokens = lowrank_models::Tokens { ids, type_ids, lengths };
        let none = AdapterSet::empty();
        let run = Run::eval(&none);
        Ok(match self {
            Self::Decoder(model) => {
                let batch = model.batch(tokens, device)?;
                (model.embed(&batch, run), batch)
            }
            Self::Classifier(model) => {
                let batch = model.batch(tokens, device)?;
                (model.embed(&batch, run), batch)
            }
        })
    }

    /// Hidden states after a layer; of a classifier's last layer, those that its head reads.
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
            Self::Classifier(model) => {
                let is_last = index + 1 == model.n_layers();
                let rows = if is_last { Rows::First } else { Rows::All };
                model.layer(index, x, batch, rows, run)
            }
        }
    }
}

/// Loads the parameters of a part and leaves the others unmade.
struct PartLoader<'a, B: Backend> {
    loader: Loader<'a, B>,
    own: HashMap<String, (&'a [usize], &'a [f32])>,
    part: Part,
    device: &'a B::Device,
}

impl<B: Backend> PartLoader<'_, B> {
    fn is_wanted(&self, at: &Parameter<'_>) -> bool {
        match self.part {
            Part::Outside => at.module.part == lowrank_models::Part::Embeddings,
            Part::Layer(wanted) => at.module.layer == Some(wanted),
        }
    }

    /// Sets a parameter from a module that stands in for the checkpoint's.
    fn set<const D: usize>(&self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) -> bool {
        let key = &*at.key();
        let bare = self.loader.stored_key(key);
        let Some((shape, values)) = self.own.get(key).or_else(|| self.own.get(bare)) else { return false };
        let values = match (at.layout, *shape) {
            (Layout::Transposed, &[rows, columns]) => transpose(values, rows, columns),
            _ => values.to_vec(),
        };
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        *param = Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), self.device));
        true
    }
}

impl<B: Backend> ParamVisitor<B> for PartLoader<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if self.is_wanted(at) && !self.set(at, param) {
            self.loader.visit(at, param);
        }
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, 2>>) {
        // The factor of another module, which may be in another layer: it is wanted where its borrower is.
        if self.is_wanted(at) && !self.set(at, param) {
            self.loader.visit_shared(at, param);
        }
    }
}
