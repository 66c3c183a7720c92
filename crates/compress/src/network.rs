//! A model of which only a part is in memory: its embeddings, or one layer.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::{AdapterSet, Mode, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_models::architecture;
use lowrank_models::decoder::Step;
use lowrank_models::encoder::Rows;
use lowrank_models::params::{Layout, Loader, ParamIo};
use lowrank_models::{Decoder, DecoderConfig, EncoderConfig, SequenceClassifier, TokenBatch};
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

/// What the layers need to know of a batch beside its hidden states.
pub(crate) enum Context<B: Backend> {
    Decoder(Step<B>),
    Classifier(TokenBatch<B>),
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
        let is_decoder = matches!(config, Config::Decoder(_));
        let mut io = PartLoader { loader, own: own.collect(), part, is_decoder, device };
        network.walk(&mut io);
        // Parts that are not wanted were not visited, so nothing else can be missing.
        io.loader.finish(|_| true, |_| true)?;
        Ok(network)
    }

    pub(crate) fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        match self {
            Self::Decoder(model) => model.walk(io),
            Self::Classifier(model) => model.walk(io),
        }
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
    pub(crate) fn begin(&self, tokens: &Tokens, device: &B::Device) -> Result<(Tensor<B, 2>, Context<B>)> {
        Ok(match self {
            Self::Decoder(model) => {
                let (x, step) = model.begin(&tokens.ids, &tokens.lengths, &AdapterSet::empty(), device)?;
                (x, Context::Decoder(step))
            }
            Self::Classifier(model) => {
                let Tokens { ids, type_ids, lengths } = tokens;
                let batch = TokenBatch::new(model.config(), ids, type_ids, lengths, device)?;
                (model.encoder().begin(&batch, &AdapterSet::empty(), Mode::EVAL), Context::Classifier(batch))
            }
        })
    }

    /// Hidden states after a layer; of a classifier's last layer, those that its head reads.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        context: &Context<B>,
        adapters: &AdapterSet<B>,
    ) -> Tensor<B, 2> {
        match (self, context) {
            (Self::Decoder(model), Context::Decoder(step)) => {
                model.layers()[index].forward(x, step, None, adapters, Mode::EVAL)
            }
            (Self::Classifier(model), Context::Classifier(batch)) => {
                let is_last = index + 1 == model.config().n_layers;
                let rows = if is_last { Rows::First } else { Rows::All };
                model.encoder().layer(index, x, batch, rows, adapters, Mode::EVAL)
            }
            // A context belongs to the network that made it.
            _ => x,
        }
    }
}

/// The layer that a key belongs to.
pub(crate) fn layer_of(key: &str) -> Option<usize> {
    key.split('.').find_map(|segment| segment.parse().ok())
}

/// Loads the parameters of a part and leaves the others unmade.
struct PartLoader<'a, B: Backend> {
    loader: Loader<'a, B>,
    own: HashMap<String, (&'a [usize], &'a [f32])>,
    part: Part,
    is_decoder: bool,
    device: &'a B::Device,
}

impl<B: Backend> PartLoader<'_, B> {
    fn is_wanted(&self, key: &str) -> bool {
        match (self.part, layer_of(key)) {
            // An encoder's pooler comes after the layers, and a checkpoint need not have one.
            (Part::Outside, None) => {
                !crate::weights::is_head(key) && (self.is_decoder || key.contains("embeddings."))
            }
            (Part::Layer(wanted), Some(layer)) => wanted == layer,
            _ => false,
        }
    }

    /// Sets a parameter from a module that stands in for the checkpoint's.
    fn set<const D: usize>(&self, key: &str, layout: Layout, param: &mut Param<Tensor<B, D>>) -> bool {
        let bare = self.loader.stored_key(key);
        let Some((shape, values)) = self.own.get(key).or_else(|| self.own.get(bare)) else { return false };
        let values = match (layout, *shape) {
            (Layout::Transposed, &[rows, columns]) => transpose(values, rows, columns),
            _ => values.to_vec(),
        };
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        *param = Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), self.device));
        true
    }
}

impl<B: Backend> ParamIo<B> for PartLoader<'_, B> {
    fn param<const D: usize>(&mut self, key: &str, layout: Layout, param: &mut Param<Tensor<B, D>>) {
        if self.is_wanted(key) && !self.set(key, layout, param) {
            self.loader.param(key, layout, param);
        }
    }

    fn shared(&mut self, key: &str, layout: Layout, param: &mut Param<Tensor<B, 2>>) {
        // The owner's key, which may be another layer's: whoever visits it is wanted or not by its own keys.
        if !self.set(key, layout, param) {
            self.loader.shared(key, layout, param);
        }
    }
}
