//! Calibration: a model is run layer by layer over sample texts, accumulating the inputs of every linear map.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use xxhash_rust::xxh3::Xxh3Default;

use super::moments::{DeviceMoments, HostMoments, Moments};
use super::network::{Config, Context, Network, Part, Tokens};
use super::sums::Sums;
use crate::error::{CompressError, Result};
use crate::options::{Calibrator, CompressedModule};
use crate::statistics::{Weighting, Weightings};

/// Runs a model folder over packed texts, one layer in memory at a time.
pub struct ModelCalibrator<B: Kernels> {
    config: Config,
    checkpoint: Checkpoint,
    batches: Vec<Tokens>,
    /// Hidden states of every batch before the next layer, with the inputs that layers need.
    states: Vec<(Tensor<B, 2>, Context<B>)>,
    /// Weightings that replace the sums of inputs.
    given: Option<Weightings>,
    /// The latest layer's inputs and outputs, for as many batches as effects are measured on.
    probe: Vec<[Tensor<B, 2>; 2]>,
    next: usize,
    is_sequential: bool,
    /// Whether inputs are summed up where the model runs.
    sums_on_device: bool,
    device: B::Device,
}

/// Rows whose logits are in memory at once.
pub(crate) const HEAD_ROWS: usize = 256;

/// Minimum number of tokens on which the effect of a module is measured.
const PROBE_TOKENS: usize = 2048;

impl<B: Kernels> ModelCalibrator<B> {
    /// Creates a calibrator of a model folder; `is_sequential` lets later layers see the compressed outputs
    /// of earlier ones.
    ///
    /// # Errors
    /// A folder without a model of a known architecture, no texts, tokens that the model does not accept.
    pub fn new(folder: &Path, batches: Vec<Tokens>, is_sequential: bool, device: B::Device) -> Result<Self> {
        if batches.iter().all(|batch| batch.n_tokens() == 0) {
            return Err(CompressError::Input(
                "the calibration text is empty; give some lines of text".into(),
            ));
        }
        let config = Config::read(folder)?;
        if let Config::Classifier(config, _) = &config
            && config.shares_layers()
        {
            return Err(CompressError::Input(format!(
                "{}: its layers share their weights, which layer-by-layer calibration does not support; choose --method svd",
                folder.display()
            )));
        }
        let checkpoint = Checkpoint::open(folder)?;
        Ok(Self {
            config,
            checkpoint,
            batches,
            states: Vec::new(),
            given: None,
            probe: Vec::new(),
            next: 0,
            is_sequential,
            sums_on_device: !B::ON_HOST,
            device,
        })
    }

    /// Uses weightings computed elsewhere, as by [`fisher`](crate::fisher); the texts then serve only to
    /// measure effects.
    pub fn weighted_by(mut self, weightings: Weightings) -> Self {
        self.given = Some(weightings);
        self
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(Tokens::n_tokens).sum()
    }

    /// Width of a hidden state, the narrowest input that is accumulated.
    pub fn width(&self) -> usize {
        self.config.hidden_size()
    }

    /// Square roots of the counts of the tokens, whose one-hot vectors are an embedding's inputs. Every count
    /// is raised by one, since unseen tokens will occur too.
    fn frequencies(&self, vocabulary: usize) -> Vec<f32> {
        let mut counts = vec![1.0_f32; vocabulary];
        // What a decoder reads of a target is the target but for one token.
        for id in self.batches.iter().flat_map(|batch| batch.ids.iter().chain(&batch.targets)) {
            if let Some(count) = counts.get_mut(*id as usize) {
                *count += 1.0;
            }
        }
        counts.into_iter().map(f32::sqrt).collect()
    }

    fn restart(&mut self) -> Result<()> {
        let outside = Network::<B>::load(&self.config, &self.checkpoint, Part::Outside, &[], &self.device)?;
        self.states =
            self.batches.iter().map(|batch| outside.begin(batch, &self.device)).collect::<Result<_>>()?;
        self.next = 0;
        Ok(())
    }

    fn part(&self, layer: usize, modules: &[CompressedModule]) -> Result<Network<B>> {
        Network::load(&self.config, &self.checkpoint, Part::Layer(layer), modules, &self.device)
    }

    /// Runs every batch through a layer.
    fn advance(&mut self, network: &Network<B>, layer: usize, adapters: &AdapterSet<B>) {
        for (x, context) in &mut self.states {
            *x = network.layer(layer, x.clone(), context, adapters);
        }
        self.next = layer + 1;
    }

