//! Calibration with gradients: inputs of every linear map and gradients of its outputs, layer by layer,
//! backwards.
//!
//! A forward pass stores the hidden states before each layer in a folder; the gradient of the loss is then
//! propagated back layer by layer, recomputing each layer. Only one layer is in memory, with the Gram
//! matrices of its maps, the gradients of all tokens with respect to its output, and the activations of one
//! batch.

use std::any::Any;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::peft::host_values;
use lowrank_adapters::{Activations, AdapterSet, Observer};
use lowrank_checkpoint::Checkpoint;
use lowrank_kernels::Kernels;
use lowrank_models::batch::int_tensor;
use lowrank_spec::names::expert_of;
use tempfile::TempDir;

use super::calibrate::HEAD_ROWS;
use super::fisher::{Answers, cross_entropy, squared_error};
use super::moments::{DeviceMoments, HostMoments, Moments};
use super::network::{Config, Context, Network, Part, Tokens};
use super::samples::{Batch, batches, identity};
use super::sums::Sums;
use crate::error::{CompressError, Result};
use crate::folder::io;
use crate::options::{Calibrator, Progress};
use crate::statistics::{SidedStatistics, Weighting, Weightings};

/// Collects, for the method `two-sided`, the second moments of inputs and of gradients of outputs, from the
/// last layer to the first.
pub struct GradientCalibrator<B: AutodiffBackend> {
    config: Config,
    checkpoint: Checkpoint,
    batches: Vec<Batch>,
    /// Folder of the hidden states.
    folder: TempDir,
    contexts: Vec<Context<B>>,
    /// Per batch: the gradient with respect to the output of the layer before `next`.
    gradients: Vec<Tensor<B::InnerBackend, 2>>,
    /// Per batch: the gradient with respect to the last hidden states, from which a further pass starts; empty before the
    /// first.
    last: Vec<Tensor<B::InnerBackend, 2>>,
    /// The layers below it are yet to be processed.
    next: usize,
    identity: String,
    /// Whether inputs and gradients are summed up where the model runs.
    sums_on_device: bool,
    device: B::Device,
}

