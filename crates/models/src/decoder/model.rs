//! A decoder: embeddings, layers, final norm and head.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, Mode, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;

use crate::adapt::Adaptable;
use crate::batch::int_tensor;
use crate::decoder::cache::KvCache;
use crate::decoder::config::DecoderConfig;
use crate::decoder::layer::{DecoderLayer, Step};
use crate::decoder::rope::Angles;
use crate::embedding::Embedding;
use crate::error::{ModelError, Result};
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::norm::Norm;
use crate::params::{Loader, ParamIo, WeightType};

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
    /// Of the rotary positions.
    frequencies: Vec<f32>,
}

/// For which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// For every one.
    All,
    /// For the last of each sequence.
    Last,
}

impl<B: Backend> Decoder<B> {
    /// A model of fresh weights, drawn from `seed`.
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
                bias: false,
                head: true,
                conv1d: false,
            };
            sites.linear(spec, seed, device)
        });
        let frequencies = config.rope.as_ref().map(|rope| rope.frequencies()).unwrap_or_default();
        let info = Arc::new(Info { sites: sites.finish()?, frequencies, config });
        Ok(Self { embedding, positions, layers, norm, head, info })
    }

    /// Loads a Hugging Face folder, a tensor at a time.
    ///
    /// # Errors
    /// Tensors that are missing, misshaped or belong to no known part; a `lowrank` section that does not fit;
    /// weights kept in a type that the backend has not.
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
        model.walk(&mut loader);
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

    /// Every linear map that an adapter can serve.
    pub fn sites(&self) -> &[Site] {
        &self.info.sites
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer<B>] {
        &self.layers
    }

    /// Visits every parameter under its Hugging Face key.
    pub fn walk<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        let names = &self.info.config.architecture.names;
        let key = |name: &str| format!("{}{name}", names.prefix);
        self.embedding.walk(&key(names.embedding), io);
        if let (Some(positions), Some(name)) = (&mut self.positions, names.positions) {
            positions.walk(&key(name), io);
        }
        for layer in &mut self.layers {
            layer.walk(io);
        }
        self.norm.walk(&key(names.norm), io);
        if let Some(head) = &mut self.head {
            head.walk(names.head, io);
        }
    }

    /// An empty cache for so many sequences.
    pub fn cache(&self, sequences: usize, capacity: usize, device: &B::Device) -> KvCache<B> {
        let config = self.config();
        KvCache::new(config.n_layers, config.n_kv_heads * config.head_dim, sequences, capacity, device)
    }

    /// Checks tokens that come after `past` others of their sequence.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an id outside the vocabulary, an empty sequence, one that is longer than a
    /// table of positions, or lengths that do not add up.
    fn check(&self, ids: &[u32], lengths: &[usize], past: impl Iterator<Item = usize>) -> Result<()> {
        let config = self.config();
        let tokens: usize = lengths.iter().sum();
        if ids.len() != tokens {
            return Err(ModelError::Input(format!("{} ids for sequences of {tokens} tokens", ids.len())));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(ModelError::Input(format!(
                "token id {id} is outside the vocabulary of {}; tokenizer and model do not belong together",
                config.vocab_size
            )));
        }
        if lengths.contains(&0) {
            return Err(ModelError::Input(
                "a sequence of no tokens; give a text, or a tokenizer that adds a first token".into(),
            ));
        }
        let longest = lengths.iter().zip(past).map(|(n, past)| n + past).max().unwrap_or(0);
        if config.is_bounded() && longest > config.max_positions {
            return Err(ModelError::Input(format!(
                "a sequence of {longest} tokens; the model takes 1..={}",
                config.max_positions
            )));
        }
        Ok(())
    }
}

impl<B: Backend> Adaptable<B> for Decoder<B> {
    fn adapter_sites(&self) -> &[Site] {
        &self.info.sites
    }

    fn walk_params<IO: ParamIo<B>>(&mut self, io: &mut IO) {
        self.walk(io);
    }

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
        info.config.raw.insert("vocab_size".into(), rows.into());
        self.info = Arc::new(info);
        Ok(())
    }
}

