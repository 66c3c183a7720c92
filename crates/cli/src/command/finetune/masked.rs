//! Masked language modelling of an encoder on plain text.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use lowrank_adapters::peft::PeftConfig;
use lowrank_checkpoint::{Checkpoint, FloatType, replace_dir_atomic};
use lowrank_data::mlm::Masker;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::rows::{LossOn, RowEncoder, Rows};
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_models::params::WeightType;
use lowrank_models::{MaskedLm, ModelFolder, Parameters, Part};
use lowrank_train::{Masked, TunedMaskedLm};
use serde_json::Value;

use super::job::{self, Identity, Process};
use super::language::task_name;
use super::model::{adapt, adapted_paths, opened, save_adapter, save_model, sources};
use super::record::{hash_starts, settings};
use super::residual::Unquantized;
use super::rows::{are_labelled, extension, hash_rows};
use super::start::StartAdapter;
use super::{Args, check_output};
use crate::backend::{Device, Inner, Train};
use crate::context::read_text;
use crate::method::{Method, default_targets};

pub(super) fn run(args: &Args, folder: &Path, device: &Device, process: Process<'_>) -> Result<()> {
    let lr = match args.method {
        Method::Full => 5e-5,
        Method::Head => 1e-3,
        _ => 5e-4,
    };
    let mut config = args.train_config(lr, 32)?;
    check_output(args)?;
    ensure!(!args.zero_head, "--zero-head applies to classifiers only");
    ensure!(
        !args.base.is_dry() && args.base.weights(args, WeightType::F32)? == WeightType::F32,
        "--base-bits and --dry-run are not supported for masked language modelling; leave them out"
    );
    let (Some(train), Some(dev)) = (&args.train, &args.dev) else {
        bail!("{}: give texts with --train and --dev", folder.display())
    };
    let opened = opened(args, folder)?;
    let classifier = opened.classifier_config()?;
    let targets = default_targets(&classifier);
    let limit = classifier.max_tokens();
    let max_length = args.max_length.unwrap_or(limit);
    ensure!(max_length <= limit, "--max-length {max_length} exceeds the model's limit of {limit} tokens");
    let tokenizer = opened.tokenizer(None)?;
    let masker = Masker::new(&tokenizer)?;
    let [train_rows, dev_rows] = [Rows::read(train)?, Rows::read(dev)?];
    job::warn_repeated(&dev_rows, &train_rows);
    let [train_rows, dev_rows] =
        [encode(&train_rows, &tokenizer, max_length)?, encode(&dev_rows, &tokenizer, max_length)?];
    let data_hash = hash_rows([&train_rows, &dev_rows].into_iter());
    let (model, start, model_hash) = build(args, &opened, &targets, classifier.n_heads(), device)?;
    let objective = Masked::new(train_rows, Some(dev_rows), masker, &config)?;
    if let Some(epochs) = args.epochs {
        config.max_steps = objective.plan().steps_for(epochs);
    }
    let task = task_name(train);
    let identity = Identity {
        settings: settings(args, &config, &task, start.as_ref(), &targets),
        task,
        metric: "loss".into(),
        data_hash,
        model_hash,
        starts: hash_starts(model.adapters()),
        count: model.count(),
        warnings: Vec::new(),
    };
    let save = |model: &TunedMaskedLm<Inner>| save(args, folder, model);
    job::run(args, &config, identity, &objective, model, save, process)
}

/// Whether the training rows are plain text for an encoder: running text, or JSON rows that contain only
/// `text`, so that rows without their label are not mistaken for texts.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn is_plain_text(args: &Args) -> Result<bool> {
    let Some(path) = args.train.as_deref().filter(|_| args.task.is_none()) else { return Ok(false) };
    let ending = extension(path);
    if !["txt", "jsonl", "json"].contains(&ending.as_str()) || are_labelled(args)? {
        return Ok(false);
    }
    if ending == "txt" {
        return Ok(true);
    }
    let text = read_text(path)?;
    let rows: Vec<Value> = serde_json::from_str(&text)
        .or_else(|_| text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect())
        .unwrap_or_default();
    let is_text = |row: &Value| row.as_object().is_some_and(|row| row.len() == 1 && row.contains_key("text"));
    Ok(!rows.is_empty() && rows.iter().all(is_text))
}

/// Texts split into pieces of at most `max_length` tokens, each with the special tokens around it.
fn encode(rows: &Rows, tokenizer: &TextTokenizer, max_length: usize) -> Result<Arc<EncodedDataset>> {
    let encoder = RowEncoder::new(tokenizer, None, LossOn::All, max_length)?;
    let rows = encoder.encode(rows)?.rows.into_iter();
    let rows = rows.map(|row| Encoded { type_ids: vec![0; row.ids.len()], ids: row.ids });
    Ok(Arc::new(EncodedDataset::unlabelled(rows.collect())))
}

/// The model with its trained parameters marked, the adapter that it starts from, and the hash of its
/// weights.
fn build(
    args: &Args,
    folder: &ModelFolder,
    targets: &str,
    heads: usize,
    device: &Device,
) -> Result<(TunedMaskedLm<Train>, Option<StartAdapter>, String)> {
    let config = folder.encoder_config()?;
    let (weights, adapter) = sources(args, folder.path())?;
    let (mut model, hash) = if args.random_init {
        (MaskedLm::<Train>::init(config, args.seed, device)?, "random".to_string())
    } else {
        let checkpoint = Checkpoint::open(&weights)?;
        let head = config.architecture.masked_lm.transform;
        ensure!(
            checkpoint.names().any(|name| name.starts_with(head)),
            "{}: has no masked language modelling head ({head} is missing); to train on plain text, give a model with one, such as \
             …ForMaskedLM, and labelled rows by any encoder",
            weights.display()
        );
        let hash = checkpoint.content_hash()?;
        (MaskedLm::<Train>::load(&weights, config, device)?, hash)
    };
    let start = adapter.map(|dir| StartAdapter::load(&mut model, &dir, None, device)).transpose()?;
    let unquantized = Unquantized { folder: &weights, rows: None };
    let (mut model, adapters) = adapt(args, model, start.as_ref(), targets, heads, &unquantized, device)?;
    let (adapted, bias) = (adapted_paths(&adapters), args.adapter.bias);
    model.choose_trained(|at, _| match args.method {
        Method::Full => true,
        Method::Head => at.module.part == Part::Head,
        Method::Bitfit => at.is_bias(),
        _ => {
            !adapted.contains(at.module.path) && adapters.carried().any(|carried| carried.trains(&at.key()))
                || bias.takes(at, |module| adapted.contains(module))
        }
    });
    Ok((TunedMaskedLm::new(model, adapters), start, hash))
}

/// Saves what was trained: a model folder if the model's own weights were, otherwise an adapter folder.
fn save(args: &Args, source: &Path, tuned: &TunedMaskedLm<Inner>) -> Result<u64> {
    let (model, set) = (tuned.model(), tuned.adapters());
    if args.method.adapter().is_none() {
        return save_model(args, |dir| Ok(model.save(dir, source, FloatType::F32)?));
    }
    replace_dir_atomic(args.output.join("adapter"), |dir| {
        save_adapter(args, model, set, PeftConfig::default(), Vec::new(), dir)
    })
}
