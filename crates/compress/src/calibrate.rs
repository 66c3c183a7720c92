//! Calibration: a model run layer by layer over sample texts, its inputs summed at every linear map.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::Observer;
use lowrank_checkpoint::Checkpoint;
use lowrank_factor::Mat;
use lowrank_factor::matrix::from_row_major;
use lowrank_kernels::Kernels;
use lowrank_models::TokenBatch;
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::{CompressError, Result};
use crate::network::{Config, Network, Part, Tokens};
use crate::options::{Calibrator, CompressedModule};
use crate::statistics::{InputStatistics, Weighting, Weightings};

/// Runs a model folder over packed texts, one layer in memory at a time.
pub struct ModelCalibrator<B: Kernels> {
    config: Config,
    checkpoint: Checkpoint,
    batches: Vec<Tokens>,
    /// Hidden states of every batch before the next layer, with what layers need to know.
    states: Vec<(Tensor<B, 2>, TokenBatch<B>)>,
    /// Weightings that stand in for the sums of inputs.
    given: Option<Weightings>,
    /// The latest layer's inputs and outputs, of as many batches as effects are measured on.
    probe: Vec<[Tensor<B, 2>; 2]>,
    next: usize,
    is_sequential: bool,
    device: B::Device,
}

/// Tokens on which the effect of a module is measured, at least.
const PROBE_TOKENS: usize = 2048;

