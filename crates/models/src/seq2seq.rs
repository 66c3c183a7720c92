//! Encoder-decoder models: the source passes through an encoder once, and a decoder attends to its states while it writes
//! the target.

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::{Head, Kernels, Keys};
use lowrank_spec::PackedTokens;
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::batch::{Rows, TokenBatch, Tokens};
use crate::cache::KvCache;
use crate::config::{DecoderConfig, Seq2SeqConfig};
use crate::decoder::body::DecoderTrunk;
use crate::decoder::generate::continued;
use crate::decoder::{Generated, GenerationOptions, head};
use crate::embedding::Embedding;
use crate::encoder::Encoder;
use crate::error::{ModelError, Result};
use crate::language::LanguageModel;
use crate::linear::{Linear, SiteList};
use crate::params::{Loader, WeightType, lazy_full};
use crate::run::Run;
use crate::stack::Parameters;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Part, Role};

/// An encoder-decoder language model.
#[derive(Module, Debug)]
pub struct Seq2Seq<B: Backend> {
    /// With the table of words.
    encoder: Encoder<B>,
    decoder: DecoderTrunk<B>,
    /// `None` if it is tied to the table of words.
    head: Option<Linear<B>>,
    /// Added to the logits; shape `[1, vocab_size]`.
    logits_bias: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    info: Arc<Info>,
}

/// State of a model besides its weights.
#[derive(Clone, Debug)]
struct Info {
    config: Seq2SeqConfig,
    sites: Vec<Site>,
    /// Tensors of other heads in the checkpoint.
    ignored: Vec<String>,
}

/// The encoder's states of sources, as the decoder reads them: their keys and values, computed once.
#[derive(Clone, Debug)]
pub struct EncoderStates<B: Backend> {
    /// By layer, each `[tokens, n_heads * head_dim]`.
    keys_values: Vec<[Tensor<B, 2>; 2]>,
    packed: PackedTokens,
}

impl<B: Backend> EncoderStates<B> {
    /// The rows of the keys of some sequences.
    fn keys_of(&self, sequences: &[usize]) -> Keys {
        Keys::Cached(sequences.iter().map(|&sequence| self.packed.rows(sequence)).collect())
    }
}

/// Sources and the decoder's tokens on the device.
#[derive(Clone, Debug)]
pub struct PairBatch<B: Backend> {
    /// Sources, as the encoder reads them.
    pub source: TokenBatch<B>,
    /// A sequence for each source, as the decoder reads them.
    pub target: TokenBatch<B>,
}

impl<B: Backend> Seq2Seq<B> {
    /// A model with newly initialized weights.
    ///
    /// # Errors
    /// A `lowrank` section that does not fit the model.
    pub fn init(config: Seq2SeqConfig, seed: u64, device: &B::Device) -> std::result::Result<Self, String> {
        let mut sites = SiteList::new(config.lowrank.clone());
        let encoder = Encoder::init(&config.encoder, &mut sites, seed, device);
        let decoder = DecoderTrunk::init(&config.decoder, &mut sites, seed, device);
        let (d_model, vocab_size) = (config.decoder.d_model, config.decoder.vocab_size);
        let head = (!config.decoder.tied)
            .then(|| head::init(config.head(), [d_model, vocab_size], false, &mut sites, (seed, device)));
        let logits_bias = config.architecture.logits_bias.map(|_| lazy_full([1, vocab_size], 0.0, device));
        let info = Arc::new(Info { sites: sites.finish()?, ignored: Vec::new(), config });
        Ok(Self { encoder, decoder, head, logits_bias, info })
    }

