//! Calibration text for compression: the samples, their number, and the model that processes them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lowrank_compress::{
    Answers, Calibrator, GradientCalibrator, Method, ModelCalibrator, Tokens, Weightings, fisher, token_limit,
};
use lowrank_data::glue::{GlueDataset, Split, Task};
use lowrank_data::images::find_images;
use lowrank_data::pack::{EncodedDataset, Labels};
use lowrank_data::rows::{Rows, SourceTarget};
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_models::{ModelFolder, ModelKind};
use lowrank_spec::rng::SplitMix64;

use crate::backend::{Inner, Train, device};
use crate::context::{Pictures, open_model, read_text, refuse_pictures};
use crate::language::{encode_pairs, pair_window};

/// Number of calibration tokens processed together.
const BATCH_TOKENS: usize = 2048;

/// Number of tokens of training rows whose inputs weigh the start of adapters.
pub(crate) const FIRST_TOKENS: usize = 1 << 15;

/// Source of the activations.
#[derive(clap::Args)]
pub(crate) struct CalibrationArgs {
    /// Calibration text, one sample per line; for an encoder-decoder rows with prompt and completion, for a model of
    /// pictures a folder of them
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Task whose training rows are used for calibration instead
    #[arg(long, requires = "data", conflicts_with = "calibration")]
    task: Option<Task>,
    /// GLUE root with the official folders
    #[arg(long)]
    data: Option<PathBuf>,
    /// Number of samples to draw
    #[arg(long, default_value_t = 256)]
    samples: usize,
    /// Seed of the sample selection
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Truncate samples to this many tokens [default: the model's limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Let later layers see the compressed outputs of earlier ones
    #[arg(long)]
    sequential: bool,
}

impl CalibrationArgs {
    /// Whether calibration data is given.
    pub(crate) fn is_given(&self) -> bool {
        self.calibration.is_some() || self.task.is_some()
    }

    /// Whether it is text without a task.
    pub(crate) fn is_text(&self) -> bool {
        self.calibration.is_some()
    }

    /// Whether it is the rows of a task.
    pub(crate) fn has_task(&self) -> bool {
        self.task.is_some()
    }

    /// Whether later layers see the compressed outputs of earlier ones.
    pub(crate) fn is_sequential(&self) -> bool {
        self.sequential
    }

    fn tokenizer(&self, model: &Path) -> Result<TextTokenizer> {
        let limit = token_limit(model)?;
        if let Some(n) = self.max_length.filter(|n| *n > limit) {
            bail!("--max-length {n} is more than the {limit} tokens that the model takes");
        }
        Ok(TextTokenizer::from_folder(model, Some(self.max_length.unwrap_or(limit)))?)
    }

    /// The samples, encoded and packed.
    pub(crate) fn batches(&self, model: &Path) -> Result<Vec<Tokens>> {
        let folder = open_model(model)?;
        if folder.reads_pictures() {
            return self.pictures(&folder);
        }
        if folder.kind() == ModelKind::Seq2Seq {
            return self.pairs(&folder);
        }
        let tokenizer = self.tokenizer(model)?;
        let mut samples: Vec<(String, Option<String>)> = match (&self.calibration, self.task, &self.data) {
            (Some(path), ..) => {
                let text = read_text(path)?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                lines.map(|line| (line.to_string(), None)).collect()
            }
            (None, Some(task), Some(data)) => {
                let rows = GlueDataset::read(data, task, Split::Train)?;
                rows.examples().iter().map(|e| (e.text.clone(), e.pair.clone())).collect()
            }
            _ => bail_usage!("give --calibration, or --task and --data"),
        };
        if samples.is_empty() {
            let name = self.calibration.as_deref().map_or("the task".into(), |p| p.display().to_string());
            bail!("{name}: the calibration text is empty; give some lines of text");
        }
        self.draw(&mut samples)?;
        let rows = tokenizer.encode_batch(samples.iter().map(|(a, b)| (a.as_str(), b.as_deref())))?;
        Ok(pack(rows.into_iter().map(of_text)))
    }

