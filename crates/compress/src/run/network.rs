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
use lowrank_models::visit::Module;
use lowrank_models::{
    Adaptable, Classifier, Decoder, DecoderConfig, EncoderConfig, HeadInput, LanguageModel, Layout,
    ModelFolder, ModelKind, PairBatch, ParamVisitor, Parameter, Parameters, Rows, Run, Seq2Seq,
    Seq2SeqConfig, Stack, Stored, TokenBatch,
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
    /// Token ids of the texts that an encoder-decoder writes from each sequence, all concatenated; empty for other models.
    pub targets: Vec<u32>,
    /// Number of tokens of each of them.
    pub target_lengths: Vec<usize>,
    /// Values of the patches of all pictures, for a model of pictures.
    pub pixels: Vec<f32>,
}

impl Tokens {
    /// Number of tokens of all sequences and their targets: the rows of hidden states.
    pub fn n_tokens(&self) -> usize {
        self.lengths.iter().chain(&self.target_lengths).sum()
    }

    /// Appends further sequences, with their targets.
    pub fn extend(&mut self, others: &Self) {
        self.ids.extend(&others.ids);
        self.type_ids.extend(&others.type_ids);
        self.lengths.extend(&others.lengths);
        self.targets.extend(&others.targets);
        self.target_lengths.extend(&others.target_lengths);
        self.pixels.extend(&others.pixels);
    }

    pub(super) fn view(&self) -> lowrank_models::Tokens<'_> {
        let Self { ids, type_ids, lengths, pixels, .. } = self;
        lowrank_models::Tokens { ids, type_ids, lengths, pixels }
    }

    /// Sequences and targets on the device.
    pub(super) fn pairs<B: Kernels>(&self, model: &Seq2Seq<B>, device: &B::Device) -> Result<PairBatch<B>> {
        let (mut inputs, mut rest) = (Vec::with_capacity(self.targets.len()), self.targets.as_slice());
        for &length in &self.target_lengths {
            let (target, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            inputs.extend(model.config().decoder_inputs(target)?);
            rest = later;
        }
        let target = lowrank_models::Tokens::new(&inputs, &self.target_lengths);
        Ok(model.pairs([self.view(), target], device)?)
    }
}

/// What the layers of a network read beside hidden states.
#[derive(Clone, Debug)]
pub(crate) enum Context<B: Backend> {
    One(TokenBatch<B>),
    /// Of an encoder-decoder, whose hidden states are those of the source, then those of the target.
    Pair(PairBatch<B>),
}

impl<B: Backend> Context<B> {
    /// The rows of the last hidden states that the head reads.
    pub(crate) fn predicting(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::One(_) => x,
            Self::Pair(batch) => {
                let [_, target] = halves(x, batch);
                target
            }
        }
    }
}

/// The hidden states of the source and of the target.
fn halves<B: Backend>(x: Tensor<B, 2>, batch: &PairBatch<B>) -> [Tensor<B, 2>; 2] {
    let (rows, n) = (x.dims()[0], batch.source.packed().n_tokens());
    [x.clone().narrow(0, 0, n), x.narrow(0, n, rows - n)]
}

/// A config of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Config {
    Decoder(Box<DecoderConfig>),
    /// With what its head reads; the hidden states of all tokens where it has none for sequences.
    Classifier(Box<EncoderConfig>, Option<HeadInput>),
    /// With the key of the table of words and the name under which it is stored, if that is another one.
    Seq2Seq(Box<Seq2SeqConfig>, Option<[String; 2]>),
}

/// A model of any kind.
pub(crate) enum Network<B: Backend> {
    Decoder(Box<Decoder<B>>),
    /// With what its head reads; the hidden states of all tokens where it has none for sequences.
    Classifier(Box<Classifier<B>>, Option<HeadInput>),
    /// Whose layers are those of the encoder, then those of the decoder.
    Seq2Seq(Box<Seq2Seq<B>>),
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
        Ok(if model.kind() == ModelKind::Seq2Seq {
            let (config, words) = model.seq2seq_config()?.of_checkpoint(&Checkpoint::open(folder)?)?;
            Self::Seq2Seq(Box::new(config), words)
        } else if model.kind().is_decoder() {
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
            Self::Seq2Seq(config, _) => config.n_layers(),
        }
    }

