//! One pass over all units: in parallel within the cap on memory, layer by layer with a calibrator.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::fit;
use crate::options::Calibrator;
use crate::parallel;
use crate::plan::Plan;
use crate::statistics::{Weighting, Weightings, lookup};
use crate::unit::Unit;
use crate::weights::Weight;

/// Called after each group of units and before the next: the layer, indices and results of its units.
pub(crate) type After<'a, T> =
    dyn FnMut(Option<usize>, &[usize], &[T], &mut dyn Calibrator) -> Result<()> + 'a;

/// Runs `work` on every unit and returns the results in the order of the units.
///
/// With a calibrator the layers are processed in its order; units outside the layers come last, or first if
/// the order is descending.
///
/// # Errors
/// [`CompressError::Option`](crate::CompressError::Option) if the largest unit exceeds the cap, the first error of the calibrator or of
/// `work`.
pub(crate) fn each_unit<T: Send>(
    plan: &Plan<'_>,
    calibrator: &mut Option<&mut dyn Calibrator>,
    work: impl Fn(usize, &[Weighting]) -> Result<T> + Sync,
    after: &mut After<'_, T>,
) -> Result<Vec<T>> {
    let units = &plan.units;
    let is_weighted = calibrator.is_some();
    let need = |index: usize| fit::bytes(&plan.rules, &units[index], is_weighted);
    let cap = plan.options.memory;
    let all: Vec<usize> = (0..units.len()).collect();
    parallel::check_cap(&all, cap, need, |index| units[index].name())?;
    let Some(calibrator) = calibrator else {
        return parallel::map(&all, cap, need, |index| {
            work(index, &vec![Weighting::None; units[index].weights.len()])
        });
    };
    let mut results: Vec<(usize, T)> = Vec::with_capacity(units.len());
    for (layer, indices) in by_layer(units.iter().map(Unit::layer), calibrator.is_descending()) {
        let weightings: Weightings = match layer {
            Some(layer) => calibrator.weightings(layer)?,
            None => calibrator.outside()?,
        };
        let made = parallel::map(&indices, cap, need, |index| {
            let of = |weight: &Weight| lookup(&weightings, &weight.site.path);
            let own: Vec<Weighting> = units[index].weights.iter().map(of).collect();
            for (weight, _) in
                units[index].weights.iter().zip(&own).filter(|(_, own)| matches!(own, Weighting::None))
            {
                plan.unreached.note(&weight.site.path);
            }
            work(index, &own)
        })?;
        drop(weightings);
        after(layer, &indices, &made, &mut **calibrator)?;
        results.extend(indices.into_iter().zip(made));
    }
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Indices grouped by layer, in the order in which layers are run: those outside the layers come last, or
/// first if the order is descending.
pub(crate) fn by_layer(
    layers: impl Iterator<Item = Option<usize>>,
    is_descending: bool,
) -> Vec<(Option<usize>, Vec<usize>)> {
    let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for (index, layer) in layers.enumerate() {
        groups.entry(layer).or_default().push(index);
    }
    let outside = groups.remove_entry(&None);
    let mut order: Vec<_> = groups.into_iter().chain(outside).collect();
    if is_descending {
        order.reverse();
    }
    order
}
