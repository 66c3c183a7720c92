//! Classification and regression over an encoder or a decoder, of texts and of words, and answers to questions.

use std::path::Path;

use anyhow::{Result, ensure};
use lowrank_data::glue::LabelSpace;
use lowrank_models::config::BodyConfig;
use lowrank_models::params::WeightType;
use lowrank_models::{HeadLevel, Problem};
use lowrank_train::{Classification, FineTuner};

use super::job::{self, Identity, Process};
use super::model::{build, opened, save, sources};
use super::record::{hash_starts, settings};
use super::rows::{Reader, read_spec};
use super::weights::recorded;
use super::{Args, check_output};
use crate::backend::{Device, Inner};
use crate::calibration::first_examples;
use crate::command::evaluate::class_order;
use crate::context::classifier_config;
use crate::method::{Method, default_targets};

pub(super) fn run(
    args: &Args,
    folder: &Path,
    level: HeadLevel,
    device: &Device,
    process: Process<'_>,
) -> Result<()> {
    let opened = opened(args, folder)?;
    let base = opened.classifier_config()?;
    if let BodyConfig::Encoder(encoder) = &base.body {
        ensure!(
            encoder.architecture.has_heads,
            "{}: heads over {} are not supported, only its embeddings (embed); give another encoder",
            folder.display(),
            base.class()
        );
    }
    let reader = Reader::open(args, &opened, &base)?;
    check_output(args)?;
    // Options are validated before the rows are encoded, as far as that takes no model.
    args.base.weights(args, WeightType::F32)?;
    let lr = match args.method {
        Method::Full => 1e-4,
        Method::Head => 1e-3,
        _ => 5e-4,
    };
    let mut config = args.train_config(lr, 32)?;
    // The head that training starts from is that of the weights, or of the adapter over them.
    let (weights, adapter) = sources(args, folder)?;
    let start = classifier_config(&weights, adapter.as_deref())?;
    let is_other = HeadLevel::named(start.raw()).is_some_and(|stored| stored != level);
    let trained: &[String] = if is_other { &[] } else { &start.labels };
    // Rows of 0 and 1 for each class do not name a model's single labels.
    let is_named = level == HeadLevel::Token || start.problem == Problem::MultiLabel;
    let (spec, read) = read_spec(args, if is_named { trained } else { &[] })?;
    if let Some(weights) = &args.class_weights {
        weights.check(&spec.labels)?;
    }
    let labels = match &spec.labels {
        LabelSpace::Score => vec!["score".to_string()],
        named => named.names().to_vec(),
    };
    let problem = match &spec.labels {
        LabelSpace::Score => Problem::Regression,
        LabelSpace::Sets(_) => Problem::MultiLabel,
        LabelSpace::Classes(_) | LabelSpace::Tags(_) | LabelSpace::Spans => Problem::SingleLabel,
    };
    let targets = default_targets(&base);
    let order = label_order(trained, &spec.labels)?;
    let headed = base.at_level(level);
    let headed = match spec.labels {
        LabelSpace::Spans => headed.with_no_answer(read.has_unanswerable()),
        _ => headed.with_problem(labels.clone(), problem),
    };
    let rows = read.encode(args, spec, &reader)?;
    let built = build(args, folder, headed, order, &|| first_examples(&rows.train), device)?;
    let metrics = rows.spec.metrics.clone();
    let weights = args.class_weights.as_ref().map(|weights| weights.resolve(&labels, &rows.train));
    let mut objective = Classification::new(rows.train, rows.dev, metrics, &config)?;
    if let Some(epochs) = args.epochs {
        config.max_steps = objective.plan().steps_for(epochs);
    }
    let mut settings = settings(args, &config, &rows.spec.name, built.start.as_ref(), &targets);
    if let Some(weights) = weights {
        settings.insert("class_weights".into(), recorded(&labels, &weights));
        objective = objective.with_class_weights(weights)?;
    }
    let identity = Identity {
        task: rows.spec.name.clone(),
        metric: rows.spec.metrics[0].to_string(),
        settings,
        data_hash: rows.hash,
        model_hash: built.hash.clone(),
        starts: hash_starts(built.model.adapters()),
        count: built.model.count(),
        warnings: built.warnings,
    };
    let hash = built.hash;
    let save = |model: &FineTuner<Inner>| save(args, folder, model, &hash);
    job::run(args, &config, identity, &objective, built.model, save, process)
}

/// Positions of the data's classes among the labels of the model's head; `None` if they are in order, or if
/// the head was not trained on them.
///
/// # Errors
/// A class that is the name of several labels.
fn label_order(trained: &[String], labels: &LabelSpace) -> Result<Option<Vec<usize>>> {
    let classes = labels.names();
    if classes.is_empty() || trained.len() != classes.len() {
        return Ok(None);
    }
    let order = class_order(trained, labels)?;
    if order.is_none() && classes.iter().any(|class| class.parse::<usize>().is_err()) {
        eprintln!(
            "warning: the model's labels ({}) differ from the data's ({}); the trained head is used in this order",
            trained.join(", "),
            classes.join(", ")
        );
    }
    Ok(order.flatten())
}
