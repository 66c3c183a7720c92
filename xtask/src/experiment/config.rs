//! An experiment as data: `xtask/experiments/<kind>.json`, overridden by a file and then by flags.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cargo::root;

/// Settings of a `lowrank` command: `max_steps: 300` stands for `--max-steps 300`, `true` for a flag without
/// value, `null` removes an inherited setting, a list stands for one cell per value.
pub(crate) type Settings = Map<String, Value>;

/// A grid: models × tasks × methods × seeds × every setting that is a list. In its file, `smoke` holds the
/// changes of `--smoke`, and `extends` names the experiment whose keys it overrides.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Purpose of the experiment.
    pub(crate) about: String,
    /// Model folders or hub names.
    pub(crate) models: Vec<String>,
    /// Root of the tasks' files.
    pub(crate) data: String,
    /// Tasks.
    pub(crate) tasks: Vec<String>,
    /// Names of `method`, each optionally with its own ranks: `lora:1:8`.
    pub(crate) methods: Vec<String>,
    /// Seeds.
    pub(crate) seeds: Vec<u64>,
    /// Number of concurrent cells; 0 for one per core.
    #[serde(default = "one")]
    pub(crate) jobs: usize,
    /// Settings of every fine-tuning.
    #[serde(default)]
    pub(crate) defaults: Settings,
    /// Settings of a task, over `defaults`.
    #[serde(default)]
    pub(crate) task: BTreeMap<String, Settings>,
    /// Settings of a method, over `task`; `command` names another `lowrank` command than `finetune`,
    /// `"@other"` stands for the output folder of the cell of the method `other`.
    pub(crate) method: BTreeMap<String, Settings>,
    /// Settings only for a model of this name (the last part of its path).
    #[serde(default)]
    pub(crate) model: BTreeMap<String, OfModel>,
}

/// Settings over a config's own, for one model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfModel {
    /// Over `defaults`.
    #[serde(default)]
    pub(crate) defaults: Settings,
    /// Over a method's.
    #[serde(default)]
    pub(crate) method: BTreeMap<String, Settings>,
}

fn one() -> usize {
    1
}

/// The folder of the experiments' files.
fn folder() -> PathBuf {
    root().join("xtask/experiments")
}

/// The existing kinds of experiments.
pub(crate) fn kinds() -> Result<Vec<String>> {
    let mut kinds = Vec::new();
    for entry in fs::read_dir(folder()).with_context(|| format!("cannot read {}", folder().display()))? {
        let path = entry?.path();
        if let (Some(stem), Some("json")) = (path.file_stem(), path.extension().and_then(|e| e.to_str())) {
            kinds.push(stem.to_string_lossy().into_owned());
        }
    }
    kinds.sort();
    Ok(kinds)
}

/// The experiment of a kind, with the changes of `over` and, if requested, of the smoke section.
///
/// # Errors
/// An unknown kind, a file that is not an experiment; the file and the reason are named.
pub(crate) fn load(kind: &str, over: Option<&Path>, smoke: bool) -> Result<Config> {
    let (path, mut value) = committed(kind)?;
    if let Some(over) = over {
        let patch = read(over)?;
        give_way(&mut value, &patch);
        merge(&mut value, patch);
    }
    let smoke_patch = value.as_object_mut().and_then(|keys| keys.remove("smoke"));
    if let Some(patch) = smoke_patch.filter(|_| smoke) {
        merge(&mut value, patch);
    }
    let named = over.unwrap_or(&path).display();
    let config: Config =
        serde_json::from_value(value).with_context(|| format!("{named} is not an experiment"))?;
    config.validate().with_context(|| format!("{named} is not an experiment"))?;
    Ok(config)
}