impl<B: Kernels> Decoder<B> {
    /// Embeds packed tokens; `positions` are those in their sequences.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    fn embed(
        &self,
        ids: &[u32],
        positions: &[usize],
        adapters: &AdapterSet<B>,
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let tensor = |values: Vec<i32>| int_tensor(values, device);
        let x = self.embedding.forward(tensor(ids.iter().map(|&id| id as i32).collect()), adapters);
        match &self.positions {
            Some(table) => x + table.forward(tensor(positions.iter().map(|&p| p as i32).collect()), adapters),
            None => x,
        }
    }

    /// Embedded tokens of whole sequences, and what the layers need to know about them. Layer by layer, then
    /// [`logits`](Self::logits), this is [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not take.
    pub fn begin(
        &self,
        ids: &[u32],
        lengths: &[usize],
        adapters: &AdapterSet<B>,
        device: &B::Device,
    ) -> Result<(Tensor<B, 2>, Step<B>)> {
        self.check(ids, lengths, std::iter::repeat(0))?;
        let positions: Vec<usize> = lengths.iter().flat_map(|&n| 0..n).collect();
        Ok((self.embed(ids, &positions, adapters, device), self.step(lengths, &positions, device)))
    }

    fn step(&self, lengths: &[usize], positions: &[usize], device: &B::Device) -> Step<B> {
        let rope = self.config().rope.as_ref().filter(|rope| rope.rotary_dim > 0);
        let angles = rope.map(|_| Angles::new(&self.info.frequencies, positions, device));
        Step { lengths: lengths.into(), angles, writes: None }
    }

    /// Logits of the next tokens after hidden states of the last layer.
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`
    /// - output: `[rows, vocab_size]`
    pub fn logits(&self, hidden: Tensor<B, 2>, adapters: &AdapterSet<B>, mode: Mode) -> Tensor<B, 2> {
        let hidden = self.norm.forward(hidden);
        match &self.head {
            Some(head) => head.forward(hidden, adapters, mode),
            None => self.embedding.logits(hidden),
        }
    }

    /// Hidden states of the last layer, before the final norm, of whole sequences.
    ///
    /// # Shapes
    /// - output: `[tokens, d_model]`
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not take.
    pub fn hidden_states(
        &self,
        ids: &[u32],
        lengths: &[usize],
        adapters: &AdapterSet<B>,
        mode: Mode,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let (x, step) = self.begin(ids, lengths, adapters, device)?;
        Ok(self.layers.iter().fold(x, |x, layer| layer.forward(x, &step, None, adapters, mode)))
    }

    /// Logits of the next tokens of whole sequences.
    ///
    /// # Shapes
    /// - output: `[tokens, vocab_size]`, or `[sequences, vocab_size]` for [`LogitRows::Last`]
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not take.
    pub fn forward(
        &self,
        ids: &[u32],
        lengths: &[usize],
        rows: LogitRows,
        adapters: &AdapterSet<B>,
        mode: Mode,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let hidden = self.hidden_states(ids, lengths, adapters, mode, device)?;
        Ok(self.logits(select(hidden, lengths, rows, device), adapters, mode))
    }

    /// Logits of the last of the next `lengths[i]` tokens of each sequence `active[i]` of a cache, which has
    /// them afterwards.
    ///
    /// # Shapes
    /// - output: `[active, vocab_size]`
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens that the model does not take; the cache is as it was.
    pub fn advance(
        &self,
        ids: &[u32],
        lengths: &[usize],
        active: &[usize],
        cache: &mut KvCache<B>,
        adapters: &AdapterSet<B>,
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        self.check(ids, lengths, active.iter().map(|&s| cache.length(s)))?;
        let starts = active.iter().map(|&s| cache.length(s));
        let positions: Vec<usize> = starts.zip(lengths).flat_map(|(past, n)| past..past + n).collect();
        let mut x = self.embed(ids, &positions, adapters, device);
        let mut step = self.step(lengths, &positions, device);
        step.writes = Some(cache.begin(active, lengths));
        for layer in &self.layers {
            x = layer.forward(x, &step, Some(cache), adapters, Mode::EVAL);
        }
        Ok(self.logits(select(x, lengths, LogitRows::Last, device), adapters, Mode::EVAL))
    }
}

/// The rows of `[tokens, d_model]` that are wanted.
fn select<B: Backend>(
    hidden: Tensor<B, 2>,
    lengths: &[usize],
    rows: LogitRows,
    device: &B::Device,
) -> Tensor<B, 2> {
    if rows == LogitRows::All || lengths.iter().all(|&n| n == 1) {
        return hidden;
    }
    let last = lengths.iter().scan(0, |end, &n| {
        *end += n;
        Some(*end as i32 - 1)
    });
    hidden.select(0, int_tensor(last.collect(), device))
}
