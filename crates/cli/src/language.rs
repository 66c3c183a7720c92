//! Shared by the commands over language models: finding, loading, and turning tokens back into text.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lowrank_adapters::AdapterSet;
use lowrank_data::chat::{Message, RenderOptions};
use lowrank_data::rows::{LossOn, RowEncoder, Rows, SourceTarget};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, LanguageModel, ModelFolder, Seq2Seq, Seq2SeqConfig};

use crate::adapter::{load_adapter, warn_ignored};
use crate::backend::{Device, Inner};
use crate::context::{adapter_folder, open_with};

/// A language model with an adapter over it, and its tokenizer, which does not truncate.
pub(crate) struct Language<M = Decoder<Inner>> {
    /// The model.
    pub(crate) model: M,
    /// Its adapters.
    pub(crate) adapters: AdapterSet<Inner>,
    /// Tokenizer.
    pub(crate) tokenizer: TextTokenizer,
}

/// A model that generates texts.
pub(crate) trait Generator: LanguageModel<Inner> {
    /// Loads a model of its kind.
    fn load(folder: &ModelFolder, dtype: WeightType, device: &Device) -> Result<Self>;
}

impl Generator for Decoder<Inner> {
    fn load(folder: &ModelFolder, dtype: WeightType, device: &Device) -> Result<Self> {
        let config = folder.decoder_config()?;
        if folder.kind().is_headed_decoder() {
            bail!("{}: is {}; expected a language model", folder.path().display(), folder.kind().describe());
        }
        Ok(Self::load(folder.path(), config, dtype, device)?)
    }
}

impl Generator for Seq2Seq<Inner> {
    fn load(folder: &ModelFolder, dtype: WeightType, device: &Device) -> Result<Self> {
        Ok(Self::load(folder.path(), folder.seq2seq_config()?, dtype, device)?)
    }
}

/// `--model`, `--adapter` and `--dtype`.
#[derive(Args)]
pub(crate) struct LanguageArgs {
    /// Model folder (config.json, weights, tokenizer), a GGUF file, or a name on the Hugging Face hub
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Adapter folder
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Storage type of the weights: f32, f16 or bf16; arithmetic is in f32
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: WeightType,
}

impl LanguageArgs {
    /// Opens the given model, with the tokenizer and the chat template of the adapter if its folder has them.
    pub(crate) fn folder(&self) -> Result<ModelFolder> {
        open_with(&self.model, self.adapter.as_deref())
    }

    /// Loads the given language model and adapter.
    pub(crate) fn load(&self, folder: &ModelFolder, device: &Device) -> Result<Language> {
        self.load_as(folder, device)
    }

    /// Loads the given model of a kind and adapter.
    pub(crate) fn load_as<M: Generator>(&self, folder: &ModelFolder, device: &Device) -> Result<Language<M>> {
        let mut model = M::load(folder, self.dtype, device)?;
        let tokenizer = folder.tokenizer(None)?;
        warn_ignored(&model, folder.path());
        let adapters = match self.adapter.as_deref().map(adapter_folder).transpose()? {
            Some(dir) => load_adapter(&mut model, &dir, None, device)?,
            None => AdapterSet::empty(),
        };
        Ok(Language { model, adapters, tokenizer })
    }
}

