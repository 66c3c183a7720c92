//! `lowrank finetune`: train a model on a task.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "tui")]
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use clap::ValueEnum;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterSet, Method as AdapterMethod};
use lowrank_checkpoint::Checkpoint;
use lowrank_data::glue::{GlueDataset, LabelSpace, Split, Task, TaskSpec, read_custom};
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::{Adaptable, EncoderConfig, SequenceClassifier, Trainable};
use lowrank_report::run::{Evaluation, FILE_NAME, MetaInfo, RunInfo, RunRecord, Status};
use lowrank_report::tfevents::EventWriter;
use lowrank_report::{LogKey, log_path, rfc3339_utc};
use lowrank_train::checkpoint::CheckpointStore;
use lowrank_train::{DevSet, FineTuner, Fit, Outcome, SchedulerKind, TrainConfig, fit};
use serde_json::{Map, Value, json};

use crate::adapter::load_adapter;
use crate::backend::{NAME, Train, device};
use crate::context::{adapter_folder, model_folder, new_folder, print_json, tokenizer, write_labels};
use crate::machine::{hardware, peak_rss_mb};
use crate::method::{AdapterArgs, Method};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scheduler {
    /// Down to zero in a straight line.
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// Stays.
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
    /// Training rows of a task of your own: .tsv with a header text[, text_pair], label; or .jsonl
    #[arg(long, requires = "dev")]
    train: Option<PathBuf>,
    /// Dev rows of a task of your own
    #[arg(long, requires = "train")]
    dev: Option<PathBuf>,
    /// What is trained
    #[arg(long, value_enum)]
    method: Method,
    /// Folder of the run
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// LoRA+: how much larger the learning rate of B is than that of A
    #[arg(long)]
    lora_plus: Option<f64>,
    /// Peak learning rate [default: 1e-4 for full, 1e-3 for head, else 5e-4]
    #[arg(long)]
    lr: Option<f64>,
    /// Peak learning rate of the task head [default: --lr]
    #[arg(long)]
    head_lr: Option<f64>,
    /// Decoupled weight decay of matrices
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Batches in an optimizer step
    #[arg(long, default_value_t = 1)]
    grad_accum: usize,
    /// Optimizer steps
    #[arg(long, default_value_t = 500, conflicts_with = "epochs")]
    max_steps: usize,
    /// Passes over the training rows
    #[arg(long)]
    epochs: Option<f64>,
    /// Part of the steps that warm up
    #[arg(long, default_value_t = 0.06)]
    warmup_ratio: f64,
    /// Schedule after the warm-up
    #[arg(long, value_enum, default_value_t = Scheduler::Linear)]
    scheduler: Scheduler,
    /// Clip the global gradient norm; 0 for no clipping
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Steps between evaluations
    #[arg(long, default_value_t = 100)]
    eval_every: usize,
    /// Steps between checkpoints, a multiple of --eval-every [default: none are kept]
    #[arg(long)]
    save_every: Option<usize>,
    /// Stop after this many evaluations without improvement
    #[arg(long)]
    early_stopping: Option<usize>,
    /// Cut texts at this many tokens [default: the model's limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Seed of initial values, shuffling and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Root of a log tree [default: events go into the output folder]
    #[arg(long)]
    log_dir: Option<PathBuf>,
    /// Start from the weights of this adapter or model instead
    #[arg(long)]
    init_from: Option<PathBuf>,
    /// Start from random weights: what an untrained encoder can do
    #[arg(long, conflicts_with = "init_from")]
    random_init: bool,
    /// Start with a head of zeros
    #[arg(long)]
    zero_head: bool,
    /// Name of the model in tables and logs [default: --model]
    #[arg(long)]
    model_name: Option<String>,
    /// Name of the run in tables [default: the method]
    #[arg(long)]
    label: Option<String>,
    /// Show burn-train's dashboard in the terminal in place of a bar; q stops the training
    #[cfg(feature = "tui")]
    #[arg(long, conflicts_with = "json")]
    tui: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The task's rows.
struct Rows {
    spec: TaskSpec,
    train: Arc<EncodedDataset>,
    dev: Vec<DevSet>,
    hash: String,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let begun = Instant::now();
    let started = SystemTime::now();
    let device = device()?;
    let folder = model_folder(&args.model)?;
    let base = EncoderConfig::read(&folder)?;
    let tokenizer = tokenizer(&folder, &base, args.max_length)?;
    check_output(&args)?;
    #[cfg(feature = "tui")]
    ensure!(!args.tui || std::io::stdout().is_terminal(), "--tui needs a terminal for its dashboard");
    // Everything that can be wrong with the options is found before the rows are read.
    let mut config = train_config(&args);
    config.validate()?;
    let (spec, read) = read_spec(&args)?;
    let (labels, regression) = match &spec.labels {
        LabelSpace::Classes(names) => (names.clone(), false),
        LabelSpace::Score => (vec!["score".to_string()], true),
    };
    let model_config = base.with_labels(labels.clone(), regression);
    let (tuner, model_hash) = build(&args, &folder, model_config, &device)?;
    let rows = read.encode(spec, &tokenizer)?;
    if let Some(epochs) = args.epochs {
        ensure!(
            epochs.is_finite() && epochs > 0.0,
            "epochs = {epochs} is out of range; expected a number above 0"
        );
        let per_epoch = rows.train.len().div_ceil(args.batch_size * args.grad_accum);
        config.max_steps = ((per_epoch as f64 * epochs).ceil() as usize).max(1);
    }
    let (trainable, total) = tuner.count();

    std::fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
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
            versions: BTreeMap::from([("burn".to_string(), "0.21.0".to_string())]),
        },
    );
    let primary = rows.spec.metrics[0].to_string();
    record.train_info.metric_name = primary.clone();
    record.train_info.trainable = trainable as u64;
    record.train_info.total = total as u64;
    if args.resume
        && let Ok(before) = RunRecord::read(args.output.join(FILE_NAME))
    {
        record.run_info.started = before.run_info.started;
        record.train_info.evals = before.train_info.evals;
        record.train_info.event_files = before.train_info.event_files;
    }
    let base_hash = record.meta_info.model_hash.clone();
    record.write_atomic(args.output.join(FILE_NAME))?;
    let record = Arc::new(Mutex::new(record));

    let result = train(&args, config, tuner, rows, &settings, &record, &primary);
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

