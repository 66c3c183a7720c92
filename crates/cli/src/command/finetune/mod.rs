//! `lowrank finetune`: train a model on a task.

mod model;
mod record;
mod rows;

use std::collections::BTreeMap;
#[cfg(feature = "tui")]
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use burn::module::AutodiffModule;
use clap::ValueEnum;
use lowrank_data::glue::{LabelSpace, Task};
use lowrank_models::{ClassifierConfig, SequenceClassifier};
use lowrank_report::run::{FILE_NAME, MetaInfo, RunInfo, RunRecord, Status};
use lowrank_report::tfevents::{EventWriter, Session};
use lowrank_report::{LogKey, log_path, rfc3339_utc};
use lowrank_train::{
    CheckpointStore, Classification, EventWatch, FineTuner, Outcome, SchedulerKind, ShowWatch, Start,
    TrainConfig, Training, Watch,
};
use serde_json::{Map, Value};

use crate::backend::{NAME, Train, device};
use crate::context::{model_folder, new_folder, tokenizer};
use crate::machine::{hardware, peak_rss_mb};
use crate::method::{AdapterArgs, Method};

use self::model::{build, save};
use self::record::{RecordWatch, finish, fnv, hash_settings, print_result, settings};
use self::rows::{Rows, read_spec};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scheduler {
    /// Linear decay to zero
    Linear,
    /// Cosine decay to zero
    Cosine,
    /// Constant learning rate
    Constant,
}

