//! The labels of an adapter's task, in a file beside it: PEFT's config has no field for them.

use std::path::Path;

use anyhow::{Context, Result};
use lowrank_adapters::peft::{AdapterFolder, CONFIG_FILE};
use lowrank_checkpoint::Checkpoint;
use lowrank_models::{ClassifierConfig, HeadLevel, Problem};
use serde_json::Value;

use super::model::open_model;
use super::texts::read_text;

/// Name of the file.
pub(crate) const LABELS_FILE: &str = "labels.json";

/// Writes [`LABELS_FILE`].
pub(crate) fn write_labels(dir: &Path, config: &ClassifierConfig, base_hash: Option<&str>) -> Result<()> {
    let mut value = serde_json::json!({
        "labels": config.labels,
        "problem_type": config.problem.name(),
        "task_type": config.level.task_type(),
        BASE_HASH: base_hash,
        MAY_NOT_ANSWER: config.may_not_answer(),
    });
    if config.level != HeadLevel::Span
        && let Some(object) = value.as_object_mut()
    {
        object.shift_remove(MAY_NOT_ANSWER);
    }
    let text = serde_json::to_string_pretty(&value)?;
    Ok(lowrank_checkpoint::write_atomic(dir.join(LABELS_FILE), text.as_bytes())?)
}

/// The classifier formed by a model and an adapter: the unit that is labelled is given by the model's head,
/// or by the adapter's task if the model has none or the adapter was trained over it; labels saved with the adapter replace the model's own.
pub(crate) fn classifier_config(folder: &Path, adapter: Option<&Path>) -> Result<ClassifierConfig> {
    let config = open_model(folder)?.classifier_config()?;
    let Some(dir) = adapter else { return Ok(config) };
    let config = match (HeadLevel::named(config.raw()), adapter_level(dir)?) {
        (None, Some(level)) => config.at_level(level),
        // Training for another kind of task replaced the base's own head.
        (Some(own), Some(level)) if own != level && was_trained_over(dir, folder)? => config.at_level(level),
        _ => config,
    };
    if config.level == HeadLevel::Span {
        let may_not_answer = read_labels(dir)?.and_then(|saved| saved[MAY_NOT_ANSWER].as_bool());
        let known = config.may_not_answer();
        return Ok(config.with_no_answer(may_not_answer.unwrap_or(known)));
    }
    Ok(match saved_labels(dir, &config)? {
        Some((labels, problem)) => config.with_problem(labels, problem),
        None => config,
    })
}

/// The unit of text that an adapter's head labels, `None` if its files do not mention a head.
pub(crate) fn adapter_level(dir: &Path) -> Result<Option<HeadLevel>> {
    for name in [CONFIG_FILE, LABELS_FILE] {
        let path = dir.join(name);
        if !lowrank_spec::is_present(&path) {
            continue;
        }
        let value: Value =
            serde_json::from_str(&read_text(&path)?).with_context(|| path.display().to_string())?;
        let (task, mapping) = (value["task_type"].as_str(), value.get("auto_mapping"));
        let level = HeadLevel::of_adapter(task, mapping);
        if task.is_some() || level.is_some() {
            return Ok(level);
        }
    }
    Ok(None)
}

/// Key of [`LABELS_FILE`] that says whether the adapter was trained on questions without an answer too.
const MAY_NOT_ANSWER: &str = "handle_impossible_answer";

/// [`LABELS_FILE`], if the adapter has one.
fn read_labels(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join(LABELS_FILE);
    if !lowrank_spec::is_present(&path) {
        return Ok(None);
    }
    let text = lowrank_spec::read_file(&path).with_context(|| path.display().to_string())?;
    let value: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    // Other programs write files of this name.
    Ok(Some(value).filter(|value| value.get("labels").is_some()))
}

/// Key of [`LABELS_FILE`] with the hash of the weights that the adapter was trained over.
const BASE_HASH: &str = "base_hash";

/// Whether the adapter is ours and was trained over the weights of this folder.
fn was_trained_over(dir: &Path, folder: &Path) -> Result<bool> {
    let saved = read_labels(dir)?;
    let hash = saved.as_ref().and_then(|saved| saved[BASE_HASH].as_str());
    Ok(match hash {
        Some(hash) => hash == Checkpoint::open(folder)?.content_hash()?,
        None => false,
    })
}

/// Warns if one of our adapters is used over other weights than it was trained over.
pub(super) fn warn_other_base(dir: &Path, folder: &Path) -> Result<()> {
    let saved = lowrank_spec::read_file(dir.join(LABELS_FILE)).ok();
    let saved: Option<Value> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(hash) = saved.as_ref().and_then(|saved| saved[BASE_HASH].as_str()) else { return Ok(()) };
    if hash != Checkpoint::open(folder)?.content_hash()? {
        eprintln!(
            "warning: {}: was trained on a base other than {}; see base_model_name_or_path in its adapter_config.json",
            dir.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Labels and kind of an adapter's task, if they are not the base's.
fn saved_labels(dir: &Path, base: &ClassifierConfig) -> Result<Option<(Vec<String>, Problem)>> {
    let path = dir.join(LABELS_FILE);
    if let Some(value) = read_labels(dir)? {
        let labels = value["labels"].as_array().into_iter().flatten();
        let labels: Option<Vec<String>> = labels.map(|l| l.as_str().map(str::to_string)).collect();
        let labels = labels.filter(|l| !l.is_empty());
        let labels = labels.with_context(|| format!("{}: not a list of labels", path.display()))?;
        let problem = match (value["problem_type"].as_str(), value["regression"].as_bool()) {
            (Some(name), _) => Problem::named(name).with_context(|| {
                format!("{}: unknown problem_type '{name}'; fetch the adapter again", path.display())
            })?,
            (None, Some(true)) => Problem::Regression,
            (None, _) => Problem::SingleLabel,
        };
        return Ok(Some((labels, problem)));
    }
    // An adapter from elsewhere: the width of its head gives the number of labels, if it is not the base's.
    let folder = AdapterFolder::read(dir)?;
    let head = ["classifier.weight", "classifier.out_proj.weight", "score.weight"]
        .iter()
        .find_map(|k| folder.tensors.get(*k));
    let width = head.map(|t| t.shape[0]).filter(|width| *width != base.labels.len());
    let problem = |width| match base.problem {
        Problem::MultiLabel => Problem::MultiLabel,
        _ if width == 1 && base.level == HeadLevel::Sequence => Problem::Regression,
        _ => Problem::SingleLabel,
    };
    Ok(width.map(|width| ((0..width).map(|i| format!("LABEL_{i}")).collect(), problem(width))))
}
