//! The single entry point to a model: the contents of a Hugging Face folder, and its kind of model.
//!
//! Every command determines here whether a folder holds an encoder or a decoder and which head it has, so
//! that one folder is interpreted the same way everywhere. Only small JSON files are read until a part is
//! requested.

mod generation;
#[cfg(feature = "hub")]
mod hub;
mod kind;
mod modules;
mod pooling;

use std::path::{Path, PathBuf};

use lowrank_adapters::peft::CONFIG_FILE;
use lowrank_checkpoint::gguf;
use lowrank_checkpoint::{Checkpoint, has_file};
use lowrank_data::chat::{self, ChatTemplate};
use lowrank_data::tokenize::{TextTokenizer, has_tokenizer};
use serde_json::{Map, Value};

use crate::architecture::ENCODERS;
use crate::config::read_json;
use crate::error::{ModelError, Result};
use crate::{ClassifierConfig, DecoderConfig, EncoderConfig, Seq2SeqConfig};

pub use generation::{GenerationConfig, GenerationSource};
pub use kind::ModelKind;
pub use modules::{Dense, EmbeddingStep};
pub(crate) use pooling::TRANSFORMER_CONFIGS;
pub use pooling::{PoolingMode, SentencePooling};

/// A model folder, opened.
///
/// ```no_run
/// use lowrank_models::{ModelFolder, ModelKind};
///
/// let folder = ModelFolder::open("models/SmolLM2-135M-Instruct".as_ref())?;
/// assert_eq!(folder.kind(), ModelKind::Decoder);
/// let (config, tokenizer) = (folder.decoder_config()?, folder.tokenizer(None)?);
/// println!("{} layers, {} tokens", config.n_layers, tokenizer.vocab_size());
/// # Ok::<(), lowrank_models::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    kind: ModelKind,
    config: Map<String, Value>,
    /// Folders whose tokenizer, chat template and pooling come before the model's: that of an adapter, and that of an embedder
    /// that has the model in a folder below.
    before: Vec<PathBuf>,
}