/// Options of `finetune`.
#[derive(clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Model folder (config.json, weights, tokenizer)
    #[arg(long)]
    model: PathBuf,
    /// Task: sst2 cola mrpc stsb qqp mnli qnli rte wnli
    #[arg(long, requires = "data", conflicts_with = "train", required_unless_present = "train")]
    task: Option<Task>,
    /// GLUE root with the official folders
    #[arg(long)]
    data: Option<PathBuf>,
    /// Training rows of a custom task: .tsv with a header text[, text_pair], label; or .jsonl
    #[arg(long, requires = "dev")]
    train: Option<PathBuf>,
    /// Dev rows of a custom task
    #[arg(long, requires = "train")]
    dev: Option<PathBuf>,
    /// Training method: which parameters are trained
    #[arg(long, value_enum)]
    method: Method,
    /// Output folder of the run
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// LoRA+: ratio of the learning rate of B to that of A
    #[arg(long)]
    lora_plus: Option<f64>,
    /// Peak learning rate [default: 1e-4 for full, 1e-3 for head, else 5e-4]
    #[arg(long)]
    lr: Option<f64>,
    /// Peak learning rate of the task head [default: --lr]
    #[arg(long)]
    head_lr: Option<f64>,
    /// Decoupled weight decay, applied to matrices
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Sequences per batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Batches per optimizer step (gradient accumulation)
    #[arg(long, default_value_t = 1)]
    grad_accum: usize,
    /// Optimizer steps
    #[arg(long, default_value_t = 500, conflicts_with = "epochs")]
    max_steps: usize,
    /// Epochs: passes over the training rows
    #[arg(long)]
    epochs: Option<f64>,
    /// Fraction of the steps used for warm-up
    #[arg(long, default_value_t = 0.06)]
    warmup_ratio: f64,
    /// Learning-rate schedule after the warm-up
    #[arg(long, value_enum, default_value_t = Scheduler::Linear)]
    scheduler: Scheduler,
    /// Maximum global gradient norm; 0 disables clipping
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Steps between evaluations
    #[arg(long, default_value_t = 100)]
    eval_every: usize,
    /// Steps between checkpoints, a multiple of --eval-every [default: no checkpoints]
    #[arg(long)]
    save_every: Option<usize>,
    /// Stop after this many evaluations without improvement
    #[arg(long)]
    early_stopping: Option<usize>,
    /// Truncate texts to this many tokens [default: the model's limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Seed of initial values, shuffling and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Continue a run past its planned steps, to --max-steps or --epochs
    #[arg(long)]
    extend: bool,
    /// Root of a log tree [default: events go into the output folder]
    #[arg(long)]
    log_dir: Option<PathBuf>,
    /// Initialise from the weights of this adapter or model
    #[arg(long)]
    init_from: Option<PathBuf>,
    /// Initialise the model with random weights, as a baseline
    #[arg(long, conflicts_with = "init_from")]
    random_init: bool,
    /// Initialise the head with zeros
    #[arg(long)]
    zero_head: bool,
    /// Name of the model in tables and logs [default: --model]
    #[arg(long)]
    model_name: Option<String>,
    /// Label of the run in tables [default: the method]
    #[arg(long)]
    label: Option<String>,
    /// Show burn-train's dashboard instead of a progress bar; q stops the training
    #[cfg(feature = "tui")]
    #[arg(long, conflicts_with = "json")]
    tui: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let begun = Instant::now();
    let started = SystemTime::now();
    let device = device()?;
    let folder = model_folder(&args.model)?;
    let base = ClassifierConfig::read(&folder)?;
    let tokenizer = tokenizer(&folder, &base, args.max_length)?;
    check_output(&args)?;
    #[cfg(feature = "tui")]
    ensure!(!args.tui || std::io::stdout().is_terminal(), "--tui needs a terminal for its dashboard");
    // Everything that can be wrong with the options is found before the rows are read.
    let mut config = train_config(&args);
    config.validate()?;
    if let Some(epochs) = args.epochs {
        ensure!(
            epochs.is_finite() && epochs > 0.0,
            "epochs = {epochs} is out of range; expected a number above 0"
        );
    }
    let (spec, read) = read_spec(&args)?;
    let (labels, regression) = match &spec.labels {
        LabelSpace::Classes(names) => (names.clone(), false),
        LabelSpace::Score => (vec!["score".to_string()], true),
    };
    let model_config = base.with_labels(labels.clone(), regression);
    let (tuner, model_hash) = build(&args, &folder, model_config, &device)?;
    let rows = read.encode(spec, &tokenizer)?;
    let objective = Classification::<SequenceClassifier<Train>>::new(
        rows.train.clone(),
        rows.dev.clone(),
        rows.spec.metrics.clone(),
        &config,
    )?;
    if let Some(epochs) = args.epochs {
        config.max_steps = objective.plan().steps_for(epochs);
    }
    let (trainable, total) = tuner.count();

    let settings = settings(&args, &config, &rows.spec);
    let mut record = RunRecord::new(
        RunInfo {
            command: std::env::args().collect(),
            config: settings.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("LOWRANK_COMMIT").map(str::to_string),
            backend: NAME.into(),
            started: rfc3339_utc(started),
            finished: None,
        },
        MetaInfo {
            model: args.model_name(),
            model_hash,
            data_hash: rows.hash.clone(),
            task: rows.spec.name.clone(),
            method: args.method.name(),
            hardware: hardware(),
            versions: BTreeMap::from([("burn".to_string(), env!("LOWRANK_BURN_VERSION").to_string())]),
        },
    );
    let primary = rows.spec.metrics[0].to_string();
    record.train_info.metric_name = primary.clone();
    record.train_info.trainable = trainable as u64;
    record.train_info.total = total as u64;
    if (args.resume || args.extend)
        && let Ok(before) = RunRecord::read(args.output.join(FILE_NAME))
    {
        record.run_info.started = before.run_info.started;
        record.train_info.evals = before.train_info.evals;
        record.train_info.event_files = before.train_info.event_files;
    }
    let base_hash = record.meta_info.model_hash.clone();
    let checkpoints = CheckpointStore::new(&args.output, hash_settings(&settings, &[&rows.hash, &base_hash]));
    // Whether there is something to continue is known before the record is touched.
    checkpoints.position(args.start(), config.max_steps)?;
    std::fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    record.write_atomic(args.output.join(FILE_NAME))?;
    let record = Arc::new(Mutex::new(record));

    let result = train(&args, &config, &objective, tuner, &rows, &settings, &checkpoints, &record);
    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner).clone();
    record.run_info.finished = Some(rfc3339_utc(SystemTime::now()));
    record.train_info.wall_s = Some(begun.elapsed().as_secs_f64());
    record.train_info.peak_rss_mb = peak_rss_mb();
    let outcome = match result.and_then(|(model, outcome)| {
        record.train_info.adapter_bytes =
            Some(save(&args, &folder, &model, &labels, regression, &base_hash)?);
        Ok(outcome)
    }) {
        Ok(outcome) => outcome,
        Err(error) => {
            record.train_info.status = Status::Failed;
            record.train_info.error = Some(format!("{error:#}"));
            record.write_atomic(args.output.join(FILE_NAME))?;
            return Err(error);
        }
    };
    finish(&mut record, &outcome);
    record.write_atomic(args.output.join(FILE_NAME))?;
    print_result(&args, &record)
}

