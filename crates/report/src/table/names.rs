//! Model names, long enough to be distinct.

use std::collections::{BTreeMap, BTreeSet};

use crate::run::LoadedRun;

/// The parts of a model's path, without redundant ones.
type Parts<'a> = Vec<&'a str>;

/// The names of the models of runs: the last part of the path, with the folders above it if other weights
/// have a path with the same end.
pub(super) struct ModelNames<'a> {
    /// By path; those that keep only their last part are absent.
    longer: BTreeMap<Parts<'a>, String>,
}

/// Paths with the same weights.
struct Weights<'a> {
    paths: BTreeSet<Parts<'a>>,
    hashes: BTreeSet<&'a str>,
}

impl<'a> ModelNames<'a> {
    pub(super) fn new(runs: &[&'a LoadedRun]) -> Self {
        let mut models: BTreeMap<&str, Vec<Weights>> = BTreeMap::new();
        for run in runs {
            if let Some(path) = path(run) {
                add(models.entry(run.record.model()).or_default(), path, hash(run));
            }
        }
        let alike = models.values().filter(|weights| weights.len() > 1);
        Self { longer: alike.flat_map(|weights| lengthened(weights)).collect() }
    }

    pub(super) fn of(&self, run: &LoadedRun) -> String {
        let longer = path(run).and_then(|path| self.longer.get(&path));
        longer.cloned().unwrap_or_else(|| run.record.model().to_owned())
    }
}

/// Real path of the model; `None` for a model that was given the name of the model it was made from.
fn path(run: &LoadedRun) -> Option<Parts<'_>> {
    let is_made_of_it = run.record.run_info.config.contains_key("model_name");
    // A path from the root begins with an empty part.
    let parts = run.record.meta_info.model.split(['/', '\\']).enumerate();
    let parts = parts.filter(|(index, part)| *part != "." && (*index == 0 || !part.is_empty()));
    (!is_made_of_it).then(|| parts.map(|(_, part)| part).collect())
}

/// The hash of the model's weights, if known.
fn hash(run: &LoadedRun) -> Option<&str> {
    Some(run.record.meta_info.model_hash.as_str()).filter(|hash| !["", "random"].contains(hash))
}

/// Adds a path; models that it shows to be identical are merged.
fn add<'a>(models: &mut Vec<Weights<'a>>, path: Parts<'a>, hash: Option<&'a str>) {
    let is_same =
        |model: &Weights| model.paths.contains(&path) || hash.is_some_and(|hash| model.hashes.contains(hash));
    let (same, others): (Vec<_>, Vec<_>) = std::mem::take(models).into_iter().partition(is_same);
    let mut merged = Weights { paths: [path].into(), hashes: hash.into_iter().collect() };
    for model in same {
        merged.paths.extend(model.paths);
        merged.hashes.extend(model.hashes);
    }
    *models = others;
    models.push(merged);
}

/// Names for models whose paths have the same last part, with as many parts as needed to be distinct.
fn lengthened<'a>(models: &[Weights<'a>]) -> Vec<(Parts<'a>, String)> {
    let shown = || models.iter().filter_map(|model| model.paths.first());
    let most = shown().map(Vec::len).max().unwrap_or(0);
    let differ = |count: &usize| shown().map(|path| end(path, *count)).collect::<BTreeSet<_>>().len();
    let count = (2..most).find(|count| differ(count) == models.len()).unwrap_or(most);
    let names = models.iter().zip(shown().map(|path| end(path, count)));
    names.flat_map(|(model, name)| model.paths.iter().map(move |path| (path.clone(), name.clone()))).collect()
}

/// The last parts of a path.
fn end(path: &[&str], count: usize) -> String {
    path[path.len().saturating_sub(count)..].join("/")
}
