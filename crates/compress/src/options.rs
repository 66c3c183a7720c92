//! What a compression is told, and what it tells.

use std::collections::BTreeMap;

use lowrank_checkpoint::FloatType;
use lowrank_spec::{BlockFormat, Representation, Targets};
use xxhash_rust::xxh3::Xxh3Default;

use crate::amount::{Allocation, Amount};
use crate::error::Result;
use crate::method::{Method, Sides};
use crate::statistics::{InputStatistics, Weighting, Weightings};

/// What to do.
///
/// | Name | Default | Purpose |
/// |---|---|---|
/// | `method`, `amount` | – | how, and how much |
/// | `allocation` | budget | how ranks are shared out under a ratio |
/// | `targets` | every linear map inside the layers | which weights |
/// | `dtype` | that of each tensor | element type of the output |
/// | `memory` | no cap | bytes that layers factored at the same time may take together |
/// | `resume` | no | go on with an interrupted job of the same options |
/// | `sides`, `tt_order` | best, 2 | forms of `shared` and `tt` |
/// | `format` | floats | block format of weights (`quant`, `quant+lowrank`) or of factors |
/// | `always_factor` | no | factor even where it makes a weight no smaller |
#[derive(Clone, Debug)]
pub struct Options {
    /// Compression method.
    pub method: Method,
    /// Target size.
    pub amount: Amount,
    /// How ranks are shared out.
    pub allocation: Allocation,
    /// Which weights.
    pub targets: Option<Targets>,
    /// Element type of the output.
    pub dtype: Option<FloatType>,
    /// Cap on memory, in bytes.
    pub memory: Option<u64>,
    /// Go on with an interrupted job.
    pub resume: bool,
    /// What the layers of a kind share.
    pub sides: Sides,
    /// Number of cores of a tensor train.
    pub tt_order: usize,
    /// Factor even where it does not pay.
    pub always_factor: bool,
    /// Block format of weights or factors.
    pub format: Option<BlockFormat>,
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
        }
    }
}

/// Gives the weights of each layer their weightings, layer after layer.
pub trait Calibrator {
    /// Called before the first layer of each pass: whatever takes long and must precede it.
    ///
    /// # Errors
    /// Whatever running the model meets.
    fn prepare(&mut self, _progress: &dyn Progress) -> Result<()> {
        Ok(())
    }

    /// Whether layers are to be asked for from the last to the first.
    fn is_descending(&self) -> bool {
        false
    }

    /// The weightings of the modules outside the numbered layers, asked for after the last layer (before it where the
    /// order descends).
    ///
    /// # Errors
    /// Whatever running the model meets.
    fn outside(&mut self) -> Result<Weightings> {
        Ok(Weightings::new())
    }

    /// The weightings of a layer's modules. Layers are asked for in ascending order, and layer 0 starts anew; or in
    /// descending order.
    ///
    /// # Errors
    /// Whatever running the model meets.
    fn weightings(&mut self, layer: usize) -> Result<Weightings>;

    /// What one module of the layer that was asked for last, in the form it would be written, does to that layer's
    /// output: the mean over tokens of `‖Δh‖²/‖h‖²`. `None` where that cannot be known.
    ///
    /// # Errors
    /// Whatever running the model meets.
    fn effect(&mut self, _layer: usize, _module: CompressedModule) -> Result<Option<f64>> {
        Ok(None)
    }

    /// What the weightings depend on beside the model: a job is resumed only under the same.
    fn identity(&self) -> String;

    /// Whether [`Calibrator::compressed`] is to be told of each layer before the next.
    fn is_sequential(&self) -> bool {
        false
    }

    /// The layer's modules as they will be written: later layers see their outputs.
    ///
    /// # Errors
    /// Whatever running the model meets.
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

/// Weightings that were all gathered before.
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

/// A factored module on its way to the file.
#[derive(Clone, Debug)]
pub struct CompressedModule {
    /// As the checkpoint names it.
    pub module: String,
    /// How it is stored.
    pub representation: Representation,
    /// Its tensors: what follows the module's path, shape, elements.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

/// Told of what happens.
pub trait Progress: Sync {
    /// A stage of `units` units of work begins.
    fn stage(&self, _name: &str, _units: u64) {}
    /// A unit of work is done: a module with its relative error, where it has one.
    fn done(&self, _module: &str, _error: Option<f64>, _units: u64) {}
}

impl Progress for () {}
