//! A decoder: embeddings, layers, final norm and head.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::{Head, Kernels};
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::batch::{Rows, TokenBatch, Tokens};
use crate::cache::KvCache;
use crate::config::DecoderConfig;
use crate::decoder::body::DecoderBody;
use crate::decoder::generate::{Generated, GenerationOptions, continued};
use crate::decoder::head;
use crate::error::{ModelError, Result};
use crate::language::LanguageModel;
use crate::linear::{Linear, SiteList};
use crate::params::{Loader, WeightType};
use crate::projection::Projection;
use crate::run::Run;
use crate::stack::{Parameters, Stack, stack_of_body};
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// A language model.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    body: DecoderBody<B>,
    /// `None` if it is tied to the word embedding.
    head: Option<Linear<B>>,
    #[module(skip)]
    info: Arc<Info>,
}

/// State of a decoder besides its weights.
#[derive(Clone, Debug)]
struct Info {
    config: DecoderConfig,
    sites: Vec<Site>,
    /// Tensors of other heads in the checkpoint.
    ignored: Vec<String>,
}

impl<B: Backend> Decoder<B> {
    /// A model with newly initialized weights.
    ///
    /// # Errors
    /// A `lowrank` section that does not fit the model.
    pub fn init(config: DecoderConfig, seed: u64, device: &B::Device) -> std::result::Result<Self, String> {
        let names = config.names();
        let mut sites = SiteList::new(config.lowrank.clone());
        let body = DecoderBody::init(&config, &mut sites, seed, device);
        let head = (!config.tied).then(|| {
            let shape = [config.embedding_width, config.vocab_size];
            head::init(names.head, shape, config.head_bias, &mut sites, (seed, device))
        });
        let info = Arc::new(Info { sites: sites.finish()?, ignored: Vec::new(), config });
        Ok(Self { body, head, info })
    }

    /// Loads a Hugging Face folder, one tensor at a time.
    ///
    /// # Errors
    /// Tensors that are missing, misshaped or unknown; a `lowrank` section that does not fit;
    /// a storage type that the backend does not support.
    pub fn load(
        folder: &Path,
        config: DecoderConfig,
        weights: WeightType,
        device: &B::Device,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let mut config = config;
        let names = config.names();
        let table = format!("{}{}.weight", names.prefix, names.embedding);
        let head = format!("{}.weight", names.head);
        if config.tied && has_own_head(&checkpoint, &head, &config)? {
            config.tied = false;
        }
        let mut model = Self::init(config, 0, device)
            .map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })?;
        let section = model.info.config.lowrank.clone();
        let mut loader =
            Loader::new(&checkpoint, names.prefix, device).with_section(&section).with_weights(weights)?;
        if model.head.is_none() {
            loader.alias(table, head.clone());
        }
        model.visit_params(&mut loader);
        let is_tied = model.head.is_none();
        let is_extra = |name: &str| {
            (is_tied && name == head) || names.buffers.iter().any(|buffer| name.ends_with(buffer))
        };
        let ignored = loader.finish(|_| true, is_extra)?.ignored;
        model.info = Arc::new(Info { ignored, ..Info::clone(&model.info) });
        Ok(model)
    }

    /// The config.
    pub fn config(&self) -> &DecoderConfig {
        &self.info.config
    }

    /// The head, unless it is tied to the word embedding.
    pub(crate) fn head(&self) -> Option<&Linear<B>> {
        self.head.as_ref()
    }

    /// The table of the word embedding.
    pub(crate) fn table(&self) -> &Projection<B> {
        &self.body.embedding.projection
    }

    /// An empty cache with capacity for `capacities[i]` positions of sequence `i`; it grows if necessary.
    pub fn cache(&self, capacities: &[usize], device: &B::Device) -> KvCache<B> {
        KvCache::of(self.config(), capacities, device)
    }
}

impl<B: Backend> Parameters<B> for Decoder<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = self.info.config.names();
        self.body.visit_params(visitor);
        if let Some(head) = &mut self.head {
            head.visit_params(ModulePath::new(names.head, Part::Head), visitor);
        }
    }

    fn ignored(&self) -> &[String] {
        &self.info.ignored
    }

    fn fuses_experts(&self) -> bool {
        self.config().fuses_experts()
    }

    fn config_json(&self) -> Map<String, Value> {
        let config = self.config();
        let mut raw = config.raw.clone();
        raw.insert("tie_word_embeddings".into(), config.tied.into());
        raw
    }
}

