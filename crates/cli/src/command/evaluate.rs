//! `lowrank evaluate`: score a model on a task's dev set.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use lowrank_data::glue::{GlueDataset, LabelSpace, Split, Task};
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::Problem;
use lowrank_train::DevSet;
use serde_json::{Map, json};

use crate::backend::{Inner, device};
use crate::context::{ModelArgs, print_json};

/// Options of `evaluate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Task: sst2 cola mrpc stsb qqp mnli qnli rte wnli
    #[arg(long)]
    task: Task,
    /// GLUE root with the official folders
    #[arg(long)]
    data: PathBuf,
    /// Sequences per batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The dev sets of a task, encoded; a second one's metrics end in `_mm`.
pub(crate) fn dev_sets(root: &std::path::Path, task: Task, tokenizer: &TextTokenizer) -> Result<Vec<DevSet>> {
    task.dev_splits()
        .iter()
        .map(|&split| {
            let data = Arc::new(EncodedDataset::encode(&GlueDataset::read(root, task, split)?, tokenizer)?);
            Ok(DevSet { suffix: suffix(split).into(), data })
        })
        .collect()
}

fn suffix(split: Split) -> &'static str {
    if split == Split::DevMismatched { "_mm" } else { "" }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let loaded = args.model.load::<Inner>(&device()?)?;
    loaded.require_sequence_head()?;
    anyhow::ensure!(
        loaded.model.model().config().problem != Problem::MultiLabel,
        "the model decides each label by itself (multi_label_classification); {} has one right label for each row",
        args.task
    );
    let width = loaded.model.model().config().labels.len();
    let wanted = LabelSpace::width(&args.task.spec().labels);
    anyhow::ensure!(
        width == wanted,
        "the model has {width} labels and {} has {wanted}; give the adapter or model that was trained on it",
        args.task
    );
    let order = class_order(&loaded.model.model().config().labels, &args.task.spec().labels);
    anyhow::ensure!(
        order.is_some(),
        "the model's labels ({}) are not those of {} ({}); rename id2label in its config.json, or give the model that was \
         trained on the task",
        loaded.model.model().config().labels.join(", "),
        args.task,
        args.task.label_names().join(", ")
    );
    let sets = dev_sets(&args.data, args.task, &loaded.tokenizer)?;
    let rows: usize = sets.iter().map(|s| s.data.len()).sum();
    let tokens: usize = sets.iter().map(|s| s.data.n_tokens()).sum();
    let start = Instant::now();
    let output = lowrank_train::evaluate(
        &loaded.model,
        &sets,
        args.task.metrics(),
        order.flatten().as_deref(),
        args.batch_size,
    )?;
    let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
    if args.json {
        let mut object: Map<String, serde_json::Value> =
            output.values.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        object.insert("task".into(), json!(args.task.name()));
        object.insert("rows".into(), json!(rows));
        let metric = args.task.primary_metric().name();
        object.insert("metric".into(), json!(output.values.get(metric)));
        object.insert("metric_name".into(), json!(metric));
        object.insert("tokens_per_second".into(), json!(tokens_per_second));
        return print_json(&object.into());
    }
    for (name, value) in &output.values {
        println!("{name:12} {value:.4}");
    }
    Ok(())
}

/// Where the task's classes stand among the model's labels: nothing to do (`Some(None)`), the place of each class
/// (`Some(Some(_))`), or `None` where the labels have other names.
pub(crate) fn class_order(model: &[String], task: &LabelSpace) -> Option<Option<Vec<usize>>> {
    let LabelSpace::Classes(classes) = task else { return Some(None) };
    // Names that say nothing are taken by their places.
    if model.iter().all(|label| label.starts_with("LABEL_")) {
        return Some(None);
    }
    let plain = |name: &str| name.to_lowercase().replace(['-', ' '], "_");
    let place = |class: &String| model.iter().position(|label| plain(label) == plain(class));
    let places: Vec<usize> = classes.iter().map(place).collect::<Option<_>>()?;
    let is_same = places.iter().enumerate().all(|(class, place)| class == *place);
    Some((!is_same).then_some(places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_found_by_their_names() {
        let order = |model: &[&str]| {
            let model: Vec<String> = model.iter().map(|label| (*label).to_string()).collect();
            class_order(&model, &Task::Mnli.spec().labels)
        };
        assert_eq!(order(&["LABEL_0", "LABEL_1", "LABEL_2"]), Some(None));
        assert_eq!(order(&["entailment", "neutral", "contradiction"]), Some(None));
        assert_eq!(order(&["CONTRADICTION", "Neutral", "entailment"]), Some(Some(vec![2, 1, 0])));
        assert_eq!(order(&["yes", "no", "perhaps"]), None);
    }
}