impl<B: Kernels> ModelCalibrator<B> {
    /// For a model folder; `is_sequential` lets later layers see the outputs of earlier ones as compressed.
    ///
    /// # Errors
    /// A folder that holds no model of a known architecture, no texts, tokens that the model does not take.
    pub fn new(folder: &Path, batches: Vec<Tokens>, is_sequential: bool, device: B::Device) -> Result<Self> {
        if batches.iter().all(|batch| batch.ids.is_empty()) {
            return Err(CompressError::Input(
                "the calibration text is empty; give some lines of text".into(),
            ));
        }
        let config = Config::read(folder)?;
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
            device,
        })
    }

    /// With weightings that were gathered otherwise, as by [`fisher`](crate::fisher); the texts then serve the effects
    /// alone.
    pub fn weighted_by(mut self, weightings: Weightings) -> Self {
        self.given = Some(weightings);
        self
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.ids.len()).sum()
    }

    /// Numbers of a hidden state, the narrowest input that is summed.
    pub fn width(&self) -> usize {
        self.config.hidden_size()
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

    /// Moves every batch through a layer.
    fn advance(&mut self, network: &Network<B>, layer: usize, adapters: &AdapterSet<B>) {
        for (x, context) in &mut self.states {
            *x = network.layer(layer, x.clone(), context, adapters);
        }
        self.next = layer + 1;
    }

    /// Sums the inputs of a layer's maps, and moves on unless the compressed layer is to do that.
    fn observe(&mut self, layer: usize) -> Result<Weightings> {
        let network = self.part(layer, &[])?;
        let sums = Arc::new(Sums::default());
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
}

impl<B: Kernels> Calibrator for ModelCalibrator<B> {
    fn weightings(&mut self, layer: usize) -> Result<Weightings> {
        if layer == 0 || self.states.is_empty() || layer < self.next {
            self.restart()?;
        }
        // Layers of which nothing is touched.
        while self.next < layer {
            let network = self.part(self.next, &[])?;
            self.advance(&network, self.next, &AdapterSet::empty());
        }
        self.observe(layer)
    }

    fn effect(&mut self, layer: usize, module: CompressedModule) -> Result<Option<f64>> {
        let network = self.part(layer, &[module])?;
        let (mut sum, mut rows) = (0.0, 0);
        for ([before, after], (_, context)) in self.probe.iter().zip(&self.states) {
            let changed = network.layer(layer, before.clone(), context, &AdapterSet::empty());
            let squared = |x: Tensor<B, 2>| x.powf_scalar(2.0).sum_dim(1);
            let ratio =
                squared(changed - after.clone()) / squared(after.clone()).clamp_min(f32::MIN_POSITIVE);
            rows += ratio.dims()[0];
            sum += f64::from(ratio.sum().into_scalar().elem::<f32>());
        }
        Ok((rows > 0).then(|| sum / rows as f64))
    }

    fn identity(&self) -> String {
        let mut hash = Xxh3Default::new();
        for batch in &self.batches {
            hash.update(&(batch.lengths.len() as u64).to_le_bytes());
            batch.lengths.iter().for_each(|n| hash.update(&(*n as u64).to_le_bytes()));
            batch.ids.iter().chain(&batch.type_ids).for_each(|id| hash.update(&id.to_le_bytes()));
        }
        let given = self.given.as_ref().map(|given| format!(", {}", given.identity())).unwrap_or_default();
        format!("texts {:032x}, sequential {}{given}", hash.digest128(), self.is_sequential)
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

/// Rows that are multiplied in `f32` before they are added up in `f64`.
const ROWS: usize = 256;

/// The sums of one input, which several maps may share.
#[derive(Debug)]
struct Sum {
    width: usize,
    /// Lower triangle of `Σ x·xᵀ`, row-major.
    gram: Vec<f64>,
    magnitude: Vec<f64>,
    rows: u64,
    /// The latest rows of the first map, by which the others are known to have the same input.
    latest: Vec<f32>,
}

impl Sum {
    fn new(width: usize) -> Self {
        let (gram, magnitude) = (vec![0.0; width * width], vec![0.0; width]);
        Self { width, gram, magnitude, rows: 0, latest: Vec::new() }
    }

    fn add(&mut self, values: Vec<f32>) {
        let width = self.width;
        for chunk in values.chunks(ROWS * width) {
            if let Ok(x) = from_row_major(chunk, chunk.len() / width, width) {
                let product = lowrank_factor::matrix::gram(x); // lower triangle
                for i in 0..width {
                    for j in 0..=i {
                        self.gram[i * width + j] += f64::from(product[(i, j)]);
                    }
                }
            }
            for row in chunk.chunks_exact(width) {
                for (sum, x) in self.magnitude.iter_mut().zip(row) {
                    *sum += f64::from(x.abs());
                }
            }
        }
        self.rows += (values.len() / width) as u64;
        self.latest = values;
    }

    fn finish(self) -> InputStatistics {
        let width = self.width;
        let at = |i: usize, j: usize| self.gram[i.max(j) * width + i.min(j)];
        InputStatistics { gram: Mat::from_fn(width, width, at), magnitude: self.magnitude, rows: self.rows }
    }
}

/// Sums by site; sites that are given the same values share them.
#[derive(Debug, Default)]
struct Sums(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sums: Vec<Sum>,
    /// By site: the sum it adds to, and whether it is the one that does.
    by_site: HashMap<usize, (usize, bool)>,
}

impl Observer for Sums {
    fn input(&self, site: usize, [_, width]: [usize; 2], values: &dyn Fn() -> Vec<f32>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(index, is_first)) = state.by_site.get(&site) {
            if is_first {
                state.sums[index].add(values());
            }
            return;
        }
        let values = values();
        let known = state.sums.iter().position(|sum| sum.width == width && sum.latest == values);
        if let Some(index) = known {
            state.by_site.insert(site, (index, false));
            return;
        }
        let mut sum = Sum::new(width);
        sum.add(values);
        state.sums.push(sum);
        let index = state.sums.len() - 1;
        state.by_site.insert(site, (index, true));
    }
}

impl Sums {
    /// Takes the sums out, by module path.
    fn weightings(&self, path: impl Fn(usize) -> String) -> Result<Weightings> {
        let State { sums, by_site } =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (&site, &(index, is_first)) in &by_site {
            if is_first && !sums[index].magnitude.iter().all(|sum| sum.is_finite()) {
                return Err(CompressError::Input(format!(
                    "'{}' is given values that are not finite in calibration; is a weight before it broken?",
                    path(site)
                )));
            }
        }
        let done: Vec<Arc<InputStatistics>> = sums.into_iter().map(|sum| Arc::new(sum.finish())).collect();
        let entry =
            |(site, (index, _)): (usize, (usize, bool))| (path(site), Weighting::Inputs(done[index].clone()));
        Ok(by_site.into_iter().map(entry).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_of_one_input_share_its_sums() {
        let sums = Sums::default();
        for batch in 0..2 {
            let x = vec![1.0, 2.0, 3.0, 4.0 + batch as f32];
            let y = vec![5.0, 6.0];
            sums.input(0, [2, 2], &|| x.clone());
            sums.input(1, [2, 2], &|| x.clone());
            sums.input(2, [1, 2], &|| y.clone());
        }
        let weightings = sums.weightings(|site| site.to_string()).unwrap();
        let of = |site: &str| match &weightings[site] {
            Weighting::Inputs(inputs) => inputs.clone(),
            other => panic!("{other:?}"),
        };
        assert!(Arc::ptr_eq(&of("0"), &of("1")) && !Arc::ptr_eq(&of("0"), &of("2")));
        let (x, y) = (of("0"), of("2"));
        assert_eq!((x.rows, y.rows), (4, 2));
        assert_eq!(x.gram, Mat::from_fn(2, 2, |i, j| [[20.0, 31.0], [31.0, 49.0]][i][j]));
        assert_eq!(y.gram, Mat::from_fn(2, 2, |i, j| [[50.0, 60.0], [60.0, 72.0]][i][j]));
        assert_eq!(x.magnitude, [8.0, 13.0]);
    }
}