/// Whether a checkpoint has a head that is not a copy of the embedding's table. As in transformers, it is used whatever
/// the config says.
fn has_own_head(checkpoint: &Checkpoint, head: &str, config: &DecoderConfig) -> Result<bool> {
    let names = config.names();
    if config.lowrank.modules.contains_key(names.head) {
        return Ok(true);
    }
    let table = head::stored_table(checkpoint, names.prefix, names.embedding);
    match table.filter(|_| checkpoint.contains(head)) {
        Some(table) => Ok(!head::are_equal(checkpoint, &table, head)?),
        None => Ok(false),
    }
}

impl<B: Backend> Adaptable<B> for Decoder<B> {
    fn tasks(&self) -> &'static [&'static str] {
        &["CAUSAL_LM", "FEATURE_EXTRACTION"]
    }

    fn tied(&self) -> Option<[String; 2]> {
        let names = self.info.config.names();
        let path = &self.info.sites[self.body.embedding.site].path;
        self.head.is_none().then(|| [path.clone(), names.head.to_string()])
    }

    fn untie(&mut self) -> Result<()> {
        if self.head.is_some() {
            return Ok(());
        }
        let mut info = Info::clone(&self.info);
        let path = info.config.names().head;
        self.head = Some(head::untied(&self.body.embedding, path, &mut info.sites)?);
        info.config.tied = false;
        info.config.raw.insert("tie_word_embeddings".into(), false.into());
        self.info = Arc::new(info);
        Ok(())
    }

    fn vocabulary(&self) -> Option<&Site> {
        Some(&self.info.sites[self.body.embedding.site])
    }

    fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        if self.head.as_ref().is_some_and(|head| head.bias.is_some()) {
            return Err(ModelError::Input(format!(
                "an adapter with a vocabulary of {rows} tokens is not supported over a head with a bias; resize the model's \
                 vocabulary first"
            )));
        }
        let mut info = Info::clone(&self.info);
        self.body.resize_vocabulary(rows)?;
        info.sites[self.body.embedding.site].d_input = rows;
        if let Some(head) = &mut self.head {
            head.projection = head.projection.with_shape([info.config.embedding_width, rows])?;
            info.sites[head.site].d_output = rows;
        }
        info.config.vocab_size = rows;
        info.config.raw.insert("vocab_size".into(), rows.into());
        self.info = Arc::new(info);
        Ok(())
    }
}

stack_of_body!(Decoder);

impl<B: Kernels> LanguageModel<B> for Decoder<B> {
    const CONTINUES: bool = true;

    fn decoder(&self) -> &DecoderConfig {
        self.config()
    }

    fn logits(&self, hidden: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let config = self.config();
        let mut logits = match &self.head {
            Some(head) => head.forward(hidden, run),
            None => self.body.embedding.logits(hidden),
        };
        if config.logit_scale != 1.0 {
            logits = logits * config.logit_scale;
        }
        match config.logit_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    fn plain_head(&self, run: Run<'_, B>) -> Option<Head<B>> {
        let config = self.config();
        if config.logit_scale != 1.0 {
            return None;
        }
        let soft_cap = config.logit_softcap.map(|cap| cap as f32);
        Some(Head { soft_cap, ..head::plain(self.head(), self.table(), run)? })
    }

    fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerationOptions,
        adapters: &AdapterSet<B>,
        device: &B::Device,
        on_tokens: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>> {
        let step = |tokens: Tokens<'_>, active: &[usize], cache: &mut KvCache<B>| {
            self.advance(tokens, active, cache, Run::eval(adapters), device)
        };
        continued(self.config(), prompts, options, device, step, on_tokens)
    }
}

impl<B: Kernels> Decoder<B> {
    /// Logits of the next tokens of whole sequences.
    ///
    /// # Shapes
    /// - output: `[tokens, vocab_size]`, or `[sequences, vocab_size]` for a row of each sequence
    pub fn forward(&self, batch: &TokenBatch<B>, rows: Rows, run: Run<'_, B>) -> Tensor<B, 2> {
        self.logits(self.hidden_states(batch, rows, run), run)
    }

    /// Logits of the last of the next `tokens.lengths[i]` tokens of each sequence `active[i]` of a cache,
    /// which contains them afterwards.
    ///
    /// # Shapes
    /// - output: `[active, vocab_size]`
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not accept; the cache is then unchanged.
    pub fn advance(
        &self,
        tokens: Tokens<'_>,
        active: &[usize],
        cache: &mut KvCache<B>,
        run: Run<'_, B>,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        // In a batch with an adapter for each prompt, finished ones take no part.
        let routed = run.adapters.for_step(&cache.prompts_of(active), tokens.lengths);
        let run = routed.as_ref().map_or(run, |adapters| Run { adapters, ..run });
        let batch = self.body.trunk.step(tokens, active, cache, device)?;
        Ok(self.logits(self.body.advance(&batch, cache, run), run))
    }
}