    /// Whether the model predicts tokens.
    pub(crate) fn is_language_model(&self) -> bool {
        !matches!(self, Self::Classifier(..))
    }

    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Decoder(config) => config.d_model,
            Self::Classifier(config, _) => config.d_model,
            Self::Seq2Seq(config, _) => config.decoder.d_model,
        }
    }

    fn prefix(&self) -> &'static str {
        match self {
            Self::Decoder(config) => config.names().prefix,
            Self::Classifier(config, _) => config.architecture.names.prefix,
            Self::Seq2Seq(config, _) => config.encoder.architecture.names.prefix,
        }
    }

    /// An encoder's last layer and the path of the norm after it, where it has one.
    fn final_norm(&self) -> Option<(usize, String)> {
        let config = match self {
            Self::Decoder(_) => return None,
            Self::Classifier(config, _) => config,
            Self::Seq2Seq(config, _) => &config.encoder,
        };
        let names = &config.architecture.names;
        names.final_norm.map(|name| (config.n_layers - 1, format!("{}{name}", names.prefix)))
    }

    /// The layer of a module, among those of both halves of an encoder-decoder.
    pub(crate) fn layer_of(&self, module: &Module<'_>) -> Option<usize> {
        match self {
            Self::Seq2Seq(config, _) => config.layer_of(module),
            _ => module.layer,
        }
    }

    /// Whether the head is the table of words.
    fn is_tied(&self) -> bool {
        match self {
            Self::Decoder(config) => config.tied,
            Self::Classifier(..) => false,
            Self::Seq2Seq(config, _) => config.decoder.tied,
        }
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
        Config::Seq2Seq(config, _) => config.limits().into_iter().flatten().min().unwrap_or(usize::MAX),
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
            Config::Seq2Seq(config, _) => {
                let mut config = config.clone();
                config.lowrank.modules.extend(entries);
                Self::Seq2Seq(Box::new(Seq2Seq::init(*config, 0, device).map_err(CompressError::Input)?))
            }
        };
        let own = modules.iter().flat_map(|m| {
            m.tensors.iter().map(|(suffix, shape, values)| {
                (format!("{}.{suffix}", m.module), (shape.as_slice(), values.as_slice()))
            })
        });
        let mut loader = Loader::new(checkpoint, config.prefix(), device);
        if let Config::Seq2Seq(_, Some([words, other])) = config {
            loader.alias(words.clone(), other.clone());
        }
        let final_norm = config.final_norm().filter(|(last, _)| part == Part::Layer(*last));
        let final_norm = final_norm.map(|(_, path)| path);
        let mut io = PartLoader { loader, own: own.collect(), part, config, final_norm, device };
        network.visit_params(&mut io);
        // Parts that are not wanted were not visited, so nothing else can be missing.
        let missing = io.loader.finish(|_| part != Part::Head, |_| true)?.newly_initialized;
        let bias = match config {
            Config::Seq2Seq(config, _) => config.architecture.logits_bias,
            _ => None,
        };
        Ok((network, missing.iter().all(|key| Some(key.as_str()) == bias)))
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        match self {
            Self::Decoder(model) => model.visit_params(visitor),
            Self::Classifier(model, _) => model.visit_params(visitor),
            Self::Seq2Seq(model) => model.visit_params(visitor),
        }
    }

    /// The weight of a site that was loaded, `[d_input, d_output]`.
    pub(crate) fn weight(&mut self, site: usize) -> Option<Tensor<B, 2>> {
        match self {
            Self::Decoder(model) => model.site_weight(site),
            Self::Classifier(model, _) => model.site_weight(site),
            Self::Seq2Seq(model) => model.site_weight(site),
        }
    }

    /// Folds adapters into the factors under them, at the rank of the factors.
    pub(crate) fn merge(&mut self, adapters: &AdapterSet<B>) -> Result<()> {
        match self {
            Self::Decoder(model) => **model = model.merged(adapters)?,
            Self::Classifier(model, _) => **model = model.merged(adapters)?,
            Self::Seq2Seq(model) => **model = model.merged(adapters)?,
        }
        Ok(())
    }

    pub(crate) fn sites(&self) -> &[Site] {
        match self {
            Self::Decoder(model) => model.sites(),
            Self::Classifier(model, _) => model.sites(),
            Self::Seq2Seq(model) => model.sites(),
        }
    }
}

