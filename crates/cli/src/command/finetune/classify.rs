//! Sequence classification and regression over an encoder or a decoder.

use std::path::Path;

use anyhow::Result;
use lowrank_data::glue::LabelSpace;
use lowrank_models::{ClassifierConfig, SequenceClassifier};
use lowrank_train::{Classification, FineTuner};

use super::job::{self, Clock, Identity};
use super::model::{build, default_targets, save};
use super::record::settings;
use super::rows::read_spec;
use super::{Args, check_output};
use crate::backend::{Device, Inner, Train};
use crate::command::evaluate::class_order;
use crate::context::tokenizer;
use crate::method::Method;

pub(super) fn run(args: &Args, folder: &Path, device: &Device, clock: Clock) -> Result<()> {
    let base = ClassifierConfig::read(folder)?;
    let tokenizer = tokenizer(folder, &base, args.max_length)?;
    check_output(args)?;
    // Everything that can be wrong with the options is found before the rows are read.
    let lr = match args.method {
        Method::Full => 1e-4,
        Method::Head => 1e-3,
        _ => 5e-4,
    };
    let mut config = args.train_config(lr, 32)?;
    let (spec, read) = read_spec(args)?;
    let (labels, regression) = match &spec.labels {
        LabelSpace::Classes(names) => (names.clone(), false),
        LabelSpace::Score => (vec!["score".to_string()], true),
    };
    let targets = default_targets(&base);
    let order = label_order(&base, &spec.labels);
    let built = build(args, folder, base.with_labels(labels.clone(), regression), order, device)?;
    let rows = read.encode(spec, &tokenizer)?;
    let metrics = rows.spec.metrics.clone();
    let objective = Classification::<SequenceClassifier<Train>>::new(rows.train, rows.dev, metrics, &config)?;
    if let Some(epochs) = args.epochs {
        config.max_steps = objective.plan().steps_for(epochs);
    }
    let identity = Identity {
        task: rows.spec.name.clone(),
        metric: rows.spec.metrics[0].to_string(),
        settings: settings(args, &config, &rows.spec.name, built.start.as_ref(), &targets),
        data_hash: rows.hash,
        model_hash: built.hash.clone(),
        count: built.model.count(),
    };
    let hash = built.hash;
    let save = |model: &FineTuner<Inner>| save(args, folder, model, (&labels, regression), &hash);
    job::run(args, &config, identity, &objective, built.model, save, clock)
}

/// Where the data's classes stand among the labels of the model's head; `None` where they stand in order, or where the
/// head was not made for them.
fn label_order(base: &ClassifierConfig, labels: &LabelSpace) -> Option<Vec<usize>> {
    let LabelSpace::Classes(classes) = labels else { return None };
    if base.labels.len() != classes.len() {
        return None;
    }
    let order = class_order(&base.labels, labels);
    if order.is_none() && classes.iter().any(|class| class.parse::<usize>().is_err()) {
        eprintln!(
            "warning: the model's labels ({}) have other names than the data's ({}); a trained head is taken in this order",
            base.labels.join(", "),
            classes.join(", ")
        );
    }
    order.flatten()
}