impl<B: AutodiffBackend + Kernels> GradientCalibrator<B> {
    /// Creates a calibrator of a model folder from samples with their targets; hidden states, 4 bytes per
    /// token, layer and width, are stored in a folder below `scratch` while the calibrator lives.
    ///
    /// # Errors
    /// A folder without a model of a known architecture or without a trained head, samples that predict nothing or do not
    /// fit the model, a scratch folder that cannot be written.
    pub fn new(
        folder: &Path,
        samples: Vec<(Tokens, Answers)>,
        scratch: &Path,
        device: B::Device,
    ) -> Result<Self> {
        let config = Config::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        if matches!(config, Config::Classifier(_, None)) {
            return Err(CompressError::Input(
                "two-sided needs the gradients of a task, and the model has no trained head over sequences; fine-tune it \
                 first or choose whitened"
                    .into(),
            ));
        }
        let predicts_tokens = config.is_language_model();
        if let Some((_, answers)) =
            samples.iter().find(|(_, a)| predicts_tokens != (*a == Answers::NextTokens))
        {
            return Err(CompressError::Input(match answers {
                Answers::NextTokens => {
                    "two-sided needs the gradients of a task; give --task and --data".into()
                }
                _ => "a language model's task is its own text; give --calibration".into(),
            }));
        }
        let identity = identity(&samples);
        let batches = batches(samples);
        let predicts = |batch: &Batch| {
            batch.answers != Answers::NextTokens
                || !batch.tokens.targets.is_empty()
                || batch.tokens.lengths.iter().any(|&length| length > 1)
        };
        if !batches.iter().any(|batch| !batch.is_held_out && predicts(batch)) {
            return Err(CompressError::Input(
                "no sample of the calibration text has two tokens, so there is nothing to predict; give longer \
                 lines"
                    .into(),
            ));
        }
        let folder =
            tempfile::Builder::new().prefix(".calibration").tempdir_in(scratch).map_err(io(scratch))?;
        Ok(Self {
            config,
            checkpoint,
            batches,
            folder,
            contexts: Vec::new(),
            gradients: Vec::new(),
            last: Vec::new(),
            next: 0,
            identity,
            sums_on_device: !B::ON_HOST,
            device,
        })
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.tokens.n_tokens()).sum()
    }

    /// Width of a hidden state, the narrowest input that is accumulated.
    pub fn width(&self) -> usize {
        self.config.hidden_size()
    }

    fn part(&self, part: Part) -> Result<Network<B>> {
        Network::load(&self.config, &self.checkpoint, part, &[], &self.device)
    }

    fn states(&self, layer: usize) -> std::path::PathBuf {
        self.folder.path().join(layer.to_string())
    }

    /// Runs the model forward and stores the input of each layer; returns the output of the last one.
    fn forward(&mut self, progress: &dyn Progress) -> Result<Vec<Tensor<B, 2>>> {
        let n_layers = self.config.n_layers();
        progress.stage("calibration", (self.n_tokens() * (n_layers + 1)) as u64);
        let outside = self.part(Part::Outside)?;
        self.contexts.clear();
        let mut states = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            let (x, context) = outside.begin(&batch.tokens, &self.device)?;
            states.push(x);
            self.contexts.push(context);
        }
        drop(outside);
        let none = AdapterSet::empty();
        for layer in 0..n_layers {
            let network = self.part(Part::Layer(layer))?;
            let path = self.states(layer);
            let mut file = File::create(&path).map_err(io(&path))?;
            for (x, (context, batch)) in states.iter_mut().zip(self.contexts.iter().zip(&self.batches)) {
                let values = host_values(x.clone());
                file.write_all(bytemuck::cast_slice(&values)).map_err(io(&path))?;
                *x = network.layer(layer, x.clone(), context, &none);
                progress.done(&format!("layer {layer}"), None, batch.tokens.n_tokens() as u64);
            }
        }
        Ok(states)
    }

    /// The gradient of a batch's loss, summed over its tokens or sequences, with respect to the last hidden states.
    fn head(&self, head: &Network<B>, x: Tensor<B, 2>, batch: &Batch) -> Result<Tensor<B::InnerBackend, 2>> {
        let [rows, width] = x.dims();
        let wanted = Wanted::of(batch);
        let mut gradients = Vec::new();
        for start in (0..rows).step_by(HEAD_ROWS) {
            let end = (start + HEAD_ROWS).min(rows);
            let part = x.clone().slice([start..end, 0..width]).detach().require_grad();
            let loss = wanted.loss(head, part.clone(), start, &self.device)?;
            let gradient = loss.and_then(|loss| part.grad(&loss.backward()));
            gradients.push(gradient.unwrap_or_else(|| part.inner().zeros_like()));
        }
        Ok(Tensor::cat(gradients, 0))
    }

    /// Propagates the gradients of all batches back through a layer; `sums` receives inputs and gradients of
    /// outputs.
    fn back<M: Moments + 'static>(
        &mut self,
        layer: usize,
        mut sums: Option<&mut [Sided<M>; 2]>,
    ) -> Result<Network<B>> {
        let network = self.part(Part::Layer(layer))?;
        sums.iter_mut().flat_map(|sums| sums.iter()).for_each(|side| side.inputs.observe(network.sites()));
        let path = self.states(layer);
        let mut file = File::open(&path).map_err(io(&path))?;
        let width = self.config.hidden_size();
        let mut at = 0;
        for (index, batch) in self.batches.iter().enumerate() {
            let rows = batch.tokens.n_tokens();
            let mut values = vec![0.0_f32; rows * width];
            file.seek(SeekFrom::Start(at)).map_err(io(&path))?;
            file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(io(&path))?;
            at += 4 * values.len() as u64;
            let data = TensorData::new(values, [rows, width]);
            let x = Tensor::<B, 2>::from_data(data, &self.device).require_grad();
            let side = sums.as_deref_mut().map(|sums| &mut sums[usize::from(batch.is_held_out)]);
            let tap =
                Arc::new(Tap::<B>::new(side.as_ref().map(|side| side.inputs.clone() as Arc<dyn Observer>)));
            let mut adapters = AdapterSet::empty();
            if side.is_some() {
                adapters = adapters.observed(tap.clone());
            }
            let y = network.layer(layer, x.clone(), &self.contexts[index], &adapters);
            let grads = (y * Tensor::from_inner(self.gradients[index].clone())).sum().backward();
            let gradient = x.grad(&grads).ok_or_else(|| {
                CompressError::Input(format!("layer {layer} has no gradient with respect to its input"))
            })?;
            if let Some(side) = side {
                for (site, offset) in tap.take() {
                    let Some(gradient) = offset.grad(&grads) else { continue };
                    let (width, rows) = (gradient.dims()[1], M::rows(&gradient));
                    side.outputs.entry(site).or_insert_with(|| M::beside(&rows, width)).add(&rows);
                }
            }
            self.gradients[index] = gradient;
        }
        self.next = layer;
        Ok(network)
    }

    /// Propagates the gradients back through a layer, and accumulates the inputs of its maps and the gradients of their outputs.
    fn observe<M: Moments + 'static>(&mut self, layer: usize) -> Result<Weightings> {
        let mut sums = [Sided::<M>::default(), Sided::default()];
        let network = self.back(layer, Some(&mut sums))?;
        let path = |site: usize| network.sites()[site].path.clone();
        let [fit, held_out] = sums;
        let (mut fit, mut held_out) = (fit.finish(path)?, held_out.finish(path)?);
        // An expert sees some of the tokens, and so does each half of an encoder-decoder.
        let is_pair = matches!(self.config, Config::Seq2Seq(..));
        let tokens = if is_pair {
            let own = self.batches.iter().filter(|batch| !batch.is_held_out);
            own.map(|batch| batch.tokens.n_tokens() as u64).sum()
        } else {
            fit.values().map(|sums| sums.inputs.rows).max().unwrap_or(1)
        };
        let made = fit.drain().map(|(site, sums)| {
            let path = path(site);
            let is_partial = is_pair || expert_of(&path).is_some();
            let share = if is_partial { sums.inputs.rows as f64 / tokens as f64 } else { 1.0 };
            (path, Weighting::Both { sums, held_out: held_out.remove(&site), share })
        });
        Ok(made.collect())
    }
}

