//! What the commands over language models share: finding, loading, and turning tokens back into text.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use lowrank_adapters::AdapterSet;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig};

use crate::adapter::load_adapter;
use crate::backend::{Device, Inner};
use crate::context::{adapter_folder, model_folder};

/// A language model with an adapter over it, and its tokenizer, which cuts nothing.
pub(crate) struct Language {
    /// The model.
    pub(crate) model: Decoder<Inner>,
    /// Its adapters.
    pub(crate) adapters: AdapterSet<Inner>,
    /// Tokenizer.
    pub(crate) tokenizer: TextTokenizer,
}

/// `--model`, `--adapter` and `--dtype`.
#[derive(Args)]
pub(crate) struct LanguageArgs {
    /// Model folder (config.json, weights, tokenizer), or a name on the Hugging Face hub
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Adapter folder
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Keep weights in f32, f16 or bf16; arithmetic is in f32
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: WeightType,
}

impl LanguageArgs {
    /// Loads what the options name.
    pub(crate) fn load(&self, device: &Device) -> Result<Language> {
        let folder = model_folder(&self.model)?;
        let config = DecoderConfig::read(&folder)?;
        let tokenizer = TextTokenizer::from_folder(&folder, None)?;
        let mut model = Decoder::load(&folder, config, self.dtype, device)?;
        let adapters = match self.adapter.as_deref().map(adapter_folder).transpose()? {
            Some(dir) => load_adapter(&mut model, &dir, device)?,
            None => AdapterSet::empty(),
        };
        Ok(Language { model, adapters, tokenizer })
    }
}

impl Language {
    /// The tokens of a text, which are some: where the tokenizer adds no first token, an empty text has the model's
    /// own.
    pub(crate) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, None)?.ids;
        if !ids.is_empty() {
            return Ok(ids);
        }
        let bos = self
            .model
            .config()
            .bos
            .context("an empty prompt, and the model has no first token; give a text")?;
        Ok(vec![bos])
    }

    /// The text of new tokens after a prompt, as it stands there: a word keeps the space before it.
    pub(crate) fn continuation(&self, prompt: &[u32], new: &[u32]) -> Result<String> {
        let before = self.tokenizer.decode(prompt, true)?;
        let all = self.tokenizer.decode(&[prompt, new].concat(), true)?;
        Ok(match all.strip_prefix(&before) {
            Some(rest) => rest.to_string(),
            None => self.tokenizer.decode(new, true)?,
        })
    }

    /// The longest text that the model was made for, or `asked` if it is no longer.
    pub(crate) fn window(&self, asked: Option<usize>) -> Result<usize> {
        let config = self.model.config();
        let limit = self.tokenizer.model_max_length().unwrap_or(usize::MAX).min(config.max_positions);
        match asked {
            Some(n) if n < 2 => bail!("--max-length {n} leaves nothing to predict; give 2 or more"),
            Some(n) if config.is_bounded() && n > config.max_positions => {
                bail!(
                    "--max-length {n} is more than the {} tokens that the model takes",
                    config.max_positions
                )
            }
            _ => Ok(asked.unwrap_or(limit)),
        }
    }
}
