//! The result of a compression.

use serde::Serialize;

/// Before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    /// In the input.
    pub before: u64,
    /// In the output.
    pub after: u64,
    /// The fraction removed, `1 − after / before`.
    pub ratio: f64,
}

impl Change {
    pub(crate) fn new(before: u64, after: u64) -> Self {
        let ratio = if before == 0 { 0.0 } else { 1.0 - after as f64 / before as f64 };
        Self { before, after, ratio }
    }
}

/// One module of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleReport {
    /// As named in the checkpoint.
    pub module: String,
    /// `dense`, `low_rank`, `sum` or `tensor_train`.
    pub kind: &'static str,
    /// The inner ranks.
    pub ranks: Vec<usize>,
    /// Block format of the matrix, or of the factors without one; `None` for floats.
    pub format: Option<&'static str>,
    /// Parameters of the weight; a shared factor counts at its owner.
    pub parameters: Change,
    /// Relative error in the norm of the method; joint for weights that share factors.
    pub error: f64,
}

/// The result of a compression.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the method.
    pub method: &'static str,
    /// Parameters of the selected weights.
    pub layers: Change,
    /// Parameters of the whole model.
    pub model: Change,
    /// Bytes of the weight files.
    pub file: Change,
    /// The selected weights.
    pub modules: Vec<ModuleReport>,
    /// Weights that stay dense floats: factors or blocks would not be smaller, or were not chosen.
    pub dense: usize,
    /// Weights that are not in the given block format, and why: one line per reason and format.
    pub instead: Vec<String>,
    /// Maps of experts that no token of the calibration text reached: they are factored or quantized
    /// unweighted.
    pub unreached: Vec<String>,
}