impl<B: AutodiffBackend + Kernels> Calibrator for GradientCalibrator<B> {
    fn prepare(&mut self, progress: &dyn Progress) -> Result<()> {
        if !self.last.is_empty() {
            self.gradients = self.last.clone();
            self.next = self.config.n_layers();
            return Ok(());
        }
        let states = self.forward(progress)?;
        let head = Network::load_head(&self.config, &self.checkpoint, &self.device)?.ok_or_else(|| {
            CompressError::Input(
                "the checkpoint does not have a complete head; fine-tune the model first".into(),
            )
        })?;
        let mut last = Vec::with_capacity(self.batches.len());
        for (x, batch) in states.into_iter().zip(&self.batches) {
            last.push(self.head(&head, x, batch)?);
            progress.done("head", None, batch.tokens.n_tokens() as u64);
        }
        self.gradients = last.clone();
        self.last = last;
        self.next = self.config.n_layers();
        Ok(())
    }

    fn is_descending(&self) -> bool {
        true
    }

    fn weightings(&mut self, layer: usize) -> Result<Weightings> {
        // Layers without a selected weight.
        while self.next > layer + 1 {
            self.back::<HostMoments>(self.next - 1, None)?;
        }
        if self.next != layer + 1 {
            return Err(CompressError::Input(format!("layer {layer} was requested out of order")));
        }
        if self.sums_on_device {
            self.observe::<DeviceMoments<B::InnerBackend>>(layer)
        } else {
            self.observe::<HostMoments>(layer)
        }
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }
}

/// Second moments of both sides of a layer's maps.
struct Sided<M: Moments> {
    inputs: Arc<Sums<M>>,
    outputs: std::collections::BTreeMap<usize, M>,
}

impl<M: Moments> Default for Sided<M> {
    fn default() -> Self {
        Self { inputs: Arc::default(), outputs: std::collections::BTreeMap::new() }
    }
}

impl<M: Moments> Sided<M> {
    fn finish(
        self,
        path: impl Fn(usize) -> String,
    ) -> Result<std::collections::HashMap<usize, SidedStatistics>> {
        let inputs = self.inputs.take(&path)?;
        if let Some((site, _)) = self.outputs.iter().find(|(_, sum)| !sum.is_finite()) {
            return Err(CompressError::Input(format!(
                "the gradient of the loss is not finite at '{}'; check the weights after it",
                path(*site)
            )));
        }
        let both = self.outputs.into_iter().filter_map(|(site, sum)| {
            let inputs = inputs.get(&site)?.clone();
            Some((site, SidedStatistics { inputs, outputs: Arc::new(sum.finish()) }))
        });
        Ok(both.collect())
    }
}