/// Trains; evaluations go into the record as they come.
fn train(
    args: &Args,
    config: TrainConfig,
    tuner: FineTuner<Train>,
    rows: Rows,
    settings: &Map<String, Value>,
    record: &Arc<Mutex<RunRecord>>,
    primary: &str,
) -> Result<(FineTuner<crate::backend::Inner>, Outcome)> {
    let checkpoints =
        CheckpointStore::new(args.output.join("checkpoints"), hash_settings(settings, &rows.hash));
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
    let on_evaluation = {
        let (record, primary, path) = (record.clone(), primary.to_string(), args.output.join(FILE_NAME));
        Box::new(move |step: usize, output: &lowrank_train::metrics::EvalOutput| {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            note_evaluation(&mut record, step, &output.values, &primary);
            Ok(record.write_atomic(&path)?)
        })
    };
    let events = EventWriter::create(log_folder)?;
    if let Some(name) = events.path().file_name() {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        record.train_info.event_files.push(name.to_string_lossy().into_owned());
        record.write_atomic(args.output.join(FILE_NAME))?;
    }
    let dev = rows.dev;
    let job = Fit {
        config,
        train: rows.train,
        dev,
        metrics: rows.spec.metrics.clone(),
        folder: args.output.clone(),
        events: Some(events),
        checkpoints: Some(checkpoints.clone()),
        resume: args.resume,
        #[cfg(feature = "tui")]
        dashboard: args.tui,
        interrupter: burn::train::Interrupter::new(),
        on_evaluation,
    };
    let result = fit(tuner, job)?;
    checkpoints.clear()?;
    Ok(result)
}

