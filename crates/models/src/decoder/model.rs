//! A decoder: embeddings, layers, final norm and head.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::prelude::*;
use lowrank_adapters::Site;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use serde_json::{Map, Value};

use crate::adapt::Adaptable;
use crate::batch::{Limits, Rows, TokenBatch, Tokens};
use crate::cache::KvCache;
use crate::config::DecoderConfig;
use crate::decoder::layer::DecoderLayer;
use crate::embedding::Embedding;
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::{Loader, WeightType};
use crate::rope::Rotary;
use crate::run::Run;
use crate::stack::{Parameters, Stack};
use crate::visit::{Module as ModulePath, ParamVisitor, Part};

/// A language model.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    embedding: Embedding<B>,
    /// `[max_positions, d_model]`, where positions are not rotary.
    positions: Option<Embedding<B>>,
    layers: Vec<DecoderLayer<B>>,
    norm: Norm<B>,
    /// `None` where it is the word embedding.
    head: Option<Linear<B>>,
    #[module(skip)]
    info: Arc<Info>,
}

/// What a decoder knows besides its weights.
#[derive(Clone, Debug)]
struct Info {
    config: DecoderConfig,
    sites: Vec<Site>,
    rotary: Vec<Rotary>,
    limits: Limits,
}

impl<B: Backend> Decoder<B> {
    /// A model of drawn weights.
    ///
    /// # Errors
    /// A `lowrank` section that does not fit the model.
    pub fn init(config: DecoderConfig, seed: u64, device: &B::Device) -> std::result::Result<Self, String> {
        let names = &config.architecture.names;
        let mut sites = SiteList::new(config.lowrank.clone());
        let d = config.d_model;
        let path = |name: &str| format!("{}{name}", names.prefix);
        let shape = [config.vocab_size, d];
        let embedding = Embedding::init(&path(names.embedding), shape, &mut sites, seed, device);
        let positions = names
            .positions
            .map(|name| Embedding::init(&path(name), [config.max_positions, d], &mut sites, seed, device));
        let layers =
            (0..config.n_layers).map(|i| DecoderLayer::init(&config, i, &mut sites, seed, device)).collect();
        let norm = Norm::init(config.norm, d, config.norm_eps, device);
        let head = (!config.tied).then(|| {
            let spec = LinearSpec {
                path: names.head,
                layer: None,
                shape: [d, config.vocab_size],
                bias: config.head_bias,
                head: true,
                conv1d: false,
            };
            sites.linear(spec, seed, device)
        });
        let limits = Limits {
            vocab_size: config.vocab_size,
            max_tokens: config.is_bounded().then_some(config.max_positions),
            types: None,
            first_position: names.positions.map(|_| 0),
        };
        let rotary = config.ropes.iter().map(Rotary::new).collect();
        let info = Arc::new(Info { sites: sites.finish()?, rotary, limits, config });
        Ok(Self { embedding, positions, layers, norm, head, info })
    }

    /// Loads a Hugging Face folder, a tensor at a time.
    ///
    /// # Errors
    /// Tensors that are missing, misshaped or belong to no known part; a `lowrank` section that does not fit;
    /// weights kept in a type that the backend does not support.
    pub fn load(
        folder: &Path,
        config: DecoderConfig,
        weights: WeightType,
        device: &B::Device,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let names = &config.architecture.names;
        let mut model = Self::init(config, 0, device)
            .map_err(|reason| ModelError::Config { path: folder.join("config.json"), reason })?;
        let mut loader = Loader::new(&checkpoint, names.prefix, device).with_weights(weights)?;
        model.visit_params(&mut loader);
        let tied_head = model.head.is_none().then(|| format!("{}.weight", names.head));
        let is_extra = |name: &str| {
            tied_head.as_deref() == Some(name) || names.buffers.iter().any(|buffer| name.ends_with(buffer))
        };
        loader.finish(|_| true, is_extra)?;
        Ok(model)
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.info.config
    }

    /// An empty cache with room for `capacities[i]` positions of sequence `i`; it grows where they are more.
    pub fn cache(&self, capacities: &[usize], device: &B::Device) -> KvCache<B> {
        let config = self.config();
        KvCache::new(config.n_layers, config.n_kv_heads * config.head_dim, capacities, device)
    }

    /// Tokens that come after `past` others of their sequence.
    fn batch_after(
        &self,
        tokens: Tokens<'_>,
        past: impl Iterator<Item = usize> + Clone,
        device: &B::Device,
    ) -> Result<TokenBatch<B>> {
        let (mut batch, positions) = TokenBatch::new(&self.info.limits, tokens, past, device)?;
        let rotary = self.info.rotary.iter();
        batch.angles = rotary.map(|rotary| rotary.angles(tokens.lengths, &positions, device)).collect();
        Ok(batch)
    }
}