    /// Draws `--samples` of the samples.
    fn draw<T>(&self, samples: &mut Vec<T>) -> Result<()> {
        if self.samples == 0 {
            bail_usage!("--samples 0 is out of range; expected 1 or more");
        }
        if samples.len() > self.samples {
            SplitMix64::new(self.seed).shuffle(samples);
            samples.truncate(self.samples);
        }
        Ok(())
    }

    /// The sources and targets of rows, encoded and packed.
    fn pairs(&self, model: &ModelFolder) -> Result<Vec<Tokens>> {
        let Some(path) = &self.calibration else {
            bail!(
                "{}: is {}; give --calibration with rows that have prompt and completion",
                model.path().display(),
                model.kind().describe()
            );
        };
        let (config, tokenizer) = (model.seq2seq_config()?, model.tokenizer(None)?);
        let window = pair_window(self.max_length, &config, &tokenizer)?;
        let mut rows = encode_pairs(&Rows::read(path)?, &tokenizer, &config, window)?;
        self.draw(&mut rows)?;
        Ok(pack(rows.into_iter().map(of_pair)))
    }

    /// The pictures of a folder, cut into patches.
    fn pictures(&self, model: &ModelFolder) -> Result<Vec<Tokens>> {
        let Some(path) = &self.calibration else {
            bail!("{}: reads pictures; give --calibration with a folder of them", model.path().display());
        };
        if self.max_length.is_some() {
            bail!("--max-length applies to texts, and the model reads pictures; leave it out");
        }
        let pictures = Pictures::open(model.path(), &model.classifier_config()?)?;
        let mut files = find_images(path)?;
        self.draw(&mut files)?;
        let n = files.len();
        of_pictures(&pictures.read(files, vec![None; n])?, n)
    }

    /// The error weighting of the method, if there is calibration text for it; `output` is the location of
    /// the result.
    pub(crate) fn calibrator(
        &self,
        method: Method,
        model: &Path,
        output: &Path,
    ) -> Result<Option<Box<dyn Calibrator>>> {
        if method.needs_gradients() {
            refuse_pictures(
                &open_model(model)?,
                "gradients are those of texts; give --method whitened, which needs pictures alone",
            )?;
        }
        if method == Method::TwoSided {
            if self.sequential {
                bail!("two-sided processes the layers backwards; leave out --sequential");
            }
            // The stored hidden states are large: they go to the disk of the output.
            let scratch = std::path::absolute(output)?;
            let scratch =
                scratch.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
            let made = GradientCalibrator::<Train>::new(model, self.answers(model)?, scratch, device()?)?;
            warn_few(made.n_tokens(), made.width());
            return Ok(Some(Box::new(made)));
        }
        if !self.is_given() || !(method.uses_inputs() || method == Method::Fwsvd) {
            return Ok(None);
        }
        let weightings = (method == Method::Fwsvd).then(|| self.fisher(model)).transpose()?;
        let mut made =
            ModelCalibrator::<Inner>::new(model, self.batches(model)?, self.sequential, device()?)?;
        warn_few(made.n_tokens(), made.width());
        if let Some(weightings) = weightings {
            made = made.weighted_by(weightings);
        }
        Ok(Some(Box::new(made)))
    }

    /// Gradients of the task, or of the text's next tokens, sample by sample.
    fn fisher(&self, model: &Path) -> Result<Weightings> {
        Ok(fisher::<Train>(model, &self.answers(model)?, &device()?)?)
    }