/// Adds an offset of zero to every output: the gradient of the offset is that of the output.
#[derive(Debug)]
struct Tap<B: AutodiffBackend> {
    inputs: Option<Arc<dyn Observer>>,
    offsets: Mutex<Vec<(usize, Tensor<B, 2>)>>,
}

impl<B: AutodiffBackend> Tap<B> {
    fn new(inputs: Option<Arc<dyn Observer>>) -> Self {
        Self { inputs, offsets: Mutex::new(Vec::new()) }
    }

    fn take(&self) -> Vec<(usize, Tensor<B, 2>)> {
        std::mem::take(&mut *self.offsets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<B: AutodiffBackend> Observer for Tap<B> {
    fn input(&self, site: usize, x: &dyn Activations) {
        let Some(inputs) = &self.inputs else { return };
        // Sums are not differentiated.
        match x.tensor().downcast_ref::<Tensor<B, 2>>() {
            Some(x) => inputs.input(site, &x.clone().inner()),
            None => inputs.input(site, x),
        }
    }

    fn output(&self, site: usize, y: &mut dyn Any) {
        let Some(y) = y.downcast_mut::<Tensor<B, 2>>() else { return };
        let offset = Tensor::<B, 2>::zeros(y.dims(), &y.device()).require_grad();
        *y = y.clone() + offset.clone();
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).push((site, offset));
    }
}

/// The targets of the rows of the last hidden states.
enum Wanted {
    /// The class of each row.
    Classes(Vec<u32>),
    /// The token that follows each row's, with weight 0 after the last one.
    Next(Vec<(u32, f32)>),
    Scores(Vec<f32>),
}

impl Wanted {
    fn of(batch: &Batch) -> Self {
        match &batch.answers {
            Answers::Classes(classes) => Self::Classes(classes.clone()),
            Answers::Scores(scores) => Self::Scores(scores.clone()),
            Answers::NextTokens if !batch.tokens.targets.is_empty() => {
                let source = std::iter::repeat_n((0, 0.0), batch.tokens.ids.len());
                Self::Next(source.chain(batch.tokens.targets.iter().map(|&id| (id, 1.0))).collect())
            }
            Answers::NextTokens => {
                let mut next = Vec::with_capacity(batch.tokens.ids.len());
                let mut start = 0;
                for &length in &batch.tokens.lengths {
                    next.extend(batch.tokens.ids[start + 1..start + length].iter().map(|&id| (id, 1.0)));
                    next.push((0, 0.0));
                    start += length;
                }
                Self::Next(next)
            }
        }
    }

    /// The summed loss of the hidden states of rows from `start` on; `None` if no row has a target.
    fn loss<B: Kernels>(
        &self,
        head: &Network<B>,
        hidden: Tensor<B, 2>,
        start: usize,
        device: &B::Device,
    ) -> Result<Option<Tensor<B, 1>>> {
        let range = start..start + hidden.dims()[0];
        let misfit = |width: usize| {
            CompressError::Input(format!(
                "the task's labels do not fit the model's {width}; give the model that was tuned on the task"
            ))
        };
        match self {
            Self::Next(next) => {
                let part = &next[range];
                if part.iter().all(|(_, weight)| *weight == 0.0) {
                    return Ok(None);
                }
                let (ids, weights): (Vec<i32>, Vec<f32>) =
                    part.iter().map(|&(id, weight)| (id as i32, weight)).unzip();
                let weights = Tensor::<B, 1>::from_data(weights.as_slice(), device);
                head.nll_sum(hidden, int_tensor(ids, device), weights).map(Some)
            }
            Self::Scores(scores) => {
                let logits = head.finish(hidden, &AdapterSet::empty());
                let [rows, width] = logits.dims();
                let scores = scores.get(range).filter(|_| width == 1).ok_or_else(|| misfit(width))?;
                Ok(Some(squared_error(logits, scores, device) * rows as f64))
            }
            Self::Classes(classes) => {
                let logits = head.finish(hidden, &AdapterSet::empty());
                let [rows, width] = logits.dims();
                let fits = |classes: &&[u32]| classes.iter().all(|&class| (class as usize) < width);
                let classes = classes.get(range).filter(fits).ok_or_else(|| misfit(width))?;
                Ok(Some(cross_entropy(logits, classes, device) * rows as f64))
            }
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests;
