//! `lowrank datasets`: regenerate the embedded data sets and the embedded models, bit for bit.

mod bert;
mod llama;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lowrank_checkpoint::StagedDir;
use lowrank_mini::{File, files, instruct};
use lowrank_train::{
    Alone, CheckpointStore, Objective, Start, StepReport, TrainConfig, Training, Watch, train,
};

use crate::backend::{Inner, Train};

/// Options of `datasets`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for mini-glue, mini-instruct and models
    #[arg(short, long, default_value = "datasets")]
    output: PathBuf,
    /// Write the texts only and keep the existing models
    #[arg(long)]
    texts_only: bool,
    /// Models to pre-train
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Model::MiniBert, Model::MiniLlama])]
    models: Vec<Model>,
    /// Number of pre-training steps [default: 12000 for mini-bert, 2000 for mini-llama]
    #[arg(long)]
    steps: Option<usize>,
}

/// An embedded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Model {
    /// An encoder
    MiniBert,
    /// A language model that chats
    MiniLlama,
}

/// The seed of everything.
const SEED: u64 = 1;

/// Runs the command. An interrupted training resumes; a complete model is trained again only after all are
/// complete.
pub(crate) fn run(args: Args) -> Result<()> {
    write_texts(&args.output.join("mini-glue"), &files(SEED))?;
    write_texts(&args.output.join("mini-instruct"), &instruct::files(SEED))?;
    if args.texts_only {
        return Ok(());
    }
    let unfinished = args.output.join("unfinished");
    for model in &args.models {
        let name = match model {
            Model::MiniBert => "mini-bert",
            Model::MiniLlama => "mini-llama",
        };
        let (state, folder) = (unfinished.join(name), args.output.join("models").join(name));
        let done = state.join("done");
        if done.is_file() {
            eprintln!("{name} is complete");
            continue;
        }
        // Also keeps another process from the same training.
        let staged = StagedDir::create(&folder, true)?;
        std::fs::create_dir_all(&state).with_context(|| state.display().to_string())?;
        match model {
            Model::MiniBert => bert::make(staged.path(), &state, args.steps)?,
            Model::MiniLlama => llama::make(staged.path(), &state, args.steps)?,
        }
        check_replaced(&folder, staged.path())?;
        staged.commit()?;
        std::fs::write(&done, "").with_context(|| done.display().to_string())?;
    }
    std::fs::remove_dir_all(&unfinished).with_context(|| unfinished.display().to_string())
}

/// Writes a folder of texts, all of them or none, in place of an older one.
fn write_texts(folder: &Path, files: &[File]) -> Result<()> {
    let staged = StagedDir::create(folder, true)?;
    write(staged.path(), files)?;
    check_replaced(folder, staged.path())?;
    Ok(staged.commit()?)
}

/// Refuses to replace a folder that contains, at any depth, a file that `new` does not: it may be someone's work.
fn check_replaced(folder: &Path, new: &Path) -> Result<()> {
    for entry in folder.read_dir().into_iter().flatten() {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let counterpart = new.join(path.file_name().unwrap_or_default());
        if path.is_dir() && counterpart.is_dir() {
            check_replaced(&path, &counterpart)?;
        } else if path.is_dir() || !counterpart.is_file() {
            bail!(
                "{}: would be lost, since this folder is replaced; move it away, or give another folder",
                path.display()
            );
        }
    }
    Ok(())
}

/// Writes files below a folder.
fn write(folder: &Path, files: &[File]) -> Result<()> {
    for (name, content) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        lowrank_checkpoint::write_atomic(&path, content)?;
    }
    Ok(())
}

/// Steps between checkpoints.
const SAVE_EVERY: usize = 200;

/// Trains from the newest checkpoint below `state`, if there is one; `settings` identify the training.
fn pretrain<O: Objective<Train>>(
    objective: &O,
    model: O::Model,
    config: TrainConfig,
    state: &Path,
    settings: &str,
) -> Result<O::Model>
where
    Inner: lowrank_kernels::Kernels,
{
    let config = TrainConfig { eval_every: SAVE_EVERY, save_every: Some(SAVE_EVERY), ..config };
    let store = CheckpointStore::new(state, format!("{settings} {config:?}"));
    let mut watch = Progress { begun: Instant::now(), mean: None };
    let training = Training {
        config: &config,
        checkpoints: Some(&store),
        start: Start::Resume,
        keep_last: false,
        watch: &mut watch,
        team: &Alone,
    };
    Ok(train(objective, model, training)?.0)
}

/// A running mean of the loss on standard error.
struct Progress {
    begun: Instant,
    mean: Option<f64>,
}

impl Watch for Progress {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        let StepReport { step, of, loss, .. } = *report;
        let mean = self.mean.map_or(loss, |mean| 0.99 * mean + 0.01 * loss);
        self.mean = Some(mean);
        if step.is_multiple_of(100) {
            eprintln!("step {step}/{of}  loss {mean:.4}  {:.0} s", self.begun.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