impl<B: Kernels> Network<B> {
    /// Embedded tokens.
    pub(crate) fn begin(&self, tokens: &Tokens, device: &B::Device) -> Result<(Tensor<B, 2>, Context<B>)> {
        let none = AdapterSet::empty();
        let run = Run::eval(&none);
        Ok(match self {
            Self::Decoder(model) => {
                let batch = model.batch(tokens.view(), device)?;
                (model.embed(&batch, run), Context::One(batch))
            }
            Self::Classifier(model, _) => {
                let batch = model.batch(tokens.view(), device)?;
                (model.embed(&batch, run), Context::One(batch))
            }
            Self::Seq2Seq(model) => {
                let batch = tokens.pairs(model, device)?;
                (Tensor::cat(model.embed(&batch, run).into(), 0), Context::Pair(batch))
            }
        })
    }

    /// The rows of the output of a layer that it computes; those of the other half of an encoder-decoder pass through it.
    pub(crate) fn computed(&self, index: usize, output: Tensor<B, 2>, context: &Context<B>) -> Tensor<B, 2> {
        match (self, context) {
            (Self::Seq2Seq(model), Context::Pair(batch)) => {
                let [source, target] = halves(output, batch);
                if index < model.config().encoder.n_layers { source } else { target }
            }
            _ => output,
        }
    }

    /// Hidden states after a layer; of an encoder's last layer, what its head reads.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        context: &Context<B>,
        adapters: &AdapterSet<B>,
    ) -> Tensor<B, 2> {
        let run = Run::eval(adapters);
        match (self, context) {
            (Self::Decoder(model), Context::One(batch)) => model.layer(index, x, batch, Rows::All, run),
            (Self::Classifier(model, _), Context::One(batch)) if index + 1 < model.n_layers() => {
                model.layer(index, x, batch, Rows::All, run)
            }
            (Self::Seq2Seq(model), Context::Pair(batch)) => {
                Tensor::cat(model.layer(index, halves(x, batch), batch, run).into(), 0)
            }
            (Self::Classifier(model, input), Context::One(batch)) => {
                let rows = input.map_or(Rows::All, HeadInput::rows);
                let x = model.finish(model.layer(index, x, batch, rows, run), run);
                match input {
                    Some(input) => input.read(x, batch),
                    None => x,
                }
            }
            _ => unreachable!("`begin` gives the context of a network of its kind"),
        }
    }

    /// Logits after [`layer`](Self::layer) of the last one.
    pub(crate) fn finish(&self, x: Tensor<B, 2>, adapters: &AdapterSet<B>) -> Tensor<B, 2> {
        let run = Run::eval(adapters);
        match self {
            Self::Decoder(model) => model.logits(model.finish(x, run), run),
            Self::Classifier(model, _) => model.head(x, run),
            Self::Seq2Seq(model) => model.logits(model.finish(x, run), run),
        }
    }

    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens, from the hidden states of the last layer of a language model, as
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
        let run = Run::eval(&none);
        match self {
            Self::Decoder(model) => Ok(model.nll_sum(model.finish(x, run), targets, weights, run)),
            Self::Seq2Seq(model) => Ok(model.nll_sum(model.finish(x, run), targets, weights, run)),
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
    config: &'a Config,
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
                lowrank_models::Part::Body => {
                    matches!(self.config, Config::Decoder(_)) && at.module.layer.is_none()
                }
                lowrank_models::Part::Relative | lowrank_models::Part::Head => false,
            },
            // A tied head is the embedding.
            Part::Head => {
                let is_table = at.module.part == lowrank_models::Part::Embeddings;
                at.module.layer.is_none() && (self.config.is_tied() || !is_table)
            }
            Part::Layer(wanted) => {
                self.config.layer_of(&at.module) == Some(wanted)
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
        if !self.is_wanted(at) {
            self.loader.skip(at);
        } else if !self.set(at, param) {
            self.loader.visit(at, param);
        }
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if !self.is_wanted(at) {
            self.loader.skip(at);
        } else if !self.set_stored(at, stored) {
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