/// The file of a kind, and its overrides of the kind that it extends.
fn committed(kind: &str) -> Result<(PathBuf, Value)> {
    let path = folder().join(format!("{kind}.json"));
    if !path.is_file() {
        bail!("no experiment {kind:?}; known: {}", kinds()?.join(", "));
    }
    let mut value = read(&path)?;
    if let Some(base) = value.as_object_mut().and_then(|keys| keys.remove("extends")) {
        let base = base.as_str().filter(|base| *base != kind);
        let base = base.with_context(|| format!("{}: extends names no other experiment", path.display()))?;
        let mut whole = committed(base)?.1;
        merge(&mut whole, value);
        value = whole;
    }
    Ok((path, value))
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Removes from the model-specific settings of an experiment those that `patch` sets for all models.
fn give_way(value: &mut Value, patch: &Value) {
    let models = value.get_mut("model").and_then(Value::as_object_mut);
    for model in models.into_iter().flat_map(Map::values_mut) {
        drop_keys(model.get_mut("defaults"), patch.get("defaults"));
        let methods = patch.get("method").and_then(Value::as_object);
        for (name, settings) in methods.into_iter().flatten() {
            drop_keys(model.get_mut("method").and_then(|methods| methods.get_mut(name)), Some(settings));
        }
    }
}

/// Removes the keys of one object from another.
fn drop_keys(from: Option<&mut Value>, keys: Option<&Value>) {
    if let (Some(Value::Object(from)), Some(Value::Object(keys))) = (from, keys) {
        from.retain(|key, _| !keys.contains_key(key));
    }
}

/// JSON merge patch (RFC 7396), except that a `null` is kept: it has a meaning as a setting.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

impl Config {
    fn validate(&self) -> Result<()> {
        for (what, empty) in [
            ("tasks", self.tasks.is_empty()),
            ("methods", self.methods.is_empty()),
            ("seeds", self.seeds.is_empty()),
        ] {
            if empty {
                bail!("{what} is empty");
            }
        }
        for entry in &self.methods {
            method_and_ranks(entry)?;
        }
        for name in self.model.values().flat_map(|of_model| of_model.method.keys()) {
            self.method(name)?;
        }
        Ok(())
    }

    /// The settings of this model only.
    pub(crate) fn of_model(&self, model: &str) -> Option<&OfModel> {
        self.model.get(Path::new(model).file_name()?.to_str()?)
    }

    /// Whether a method has a rank.
    pub(crate) fn has_rank(&self, method: &str) -> bool {
        self.method.get(method).and_then(|settings| settings.get("rank")).is_some_and(|rank| !rank.is_null())
    }

    /// The settings of a method.
    pub(crate) fn method(&self, name: &str) -> Result<&Settings> {
        self.method.get(name).with_context(|| {
            let known: Vec<&str> = self.method.keys().map(String::as_str).collect();
            format!("no method {name:?} in this experiment; known: {}", known.join(", "))
        })
    }
}

/// Parses `lora:1:8` into `lora` and the ranks 1 and 8.
pub(crate) fn method_and_ranks(entry: &str) -> Result<(&str, Vec<u64>)> {
    let mut parts = entry.split(':');
    let name = parts.next().unwrap_or_default();
    let ranks: Result<Vec<u64>, _> = parts.map(str::parse).collect();
    match ranks {
        Ok(ranks) if !name.is_empty() && !ranks.contains(&0) => Ok((name, ranks)),
        _ => bail!("{entry:?} is not METHOD or METHOD:RANK:RANK…, with ranks from 1 on"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn methods_with_ranks() {
        assert_eq!(method_and_ranks("full").unwrap(), ("full", vec![]));
        assert_eq!(method_and_ranks("lora:1:8").unwrap(), ("lora", vec![1, 8]));
        for bad in ["", ":8", "lora:", "lora:x", "lora:0"] {
            assert!(method_and_ranks(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_patch_goes_deep_and_replaces_lists() {
        let mut value = json!({"a": {"b": 1, "c": [1, 2]}, "d": 3});
        merge(&mut value, json!({"a": {"c": [9], "e": 5}, "f": null}));
        assert_eq!(value, json!({"a": {"b": 1, "c": [9], "e": 5}, "d": 3, "f": null}));
    }

    #[test]
    fn a_file_of_ones_own_holds_for_every_model() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.json");
        fs::write(&file, r#"{"defaults": {"max_steps": 3}, "method": {"lora": {"lr": 7e-4}}}"#).unwrap();
        let config = load("glue", Some(&file), false).unwrap();
        let of_model = config.of_model("datasets/models/mini-bert").unwrap();
        assert!(!of_model.defaults.contains_key("max_steps") && of_model.defaults.contains_key("eval_every"));
        assert!(!of_model.method["lora"].contains_key("lr") && of_model.method["lotr"].contains_key("lr"));
        assert_eq!((&config.defaults["max_steps"], &config.method["lora"]["lr"]), (&json!(3), &json!(7e-4)));

        // Model-specific settings of the file take precedence over both.
        fs::write(
            &file,
            r#"{"defaults": {"max_steps": 3}, "model": {"mini-bert": {"defaults": {"max_steps": 4}}}}"#,
        )
        .unwrap();
        let config = load("glue", Some(&file), false).unwrap();
        assert_eq!(config.of_model("mini-bert").unwrap().defaults["max_steps"], 4);

        fs::write(&file, r#"{"model": {"mini-bert": {"method": {"haed": {"lr": 1}}}}}"#).unwrap();
        let error = format!("{:#}", load("glue", Some(&file), false).unwrap_err());
        assert!(error.contains("mine.json") && error.contains("haed"), "{error}");
    }

    #[test]
    fn every_committed_experiment_loads_with_and_without_smoke() {
        let kinds = kinds().unwrap();
        assert!(kinds.contains(&"glue".to_owned()));
        for kind in kinds {
            load(&kind, None, false).unwrap();
            load(&kind, None, true).unwrap();
        }
    }

    #[test]
    fn an_unknown_kind_names_the_known_ones() {
        let error = load("gleu", None, false).unwrap_err().to_string();
        assert!(error.contains("gleu") && error.contains("glue"), "{error}");
    }

    #[test]
    fn a_key_that_means_nothing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.json");
        fs::write(&file, r#"{"taks": ["rte"]}"#).unwrap();
        let error = format!("{:#}", load("glue", Some(&file), false).unwrap_err());
        assert!(error.contains("mine.json") && error.contains("taks"), "{error}");
    }
}