impl<M: Generator> Language<M> {
    /// The tokens of a text, at least one: if the tokenizer adds no first token, an empty text gets the
    /// model's own.
    pub(crate) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, None)?.ids;
        if !ids.is_empty() {
            return Ok(ids);
        }
        ensure!(M::CONTINUES, "the prompt is empty; give a text");
        let bos = self
            .model
            .decoder()
            .bos
            .context("the prompt is empty and the model has no first token; give a text")?;
        Ok(vec![bos])
    }

    /// The tokens of a rendered conversation, which contains its special tokens itself.
    pub(crate) fn rendered_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode_spans(text)?.0;
        ensure!(!ids.is_empty(), "the chat template renders the conversation as an empty text");
        Ok(ids)
    }

    /// The special token that ends a turn of the assistant in the model's chat template, unless it is an
    /// end-of-text token of the model anyway.
    pub(crate) fn turn_end(&self, folder: &ModelFolder) -> Result<Option<u32>> {
        let Some(template) = folder.chat_template()? else { return Ok(None) };
        let ids = self.tokenizer.encode_spans(&template.turn_end()?)?.0;
        let end = ids.into_iter().find(|&id| self.tokenizer.is_special(id));
        Ok(end.filter(|id| !self.model.decoder().eos.contains(id)))
    }

    /// Takes the stop texts that are one special token, which decoded texts omit, out of the list.
    pub(crate) fn take_stop_tokens(&self, stops: &mut Vec<String>) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for stop in std::mem::take(stops) {
            match *self.tokenizer.encode_spans(&stop)?.0 {
                [id] if self.tokenizer.is_special(id) => tokens.push(id),
                _ => stops.push(stop),
            }
        }
        Ok(tokens)
    }

    /// The text of new tokens after a prompt that they continue: a word keeps the space before it.
    pub(crate) fn continuation(&self, prompt: &[u32], new: &[u32]) -> Result<String> {
        if !M::CONTINUES {
            return Ok(self.tokenizer.decode(new, true)?);
        }
        let before = self.tokenizer.decode(prompt, true)?;
        let all = self.tokenizer.decode(&[prompt, new].concat(), true)?;
        Ok(match all.strip_prefix(&before) {
            Some(rest) => rest.to_string(),
            None => self.tokenizer.decode(new, true)?,
        })
    }
}

impl Language {
    /// The longest text that the model supports, or `asked` if it is not longer.
    pub(crate) fn window(&self, asked: Option<usize>) -> Result<usize> {
        let config = self.model.config();
        let limit = self.tokenizer.model_max_length().unwrap_or(usize::MAX).min(config.max_positions);
        match asked {
            Some(n) if n < 2 => bail!("--max-length {n} leaves nothing to predict; give 2 or more"),
            Some(n) if config.is_bounded() && n > config.max_positions => {
                bail!("--max-length {n} exceeds the model's limit of {} tokens", config.max_positions)
            }
            _ => Ok(asked.unwrap_or(limit)),
        }
    }
}

/// A conversation as rendered by the model's chat template, up to the beginning of the next answer, or to the end of the last one,
/// which is then continued.
pub(crate) fn render(folder: &ModelFolder, messages: &[Message]) -> Result<String> {
    let template = folder.chat_template()?.with_context(|| {
        format!(
            "{}: the model has no chat template; add chat_template.jinja, or continue a text with generate --prompt",
            folder.path().display()
        )
    })?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let messages = &*template.with_arguments(messages, &options)?;
    if let Some(dropped) = template.dropped(messages, &options)? {
        bail!("{}: the chat template omits {dropped}", template.path().display());
    }
    match messages.last() {
        Some(last) if last.role() == "assistant" => Ok(template.continuation(messages, &options)?),
        _ => Ok(template.render(messages, &options)?),
    }
}

/// The longest source or target of an encoder-decoder, or `asked` if it is not longer.
pub(crate) fn pair_window(
    asked: Option<usize>,
    config: &Seq2SeqConfig,
    tokenizer: &TextTokenizer,
) -> Result<usize> {
    let limit = config.limits().into_iter().flatten().min().unwrap_or(usize::MAX);
    match asked {
        Some(n) if n > limit => bail!("--max-length {n} exceeds the model's limit of {limit} tokens"),
        Some(n) => Ok(n),
        None => Ok(tokenizer.model_max_length().unwrap_or(usize::MAX).min(limit)),
    }
}

/// The sources and targets of rows, each of at most `max_length` tokens.
pub(crate) fn encode_pairs(
    rows: &Rows,
    tokenizer: &TextTokenizer,
    config: &Seq2SeqConfig,
    max_length: usize,
) -> Result<Vec<SourceTarget>> {
    let mut encoded =
        RowEncoder::new(tokenizer, None, LossOn::Completion, max_length)?.encode_targets(rows)?;
    if encoded.n_cut > 0 {
        let path = rows.path().display();
        eprintln!("{path}: {} rows with a text cut at {max_length} tokens", encoded.n_cut);
    }
    let names_target = tokenizer.languages().is_some_and(|languages| languages.target.is_some());
    if let Some(language) = config.target_language().filter(|_| !names_target) {
        let ends = |id: &u32| config.decoder.eos.contains(id);
        let last = encoded.rows.iter_mut().filter_map(|row| row.target.last_mut());
        // The tokenizer ends every text with the language of sources.
        last.filter(|id| !ends(id)).for_each(|id| *id = language);
    }
    Ok(encoded.rows)
}
