//! One run, whatever its objective: the record, the log, the training, the result.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Result, ensure};
use burn::module::AutodiffModule;
use lowrank_checkpoint::FolderLock;
use lowrank_data::rows::Rows;
use lowrank_report::run::{FILE_NAME, MetaInfo, RunInfo, RunRecord, Status};
use lowrank_report::tfevents::{EventWriter, Session, is_event_file};
use lowrank_report::{LogKey, log_path, rfc3339_utc};
use lowrank_train::{
    CheckpointStore, EventWatch, Objective, Outcome, StepReport, Team, TrainConfig, TrainError, Training,
    Watch,
};
use serde_json::{Map, Value};

use super::Args;
use super::record::{RecordWatch, finish, fnv, hash_settings, print_result};
use crate::backend::{Inner, NAME, Train};
use crate::machine::{hardware, peak_rss_mb};
use crate::method::Method;

/// The process of the command: its start time, and the processes that it trains with.
pub(super) struct Process<'a> {
    begun: Instant,
    started: SystemTime,
    team: &'a dyn Team,
}

impl<'a> Process<'a> {
    pub(super) fn start(team: &'a dyn Team) -> Self {
        Self { begun: Instant::now(), started: SystemTime::now(), team }
    }

    /// Waits for the others, which must have read the same rows, weights and settings.
    fn meet(&self, hash: &str) -> Result<()> {
        let own = hash.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let n = self.team.shard().of() as f64;
        let mut sum = [f64::from(own)];
        self.team.sum_f64(&mut sum)?;
        ensure!(
            sum == [n * f64::from(own)],
            "the processes have different rows, weights or settings; give all of them the same files"
        );
        Ok(())
    }
}

/// The identity of a run apart from its options.
pub(super) struct Identity {
    /// Name of the task.
    pub(super) task: String,
    /// Metric that selects the best weights.
    pub(super) metric: String,
    /// Every setting.
    pub(super) settings: Map<String, Value>,
    /// Hash of the rows.
    pub(super) data_hash: String,
    /// Hash of the weights that training starts from.
    pub(super) model_hash: String,
    /// Hash of the adapters' [`initial factors`](hash_starts).
    pub(super) starts: String,
    /// Numbers of trained and of all parameters.
    pub(super) count: (usize, usize),
    /// Notes for the user, printed once all options are valid.
    pub(super) warnings: Vec<String>,
}

/// Warns of dev rows that are also trained on.
pub(super) fn warn_repeated(dev: &Rows, train: &Rows) {
    let repeated = dev.count_in(train);
    if repeated > 0 {
        eprintln!(
            "warning: {}: {repeated} of its {} rows are also training rows; the dev loss measures memorization",
            dev.path().display(),
            dev.len()
        );
    }
}

/// The model without autodiff that results from an objective's training.
pub(super) type Trained<O> = <<O as Objective<Train>>::Model as AutodiffModule<Train>>::InnerModule;

/// Trains; `save` writes the result and returns the bytes of its weights.
pub(super) fn run<O: Objective<Train>>(
    args: &Args,
    config: &TrainConfig,
    identity: Identity,
    objective: &O,
    model: O::Model,
    save: impl FnOnce(&Trained<O>) -> Result<u64>,
    process: Process<'_>,
) -> Result<()>
where
    Inner: lowrank_kernels::Kernels,
{
    let file = args.output.join(FILE_NAME);
    let mut record = new_record(args, &identity, &process);
    if args.start() != lowrank_train::Start::Fresh
        && let Ok(before) = RunRecord::read(&file)
    {
        record.run_info.started = before.run_info.started;
        record.train_info.evals = before.train_info.evals;
        record.train_info.event_files = before.train_info.event_files;
    }
    let hashes = [&*identity.data_hash, &identity.model_hash, &identity.starts];
    let hash = hash_settings(&identity.settings, &hashes);
    let checkpoints = CheckpointStore::new(&args.output, hash.clone());
    // Look for a run to continue before the record is changed.
    checkpoints.position(args.start(), config.max_steps)?;
    process.meet(&hash)?;
    let setup = Setup { args, config, checkpoints: &checkpoints, team: process.team };
    if process.team.shard().index() > 0 {
        let mut quiet = ();
        return Ok(lowrank_train::train(objective, model, setup.training(&mut quiet)).map(|_| ())?);
    }
    identity.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    lowrank_checkpoint::create_folder(&args.output)?;
    let lock = Arc::new(FolderLock::take(&args.output)?);
    // Another process may have finished since the first look.
    super::check_output(args)?;
    record.write_atomic(&file)?;
    let record = Arc::new(Mutex::new(record));
    let result = train(&setup, &identity, objective, model, &record, &lock);
    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner).clone();
    record.run_info.finished = Some(rfc3339_utc(SystemTime::now()));
    record.train_info.wall_s = Some(process.begun.elapsed().as_secs_f64());
    record.train_info.peak_rss_mb = peak_rss_mb();
    let saved = result.and_then(|(model, outcome)| {
        Present(Arc::clone(&lock)).check()?;
        Ok((save(&model)?, outcome))
    });
    match saved {
        Ok((bytes, outcome)) => {
            record.train_info.adapter_bytes = Some(bytes);
            finish(&mut record, &outcome);
            record.write_atomic(&file)?;
            // A run that is cut off before its result and its record are saved goes on from its checkpoints.
            checkpoints.end(setup.keeps_last())?;
            print_result(args, &record)
        }
        Err(error) => {
            // If the folder was removed, that caused the error: report it instead.
            Present(lock).check()?;
            record.train_info.status = Status::Failed;
            record.train_info.error = Some(format!("{error:#}"));
            // The first error is reported, and often prevents this one too.
            let _written = record.write_atomic(&file);
            Err(error)
        }
    }
}

