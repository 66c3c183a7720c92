//! Recovery after compression: each layer is trained to reproduce the dense layer's output, one layer in
//! memory, no labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::peft::host_values;
use lowrank_adapters::{AdapterConfig, AdapterSet, Method, NoWeights, Pattern, Site, Targets};
use lowrank_checkpoint::{Checkpoint, StagedDir, StreamOptions, StreamWriter, TensorPlan};
use lowrank_kernels::Kernels;
use lowrank_models::Parameter;
use lowrank_models::params::Gather;
use lowrank_spec::names::path_in_old_files;
use lowrank_spec::{LowrankSection, Representation};
use serde::Serialize;

use super::distillation::{Distillation, Layer};
use super::network::{Config, Context, Network, Part, Tokens};
use crate::error::{CompressError, Result};
use crate::folder;
use crate::options::Progress;
use crate::pivots;

/// The trained parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trained {
    /// Every parameter of the layer: factors, biases, norms.
    #[default]
    All,
    /// A LoRA of this rank over each pair of factors, merged back into them at the rank of the factors.
    Lora(usize),
}

/// Options of a recovery.
///
/// | Name | Default | Purpose | Range |
/// |---|---|---|---|
/// | `trained` | all | what of each layer is trained | rank ≥ 1 |
/// | `steps` | 300 | steps for each layer, a batch each | ≥ 1 |
/// | `lr` | 1e-3 | learning rate of Adam, falling to zero along a cosine | > 0 |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillOptions {
    /// The trained parameters of each layer.
    pub trained: Trained,
    /// Steps per layer.
    pub steps: usize,
    /// Learning rate.
    pub lr: f64,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self { trained: Trained::All, steps: 300, lr: 1e-3 }
    }
}

impl DistillOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A rank or number of steps of 0, a learning rate that is not positive.
    pub fn validate(&self) -> Result<()> {
        if self.trained == Trained::Lora(0) {
            return Err(CompressError::Input("recovery by LoRA needs a rank of at least 1".into()));
        }
        if self.steps == 0 || !(self.lr > 0.0 && self.lr.is_finite()) {
            return Err(CompressError::Input(
                "recovery needs at least one step and a learning rate above 0".into(),
            ));
        }
        Ok(())
    }
}

/// The result of training a layer: errors of its output relative to the dense model's, over all batches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerRecovery {
    /// The layer.
    pub layer: usize,
    /// Before training, on the outputs of the trained layers below.
    pub before: f64,
    /// After training.
    pub after: f64,
}