impl<B: Backend> Parameters<B> for Decoder<B> {
    fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        let names = &self.info.config.architecture.names;
        let path = |name: &str| format!("{}{name}", names.prefix);
        self.embedding.visit_params(&path(names.embedding), visitor);
        if let (Some(positions), Some(name)) = (&mut self.positions, names.positions) {
            positions.visit_params(&path(name), visitor);
        }
        for layer in &mut self.layers {
            layer.visit_params(visitor);
        }
        self.norm.visit_params(ModulePath::new(&path(names.norm), Part::Body), visitor);
        if let Some(head) = &mut self.head {
            head.visit_params(ModulePath::new(names.head, Part::Head), visitor);
        }
    }

    fn config_json(&self) -> Map<String, Value> {
        let config = self.config();
        let mut raw = config.raw.clone();
        raw.insert("tie_word_embeddings".into(), config.tied.into());
        raw
    }
}

impl<B: Backend> Adaptable<B> for Decoder<B> {
    fn tasks(&self) -> &'static [&'static str] {
        &["CAUSAL_LM", "FEATURE_EXTRACTION"]
    }

    fn tied(&self) -> Option<[String; 2]> {
        let names = &self.info.config.architecture.names;
        let path = &self.info.sites[self.embedding.site].path;
        self.head.is_none().then(|| [path.clone(), names.head.to_string()])
    }

    fn untie(&mut self) -> Result<()> {
        if self.head.is_some() {
            return Ok(());
        }
        let projection = self.embedding.projection.transposed()?;
        let mut info = Info::clone(&self.info);
        let [d_input, d_output] = projection.dims();
        let path = info.config.architecture.names.head;
        info.sites.push(Site {
            path: path.into(),
            layer: None,
            d_input,
            d_output,
            head: true,
            embedding: false,
        });
        info.config.tied = false;
        info.config.raw.insert("tie_word_embeddings".into(), false.into());
        self.head = Some(Linear { projection, bias: None, site: info.sites.len() - 1, conv1d: false });
        self.info = Arc::new(info);
        Ok(())
    }

    fn vocabulary(&self) -> Option<&Site> {
        Some(&self.info.sites[self.embedding.site])
    }

    fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        let mut info = Info::clone(&self.info);
        self.embedding.projection = self.embedding.projection.with_shape([rows, info.config.d_model])?;
        info.sites[self.embedding.site].d_input = rows;
        if let Some(head) = &mut self.head {
            head.projection = head.projection.with_shape([info.config.d_model, rows])?;
            info.sites[head.site].d_output = rows;
        }
        info.config.vocab_size = rows;
        info.limits.vocab_size = rows;
        info.config.raw.insert("vocab_size".into(), rows.into());
        self.info = Arc::new(info);
        Ok(())
    }
}

impl<B: Kernels> Stack<B> for Decoder<B> {
    fn n_layers(&self) -> usize {
        self.layers.len()
    }

    fn max_tokens(&self) -> Option<usize> {
        self.info.limits.max_tokens
    }

    fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        self.batch_after(tokens, std::iter::repeat(0), device)
    }

    fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        let x = self.embedding.forward(batch.ids.clone(), run.adapters);
        let scale = self.config().embedding_scale;
        let x = if scale == 1.0 { x } else { x * scale };
        match (&self.positions, &batch.positions) {
            (Some(table), Some(rows)) => x + table.forward(rows.clone(), run.adapters),
            _ => x,
        }
    }

    fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        self.layers[index].forward(x, batch, rows, None, run)
    }

    fn finish(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.norm.forward(x)
    }
}

impl<B: Kernels> Decoder<B> {
    /// Logits of the next tokens after [`hidden_states`](Stack::hidden_states).
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`
    /// - output: `[rows, vocab_size]`
    pub fn logits(&self, hidden: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let config = self.config();
        let mut logits = match &self.head {
            Some(head) => head.forward(hidden, run),
            None => self.embedding.logits(hidden),
        };
        if config.logit_scale != 1.0 {
            logits = logits * config.logit_scale;
        }
        match config.logit_softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// Logits of the next tokens of whole sequences.
    ///
    /// # Shapes
    /// - output: `[tokens, vocab_size]`, or `[sequences, vocab_size]` for a row of each sequence
    pub fn forward(&self, batch: &TokenBatch<B>, rows: Rows, run: Run<'_, B>) -> Tensor<B, 2> {
        self.logits(self.hidden_states(batch, rows, run), run)
    }

    /// Logits of the last of the next `tokens.lengths[i]` tokens of each sequence `active[i]` of a cache, which holds
    /// them afterwards.
    ///
    /// # Shapes
    /// - output: `[active, vocab_size]`
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not take; the cache is as it was.
    pub fn advance(
        &self,
        tokens: Tokens<'_>,
        active: &[usize],
        cache: &mut KvCache<B>,
        run: Run<'_, B>,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        // Of a batch with an adapter for each sequence, those that have ended take no part.
        let routed = run.adapters.for_step(active, tokens.lengths);
        let run = routed.as_ref().map_or(run, |adapters| Run { adapters, ..run });
        let past: Vec<usize> = active.iter().map(|&s| cache.length(s)).collect();
        let mut batch = self.batch_after(tokens, past.into_iter(), device)?;
        batch.writes = Some(cache.begin(active, tokens.lengths));
        let mut x = self.embed(&batch, run);
        for (index, layer) in self.layers.iter().enumerate() {
            let rows = if index + 1 == self.layers.len() { Rows::Last } else { Rows::All };
            x = layer.forward(x, &batch, rows, Some(cache), run);
        }
        Ok(self.logits(self.finish(x), run))
    }
}
