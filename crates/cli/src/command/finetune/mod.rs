//! `lowrank finetune`: train a model on a task.

mod base;
mod classify;
mod generator;
mod job;
mod language;
mod masked;
mod model;
mod record;
mod residual;
mod rows;
mod seq2seq;
mod start;
mod weights;

#[cfg(feature = "tui")]
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use lowrank_models::{HeadLevel, ModelKind};
use lowrank_report::run::{FILE_NAME, RunRecord, Status};
use lowrank_train::{CheckpointStore, SchedulerKind, ShowWatch, Start, Team, TrainConfig};

use crate::backend::device;
use crate::context::{
    SpanArgs, TaskName, check_kind, check_task, model_folder, new_folder, open_model, warn_unused,
};
use crate::method::{AdapterArgs, Method};
use crate::usage::usage;

use self::base::BaseArgs;
use self::job::Process;
use self::language::LanguageArgs;
use self::weights::ClassWeights;

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
    /// Task: sst2 cola mrpc stsb qqp mnli qnli rte wnli, or images
    #[arg(long, required_unless_present = "train")]
    task: Option<TaskName>,
    /// GLUE root with the official folders; for images a folder with train and validation (val, dev, test)
    #[arg(long)]
    data: Option<PathBuf>,
    /// Training rows: for a classifier .tsv with a header text[, text_pair], label or labels
    /// (comma-separated), or .jsonl with the same keys; for token classification CoNLL columns or .jsonl with
    /// tokens and tags; for question answering SQuAD's .json, or .jsonl with question, context and answers; for a
    /// language model .txt, .jsonl or .json with text, messages, conversations, instruction, prompt/completion
    /// or prompt/chosen/rejected; for an encoder-decoder instruction or prompt/completion; for masked language modelling .txt, or
    /// .jsonl with text only; with --task images a folder with a folder of pictures for each class
    #[arg(long, requires = "dev")]
    train: Option<PathBuf>,
    /// Dev rows, in the same format
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
    /// Peak learning rate [default: 1e-4 for full, 1e-3 for head, else 5e-4; a language model: 2e-5 for full, else 2e-4]
    #[arg(long)]
    lr: Option<f64>,
    /// Peak learning rate of the task head [default: --lr]
    #[arg(long)]
    head_lr: Option<f64>,
    /// Decoupled weight decay, applied to matrices
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Sequences per batch [default: 32; a language model: 8]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Tokens per batch of rows of similar length, in place of --batch-size
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,
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
    /// Truncate texts to this many tokens [default: the model's limit; a language model: at most 1024]
    #[arg(long)]
    max_length: Option<usize>,
    /// Seed of initial values, shuffling and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Resume from the newest checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Continue a run past its planned steps, to --max-steps or --epochs
    #[arg(long)]
    extend: bool,
    /// Root of a log tree [default: events go into the output folder]
    #[arg(long)]
    log_dir: Option<PathBuf>,
    /// Initialize from the weights of this adapter or model
    #[arg(long)]
    init_from: Option<PathBuf>,
    /// Initialize the model with random weights, as a baseline
    #[arg(long, conflicts_with = "init_from")]
    random_init: bool,
    /// Initialize the head with zeros
    #[arg(long)]
    zero_head: bool,
    /// Weights of the classes in the loss, balanced or by name; an unnamed class has weight 1
    #[arg(long, value_name = "balanced|LABEL=WEIGHT,…")]
    class_weights: Option<ClassWeights>,
    #[command(flatten)]
    spans: SpanArgs,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    language: LanguageArgs,
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
pub(crate) fn run(args: Args, team: &dyn Team) -> Result<()> {
    let process = Process::start(team);
    check_task(args.task, args.data.as_deref(), args.train.as_deref(), "--train <TRAIN>");
    let is_adapter = args.method.adapter().is_some();
    args.adapter.warn_unused(Some(args.method));
    warn_unused(is_adapter, &["lora_plus"], "requires an adapter method");
    warn_unused(args.task.is_some(), &["data"], "requires --task");
    let device = device()?;
    let folder = model_folder(&args.model)?;
    #[cfg(feature = "tui")]
    ensure!(!args.tui || std::io::stdout().is_terminal(), "--tui needs a terminal for its dashboard");
    let opened = open_model(&folder)?;
    check_kind(&opened, args.task)?;
    let kind = opened.kind();
    if args.task == Some(TaskName::Images) {
        args.spans.check(HeadLevel::Sequence)?;
        args.language.check_unused()?;
        ensure!(
            !args.base.is_dry(),
            "--dry-run applies to next-token training only; pictures are classified"
        );
        ensure!(args.max_length.is_none(), "--max-length applies to texts; leave it out");
        return classify::run(&args, &folder, HeadLevel::Sequence, &device, process);
    }
    let level = rows::level(&args)?;
    args.spans.check(level)?;
    let is_pairs = kind == ModelKind::Seq2Seq;
    let is_written = (is_pairs || kind == ModelKind::Decoder) && !rows::are_labelled(&args)?;
    ensure!(
        is_written || !is_pairs,
        "{}: is {}, and the rows have labels; give rows with prompt and completion, or an encoder",
        args.model.display(),
        kind.describe()
    );
    let is_masked = !is_written && !kind.is_decoder() && masked::is_plain_text(&args)?;
    ensure!(
        args.class_weights.is_none() || !is_masked && !is_written,
        "--class-weights applies to classification; these are texts of a language model"
    );
    if is_pairs {
        seq2seq::run(&args, &folder, &device, process)
    } else if is_written {
        language::run(&args, &folder, &device, process)
    } else if is_masked {
        args.language.check_unused()?;
        masked::run(&args, &folder, &device, process)
    } else {
        args.language.check_unused()?;
        ensure!(
            !args.base.is_dry(),
            "--dry-run applies to next-token training only; these rows are classified"
        );
        classify::run(&args, &folder, level, &device, process)
    }
}

