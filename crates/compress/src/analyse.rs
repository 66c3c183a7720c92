//! The first pass over the weights: the losses of every unit by rank.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::allocate;
use crate::error::Result;
use crate::fit::{self, Analysis};
use crate::options::{Calibrator, Progress};
use crate::pass::each_unit;
use crate::plan::Plan;
use crate::scratch::Scratch;
use crate::statistics::Weighting;
use crate::unit::{Choice, Unit};
use crate::write::modules;
use lowrank_spec::names::expert_of;

/// Number of layers that reuse a shrinkage: it changes slowly, and choosing it costs several decompositions.
const SHRINKAGE_LAYERS: usize = 8;

/// Analyses every unit; the subspaces are stored in the scratch folder.
///
/// # Errors
/// Errors of reading weights, decomposing them and running the model.
pub(crate) fn analyse(
    plan: &Plan<'_>,
    scratch: &Scratch,
    calibrator: &mut Option<&mut dyn Calibrator>,
    progress: &dyn Progress,
) -> Result<Vec<Analysis>> {
    let is_complete = (0..plan.units.len()).all(|index| scratch.has(index));
    if let Some(calibrator) = calibrator.as_mut().filter(|_| !is_complete) {
        calibrator.prepare(progress)?;
    }
    // A job interrupted after its analysis need not run the model again, unless effects are measured.
    let mut none = None;
    let calibrator = if is_complete && !plan.measures_effects() { &mut none } else { calibrator };
    progress.stage("spectra", plan.units.iter().map(Unit::numel).sum());
    let shrinkages = Shrinkages::default();
    let work = |index: usize, weightings: &[Weighting]| {
        let unit = &plan.units[index];
        let analysis = match scratch.load(index, unit, &plan.rules)? {
            Some(analysis) => {
                // In a resumed job, too: the error of an expert that was not reached has no weighting.
                let kept = scratch.kept(index, unit)?;
                if plan.weighs_inputs() && kept.is_some_and(|kept| kept.inputs.is_empty()) {
                    plan.unreached.note(&unit.weights[0].site.path);
                }
                analysis
            }
            None => {
                let known = shrinkages.of(unit);
                let mut analysis = fit::analyse(&plan.rules, unit, &plan.read(unit)?, weightings, known)?;
                scratch.save(index, unit, &analysis)?;
                analysis.forget_vectors();
                analysis
            }
        };
        shrinkages.note(unit, analysis.shrinkage);
        progress.done(&unit.name(), None, unit.numel());
        Ok(analysis)
    };
    let mut effects = vec![None; plan.units.len()];
    let mut after =
        |layer: Option<usize>, indices: &[usize], made: &[Analysis], calibrator: &mut dyn Calibrator| {
            let Some(layer) = layer.filter(|_| plan.measures_effects()) else { return Ok(()) };
            for (&index, analysis) in indices.iter().zip(made) {
                effects[index] = effect(plan, scratch, index, layer, analysis, calibrator)?;
            }
            Ok(())
        };
    let mut analyses = each_unit(plan, calibrator, work, &mut after)?;
    let unreached = plan.unreached.paths();
    for ((unit, analysis), effect) in plan.units.iter().zip(&mut analyses).zip(effects) {
        let path = &unit.weights[0].site.path;
        // An expert that the calibration text never reached is not worthless: it gets the uniform share.
        if plan.shares_out() && expert_of(path).is_some() && (unreached.contains(path) || effect == Some(0.0))
        {
            plan.unreached.note(path);
            analysis.pin(allocate::low_rank_at_share(unit, plan.rules.share, false));
        }
        analysis.importance = effect.unwrap_or(analysis.importance);
    }
    Ok(analyses)
}

/// The effect of a unit's loss of 1 on its layer's output, measured at the rank of a uniform ratio, near the
/// rank that the budget will choose.
fn effect(
    plan: &Plan<'_>,
    scratch: &Scratch,
    index: usize,
    layer: usize,
    analysis: &Analysis,
    calibrator: &mut dyn Calibrator,
) -> Result<Option<f64>> {
    let unit = &plan.units[index];
    let choice = allocate::low_rank_at_share(unit, plan.rules.share, true);
    let (Some(kept), Choice::Rank(form, rank)) = (scratch.kept(index, unit)?, choice) else {
        return Ok(None);
    };
    // A share of nearly all has a rank that no budget would choose.
    let rank = rank.min(kept.subspace.basis().ncols());
    let choice = Choice::Rank(form, rank);
    let loss: f64 = kept.subspace.squared()[rank..].iter().sum();
    // A loss of the size of rounding errors carries no information.
    if loss <= f64::from(f32::EPSILON) * analysis.total {
        return Ok(None);
    }
    let fitted = fit::factor(&plan.rules, unit, &plan.read(unit)?, &choice, Some(&kept), &[Weighting::None])?;
    let effect = calibrator.effect(layer, modules(unit, &choice, &fitted.factors).remove(0))?;
    Ok(effect.map(|effect| effect / loss).filter(|importance| importance.is_finite()))
}

/// The most recent shrinkage for each kind of weight. Layers follow each other, and a layer has one weight of
/// a kind, so the order of threads does not matter.
#[derive(Default)]
struct Shrinkages(Mutex<BTreeMap<String, (usize, f64)>>);

impl Shrinkages {
    /// The shrinkage that a unit reuses, if it was chosen near enough.
    fn of(&self, unit: &Unit) -> Option<f64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (layer, shrinkage) = known.get(&unit.kind()).copied()?;
        (unit.layer()?.abs_diff(layer) < SHRINKAGE_LAYERS).then_some(shrinkage)
    }

    /// Stores the shrinkage chosen for a unit that did not reuse one.
    fn note(&self, unit: &Unit, shrinkage: Option<f64>) {
        let (Some(layer), Some(shrinkage), None) = (unit.layer(), shrinkage, self.of(unit)) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(unit.kind(), (layer, shrinkage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::{Amount, Of};
    use crate::method::Method;
    use crate::options::Options;
    use std::path::Path;

    #[test]
    fn an_analysis_that_was_kept_is_not_made_again() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        let options = Options::new(Method::Svd, Amount::Ratio { ratio: 0.3, of: Of::Layers });
        let plan = Plan::new(&model, &options).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(dir.path()).unwrap();
        let first = analyse(&plan, &scratch, &mut None, &()).unwrap();
        assert_eq!(first.len(), plan.units.len());
        assert!(first.iter().all(|a| a.kept.is_none()), "the vectors are in the scratch folder");
        let times = |dir: &Path| -> Vec<std::time::SystemTime> {
            let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
            files.sort();
            files.iter().map(|f| f.metadata().unwrap().modified().unwrap()).collect()
        };
        let before = times(dir.path());
        let second = analyse(&plan, &scratch, &mut None, &()).unwrap();
        assert_eq!(times(dir.path()), before);
        for (a, b) in first.iter().zip(&second) {
            assert_eq!((&a.curves, a.total, a.importance), (&b.curves, b.total, b.importance));
        }
    }
}