impl ModelFolder {
    /// Opens a folder with `config.json`, the folder of a run (its `model` folder is used), a GGUF file, or,
    /// with the feature `hub`, a model by its name on the Hugging Face hub, from the hub's cache or
    /// downloaded into it.
    ///
    /// A GGUF file represents the folder that it was converted from: its config, tokenizer and chat template
    /// come from its metadata ([`lowrank_checkpoint::gguf`]).
    ///
    /// # Errors
    /// [`ModelError::File`] if there is no such folder or name, or no `config.json` in it;
    /// [`ModelError::Config`] if `config.json` is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        if gguf::is_gguf(path) {
            return Self::of_folder(path.to_path_buf());
        }
        let place = [path.to_path_buf(), path.join("model")];
        if let Some(folder) = place.into_iter().find(|folder| has_file(folder.join("config.json"))) {
            return Self::of_folder(folder);
        }
        let refused =
            |reason: &str| Err(ModelError::File { path: path.to_path_buf(), reason: reason.into() });
        if path.join(CONFIG_FILE).is_file() {
            return refused(
                "holds an adapter and no config.json; give its base model here and it with --adapter",
            );
        }
        if path.is_dir() {
            return refused("no config.json; expected a Hugging Face model folder or the folder of a run");
        }
        #[cfg(feature = "hub")]
        if let Some(name) = hub::name(path) {
            return Self::of_folder(hub::fetch(name)?);
        }
        if path.is_file() {
            return refused("is a file and no GGUF file; expected a model folder or a GGUF file");
        }
        refused("no such folder; expected a model folder with config.json and weights, or a GGUF file")
    }

    /// Like [`open`](Self::open), and a folder of sentence-transformers that has the model in a folder below it
    /// (`0_Transformer`).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_embedder(path: &Path) -> Result<Self> {
        if has_file(path.join("config.json")) {
            return Self::open(path);
        }
        match pooling::transformer_folder(path)? {
            Some(folder) => Ok(Self { before: vec![path.to_path_buf()], ..Self::of_folder(folder)? }),
            None => Self::open(path),
        }
    }

    fn of_folder(path: PathBuf) -> Result<Self> {
        let file = path.join("config.json");
        let Some(Value::Object(config)) = read_json(&file)? else {
            return Err(ModelError::Config { path: file, reason: "expected a JSON object".into() });
        };
        Ok(Self { kind: ModelKind::of(&config), path, config, before: Vec::new() })
    }

    /// With the files of an adapter: the tokenizer, the chat template and the pooling are those that it was trained with, if its folder
    /// has them.
    #[must_use]
    pub fn with_adapter(mut self, dir: &Path) -> Self {
        self.before.insert(0, dir.to_path_buf());
        self
    }

    /// The first folder that has some files, else the model's.
    fn folder_of(&self, has: impl Fn(&Path) -> bool) -> &Path {
        self.before.iter().find(|dir| has(dir)).unwrap_or(&self.path)
    }

    /// The folder with the files of sentence-transformers, if there are any.
    fn embedder(&self) -> &Path {
        self.folder_of(has_pooling)
    }

    /// Path of the folder, or of the GGUF file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of model.
    pub fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Whether the model's architecture is supported.
    pub fn is_supported(&self) -> bool {
        ModelKind::is_known(&self.config)
    }

    /// Whether the model reads pictures.
    pub fn reads_pictures(&self) -> bool {
        self.kind == ModelKind::ImageClassifier
            || self.config.get("model_type").and_then(Value::as_str).is_some_and(|name| {
                let mut all = ENCODERS.iter().filter(|a| a.names.patches.is_some());
                all.any(|a| a.model_types.iter().any(|(known, _)| *known == name))
            })
    }

    /// `config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The config of an encoder.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a config that is malformed, not supported, or not an encoder's.
    pub fn encoder_config(&self) -> Result<EncoderConfig> {
        EncoderConfig::read(&self.path)
    }

    /// The config of a decoder, with the ends of text of `generation_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a config that is malformed, not supported, or not a decoder's.
    pub fn decoder_config(&self) -> Result<DecoderConfig> {
        DecoderConfig::read(&self.path)
    }

    /// The config of an encoder-decoder model, with the start and ends of text of `generation_config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a config that is malformed, not supported, or not such a model's.
    pub fn seq2seq_config(&self) -> Result<Seq2SeqConfig> {
        Seq2SeqConfig::read(&self.path)
    }

    /// The config of a model that is, or is to be, a classifier.
    ///
    /// # Errors
    /// As [`encoder_config`](Self::encoder_config) and [`decoder_config`](Self::decoder_config).
    pub fn classifier_config(&self) -> Result<ClassifierConfig> {
        ClassifierConfig::read(&self.path)
    }

    /// The longest sequence that positions allow, `None` if they are unbounded.
    ///
    /// # Errors
    /// As those of the config.
    pub fn max_tokens(&self) -> Result<Option<usize>> {
        if self.kind.is_decoder() {
            let config = self.decoder_config()?;
            return Ok(config.is_bounded().then_some(config.max_positions));
        }
        if self.kind == ModelKind::Seq2Seq {
            let config = self.seq2seq_config()?.encoder;
            return Ok(config.has_positions.then(|| config.max_tokens()));
        }
        Ok(Some(self.encoder_config()?.max_tokens()))
    }

    /// The tokenizer. It truncates at `max_length` tokens, or not at all.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn tokenizer(&self, max_length: Option<usize>) -> Result<TextTokenizer> {
        Ok(TextTokenizer::from_folder(self.folder_of(has_tokenizer), max_length)?)
    }

    /// The tokenizer, truncating at `max_length` tokens or otherwise at the limit stated in the folder: `max_seq_length` of a
    /// sentence embedder or else `model_max_length`, and at most the number of positions.
    ///
    /// # Errors
    /// As [`tokenizer`](Self::tokenizer); a `max_length` beyond the model's limit.
    pub fn cutting_tokenizer(&self, max_length: Option<usize>) -> Result<TextTokenizer> {
        let limit = self.max_tokens()?;
        if let (Some(n), Some(limit)) = (max_length, limit)
            && n > limit
        {
            return Err(ModelError::Input(format!(
                "--max-length {n} is more than the {limit} tokens that the model takes"
            )));
        }
        if max_length.is_some() {
            return self.tokenizer(max_length);
        }
        let tokenizer = self.tokenizer(limit)?;
        // As in sentence-transformers, its own length replaces the tokenizer's.
        let named = pooling::max_length([self.embedder(), &self.path])?.or(tokenizer.model_max_length());
        let own = [limit, named].into_iter().flatten().min();
        if own == limit { Ok(tokenizer) } else { self.tokenizer(own) }
    }

    /// The chat template, `None` if there is no such file.
    ///
    /// # Errors
    /// A malformed template.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let tokens = self.folder_of(has_tokenizer);
        for folder in self.before.iter().chain([&self.path]) {
            if let Some(template) = ChatTemplate::from_folders(folder, tokens)? {
                return Ok(Some(template));
            }
        }
        Ok(None)
    }

    /// The sources of all chat templates by name.
    ///
    /// # Errors
    /// A malformed file.
    pub fn chat_templates(&self) -> Result<Vec<(String, String)>> {
        for folder in self.before.iter().chain([&self.path]) {
            let found = chat::templates(folder)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// The folder's generation defaults.
    ///
    /// # Errors
    /// A `generation_config.json` that is malformed or out of range.
    pub fn generation(&self) -> Result<GenerationConfig> {
        GenerationConfig::read(&self.path, &self.config)
    }

    /// Whether files of sentence-transformers state a pooling.
    pub fn has_pooling(&self) -> bool {
        has_pooling(self.embedder())
    }

    /// Pooling of hidden states into an embedding of a text: according to the files of sentence-transformers or the metadata of a
    /// GGUF file, or the mean.
    ///
    /// # Errors
    /// Files that are malformed or contain an unsupported module; as those of the config.
    pub fn pooling(&self) -> Result<SentencePooling> {
        let width = if self.kind.is_decoder() {
            self.decoder_config()?.d_model
        } else {
            self.encoder_config()?.d_model
        };
        let folder = self.embedder();
        let mut pooling = SentencePooling::read(folder, &self.path, width)?;
        if gguf::is_gguf(folder)
            && let Some(mode) = gguf::Pooling::of(&self.checkpoint()?)?
        {
            pooling.modes = vec![match mode {
                gguf::Pooling::Mean => PoolingMode::Mean,
                gguf::Pooling::First => PoolingMode::First,
                gguf::Pooling::Last => PoolingMode::Last,
            }];
        }
        Ok(pooling)
    }

    /// The weights.
    ///
    /// # Errors
    /// Weight files that are missing or malformed.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::open(&self.path)?)
    }
}

/// Whether a folder has files of sentence-transformers that state a pooling.
fn has_pooling(folder: &Path) -> bool {
    ["modules.json", "1_Pooling/config.json"].iter().any(|file| has_file(folder.join(file)))
}