impl Args {
    /// The hyper-parameters; `lr` and `batch_size` are defaults for the options.
    fn train_config(&self, lr: f64, batch_size: usize) -> Result<TrainConfig> {
        let config = TrainConfig {
            lr: self.lr.unwrap_or(lr),
            head_lr: self.head_lr,
            lora_plus: self.lora_plus,
            weight_decay: self.weight_decay,
            batch_size: self.batch_size.unwrap_or(batch_size),
            batch_tokens: self.batch_tokens,
            grad_accum: self.grad_accum,
            max_steps: self.max_steps,
            warmup_ratio: self.warmup_ratio,
            scheduler: match self.scheduler {
                Scheduler::Linear => SchedulerKind::Linear,
                Scheduler::Cosine => SchedulerKind::Cosine,
                Scheduler::Constant => SchedulerKind::Constant,
            },
            max_grad_norm: self.max_grad_norm,
            eval_every: self.eval_every,
            save_every: self.save_every,
            early_stopping: self.early_stopping,
            seed: self.seed,
        };
        config.validate().map_err(usage)?;
        if let Some(epochs) = self.epochs {
            ensure_usage!(
                epochs.is_finite() && epochs > 0.0,
                "epochs = {epochs} is out of range; expected a number above 0"
            );
        }
        Ok(config)
    }

    fn rank(&self) -> Option<usize> {
        self.method.adapter().map(|_| self.adapter.rank)
    }
}

/// A run's folder must be new, or contain a failed run or one to continue.
fn check_output(args: &Args) -> Result<()> {
    let dir = &args.output;
    let Ok(before) = RunRecord::read(dir.join(FILE_NAME)) else {
        ensure!(!args.extend, "{}: contains no run to extend", dir.display());
        return new_folder(dir, &[&args.model]);
    };
    if args.extend {
        return Ok(());
    }
    ensure!(
        args.resume || before.train_info.status == Status::Failed,
        "{}: already contains a run; continue it with --resume, or give a new folder",
        dir.display()
    );
    // They would be taken for those of the new run.
    ensure!(
        args.resume || !CheckpointStore::any(dir),
        "{}: contains checkpoints of a run that failed; continue it with --resume, or give a new folder",
        dir.display()
    );
    ensure!(
        before.train_info.status != Status::Done,
        "{}: this run is finished; --extend trains it past its planned steps",
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