/// Trains the layers of `compressed`, a folder that [`compress`](crate::compress) made from `dense`, in
/// sequence, each on the outputs of those below it, towards the hidden states of the dense model; writes the
/// folder `output`.
///
/// # Algorithm
/// AdamW without decay, in the common training loop ([`lowrank_train::train`]), on `‖C_i(h̃) − D_i(h)‖² /
/// ‖D_i(h)‖²` over the parameters of the compressed layer `C_i`, where `h` are the dense model's hidden
/// states and `h̃` those of the compressed one. A layer that training does not improve keeps its parameters.
///
/// # Errors
/// Folders that do not belong together, factors shared between layers, no texts, an output that is not empty.
pub fn distill<B: AutodiffBackend + Kernels>(
    dense: &Path,
    compressed: &Path,
    output: &Path,
    batches: &[Tokens],
    options: &DistillOptions,
    device: &B::Device,
    progress: &dyn Progress,
) -> Result<Vec<LayerRecovery>>
where
    B::InnerBackend: Kernels,
{
    options.validate()?;
    if batches.iter().all(|batch| batch.n_tokens() == 0) {
        return Err(CompressError::Input("the calibration text is empty; give some lines of text".into()));
    }
    folder::check_output(compressed, output)?;
    let section = LowrankSection::of_config(&folder::read_config(compressed)?)?;
    let is_shared = |r: &Representation| matches!(r, Representation::LowRank { a_of, b_of, .. } if a_of.is_some() || b_of.is_some());
    if section.modules.values().any(|entry| is_shared(&entry.representation)) {
        return Err(CompressError::Input(
            "layers that share factors cannot be recovered one by one; fine-tune the whole model instead"
                .into(),
        ));
    }
    let is_pivoted = section.modules.values().any(|entry| entry.representation.is_pivoted());
    let source = Checkpoint::open(compressed)?;
    let staged = StagedDir::create(output, false)?;
    let plan = source.names().filter_map(|name| {
        source.info(name).map(|info| TensorPlan::new(name, info.shape.clone(), info.dtype))
    });
    let mut writer = StreamWriter::create(staged.path(), plan.collect(), StreamOptions::default())?;
    let mut pair = Pair::<B>::new(dense, compressed, section, batches, device)?;
    let n_layers = pair.config[0].n_layers();
    progress.stage("recovery", (n_layers * options.steps) as u64);
    let mut layers = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let (recovery, tensors) = pair.layer(layer, options, progress)?;
        for (key, values) in tensors {
            let bare = key.split_once('.').map_or(key.as_str(), |(_, rest)| rest);
            let old = path_in_old_files(&key);
            let mut names = [Some(key.as_str()), old.as_deref()].into_iter().flatten();
            let name = names.find(|name| source.contains(name)).unwrap_or(bare);
            writer.write_f32(name, &values)?;
        }
        layers.push(recovery);
    }
    let rest: Vec<String> = writer.missing().map(str::to_owned).collect();
    for name in rest {
        writer.copy(&name, &source, &name)?;
    }
    writer.finish()?;
    let config = lowrank_checkpoint::read_file(compressed.join("config.json"))
        .map_err(folder::io(&compressed.join("config.json")))?;
    lowrank_checkpoint::write_atomic(staged.path().join("config.json"), config)?;
    folder::copy_files(compressed, staged.path())?;
    if is_pivoted {
        pivots::take_out(staged.path(), &BTreeMap::new())?;
    }
    staged.commit()?;
    Ok(layers)
}

/// Tensors of a layer by their keys, in the file's layout.
type LayerTensors = Vec<(String, Cow<'static, [f32]>)>;

/// The dense and the compressed model, before the same layer.
struct Pair<'a, B: AutodiffBackend + Kernels> {
    config: [Config; 2],
    checkpoint: [Checkpoint; 2],
    /// Hidden states of both for every batch.
    states: Vec<[Tensor<B, 2>; 2]>,
    contexts: Vec<Context<B>>,
    /// Representations of the compressed model's modules.
    section: LowrankSection,
    device: &'a B::Device,
}

