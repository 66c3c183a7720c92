//! What calibration knows of a weight's inputs and outputs.

use std::collections::HashMap;
use std::sync::Arc;

use lowrank_factor::Mat;

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

/// What weighs the error of one weight.
#[derive(Clone, Debug, Default)]
pub enum Weighting {
    /// Nothing: the plain Frobenius norm.
    #[default]
    None,
    /// The inputs themselves: `Σ ‖ΔW·x‖²`.
    Inputs(Arc<InputStatistics>),
    /// A factor for each input channel, at least zero.
    Channels(Vec<f32>),
    /// Inputs and gradients of outputs: `Σ gᵀ·ΔW·x` in its second moments.
    Both {
        /// What the factors are made from.
        sums: SidedStatistics,
        /// Sums over texts that are held out, on which the shrinkage is chosen.
        held_out: Option<SidedStatistics>,
    },
}

/// Weightings by module path.
pub type Weightings = HashMap<String, Weighting>;

/// Finds a module's weighting, whichever of the two has the model's prefix (`bert.`, `model.`).
pub(crate) fn lookup(weightings: &Weightings, path: &str) -> Weighting {
    let bare = path.split_once('.').map(|(_, rest)| rest);
    let found = weightings.get(path).or_else(|| bare.and_then(|rest| weightings.get(rest))).or_else(|| {
        let is_same = |key: &&String| key.split_once('.').is_some_and(|(_, rest)| rest == path);
        weightings.keys().find(is_same).and_then(|key| weightings.get(key))
    });
    found.cloned().unwrap_or_default()
}