    /// The samples with their targets: the labels of the task, or the text's next tokens.
    fn answers(&self, model: &Path) -> Result<Vec<(Tokens, Answers)>> {
        let folder = open_model(model)?;
        let (Some(task), Some(data), false) = (self.task, &self.data, folder.kind() == ModelKind::Seq2Seq)
        else {
            return Ok(self
                .batches(model)?
                .into_iter()
                .map(|tokens| (tokens, Answers::NextTokens))
                .collect());
        };
        let tokenizer = self.tokenizer(model)?;
        let kind = folder.kind();
        if matches!(kind, ModelKind::TokenClassifier | ModelKind::QuestionAnswering) {
            bail!(
                "the model is {}; {task} has one label per text; give --calibration TEXTS",
                kind.describe()
            );
        }
        if !kind.is_decoder() {
            let config = folder.encoder_config()?;
            let (has, wants) = (config.labels.len(), task.spec().labels.width());
            if has != wants {
                bail!("the model has {has} labels and {task} {wants}; give a model fine-tuned on the task");
            }
        }
        let rows = EncodedDataset::encode(&GlueDataset::read(data, task, Split::Train)?, &tokenizer)?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        SplitMix64::new(self.seed).shuffle(&mut order);
        order.truncate(self.samples);
        let batches = order.iter().map(|&row| {
            let batch = rows.batch(&[row])?;
            let answers = match batch.labels {
                Labels::Classes(classes) => Answers::Classes(classes),
                Labels::Scores(scores) => Answers::Scores(scores),
                Labels::Sets(_) | Labels::Tags(_) | Labels::Spans(_) | Labels::None => {
                    bail!("{task} has no labels to compute gradients from")
                }
            };
            let (ids, type_ids, lengths) = (batch.ids, batch.type_ids, batch.lengths);
            Ok((Tokens { ids, type_ids, lengths, ..Tokens::default() }, answers))
        });
        batches.collect()
    }
}

fn warn_few(tokens: usize, width: usize) {
    if tokens < width {
        eprintln!(
            "warning: only {tokens} tokens of calibration text for inputs of width {width} or more: the errors shown hold \
             for that text only; give more lines or --samples"
        );
    }
}

fn of_text(Encoded { ids, type_ids }: Encoded) -> Tokens {
    Tokens { lengths: vec![ids.len()], ids, type_ids, ..Tokens::default() }
}

fn of_pair(SourceTarget { source, target }: SourceTarget) -> Tokens {
    Tokens {
        lengths: vec![source.len()],
        type_ids: vec![0; source.len()],
        ids: source,
        target_lengths: vec![target.len()],
        targets: target,
        ..Tokens::default()
    }
}

/// The first pictures of a set, packed.
fn of_pictures(rows: &EncodedDataset, n: usize) -> Result<Vec<Tokens>> {
    let order: Vec<usize> = (0..n).collect();
    let each = (BATCH_TOKENS / rows.lengths().first().copied().unwrap_or(1)).max(1);
    let batches = order.chunks(each).map(|indices| {
        let batch = rows.batch(indices)?;
        Ok(Tokens { lengths: batch.lengths, pixels: batch.pixels, ..Tokens::default() })
    });
    batches.collect()
}

/// The first training rows as calibration, [`FIRST_TOKENS`] tokens of them or all.
pub(crate) fn first_texts(rows: impl Iterator<Item = Encoded>) -> Vec<Tokens> {
    pack(first(rows.map(of_text), Tokens::n_tokens))
}

/// The same of sources and targets.
pub(crate) fn first_pairs(rows: impl Iterator<Item = SourceTarget>) -> Vec<Tokens> {
    pack(first(rows.map(of_pair), Tokens::n_tokens))
}

/// The same of labelled texts or pictures.
///
/// # Errors
/// A picture that cannot be read.
pub(crate) fn first_examples(rows: &EncodedDataset) -> Result<Vec<Tokens>> {
    if rows.images().is_none() {
        return Ok(first_texts(rows.rows().iter().cloned()));
    }
    of_pictures(rows, first(rows.lengths().iter(), |length| **length).count())
}

/// Rows until there are [`FIRST_TOKENS`] tokens.
fn first<T>(rows: impl Iterator<Item = T>, n_tokens: impl Fn(&T) -> usize) -> impl Iterator<Item = T> {
    let mut before = 0;
    rows.take_while(move |row| {
        let is_wanted = before < FIRST_TOKENS;
        before += n_tokens(row);
        is_wanted
    })
}

/// Batches of about [`BATCH_TOKENS`] tokens.
fn pack(rows: impl Iterator<Item = Tokens>) -> Vec<Tokens> {
    let mut batches: Vec<Tokens> = Vec::new();
    for row in rows.filter(|row| !row.ids.is_empty()) {
        match batches.last_mut() {
            Some(batch) if batch.n_tokens() + row.n_tokens() <= BATCH_TOKENS => batch.extend(&row),
            _ => batches.push(row),
        }
    }
    batches
}
