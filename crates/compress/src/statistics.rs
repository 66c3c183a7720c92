//! Calibration statistics of a weight's inputs and outputs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_factor::Mat;
use lowrank_spec::names::{expert_of, path_of_old_files};

/// Sums over vectors `x`: the calibration inputs of one or several linear maps, or the gradients of their outputs.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    /// `Σ x·xᵀ`, shape `[d, d]`.
    pub gram: Mat<f64>,
    /// `Σ |x|`, length `d`.
    pub magnitude: Vec<f64>,
    /// Number of vectors.
    pub rows: u64,
}

/// Inputs of a linear map, and gradients of the loss with respect to its outputs, over the same tokens.
#[derive(Clone, Debug)]
pub struct SidedStatistics {
    /// Width `d_input`.
    pub inputs: Arc<InputStatistics>,
    /// Width `d_output`; the loss is the sum over tokens.
    pub outputs: Arc<InputStatistics>,
}

/// The weighting of one weight's error.
#[derive(Clone, Debug, Default)]
pub enum Weighting {
    /// None: the plain Frobenius norm.
    #[default]
    None,
    /// The inputs: `Σ ‖ΔW·x‖²`.
    Inputs(Arc<InputStatistics>),
    /// A nonnegative factor for each input channel.
    Channels(Vec<f32>),
    /// Inputs and gradients of outputs: `Σ gᵀ·ΔW·x` in its second moments.
    Both {
        /// The sums from which the factors are computed.
        sums: SidedStatistics,
        /// Sums over held-out texts, on which the shrinkage is chosen.
        held_out: Option<SidedStatistics>,
        /// Fraction of all tokens that reach the map: 1 except for experts.
        share: f64,
    },
}

/// Weightings by module path.
pub type Weightings = HashMap<String, Weighting>;

/// Maps of experts that no token of the calibration text reached.
#[derive(Debug, Default)]
pub(crate) struct Unreached(Mutex<BTreeSet<String>>);

impl Unreached {
    /// Records that calibration has no statistics for a map, if it belongs to an expert.
    pub(crate) fn note(&self, path: &str) {
        if expert_of(path).is_some() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_string());
        }
    }

    /// Their paths, sorted.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Finds a module's weighting, whichever of the two names has the model's prefix (`bert.`, `model.`), or an older one.
pub(crate) fn lookup(weightings: &Weightings, path: &str) -> Weighting {
    let bare = path.split_once('.').map(|(_, rest)| rest);
    let found = weightings.get(path).or_else(|| bare.and_then(|rest| weightings.get(rest))).or_else(|| {
        let is_same = |key: &&String| key.split_once('.').is_some_and(|(_, rest)| rest == path);
        weightings.keys().find(is_same).and_then(|key| weightings.get(key))
    });
    let found = found.or_else(|| weightings.get(&path_of_old_files(path)?));
    found.cloned().unwrap_or_default()
}