fn note_evaluation(record: &mut RunRecord, step: usize, values: &BTreeMap<String, f64>, primary: &str) {
    let info = &mut record.train_info;
    let finite = |v: &f64| v.is_finite().then_some(*v);
    // A resumed run comes by again where it was killed after an evaluation and before a checkpoint.
    info.evals.retain(|e| e.step < step as u64);
    info.evals.push(Evaluation {
        step: step as u64,
        metrics: values.iter().filter(|(k, _)| *k != "loss").map(|(k, v)| (k.clone(), finite(v))).collect(),
        loss: values.get("loss").and_then(finite),
    });
    info.steps = step as u64;
    let value = values.get(primary).and_then(finite);
    if value.is_some() && (info.best_metric.is_none() || value > info.best_metric) {
        info.best_metric = value;
        info.best_step = Some(step as u64);
    }
}

/// Fills in what is known at the end: the saved weights are those of the best evaluation.
fn finish(record: &mut RunRecord, outcome: &Outcome) {
    let info = &mut record.train_info;
    info.status = Status::Done;
    info.steps = outcome.steps as u64;
    if let Some((step, value)) = outcome.best {
        info.best_metric = Some(value);
        info.best_step = Some(step as u64);
    }
    info.metric = info.best_metric;
    let mut times: Vec<f64> = outcome.step_times.iter().map(|t| t.as_secs_f64()).collect();
    let (seconds, tokens): (f64, usize) = (times.iter().sum(), outcome.step_tokens.iter().sum());
    times.sort_by(f64::total_cmp);
    info.ms_per_step_median = times.get(times.len() / 2).map(|s| s * 1e3);
    info.tokens_per_second = (seconds > 0.0).then(|| tokens as f64 / seconds);
}