impl<'a, B: AutodiffBackend + Kernels> Pair<'a, B>
where
    B::InnerBackend: Kernels,
{
    fn new(
        dense: &Path,
        compressed: &Path,
        section: LowrankSection,
        batches: &[Tokens],
        device: &'a B::Device,
    ) -> Result<Self> {
        let config = [Config::read(dense)?, Config::read(compressed)?];
        if matches!(config[0], Config::Seq2Seq(..)) {
            return Err(CompressError::Input(
                "recovery trains the layers of encoders and of decoders; fine-tune an encoder-decoder as a whole instead"
                    .into(),
            ));
        }
        let checkpoint = [Checkpoint::open(dense)?, Checkpoint::open(compressed)?];
        let outside =
            [0, 1].map(|i| Network::<B>::load(&config[i], &checkpoint[i], Part::Outside, &[], device));
        let [first, second] = outside;
        let (first, second) = (first?, second?);
        let (mut states, mut contexts) = (Vec::new(), Vec::new());
        for batch in batches.iter().filter(|batch| batch.n_tokens() > 0) {
            let (x, context) = first.begin(batch, device)?;
            states.push([x, second.begin(batch, device)?.0]);
            contexts.push(context);
        }
        Ok(Self { config, checkpoint, states, contexts, section, device })
    }

    fn load(&self, which: usize, layer: usize) -> Result<Network<B>> {
        Network::load(&self.config[which], &self.checkpoint[which], Part::Layer(layer), &[], self.device)
    }

    /// Trains a layer and advances both models past it.
    fn layer(
        &mut self,
        layer: usize,
        options: &DistillOptions,
        progress: &dyn Progress,
    ) -> Result<(LayerRecovery, LayerTensors)> {
        let none = AdapterSet::empty();
        let dense = self.load(0, layer)?;
        for (states, context) in self.states.iter_mut().zip(&self.contexts) {
            states[0] = dense.layer(layer, states[0].clone(), context, &none);
        }
        drop(dense);
        let mut network = self.load(1, layer)?;
        let before = self.error(&network, layer);
        let adapters = match options.trained {
            Trained::All => None,
            Trained::Lora(rank) => self.lora(&network, layer, rank)?,
        };
        if options.trained == Trained::All || adapters.is_some() {
            let model = Layer::new(&mut network, layer, adapters);
            let objective = Distillation::new(network, layer, &self.states, &self.contexts);
            network = objective.run(model, options, progress)?;
        }
        let mut after = self.error(&network, layer);
        // Without a gain, or with NaN, nothing is changed.
        if after.is_nan() || after >= before {
            network = self.load(1, layer)?;
            after = before;
        }
        let mut gather = Gather::new(|at: &Parameter<'_>| at.module.layer == Some(layer));
        network.visit_params(&mut gather);
        let tensors = gather.tensors.into_iter().map(|tensor| (tensor.name, tensor.data)).collect();
        for (states, context) in self.states.iter_mut().zip(&self.contexts) {
            states[1] = network.layer(layer, states[1].clone(), context, &none).detach();
        }
        Ok((LayerRecovery { layer, before, after }, tensors))
    }

    /// A newly initialized LoRA over every pair of factors of a layer; `None` without such a pair.
    fn lora(&self, network: &Network<B>, layer: usize, rank: usize) -> Result<Option<AdapterSet<B>>> {
        let is_factored = |site: &&Site| {
            let entry = self.section.find(&site.path).map(|(_, entry)| &entry.representation);
            matches!(entry, Some(Representation::LowRank { ranks, .. }) if ranks.len() == 1)
        };
        let in_layer = network.sites().iter().filter(|site| site.layer == Some(layer));
        let names: Vec<String> = in_layer.filter(is_factored).map(|site| site.path.clone()).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let narrowest = network.sites().iter().filter(|s| names.contains(&s.path)).map(Site::max_rank).min();
        let config = lora_config(rank.min(narrowest.unwrap_or(rank)), names);
        Ok(Some(AdapterSet::init(&config, network.sites(), &NoWeights, self.device)?))
    }

    /// Relative error of a compressed layer's output over all batches.
    fn error(&self, network: &Network<B>, layer: usize) -> f64 {
        let none = AdapterSet::empty();
        let sum =
            |x: Tensor<B, 2>| -> f64 { host_values(x).iter().map(|&v| f64::from(v) * f64::from(v)).sum() };
        let (mut missed, mut all) = (0.0, 0.0);
        for ([target, x], context) in self.states.iter().zip(&self.contexts) {
            let y = network.layer(layer, x.clone(), context, &none);
            missed += sum(y - target.clone());
            all += sum(target.clone());
        }
        if all > 0.0 { (missed / all).sqrt() } else { 0.0 }
    }
}

/// A LoRA of scale 1 at the rank that the narrowest layer admits.
fn lora_config(rank: usize, names: Vec<String>) -> AdapterConfig {
    let targets = Targets::new(Pattern::Names(names));
    AdapterConfig { rank, alpha: rank as f64, ..AdapterConfig::new(Method::LORA, targets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_that_a_narrow_layer_shortens_keeps_its_scale() {
        let config = lora_config(3, vec!["k_proj".into()]);
        assert_eq!(config.alpha / config.rank as f64, 1.0);
    }
}