    /// Accumulates the inputs of a layer's maps, and advances unless the compressed layer does that.
    fn observe<M: Moments + 'static>(&mut self, layer: usize) -> Result<Weightings> {
        let network = self.part(layer, &[])?;
        let sums = Arc::new(Sums::<M>::default());
        sums.observe(network.sites());
        let mut adapters = AdapterSet::empty();
        if self.given.is_none() {
            adapters = adapters.observed(sums.clone());
        }
        self.probe.clear();
        let mut probed = 0;
        for (x, context) in &mut self.states {
            let after = network.layer(layer, x.clone(), context, &adapters);
            if probed < PROBE_TOKENS {
                probed += x.dims()[0];
                self.probe.push([x.clone(), after.clone()]);
            }
            if !self.is_sequential {
                *x = after;
            }
        }
        if !self.is_sequential {
            self.next = layer + 1;
        }
        drop(adapters);
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        sums.weightings(|site| network.sites()[site].path.clone())
    }

    /// The weightings of what is outside the layers, from the last hidden states.
    fn observe_head<M: Moments + 'static>(&self) -> Result<Weightings> {
        let Some(network) = Network::<B>::load_head(&self.config, &self.checkpoint, &self.device)? else {
            return Ok(Weightings::new());
        };
        let sums = Arc::new(Sums::<M>::default());
        if network.sites().iter().any(|site| site.layer.is_none() && !site.embedding) {
            let adapters = AdapterSet::empty().observed(sums.clone());
            for (x, context) in &self.states {
                for rows in context.predicting(x.clone()).split(HEAD_ROWS, 0) {
                    network.finish(rows, &adapters);
                }
            }
        }
        let mut weightings = sums.weightings(|site| network.sites()[site].path.clone())?;
        for site in network.sites().iter().filter(|site| site.embedding) {
            weightings.insert(site.path.clone(), Weighting::Channels(self.frequencies(site.d_input)));
        }
        // The patches are the pixels.
        for site in network.sites().iter().filter(|site| site.kernel.is_some()) {
            let mut sum = HostMoments::new(site.d_input);
            self.batches.iter().for_each(|batch| sum.add(&batch.pixels));
            weightings.insert(site.path.clone(), Weighting::Inputs(Arc::new(sum.finish())));
        }
        Ok(weightings)
    }
}

impl<B: Kernels> Calibrator for ModelCalibrator<B> {
    fn weightings(&mut self, layer: usize) -> Result<Weightings> {
        if layer == 0 || self.states.is_empty() || layer < self.next {
            self.restart()?;
        }
        // Layers without a selected weight.
        while self.next < layer {
            let network = self.part(self.next, &[])?;
            self.advance(&network, self.next, &AdapterSet::empty());
        }
        if self.sums_on_device {
            self.observe::<DeviceMoments<B>>(layer)
        } else {
            self.observe::<HostMoments>(layer)
        }
    }

    fn outside(&mut self) -> Result<Weightings> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        if self.states.is_empty() {
            self.restart()?;
        }
        while self.next < self.config.n_layers() {
            let network = self.part(self.next, &[])?;
            self.advance(&network, self.next, &AdapterSet::empty());
        }
        if self.sums_on_device {
            self.observe_head::<DeviceMoments<B>>()
        } else {
            self.observe_head::<HostMoments>()
        }
    }

    fn effect(&mut self, layer: usize, module: CompressedModule) -> Result<Option<f64>> {
        let network = self.part(layer, &[module])?;
        let (mut sum, mut rows) = (0.0, 0);
        for ([before, after], (_, context)) in self.probe.iter().zip(&self.states) {
            let changed = network.layer(layer, before.clone(), context, &AdapterSet::empty());
            let [changed, after] = [changed, after.clone()].map(|x| network.computed(layer, x, context));
            let squared = |x: Tensor<B, 2>| x.powf_scalar(2.0).sum_dim(1);
            let ratio = squared(changed - after.clone()) / squared(after).clamp_min(f32::MIN_POSITIVE);
            rows += ratio.dims()[0];
            sum += f64::from(ratio.sum().into_scalar().elem::<f32>());
        }
        Ok((rows > 0).then(|| sum / rows as f64))
    }

    fn identity(&self) -> String {
        let mut hash = Xxh3Default::new();
        for batch in &self.batches {
            hash.update(&(batch.lengths.len() as u64).to_le_bytes());
            let lengths = batch.lengths.iter().chain(&batch.target_lengths);
            lengths.for_each(|n| hash.update(&(*n as u64).to_le_bytes()));
            let ids = batch.ids.iter().chain(&batch.type_ids).chain(&batch.targets);
            ids.for_each(|id| hash.update(&id.to_le_bytes()));
            batch.pixels.iter().for_each(|value| hash.update(&value.to_le_bytes()));
        }
        let given = self.given.as_ref().map(|given| format!(", {}", given.identity())).unwrap_or_default();
        let precision = super::samples::precision();
        format!("texts {:032x}, sequential {}{given}{precision}", hash.digest128(), self.is_sequential)
    }

    fn is_sequential(&self) -> bool {
        self.is_sequential
    }

    fn compressed(&mut self, layer: usize, modules: &[CompressedModule]) -> Result<()> {
        let network = self.part(layer, modules)?;
        self.advance(&network, layer, &AdapterSet::empty());
        Ok(())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