    /// Loads a Hugging Face folder, one tensor at a time.
    ///
    /// # Errors
    /// Tensors that are missing (a head where the config does not tie it), misshaped or unknown, copies of the table of
    /// words that differ from it; a `lowrank` section that does not fit; a storage type that the backend does not
    /// support.
    pub fn load(
        folder: &Path,
        mut config: Seq2SeqConfig,
        weights: WeightType,
        device: &B::Device,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let tables = Tables::find(&checkpoint, &config);
        let alias = tables.settle(&checkpoint, &mut config)?;
        let prefix = config.encoder.architecture.names.prefix;
        let buffers = config.decoder.architecture.names.buffers;
        let bias = config.architecture.logits_bias;
        let mut model = Self::init(config, 0, device)
            .map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })?;
        let section = model.info.config.lowrank.clone();
        let mut loader =
            Loader::new(&checkpoint, prefix, device).with_section(&section).with_weights(weights)?;
        let is_tied = model.head.is_none();
        if let Some([words, other]) = alias {
            loader.alias(words, other);
        }
        model.visit_params(&mut loader);
        let is_extra = |name: &str| {
            tables.copies.iter().any(|copy| copy == name)
                || is_tied && tables.head.as_deref() == Some(name)
                || buffers.iter().any(|buffer| name.ends_with(buffer))
        };
        let unmatched = loader.finish(|key| Some(key) != bias, is_extra)?;
        tables.check(&checkpoint)?;
        model.info = Arc::new(Info { ignored: unmatched.ignored, ..Info::clone(&model.info) });
        Ok(model)
    }

    /// The table of words of both halves.
    fn words(&self) -> &Embedding<B> {
        let Some(words) = self.encoder.word_embedding() else {
            unreachable!("no architecture here reads pictures")
        };
        words
    }

    /// The config.
    pub fn config(&self) -> &Seq2SeqConfig {
        &self.info.config
    }

    /// Source texts on the device.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an id outside the vocabulary, a sequence that is empty or longer than the model takes, or
    /// lengths that do not add up.
    pub fn source(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        self.encoder.batch(tokens, device)
    }

    /// The decoder's tokens on the device, whole sequences as [`Seq2SeqConfig::decoder_inputs`] gives them.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub fn target(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        self.decoder.batch(tokens, device)
    }

    /// Sources and the decoder's tokens on the device.
    ///
    /// # Errors
    /// As [`source`](Self::source); another number of sequences than sources.
    pub fn pairs(&self, [source, target]: [Tokens<'_>; 2], device: &B::Device) -> Result<PairBatch<B>> {
        let [sources, targets] = [source, target].map(|tokens| tokens.lengths.len());
        if sources != targets {
            return Err(ModelError::Input(format!("{targets} targets for {sources} sources")));
        }
        Ok(PairBatch { source: self.source(source, device)?, target: self.target(target, device)? })
    }

    /// Number of layers of both halves.
    pub fn n_layers(&self) -> usize {
        self.config().n_layers()
    }
}

/// Where a checkpoint holds the table of words and the head.
struct Tables {
    words: Option<String>,
    /// Copies of the table.
    copies: Vec<String>,
    head: Option<String>,
}

impl Tables {
    fn find(checkpoint: &Checkpoint, config: &Seq2SeqConfig) -> Self {
        let names = &config.encoder.architecture.names;
        let stored = |name: &str| head::stored_table(checkpoint, names.prefix, name);
        let head = format!("{}.weight", config.head());
        Self {
            words: stored(names.embeddings.words),
            copies: config.architecture.copies.iter().filter_map(|name| stored(name)).collect(),
            head: checkpoint.contains(&head).then_some(head),
        }
    }

    /// Unties the config of a model whose file has its own head: as in transformers, that is used whatever the config says.
    /// Returns the key of the table and what serves as the table, where it is not under its own name.
    fn settle(&self, checkpoint: &Checkpoint, config: &mut Seq2SeqConfig) -> Result<Option<[String; 2]>> {
        config.decoder.tied &= !self.has_own_head(checkpoint, config)?;
        let other = self.copies.first().or(self.head.as_ref().filter(|_| config.decoder.tied));
        let other = other.filter(|_| self.words.is_none());
        Ok(other.map(|other| [format!("{}.weight", config.words()), other.clone()]))
    }

    /// Whether the file has a head that is not a copy of the table.
    fn has_own_head(&self, checkpoint: &Checkpoint, config: &Seq2SeqConfig) -> Result<bool> {
        let factored = &config.lowrank;
        if factored.find(config.head()).is_some() {
            return Ok(true);
        }
        let Some(head) = &self.head else { return Ok(false) };
        // Factors are compared with nothing: a head beside them was not factored with them.
        if factored.find(&config.words()).is_some() {
            return Ok(true);
        }
        match self.words.as_ref().or(self.copies.first()) {
            Some(table) => Ok(!head::are_equal(checkpoint, head, table)?),
            None => Ok(false),
        }
    }

    /// Refuses copies that differ from the table.
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(table) = self.words.as_ref().or(self.copies.first()) else { return Ok(()) };
        for copy in &self.copies {
            if !head::are_equal(checkpoint, copy, table)? {
                return Err(ModelError::Tensors {
                    path: checkpoint.path().to_path_buf(),
                    details: format!(
                        "'{copy}' differs from '{table}'; expected one table of words for both halves"
                    ),
                });
            }
        }
        Ok(())
    }
}

