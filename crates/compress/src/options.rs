//! Options, calibration and progress of a compression.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_checkpoint::FloatType;
use lowrank_spec::{BlockFormat, Representation, Targets};
use xxhash_rust::xxh3::Xxh3Default;

use crate::amount::{Allocation, Amount};
use crate::error::Result;
use crate::method::{Method, Sides};
use crate::products::Products;
use crate::statistics::{InputStatistics, Weighting, Weightings};

/// Options of a compression.
///
/// | Name | Default | Purpose |
/// |---|---|---|
/// | `method`, `amount` | – | method and amount |
/// | `allocation` | budget | distribution of ranks under a ratio |
/// | `targets` | every linear map inside the layers | the weights to compress |
/// | `dtype` | that of each tensor | element type of the output |
/// | `memory` | no cap | maximum total bytes of layers factored at the same time |
/// | `resume` | no | resume an interrupted job with the same options |
/// | `sides`, `tt_order` | best, 2 | forms of `shared` and `tt` |
/// | `format` | floats | block format of weights (`quant`, `quant+lowrank`) or of factors |
/// | `always_factor` | no | factor even if that does not make a weight smaller |
/// | `pivots` | no | store pairs of factors without the identity at their [pivots](lowrank_factor::pivoted) |
/// | `products` | on the host | place of the large products of decompositions whose ranks are known beforehand |
#[derive(Clone, Debug)]
pub struct Options {
    /// Compression method.
    pub method: Method,
    /// Target size.
    pub amount: Amount,
    /// Distribution of ranks.
    pub allocation: Allocation,
    /// The weights to compress.
    pub targets: Option<Targets>,
    /// Element type of the output.
    pub dtype: Option<FloatType>,
    /// Cap on memory, in bytes.
    pub memory: Option<u64>,
    /// Resume an interrupted job.
    pub resume: bool,
    /// The sides that the layers of a kind share.
    pub sides: Sides,
    /// Number of cores of a tensor train.
    pub tt_order: usize,
    /// Factor even if it saves no parameters.
    pub always_factor: bool,
    /// Block format of weights or factors.
    pub format: Option<BlockFormat>,
    /// Store pairs of factors with pivots: `r²` parameters less.
    pub pivots: bool,
    /// Place of the large products of decompositions: a small rank of an unweighted factorization that is known
    /// beforehand is then sampled, and its error is that of [`svd::randomized`](lowrank_factor::svd::randomized). Without one the decomposition is exact.
    pub products: Option<Arc<dyn Products>>,
}

impl Options {
    /// The defaults for a method and an amount.
    pub fn new(method: Method, amount: Amount) -> Self {
        Self {
            method,
            amount,
            allocation: Allocation::Budget,
            targets: None,
            dtype: None,
            memory: None,
            resume: false,
            sides: Sides::Best,
            tt_order: 2,
            always_factor: false,
            format: None,
            pivots: false,
            products: None,
        }
    }
}

/// Provides the weightings of the weights, layer by layer. Layers are numbered in the order in which they are run: those of a
/// decoder come after those of its encoder.
pub trait Calibrator {
    /// Called before the first layer of each pass, for long work that must precede it.
    ///
    /// # Errors
    /// Errors of running the model.
    fn prepare(&mut self, _progress: &dyn Progress) -> Result<()> {
        Ok(())
    }

    /// Whether layers are requested from last to first.
    fn is_descending(&self) -> bool {
        false
    }

    /// The weightings of the modules outside the numbered layers, requested after the last layer (before it
    /// if the order is descending).
    ///
    /// # Errors
    /// Errors of running the model.
    fn outside(&mut self) -> Result<Weightings> {
        Ok(Weightings::new())
    }

    /// The weightings of a layer's modules. Layers are requested in ascending order, and layer 0 starts a new
    /// pass; or in descending order.
    ///
    /// # Errors
    /// Errors of running the model.
    fn weightings(&mut self, layer: usize) -> Result<Weightings>;

    /// The effect of one module of the most recently requested layer, in the form in which it would be
    /// written, on that layer's output: the mean over tokens of `‖Δh‖²/‖h‖²`. `None` if it cannot be
    /// determined.
    ///
    /// # Errors
    /// Errors of running the model.
    fn effect(&mut self, _layer: usize, _module: CompressedModule) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Identity of everything but the model that the weightings depend on: a job is resumed only if it is the
    /// same.
    fn identity(&self) -> String;

    /// Whether [`Calibrator::compressed`] must be called for each layer before the next.
    fn is_sequential(&self) -> bool {
        false
    }

    /// Receives the layer's modules as they will be written: later layers see their outputs.
    ///
    /// # Errors
    /// Errors of running the model.
    fn compressed(&mut self, _layer: usize, _modules: &[CompressedModule]) -> Result<()> {
        Ok(())
    }
}

fn add(hash: &mut Xxh3Default, statistics: &InputStatistics) {
    let gram = statistics.gram.col_iter().flat_map(|column| column.iter());
    for value in gram.chain(&statistics.magnitude) {
        hash.update(&value.to_le_bytes());
    }
}

/// Weightings that were all computed in advance.
impl Calibrator for Weightings {
    fn outside(&mut self) -> Result<Weightings> {
        Ok(self.clone())
    }

    fn weightings(&mut self, _layer: usize) -> Result<Weightings> {
        Ok(self.clone())
    }

    fn identity(&self) -> String {
        let mut hash = Xxh3Default::new();
        let sorted: BTreeMap<_, _> = self.iter().collect();
        for (module, weighting) in sorted {
            hash.update(module.as_bytes());
            match weighting {
                Weighting::None => hash.update(&[0]),
                Weighting::Inputs(inputs) => {
                    hash.update(&[1]);
                    add(&mut hash, inputs);
                }
                Weighting::Both { sums, held_out, share } => {
                    hash.update(&share.to_le_bytes());
                    hash.update(&[3, u8::from(held_out.is_some())]);
                    for sums in std::iter::once(sums).chain(held_out) {
                        add(&mut hash, &sums.inputs);
                        add(&mut hash, &sums.outputs);
                    }
                }
                Weighting::Channels(factors) => {
                    hash.update(&[2]);
                    factors.iter().for_each(|factor| hash.update(&factor.to_le_bytes()));
                }
            }
        }
        format!("weightings {:032x}", hash.digest128())
    }
}

/// A factored module before it is written.
#[derive(Clone, Debug)]
pub struct CompressedModule {
    /// As named in the checkpoint.
    pub module: String,
    /// Its storage.
    pub representation: Representation,
    /// Its tensors: suffix after the module's path, shape, elements.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

/// Receives progress events.
pub trait Progress: Sync {
    /// A stage of `units` units of work begins.
    fn stage(&self, _name: &str, _units: u64) {}
    /// A unit of work is done: a module with its relative error, if it has one.
    fn done(&self, _module: &str, _error: Option<f64>, _units: u64) {}
}

impl Progress for () {}