fn print_result(args: &Args, record: &RunRecord) -> Result<()> {
    let info = &record.train_info;
    if args.json {
        return print_json(&json!({
            "metric": info.metric,
            "best_metric": info.best_metric,
            "steps": info.steps,
            "ms_per_step_median": info.ms_per_step_median,
            "tokens_per_second": info.tokens_per_second,
            "trainable": info.trainable,
            "total": info.total,
            "peak_rss_mb": info.peak_rss_mb,
            "wall_s": info.wall_s,
            "metric_name": info.metric_name,
            "best_step": info.best_step,
        }));
    }
    println!(
        "{} {:.4} at step {} of {}; {} of {} parameters trained; {:.0} ms a step, {:.0} tokens/s, {:.0} MB, {:.0} s",
        info.metric_name,
        info.metric.unwrap_or(f64::NAN),
        info.best_step.unwrap_or(0),
        info.steps,
        info.trainable,
        info.total,
        info.ms_per_step_median.unwrap_or(f64::NAN),
        info.tokens_per_second.unwrap_or(f64::NAN),
        info.peak_rss_mb.unwrap_or(f64::NAN),
        info.wall_s.unwrap_or(f64::NAN),
    );
    Ok(())
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

/// A run's folder must be new, or hold one that failed, or the one that is to be gone on with.
fn check_output(args: &Args) -> Result<()> {
    let dir = &args.output;
    let Ok(before) = RunRecord::read(dir.join(FILE_NAME)) else { return new_folder(dir, &[&args.model]) };
    ensure!(
        args.resume || before.train_info.status == Status::Failed,
        "{}: holds a run already; go on with it by --resume, or give a new folder",
        dir.display()
    );
    ensure!(
        before.train_info.status != Status::Done,
        "{}: this run has ended; there is nothing to resume",
        dir.display()
    );
    Ok(())
}

impl Args {
    fn model_name(&self) -> String {
        self.model_name.clone().unwrap_or_else(|| self.model.display().to_string())
    }

    /// Whether an adapter to start from is of the method and the shape that the options ask for.
    fn check_start(&self, dir: &Path, set: &AdapterSet<Train>, method: AdapterMethod) -> Result<()> {
        if set.is_empty() {
            return Ok(());
        }
        let config = AdapterFolder::read(dir)?.config;
        let is_of = match method {
            AdapterMethod::Lora => config.peft_type == "LORA" && !config.use_dora,
            AdapterMethod::Dora => config.peft_type == "LORA" && config.use_dora,
            AdapterMethod::Lotr => config.peft_type == "LOTR",
            AdapterMethod::Vera => config.peft_type == "VERA",
            AdapterMethod::Loretta => config.peft_type == "LORETTA",
            AdapterMethod::TtLora => config.peft_type == "TT_LORA",
            AdapterMethod::Lorta => config.peft_type == "LORTA",
            // Which factor was frozen, and a correction of full size, no file tells.
            AdapterMethod::LoraFa | AdapterMethod::LowRank => false,
        };
        ensure!(
            is_of,
            "{}: is of another method ({}) than --method {}; convert it, or name its own",
            dir.display(),
            config.peft_type,
            self.method.name()
        );
        ensure!(
            (self.adapter.rank, self.adapter.alpha) == (config.r, config.lora_alpha),
            "{}: has rank {} and alpha {}; give them as --rank and --alpha (now {} and {})",
            dir.display(),
            config.r,
            config.lora_alpha,
            self.adapter.rank,
            self.adapter.alpha
        );
        Ok(())
    }
}

/// Where the task's rows come from.
enum Source {
    Glue { root: PathBuf, task: Task, train: GlueDataset },
    Files { train: GlueDataset, dev: GlueDataset },
}

fn read_spec(args: &Args) -> Result<(TaskSpec, Source)> {
    if let (Some(task), Some(root)) = (args.task, &args.data) {
        let train = GlueDataset::read(root, task, Split::Train)?;
        return Ok((task.spec(), Source::Glue { root: root.clone(), task, train }));
    }
    let (Some(train), Some(dev)) = (&args.train, &args.dev) else {
        bail!("give --task and --data, or --train and --dev");
    };
    let name = train.file_stem().map_or_else(|| "own".into(), |s| s.to_string_lossy().into_owned());
    let (train, dev) = read_custom(&name, train, dev)?;
    Ok((train.spec().clone(), Source::Files { train, dev }))
}

impl Source {
    fn encode(self, spec: TaskSpec, tokenizer: &TextTokenizer) -> Result<Rows> {
        let encode = |set: &GlueDataset| -> Result<Arc<EncodedDataset>> {
            Ok(Arc::new(EncodedDataset::encode(set, tokenizer)?))
        };
        let (train, dev) = match self {
            Self::Glue { root, task, train } => {
                (encode(&train)?, super::evaluate::dev_sets(&root, task, tokenizer)?)
            }
            Self::Files { train, dev } => {
                (encode(&train)?, vec![DevSet { suffix: String::new(), data: encode(&dev)? }])
            }
        };
        let hash = hash_rows(std::iter::once(&train).chain(dev.iter().map(|d| &d.data)));
        Ok(Rows { spec, train, dev, hash })
    }
}

/// The model with what is to be trained marked, the adapters over it, and the hash of the weights it started from.
fn build(
    args: &Args,
    folder: &Path,
    config: EncoderConfig,
    device: &crate::backend::Device,
) -> Result<(FineTuner<Train>, String)> {
    let (weights, adapter_from) = match &args.init_from {
        Some(path) => match adapter_folder(path) {
            Ok(dir) => (folder.to_path_buf(), Some(dir)),
            Err(_) => (model_folder(path)?, None),
        },
        None => (folder.to_path_buf(), None),
    };
    let (mut model, hash) = if args.random_init {
        (SequenceClassifier::<Train>::init(config, args.seed, device), "random".to_string())
    } else {
        let hash = Checkpoint::open(&weights)?.content_hash();
        (SequenceClassifier::<Train>::load(&weights, config, args.seed, device)?, hash)
    };
    if args.zero_head {
        model = model.with_zero_head();
    }
    let loaded = match &adapter_from {
        Some(dir) => Some(load_adapter(&mut model, dir, device)?),
        None => None,
    };
    if let (Some(dir), Some(set), Some(method)) = (&adapter_from, &loaded, args.method.adapter()) {
        args.check_start(dir, set, method)?;
    }
    let heads = model.config().n_heads;
    let adapters = match args.method.adapter() {
        None => AdapterSet::empty(),
        Some(method) => {
            let config = args.adapter.config(method, heads, args.seed)?;
            AdapterSet::init(&config, model.sites(), &model.base_weights(), device)?
        }
    };
    let trainable = match args.method {
        Method::Full => Trainable::All,
        Method::Bitfit => Trainable::Bias,
        _ => Trainable::Head,
    };
    // An adapter to start from brings its own factors, at its own sites and rank.
    let adapters = match loaded {
        Some(set) if !set.is_empty() && !adapters.is_empty() => set,
        Some(set) if !set.is_empty() => {
            model = model.merged(&set)?;
            adapters
        }
        _ => adapters,
    };
    let mut model = model.with_trainable(trainable);
    if args.method.adapter().is_some() {
        let adapted = adapted_paths(&adapters);
        let bias = args.adapter.bias;
        // A head that is adapted is not trained in full too.
        model.choose_trained(|key, trained| {
            (trained && !module_in(key, &adapted)) || bias.takes(key, |module| adapted.contains(module))
        });
    }
    Ok((FineTuner::new(model, adapters), hash))
}

fn adapted_paths<B: Backend>(adapters: &AdapterSet<B>) -> BTreeSet<String> {
    adapters.slots().iter().map(|slot| slot.path.clone()).collect()
}

fn module_in(key: &str, modules: &BTreeSet<String>) -> bool {
    key.rsplit_once('.').is_some_and(|(module, _)| modules.contains(module))
}

/// Every setting of the run, defaults included.
fn settings(args: &Args, config: &TrainConfig, spec: &TaskSpec) -> Map<String, Value> {
    let mut map = match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    map.insert("model".into(), json!(args.model));
    map.insert("task".into(), json!(spec.name));
    map.insert("method".into(), json!(args.method.name()));
    if args.method.adapter().is_some() {
        args.adapter.settings(&mut map);
    }
    map.insert("max_length".into(), json!(args.max_length));
    map.insert("init_from".into(), json!(args.init_from));
    map.insert("random_init".into(), json!(args.random_init));
    map.insert("zero_head".into(), json!(args.zero_head));
    if let Some(name) = &args.model_name {
        map.insert("model_name".into(), json!(name));
    }
    if let Some(label) = &args.label {
        map.insert("label".into(), json!(label));
    }
    map
}

/// FNV-1a, 64 bits: tells settings and data apart, no more.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn hash_settings(settings: &Map<String, Value>, data: &str) -> String {
    let text = serde_json::to_string(settings).unwrap_or_default();
    format!("{:016x}", fnv(text.bytes().chain(data.bytes())))
}