fn new_record(args: &Args, identity: &Identity, process: &Process<'_>) -> RunRecord {
    let n = process.team.shard().of();
    let mut record = RunRecord::new(
        RunInfo {
            command: std::env::args().collect(),
            config: identity.settings.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("LOWRANK_COMMIT").map(str::to_string),
            backend: NAME.into(),
            started: rfc3339_utc(process.started),
            finished: None,
        },
        MetaInfo {
            model: args.model_name(),
            model_hash: identity.model_hash.clone(),
            data_hash: identity.data_hash.clone(),
            task: identity.task.clone(),
            method: args.method.name(),
            hardware: hardware(),
            versions: BTreeMap::from([("burn".to_string(), env!("LOWRANK_BURN_VERSION").to_string())]),
        },
    );
    record.train_info.metric_name = identity.metric.clone();
    record.train_info.processes = (n > 1).then_some(n as u64);
    record.train_info.trainable = identity.count.0 as u64;
    record.train_info.total = identity.count.1 as u64;
    record
}

/// What the training of every process has in common.
struct Setup<'a> {
    args: &'a Args,
    config: &'a TrainConfig,
    checkpoints: &'a CheckpointStore,
    team: &'a dyn Team,
}

impl Setup<'_> {
    fn training<'a>(&'a self, watch: &'a mut dyn Watch) -> Training<'a> {
        let &Self { args, config, checkpoints, team } = self;
        let keep_last = self.keeps_last();
        Training { config, checkpoints: Some(checkpoints), start: args.start(), keep_last, watch, team }
    }

    /// Whether the last state is retained: that of a full training is several times the model and stored only if checkpoints
    /// are requested.
    fn keeps_last(&self) -> bool {
        self.args.save_every.is_some() || self.args.method != Method::Full
    }
}

/// Trains; evaluations are added to the record as they come.
fn train<O: Objective<Train>>(
    setup: &Setup<'_>,
    identity: &Identity,
    objective: &O,
    model: O::Model,
    record: &Arc<Mutex<RunRecord>>,
    lock: &Arc<FolderLock>,
) -> Result<(Trained<O>, Outcome)> {
    let &Setup { args, config, .. } = setup;
    let label = args.label.clone().unwrap_or_else(|| args.method.name());
    let log_folder = match &args.log_dir {
        Some(root) => log_path(
            root,
            &LogKey {
                model: &args.model_name(),
                method: &label,
                task: &identity.task,
                lr: config.lr,
                rank: args.rank().unwrap_or(0) as u64,
                seed: args.seed,
            },
        ),
        None => args.output.clone(),
    };
    let file = args.output.join(FILE_NAME);
    let is_first = !has_events(&log_folder);
    let mut events = EventWriter::create(log_folder)?;
    if is_first {
        // TensorBoard takes the first mark of a folder for the beginning, and voids values at those after it.
        events.restart(0)?;
    }
    // Runs that differ in a setting which is not part of the path are distinguished by it.
    events.session(&Session::from_settings(run_id(&args.output), &identity.settings))?;
    let mut is_resumed = false;
    if let Some(name) = events.path().file_name() {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        is_resumed = !record.train_info.event_files.is_empty();
        record.train_info.event_files.push(name.to_string_lossy().into_owned());
        record.write_atomic(&file)?;
    }
    let mut watch: Vec<Box<dyn Watch>> = vec![
        Box::new(Present(Arc::clone(lock))),
        Box::new(args.show()),
        Box::new(if is_resumed { EventWatch::resumed(events) } else { EventWatch::new(events) }),
        Box::new(RecordWatch::new(record.clone(), file)),
    ];
    let (model, outcome) = lowrank_train::train(objective, model, setup.training(&mut watch))?;
    Ok((model.valid(), outcome))
}

/// Whether a folder has event files.
fn has_events(folder: &Path) -> bool {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries.into_iter().any(|entry| is_event_file(&entry.file_name().to_string_lossy()))
}

/// Ends a run whose folder is gone.
struct Present(Arc<FolderLock>);

impl Present {
    fn check(&self) -> lowrank_train::Result<()> {
        if self.0.is_in_place() {
            return Ok(());
        }
        let reason = "was removed or replaced while the run wrote to it; start the run again".into();
        Err(TrainError::Checkpoint { path: self.0.path().to_owned(), reason })
    }
}

impl Watch for Present {
    fn step(&mut self, _: &StepReport) -> lowrank_train::Result<()> {
        self.check()
    }
}

/// Identifies a run, resumed or not: its folder.
fn run_id(output: &Path) -> String {
    let path = output.canonicalize().unwrap_or_else(|_| output.to_owned());
    format!("{:016x}", fnv(path.to_string_lossy().bytes()))
}
