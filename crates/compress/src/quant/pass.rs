//! One pass over all weights, layer by layer with a calibrator.

use std::collections::HashMap;

use super::errors::{ErrorWeights, Grams};
use super::plan::QuantPlan;
use crate::error::Result;
use crate::options::{Calibrator, Progress};
use crate::parallel;
use crate::pass::by_layer;
use crate::statistics::{Weighting, Weightings, lookup};

/// Runs `work` on every weight and returns the results in the order of the weights. `need` has the bytes that it takes, with
/// a Gram matrix of the inputs and without.
///
/// # Errors
/// [`CompressError::Option`](crate::CompressError::Option) if a weight needs more memory than there may be, the first error of
/// the calibrator or of `work`.
pub(crate) fn each<T: Send>(
    plan: &QuantPlan<'_>,
    calibrator: &mut Option<&mut dyn Calibrator>,
    stage: &str,
    progress: &dyn Progress,
    need: impl Fn(usize, bool) -> u64 + Sync,
    work: impl Fn(usize, &ErrorWeights) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (cap, is_calibrated) = (plan.options.memory, calibrator.is_some());
    let all: Vec<usize> = (0..plan.weights.len()).collect();
    // Before the model is run, which may take hours. Tables have no inputs.
    let most = |index: usize| need(index, is_calibrated && !plan.weights[index].site.embedding);
    parallel::check_cap(&all, cap, most, |index| plan.weights[index].site.path.clone())?;
    if let Some(calibrator) = calibrator.as_mut() {
        calibrator.prepare(progress)?;
    }
    progress.stage(stage, plan.weights.iter().map(|w| w.numel() as u64).sum());
    let mut results: Vec<(usize, T)> = Vec::with_capacity(plan.weights.len());
    let is_descending = calibrator.as_ref().is_some_and(|calibrator| calibrator.is_descending());
    for (layer, indices) in by_layer(plan.weights.iter().map(|weight| weight.step), is_descending) {
        let weightings: Weightings = match (calibrator.as_mut(), layer) {
            (None, _) => Weightings::new(),
            (Some(calibrator), Some(layer)) => calibrator.weightings(layer)?,
            (Some(calibrator), None) => calibrator.outside()?,
        };
        let mut grams = Grams::default();
        let of = |index: &usize| {
            let weight = &plan.weights[*index];
            let weighting = match lookup(&weightings, &weight.site.path) {
                // Token frequencies say nothing about a tied table's use as a head.
                Weighting::Channels(_) if plan.is_tied && weight.site.embedding => Weighting::None,
                other => other,
            };
            if is_calibrated && matches!(weighting, Weighting::None) {
                plan.unreached.note(&weight.site.path);
            }
            (*index, ErrorWeights::new(weight, &weighting, &mut grams))
        };
        let weights: HashMap<usize, ErrorWeights> = indices.iter().map(of).collect();
        let need = |index: usize| need(index, weights[&index].gram.is_some());
        let made = parallel::map(&indices, cap, need, |index| {
            let weight = &plan.weights[index];
            let made = work(index, &weights[&index])?;
            progress.done(&weight.site.path, None, weight.numel() as u64);
            Ok(made)
        })?;
        results.extend(indices.into_iter().zip(made));
    }
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
