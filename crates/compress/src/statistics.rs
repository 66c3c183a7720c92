//! What calibration knows of a weight's inputs.

use std::collections::HashMap;
use std::sync::Arc;

use lowrank_factor::Mat;

/// Sums over the calibration inputs `x` of one or several linear maps.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    /// `Σ x·xᵀ`, shape `[d_input, d_input]`.
    pub gram: Mat<f64>,
    /// `Σ |x|`, length `d_input`.
    pub magnitude: Vec<f64>,
    /// Number of inputs.
    pub rows: u64,
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