impl Seq2SeqConfig {
    /// The config of the model in a checkpoint, untied if the file has its own head; and the key of the table of words and
    /// the name under which it is stored, if that is another one.
    ///
    /// # Errors
    /// Copies of the table that differ from it.
    pub fn of_checkpoint(mut self, checkpoint: &Checkpoint) -> Result<(Self, Option<[String; 2]>)> {
        let tables = Tables::find(checkpoint, &self);
        let alias = tables.settle(checkpoint, &mut self)?;
        tables.check(checkpoint)?;
        Ok((self, alias))
    }
}

impl<B: Backend> Parameters<B> for Seq2Seq<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        self.encoder.visit_params(visitor);
        self.decoder.visit_params(visitor);
        if let Some(head) = &mut self.head {
            let path = self.info.config.head();
            head.visit_params(ModulePath::new(path, Part::Head), visitor);
        }
        if let (Some(bias), Some(name)) = (&mut self.logits_bias, self.info.config.architecture.logits_bias) {
            let module = ModulePath::new(name, Part::Head);
            visitor.visit(&module.parameter(Role::Constant, Layout::Same, None), bias);
        }
    }

    fn ignored(&self) -> &[String] {
        &self.info.ignored
    }

    /// Without ties transformers initializes the table of either half anew where a file does not hold it.
    fn copied(&self) -> Option<(String, Vec<String>)> {
        let Seq2SeqConfig { architecture, encoder, decoder, .. } = self.config();
        let key = |path: &str| format!("{}{path}.weight", encoder.architecture.names.prefix);
        (architecture.says_tied && !decoder.tied).then(|| {
            let copies = architecture.copies.iter().map(|path| key(path));
            (key(encoder.architecture.names.embeddings.words), copies.collect())
        })
    }

    fn config_json(&self) -> Map<String, Value> {
        let config = self.config();
        let mut raw = config.raw.clone();
        raw.insert(
            "architectures".into(),
            vec![format!("{}ForConditionalGeneration", config.class())].into(),
        );
        if config.architecture.says_tied {
            raw.insert("tie_word_embeddings".into(), config.decoder.tied.into());
        }
        raw
    }
}

impl<B: Backend> Adaptable<B> for Seq2Seq<B> {
    fn tasks(&self) -> &'static [&'static str] {
        &["SEQ_2_SEQ_LM"]
    }

    fn uncalled(&self) -> Option<(String, &'static [&'static str])> {
        Some((self.config().words(), self.config().architecture.copies))
    }

    fn tied(&self) -> Option<[String; 2]> {
        self.head.is_none().then(|| [self.config().words(), self.config().head().to_string()])
    }

    fn untie(&mut self) -> Result<()> {
        if self.head.is_some() {
            return Ok(());
        }
        let mut info = Info::clone(&self.info);
        self.head = Some(head::untied(self.words(), info.config.head(), &mut info.sites)?);
        info.config.decoder.tied = false;
        self.info = Arc::new(info);
        Ok(())
    }
}

impl<B: Kernels> LanguageModel<B> for Seq2Seq<B> {
    const CONTINUES: bool = false;

    fn decoder(&self) -> &DecoderConfig {
        &self.config().decoder
    }

    fn logits(&self, hidden: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden, run),
            None => self.words().logits(hidden),
        };
        match &self.logits_bias {
            Some(bias) => logits + bias.val(),
            None => logits,
        }
    }

    fn plain_head(&self, run: Run<'_, B>) -> Option<Head<B>> {
        let bias = self.logits_bias.as_ref().map(Param::val).map(|bias| bias.squeeze_dim::<1>(0));
        Some(Head { bias, ..head::plain(self.head.as_ref(), &self.words().projection, run)? })
    }

    fn generate(
        &self,
        sources: &[Vec<u32>],
        options: &GenerationOptions,
        adapters: &AdapterSet<B>,
        device: &B::Device,
        on_tokens: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>> {
        let start = self.config().start_token()?;
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        let source = self.source(Tokens::new(&sources.concat(), &lengths), device)?;
        let all: Vec<usize> = (0..sources.len()).collect();
        let routed = adapters.for_step(&all, &lengths);
        let states = self.encode(&source, Run::eval(routed.as_ref().unwrap_or(adapters)));
        let step = |tokens: Tokens<'_>, active: &[usize], cache: &mut KvCache<B>| -> Result<Tensor<B, 2>> {
            self.advance(&states, tokens, active, cache, Run::eval(adapters), device)
        };
        let starts = vec![vec![start]; sources.len()];
        continued(&self.config().decoder, &starts, options, device, step, on_tokens)
    }
}

