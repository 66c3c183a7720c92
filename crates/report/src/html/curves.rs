//! Curves of the runs: their evaluations, and the training loss of their event files.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use crate::{
    LogKey, Metric,
    files::natural_order,
    log_path,
    run::{LoadedRun, RunRecord},
    tfevents::{Logged, is_event_file, read_events},
};

/// Maximum number of points of a curve: more cannot be distinguished.
const PLACES: usize = 60;

/// Step and value, by step.
pub(super) type Curve = Vec<(f64, f64)>;

/// The metric of the runs' evaluations, averaged if several runs have a step.
pub(super) fn evaluations(runs: &[LoadedRun], metric: &Metric) -> Curve {
    let evaluations = runs.iter().flat_map(|run| &run.record.train_info.evals);
    mean_by_step(evaluations.filter_map(|evaluation| {
        let value = evaluation.metrics.get(metric.name()).copied().flatten()?;
        Some((evaluation.step as i64, value * metric.scale()))
    }))
}

/// The training loss of the runs, its mean over runs and over neighbouring steps. `root` is the folder of the
/// grid, whose log tree is `logs`.
pub(super) fn losses(root: &Path, runs: &[LoadedRun]) -> Curve {
    let points = runs.iter().flat_map(|run| training_loss(root, run));
    thin(mean_by_step(points))
}

fn mean_by_step(points: impl Iterator<Item = (i64, f64)>) -> Curve {
    let mut sums: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    for (step, value) in points.filter(|(_, value)| value.is_finite()) {
        let sum = sums.entry(step).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    sums.into_iter().map(|(step, (sum, count))| (step as f64, sum / count)).collect()
}

/// Averages neighbours, so that [`PLACES`] are left.
fn thin(curve: Curve) -> Curve {
    let group = curve.len().div_ceil(PLACES).max(1);
    let mean = |points: &[(f64, f64)]| {
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / points.len() as f64, sum.1 / points.len() as f64)
    };
    curve.chunks(group).map(mean).collect()
}

/// The values that a run logged as `train/loss`; empty if its events are not found. For a step that was
/// logged twice, because the run was resumed, the later value.
fn training_loss(root: &Path, run: &LoadedRun) -> BTreeMap<i64, f64> {
    let mut losses = BTreeMap::new();
    let mut folders = vec![run.folder.clone()];
    folders.extend(log_folder(root, &run.record));
    let own = &run.record.train_info.event_files;
    let files = folders.iter().map(|folder| event_files(folder, own)).find(|files| !files.is_empty());
    for file in files.unwrap_or_default() {
        // A file that cannot be read is left out of the curve; `lowrank logs` reports why.
        let _ = read_events(file, |logged| {
            match logged {
                Logged::Scalar(scalar) if scalar.tag == "train/loss" => {
                    losses.extend(scalar.value.map(|value| (scalar.step, value)));
                }
                Logged::Restart { step } => drop(losses.split_off(&step)),
                _ => {}
            }
            ControlFlow::Continue(())
        });
    }
    losses
}

fn log_folder(root: &Path, record: &RunRecord) -> Option<PathBuf> {
    let key = LogKey {
        model: &record.meta_info.model,
        method: record.label(),
        task: &record.meta_info.task,
        lr: record.lr()?,
        rank: record.rank().unwrap_or(0),
        seed: record.seed()?,
    };
    Some(log_path(root.join("logs"), &key))
}

/// The event files of a folder, by the numbers in their names: those in `own`, if there are any.
fn event_files(folder: &Path, own: &[String]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_own = own.is_empty() || own.iter().any(|own| *own == name);
        is_own && is_event_file(&name) && path.is_file()
    });
    files.sort_by(|a, b| natural_order(a, b));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_by_step_and_without_what_is_not_finite() {
        let curve = mean_by_step([(2, 1.0), (1, 4.0), (2, 3.0), (2, f64::NAN)].into_iter());
        assert_eq!(curve, [(1.0, 4.0), (2.0, 2.0)]);
    }

    #[test]
    fn long_curves_are_thinned_to_means() {
        let curve: Curve = (0..2 * PLACES).map(|step| (step as f64, step as f64)).collect();
        let thinned = thin(curve.clone());
        assert_eq!(thinned.len(), PLACES);
        assert_eq!(thinned[1], (2.5, 2.5));
        assert_eq!(thin(curve[..PLACES].to_vec()), curve[..PLACES]);
        assert_eq!(thin(Vec::new()), []);
    }
}