fn hash_rows<'a>(sets: impl Iterator<Item = &'a Arc<EncodedDataset>>) -> String {
    let bytes =
        sets.flat_map(|set| set.rows()).flat_map(|row| row.ids.iter().flat_map(|id| id.to_le_bytes()));
    format!("{:016x}", fnv(bytes))
}

/// Saves what was trained: a model folder for `full` and `bitfit`, an adapter folder else. Returns its bytes.
fn save(
    args: &Args,
    source: &Path,
    tuner: &FineTuner<crate::backend::Inner>,
    labels: &[String],
    regression: bool,
    base_hash: &str,
) -> Result<u64> {
    if matches!(args.method, Method::Full | Method::Bitfit) {
        let dir = args.output.join("model");
        tuner.model().save(&dir, source)?;
        return file_size(&dir.join("model.safetensors"));
    }
    let dir = args.output.join("adapter");
    let starts_from_model = args.init_from.as_ref().filter(|path| adapter_folder(path).is_err());
    // Random weights are kept nowhere.
    let base = (!args.random_init).then_some(starts_from_model.unwrap_or(&args.model));
    let config = PeftConfig {
        use_rslora: args.adapter.rslora,
        bias: args.adapter.bias.peft_name().into(),
        modules_to_save: Some(tuner.model().head_modules()),
        task_type: Some("SEQ_CLS".into()),
        base_model_name_or_path: base.map(|base| base.display().to_string()),
        inference_mode: true,
        ..PeftConfig::default()
    };
    let (set, model) = (tuner.adapters(), tuner.model());
    let adapted = adapted_paths(set);
    let mut saved = model.head_tensors();
    let is_bias = |key: &str| args.adapter.bias.takes(key, |module| adapted.contains(module));
    for tensor in model.tensors_where(is_bias) {
        if saved.iter().all(|t| t.name != tensor.name) {
            saved.push(tensor);
        }
    }
    AdapterFolder::from_set(set, model.sites(), config, saved)?.write(&dir)?;
    write_labels(&dir, labels, regression, Some(base_hash))?;
    file_size(&dir.join("adapter_model.safetensors"))
}

fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.len())
}