impl<B: Kernels> Seq2Seq<B> {
    /// The encoder's states of source texts.
    pub fn encode(&self, source: &TokenBatch<B>, run: Run<'_, B>) -> EncoderStates<B> {
        let n = self.encoder.n_layers();
        let states = (0..n)
            .fold(self.encoder.embed(source, run), |x, index| self.encoder_layer(index, x, source, run));
        EncoderStates { keys_values: self.decoder.keys_values(&states, run), packed: source.packed().clone() }
    }

    /// One layer of the encoder, the last one with the norm after it.
    fn encoder_layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        source: &TokenBatch<B>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let x = self.encoder.layer(index, x, source, Rows::All, run);
        if index + 1 == self.encoder.n_layers() { self.encoder.finish(x, run) } else { x }
    }

    /// Embedded tokens of both halves.
    ///
    /// # Shapes
    /// - output: `[source tokens, d_model]` and `[target tokens, d_model]`
    pub fn embed(&self, batch: &PairBatch<B>, run: Run<'_, B>) -> [Tensor<B, 2>; 2] {
        [self.encoder.embed(&batch.source, run), self.embed_target(&batch.target, run)]
    }

    fn embed_target(&self, target: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.words().forward(target.ids.clone(), run.adapters); // [tokens, d_model]
        self.decoder.embed(x, target, run)
    }

    /// One layer of the model, whose [`n_layers`](Self::n_layers) are those of the encoder and then those of the decoder. It
    /// changes the states of its half; a layer of the decoder also reads those of the source.
    ///
    /// # Shapes
    /// - x, output: `[source tokens, d_model]` and `[target tokens, d_model]`
    pub fn layer(
        &self,
        index: usize,
        [source, target]: [Tensor<B, 2>; 2],
        batch: &PairBatch<B>,
        run: Run<'_, B>,
    ) -> [Tensor<B, 2>; 2] {
        match index.checked_sub(self.encoder.n_layers()) {
            None => [self.encoder_layer(index, source, &batch.source, run), target],
            Some(index) => {
                let states = (&source, batch.source.packed());
                let target = self.decoder.layer_over(index, target, &batch.target, states, run);
                [source, target]
            }
        }
    }

    /// From the output of the last layer to what the head takes.
    ///
    /// # Shapes
    /// - x, output: `[rows, d_model]`
    pub fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.decoder.finish(x, run);
        let scale = self.config().decoder.logit_scale;
        if scale == 1.0 { x } else { x * scale }
    }

    /// Hidden states of the decoder over whole sequences, one for each source, as the head takes them.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`, or `[sequences, d_model]` for a row of each sequence
    pub fn hidden_states(
        &self,
        states: &EncoderStates<B>,
        target: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let keys = Keys::Packed(states.packed.clone());
        self.decode(target, (states, keys), rows, None, run)
    }

    /// The same with the rows of each sequence's keys, after the positions that a cache holds.
    fn decode(
        &self,
        batch: &TokenBatch<B>,
        (states, keys): (&EncoderStates<B>, Keys),
        rows: Rows,
        cache: Option<&mut KvCache<B>>,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        let x = self.embed_target(batch, run);
        let x = self.decoder.layers(x, batch, rows, cache, Some((&states.keys_values, &keys)), run);
        self.finish(x, run)
    }

    /// Logits of the last of the next `tokens.lengths[i]` tokens of each sequence `active[i]` of a cache,
    /// which contains them afterwards; `states` are those of the sources of all sequences.
    ///
    /// # Shapes
    /// - output: `[active, vocab_size]`
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not accept; the cache is then unchanged.
    pub fn advance(
        &self,
        states: &EncoderStates<B>,
        tokens: Tokens<'_>,
        active: &[usize],
        cache: &mut KvCache<B>,
        run: Run<'_, B>,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let prompts = cache.prompts_of(active);
        let routed = run.adapters.for_step(&prompts, tokens.lengths);
        let run = routed.as_ref().map_or(run, |adapters| Run { adapters, ..run });
        let batch = self.decoder.step(tokens, active, cache, device)?;
        let sources = (states, states.keys_of(&prompts));
        Ok(self.logits(self.decode(&batch, sources, Rows::Last, Some(cache), run), run))
    }
}
