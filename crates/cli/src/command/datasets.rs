//! `lowrank datasets`: make the embedded data sets and the embedded model anew, bit for bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use lowrank_checkpoint::FloatType;
use lowrank_data::mlm::Masker;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_mini::{File, corpus, files, instruct, tokenizer_files};
use lowrank_models::{EncoderConfig, Parameters};
use lowrank_train::{SchedulerKind, StepReport, TrainConfig, Watch, pretrain};
use serde_json::json;

use crate::backend::{Train, device};

/// Options of `datasets`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for mini-glue, mini-instruct and models/mini-bert
    #[arg(short, long, default_value = "datasets")]
    output: PathBuf,
    /// Write the texts only and keep an existing model
    #[arg(long)]
    texts_only: bool,
    /// Steps of pre-training
    #[arg(long, default_value_t = STEPS)]
    steps: usize,
    /// Lines of pre-training text
    #[arg(long, default_value_t = LINES)]
    lines: usize,
}

/// Everything comes from this seed.
const SEED: u64 = 1;
const STEPS: usize = 12_000;
const LINES: usize = 120_000;

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    write(&args.output.join("mini-glue"), &files(SEED))?;
    write(&args.output.join("mini-instruct"), &instruct::files(SEED))?;
    if args.texts_only {
        return Ok(());
    }
    let folder = args.output.join("models/mini-bert");
    write(&folder, &tokenizer_files(MAX_TOKENS))?;
    pretrain_model(&folder, &args)
}

/// Writes files below a folder.
fn write(folder: &Path, files: &[File]) -> Result<()> {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        lowrank_checkpoint::write_atomic(&path, content)?;
    }
    Ok(())
}

/// Pre-trains the embedded encoder on text of the grammar.
fn pretrain_model(folder: &Path, args: &Args) -> Result<()> {
    let device = device()?;
    let tokenizer = TextTokenizer::from_folder(folder, Some(MAX_TOKENS))?;
    let lines = corpus(SEED, args.lines);
    let rows: Vec<Encoded> = lines
        .iter()
        .map(|line| tokenizer.encode(&line.text, line.pair.as_deref()))
        .collect::<lowrank_data::Result<_>>()?;
    let data = Arc::new(EncodedDataset::unlabelled(rows));
    let model = model_config(folder, tokenizer.vocab_size())?;
    let config = TrainConfig {
        lr: 1e-3,
        weight_decay: 0.01,
        batch_size: 64,
        max_steps: args.steps,
        scheduler: SchedulerKind::Linear,
        seed: SEED,
        ..TrainConfig::default()
    };
    let mut watch = Progress { begun: Instant::now(), mean: 0.0 };
    let trained = pretrain::<Train>(model, data, Masker::new(&tokenizer)?, &config, &device, &mut watch)?;
    Ok(trained.save(folder, folder, FloatType::F32)?)
}

/// A running mean of the loss on standard error.
struct Progress {
    begun: Instant,
    mean: f64,
}

impl Watch for Progress {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        let StepReport { step, of, loss, .. } = *report;
        self.mean = if step == 1 { loss } else { 0.99 * self.mean + 0.01 * loss };
        if step.is_multiple_of(100) {
            eprintln!("step {step}/{of}  loss {:.4}  {:.0} s", self.mean, self.begun.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

/// Longest sequence of the embedded model.
const MAX_TOKENS: usize = 128;

/// The embedded model's config.json, read back as any other.
fn model_config(folder: &Path, vocab_size: usize) -> Result<EncoderConfig> {
    let config = json!({
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": MAX_TOKENS,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0
    });
    lowrank_checkpoint::write_atomic(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(EncoderConfig::read(folder)?)
}