#[allow(clippy::too_many_arguments, reason = "the parts of a run")]
/// Trains; evaluations go into the record as they come.
fn train(
    args: &Args,
    config: &TrainConfig,
    objective: &Classification<SequenceClassifier<Train>>,
    tuner: FineTuner<Train>,
    rows: &Rows,
    settings: &Map<String, Value>,
    checkpoints: &CheckpointStore,
    record: &Arc<Mutex<RunRecord>>,
) -> Result<(FineTuner<crate::backend::Inner>, Outcome)> {
    let label = args.label.clone().unwrap_or_else(|| args.method.name());
    let log_folder = match &args.log_dir {
        Some(root) => log_path(
            root,
            &LogKey {
                model: &args.model_name(),
                method: &label,
                task: &rows.spec.name,
                lr: config.lr,
                rank: rank(args).unwrap_or(0) as u64,
                seed: args.seed,
            },
        ),
        None => args.output.clone(),
    };
    let mut events = EventWriter::create(log_folder)?;
    // Runs that differ in a setting which is not part of the path are told apart by it.
    events.session(&Session::from_settings(run_id(&args.output), settings))?;
    if let Some(name) = events.path().file_name() {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        record.train_info.event_files.push(name.to_string_lossy().into_owned());
        record.write_atomic(args.output.join(FILE_NAME))?;
    }
    let mut watch: Vec<Box<dyn Watch>> = vec![
        Box::new(args.show()),
        Box::new(EventWatch::new(events)),
        Box::new(RecordWatch::new(record.clone(), args.output.join(FILE_NAME))),
    ];
    // The state of a full training is several times the model: it is kept where checkpoints are asked for.
    let keep_last = args.save_every.is_some() || args.method != Method::Full;
    let training = Training {
        config,
        checkpoints: Some(checkpoints),
        start: args.start(),
        keep_last,
        watch: &mut watch,
    };
    let (model, outcome) = lowrank_train::train(objective, tuner, training)?;
    checkpoints.end(keep_last)?;
    Ok((model.valid(), outcome))
}

/// Identifies a run, resumed or not: its folder.
fn run_id(output: &Path) -> String {
    let path = output.canonicalize().unwrap_or_else(|_| output.to_owned());
    format!("{:016x}", fnv(path.to_string_lossy().bytes()))
}

fn rank(args: &Args) -> Option<usize> {
    args.method.adapter().map(|_| args.adapter.rank)
}

fn train_config(args: &Args) -> TrainConfig {
    let lr = match args.method {
        Method::Full => 1e-4,
        Method::Head => 1e-3,
        _ => 5e-4,
    };
    TrainConfig {
        lr: args.lr.unwrap_or(lr),
        head_lr: args.head_lr,
        lora_plus: args.lora_plus,
        weight_decay: args.weight_decay,
        batch_size: args.batch_size,
        batch_tokens: None,
        grad_accum: args.grad_accum,
        max_steps: args.max_steps,
        warmup_ratio: args.warmup_ratio,
        scheduler: match args.scheduler {
            Scheduler::Linear => SchedulerKind::Linear,
            Scheduler::Cosine => SchedulerKind::Cosine,
            Scheduler::Constant => SchedulerKind::Constant,
        },
        max_grad_norm: args.max_grad_norm,
        eval_every: args.eval_every,
        save_every: args.save_every,
        early_stopping: args.early_stopping,
        seed: args.seed,
    }
}

/// A run's folder must be new, or hold a run that failed or is to be continued.
fn check_output(args: &Args) -> Result<()> {
    let dir = &args.output;
    let Ok(before) = RunRecord::read(dir.join(FILE_NAME)) else {
        ensure!(!args.extend, "{}: holds no run to extend", dir.display());
        return new_folder(dir, &[&args.model]);
    };
    if args.extend {
        return Ok(());
    }
    ensure!(
        args.resume || before.train_info.status == Status::Failed,
        "{}: holds a run already; continue it with --resume, or give a new folder",
        dir.display()
    );
    ensure!(
        before.train_info.status != Status::Done,
        "{}: this run has ended; --extend trains it past its planned steps",
        dir.display()
    );
    Ok(())
}

impl Args {
    fn start(&self) -> Start {
        match (self.extend, self.resume) {
            (true, _) => Start::Extend,
            (false, true) => Start::Resume,
            (false, false) => Start::Fresh,
        }
    }

    #[cfg(feature = "tui")]
    fn show(&self) -> ShowWatch {
        if self.tui { ShowWatch::dashboard() } else { ShowWatch::bar() }
    }

    #[cfg(not(feature = "tui"))]
    fn show(&self) -> ShowWatch {
        ShowWatch::bar()
    }

    fn model_name(&self) -> String {
        self.model_name.clone().unwrap_or_else(|| self.model.display().to_string())
    }
}
