//! Encoder-decoders: sequence-to-sequence training.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use lowrank_data::rows::{Rows, SourceTarget};
use lowrank_models::Seq2Seq;
use lowrank_train::{Samples, SequencePairs, TunedSeq2Seq};

use super::generator::{Weights, build, save};
use super::job::{self, Identity, Process};
use super::language::{LENGTH, SAMPLE_TOKENS, default_rate, task_name};
use super::model::opened;
use super::record::{fnv, hash_starts, settings};
use super::{Args, check_output};
use crate::backend::{Device, Inner, Train};
use crate::calibration::first_pairs;
use crate::language::{encode_pairs, pair_window};

pub(super) fn run(args: &Args, folder: &Path, device: &Device, process: Process<'_>) -> Result<()> {
    let mut config = args.train_config(default_rate(args.method), 8)?;
    args.language.check_for_pairs()?;
    ensure!(
        !args.base.is_dry(),
        "--dry-run applies to next-token training of decoders only; leave it out for an encoder-decoder"
    );
    check_output(args)?;
    let (Some(train), Some(dev)) = (&args.train, &args.dev) else {
        bail!("{}: is an encoder-decoder model; give rows with --train and --dev", folder.display())
    };
    let opened = opened(args, folder)?;
    let base = opened.seq2seq_config()?;
    let tokenizer = opened.tokenizer(None)?;
    let [train_rows, dev_rows] = [Rows::read(train)?, Rows::read(dev)?];
    job::warn_repeated(&dev_rows, &train_rows);
    let limit = pair_window(args.max_length, &base, &tokenizer)?;
    let max_length = args.max_length.unwrap_or_else(|| limit.min(LENGTH));
    let encode = |rows: &Rows| encode_pairs(rows, &tokenizer, &base, max_length);
    let [train_rows, dev_rows] = [encode(&train_rows)?, encode(&dev_rows)?];
    for row in train_rows.iter().take(args.language.n_shown()) {
        let (source, target) = (row.source.len(), row.target.len());
        eprintln!("sample: {source} tokens, {target} target tokens\n{}", row.show(&tokenizer)?);
    }
    let first = || Ok(first_pairs(train_rows.iter().cloned()));
    let built = build(args, folder, &first, device, |weights| match weights {
        Weights::Random => {
            Seq2Seq::<Train>::init(base.clone(), args.seed, device).map_err(anyhow::Error::msg)
        }
        Weights::Stored(path, kept) => Ok(Seq2Seq::load(path, base.clone(), kept, device)?),
    })?;
    let data_hash = hash(train_rows.iter().chain(&dev_rows));
    let samples = Samples::of_sources(&dev_rows, args.language.n_samples(), SAMPLE_TOKENS, tokenizer);
    let objective = SequencePairs::new(train_rows, dev_rows, base, &config, args.language.recomputes())?
        .with_samples(samples);
    if let Some(epochs) = args.epochs {
        config.max_steps = objective.plan().steps_for(epochs);
    }
    let task = task_name(train);
    let identity = Identity {
        settings: settings(args, &config, &task, built.start.as_ref(), &built.default_targets),
        task,
        metric: "loss".into(),
        data_hash,
        model_hash: built.hash,
        starts: hash_starts(built.model.adapters()),
        count: built.model.count(),
        warnings: Vec::new(),
    };
    let save = |model: &TunedSeq2Seq<Inner>| save(args, folder, model);
    job::run(args, &config, identity, &objective, built.model, save, process)
}

/// Hash of tokens and of the boundaries of texts.
fn hash<'a>(rows: impl Iterator<Item = &'a SourceTarget>) -> String {
    let texts = rows.flat_map(|row| [&row.source, &row.target]);
    let numbers = texts.flat_map(|ids| std::iter::once(ids.len() as u32).chain(ids.iter().copied()));
    format!("{:016x}", fnv(numbers.flat_map(u32::to_le_bytes)))
}
