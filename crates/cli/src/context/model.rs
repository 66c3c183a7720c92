//! Finding and loading models and adapters.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use clap::Args;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::is_adapter;
use lowrank_checkpoint::Checkpoint;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::{Classifier, ClassifierConfig, HeadLevel, ModelFolder, Parameters};
use lowrank_spec::storage::{quantizer, take_storage};
use lowrank_train::FineTuner;

use super::labels::{classifier_config, warn_other_base};
use crate::adapter::{load_adapter, warn_ignored};

/// Opens a model, like [`ModelFolder::open`]; notes once per model how its weights are quantized, if they are
/// read as floats.
pub(crate) fn open_model(path: &Path) -> Result<ModelFolder> {
    note_quantizer(ModelFolder::open(path)?)
}

fn note_quantizer(folder: ModelFolder) -> Result<ModelFolder> {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    // Reading the weights reports those that cannot be read.
    let is_readable =
        || take_storage(&mut folder.config().clone()).is_ok() && Checkpoint::open(folder.path()).is_ok();
    if let Some(method) = quantizer(folder.config())
        && TOLD.lock().is_ok_and(|mut told| {
            !told.contains(folder.path()) && is_readable() && told.insert(folder.path().to_path_buf())
        })
    {
        eprintln!("note: {}: weights quantized with {method} are read as floats", folder.path().display());
    }
    Ok(folder)
}

/// Opens a model with the tokenizer, the chat template and the pooling of an adapter, if its folder has them.
pub(crate) fn open_with(model: &Path, adapter: Option<&Path>) -> Result<ModelFolder> {
    with_adapter(open_model(model)?, adapter)
}

fn with_adapter(folder: ModelFolder, adapter: Option<&Path>) -> Result<ModelFolder> {
    Ok(match adapter {
        Some(adapter) => folder.with_adapter(&adapter_folder(adapter)?),
        None => folder,
    })
}

/// A model folder: the given one, the `model` folder of a run, or a model of the Hugging Face hub if no such
/// folder exists.
pub(crate) fn model_folder(path: &Path) -> Result<PathBuf> {
    Ok(open_model(path)?.path().to_path_buf())
}

/// An adapter folder: the given one, or the `adapter` folder of a run.
pub(crate) fn adapter_folder(path: &Path) -> Result<PathBuf> {
    for candidate in [path.to_path_buf(), path.join("adapter")] {
        if is_adapter(&candidate) {
            return Ok(candidate);
        }
    }
    bail!("{}: no adapter_config.json; expected an adapter folder or the folder of a run", path.display());
}

/// The tokenizer of a model, truncating at the model's limit or `max_length`.
pub(crate) fn tokenizer(
    folder: &ModelFolder,
    config: &ClassifierConfig,
    max_length: Option<usize>,
) -> Result<TextTokenizer> {
    let limit = config.max_tokens();
    if let Some(n) = max_length.filter(|n| *n > limit) {
        bail!("--max-length {n} exceeds the model's limit of {limit} tokens");
    }
    let open = |n| folder.tokenizer(Some(n));
    let tokenizer = open(max_length.unwrap_or(limit))?;
    let own = tokenizer.model_max_length().filter(|&n| max_length.is_none() && n < limit);
    Ok(match own {
        Some(n) => open(n)?,
        None => tokenizer,
    })
}

/// A classifier with an adapter over it, and its tokenizer.
pub(crate) struct Loaded<B: Backend> {
    /// Model and adapters.
    pub(crate) model: FineTuner<B>,
    /// `None` for a model of pictures.
    tokenizer: Option<TextTokenizer>,
    /// The model's folder.
    pub(crate) folder: PathBuf,
}

impl<B: Backend> Loaded<B> {
    /// The tokenizer of a model of texts.
    pub(crate) fn tokenizer(&self) -> Result<&TextTokenizer> {
        let none = || format!("{}: reads pictures; give pictures (--image)", self.folder.display());
        self.tokenizer.as_ref().with_context(none)
    }

    /// The unit of text that the head labels.
    pub(crate) fn level(&self) -> HeadLevel {
        self.model.model().config().level
    }

    /// Refuses a model without a trained head, whose answers would be random.
    pub(crate) fn require_head(&self) -> Result<()> {
        let missing = self.model.model().newly_initialized();
        if missing.is_empty() {
            return Ok(());
        }
        let config = self.model.model().config();
        if config.level == HeadLevel::Span
            && let Some(rows) = self.model.model().other_head_width()
        {
            bail!(
                "the head in the checkpoint has {rows} rows; expected two, for the start and the end of an answer"
            );
        }
        let labels = config.labels.len();
        if let Some(rows) = self.model.model().other_head_width() {
            bail!(
                "the head in the checkpoint has {rows} rows, but config.json (or the adapter) names {labels} labels; name \
                 one label for each row in id2label"
            );
        }
        bail!(
            "the model has no trained head ({} missing); give an adapter that has one, or a fine-tuned model",
            missing.join(", ")
        )
    }
}

/// `--model` and `--adapter`.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Model folder (config.json, weights, tokenizer)
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Adapter folder
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Truncate texts to this many tokens [default: the model's limit]
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
}

impl ModelArgs {
    /// Opens the given model, with the tokenizer and the pooling of the adapter if its folder has them.
    pub(crate) fn folder(&self) -> Result<ModelFolder> {
        with_adapter(note_quantizer(ModelFolder::open_embedder(&self.model)?)?, self.adapter.as_deref())
    }

    /// Loads the given model and adapter. Labels saved with the adapter replace the model's own.
    pub(crate) fn load<B: Backend>(&self, device: &B::Device) -> Result<Loaded<B>> {
        let folder = self.folder()?;
        let adapter = self.adapter.as_deref().map(adapter_folder).transpose()?;
        let config = classifier_config(folder.path(), adapter.as_deref())?;
        let tokenizer = if folder.reads_pictures() {
            ensure!(
                self.max_length.is_none(),
                "--max-length applies to texts, and the model reads pictures; leave it out"
            );
            None
        } else {
            Some(folder.cutting_tokenizer(self.max_length)?)
        };
        if let Some(dir) = &adapter {
            warn_other_base(dir, folder.path())?;
        }
        let mut model = Classifier::<B>::load(folder.path(), config, 0, device)?;
        warn_ignored(&model, folder.path());
        let adapters = match &adapter {
            Some(dir) => load_adapter(&mut model, dir, None, device)?,
            None => AdapterSet::empty(),
        };
        Ok(Loaded { model: FineTuner::new(model, adapters), tokenizer, folder: folder.path().to_path_buf() })
    }
}
