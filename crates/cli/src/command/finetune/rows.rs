//! The rows of a run: those of a GLUE task, or the user's own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lowrank_data::glue::{
    GlueDataset, Label, LabelSpace, Metric, Split, TaggedDataset, Task, TaskSpec, is_tagged, read_custom,
    read_tagged,
};
use lowrank_data::images::{ImageFolder, find_splits};
use lowrank_data::is_json_lines;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::questions::{Asked, QuestionSet, are_questions, read_questions};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::{ClassifierConfig, HeadLevel, ModelFolder};
use lowrank_train::DevSet;
use serde_json::Value;

use super::Args;
use super::record::fnv;
use crate::command::evaluate;
use crate::context::{Pictures, TaskName, read_text, tokenizer};

/// The task's rows.
pub(super) struct Rows {
    pub(super) spec: TaskSpec,
    pub(super) train: Arc<EncodedDataset>,
    pub(super) dev: Vec<DevSet>,
    pub(super) hash: String,
}

/// Source of the task's rows.
pub(super) enum Source {
    Glue { root: PathBuf, task: Task, train: GlueDataset },
    Files { train: GlueDataset, dev: GlueDataset },
    Tagged { train: TaggedDataset, dev: TaggedDataset },
    Questions { train: QuestionSet, dev: QuestionSet },
    Images { train: ImageFolder, dev: ImageFolder },
}

/// What makes rows into tokens.
pub(super) enum Reader {
    Texts(Box<TextTokenizer>),
    Images(Pictures),
}

impl Reader {
    /// That of a model's folder.
    pub(super) fn open(args: &Args, folder: &ModelFolder, config: &ClassifierConfig) -> Result<Self> {
        if config.patches().is_some() {
            return Ok(Self::Images(Pictures::open(folder.path(), config)?));
        }
        Ok(Self::Texts(Box::new(tokenizer(folder, config, args.max_length)?)))
    }
}

/// What the training rows label: words with tags, questions with spans of their contexts, or whole texts.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn level(args: &Args) -> Result<HeadLevel> {
    Ok(match args.train.as_deref() {
        Some(train) if is_tagged(train)? => HeadLevel::Token,
        Some(train) if are_questions(train)? => HeadLevel::Span,
        _ => HeadLevel::Sequence,
    })
}

/// Reads the rows; `known` are the labels of a token head, by which tags are numbered if they cover them all, or of a
/// multi-label one, for rows of 0 and 1 for each class.
pub(super) fn read_spec(args: &Args, known: &[String]) -> Result<(TaskSpec, Source)> {
    if args.task == Some(TaskName::Images) {
        return read_images(args);
    }
    if let (Some(task), Some(root)) = (args.task.and_then(TaskName::glue), &args.data) {
        let train = evaluate::read_glue(root, task, Split::Train)?;
        return Ok((task.spec(), Source::Glue { root: root.clone(), task, train }));
    }
    let (Some(train), Some(dev)) = (&args.train, &args.dev) else {
        bail_usage!("give --task and --data, or --train and --dev");
    };
    let name = train.file_stem().map_or_else(|| "own".into(), |s| s.to_string_lossy().into_owned());
    if is_tagged(train)? {
        let (train, dev) = read_tagged(&name, train, dev, known)?;
        return Ok((train.spec.clone(), Source::Tagged { train, dev }));
    }
    if are_questions(train)? {
        let (train, dev) = (read_questions(train)?, read_questions(dev)?);
        let labels = LabelSpace::Spans;
        let spec = TaskSpec { name, task: None, metrics: labels.metrics(), labels, is_pair: true };
        return Ok((spec, Source::Questions { train, dev }));
    }
    let (train, dev) = read_custom(&name, train, dev, known)?;
    Ok((train.spec().clone(), Source::Files { train, dev }))
}

/// Lists the pictures; the classes are the folders to train on.
fn read_images(args: &Args) -> Result<(TaskSpec, Source)> {
    let [train, dev] = match (&args.data, &args.train, &args.dev) {
        (Some(root), ..) => find_splits(root)?,
        (None, Some(train), Some(dev)) => [train.clone(), dev.clone()],
        _ => bail_usage!("give --data, or --train and --dev"),
    };
    let root = args.data.as_ref().unwrap_or(&train);
    let name = root.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
    let train = ImageFolder::read(&train)?;
    let classes = train.classes().to_vec();
    let dev = ImageFolder::read_known(&dev, &classes, |name| classes.iter().position(|class| class == name))?;
    let metrics = vec![Metric::Accuracy];
    let spec = TaskSpec { name, task: None, metrics, labels: LabelSpace::Classes(classes), is_pair: false };
    Ok((spec, Source::Images { train, dev }))
}

impl Source {
    /// Whether some questions of the training rows have no answer.
    pub(super) fn has_unanswerable(&self) -> bool {
        matches!(self, Self::Questions { train, .. } if train.has_unanswerable())
    }

    pub(super) fn encode(self, args: &Args, spec: TaskSpec, reader: &Reader) -> Result<Rows> {
        match (reader, self) {
            (Reader::Images(pictures), Self::Images { train, dev }) => {
                let (train, dev) = (pictures.read_folder(&train)?, pictures.read_folder(&dev)?);
                let hash = hash_rows([&train, &dev].into_iter());
                Ok(Rows { spec, train, dev: vec![DevSet::new(dev)], hash })
            }
            (Reader::Texts(tokenizer), source) => source.encode_texts(args, spec, tokenizer),
            (Reader::Images(_), _) => bail!("the model reads pictures; give --task images"),
        }
    }

    fn encode_texts(self, args: &Args, spec: TaskSpec, tokenizer: &TextTokenizer) -> Result<Rows> {
        let encode = |set: &GlueDataset| -> Result<Arc<EncodedDataset>> {
            Ok(Arc::new(EncodedDataset::encode(set, tokenizer)?))
        };
        let (train, dev) = match self {
            Self::Glue { root, task, train } => {
                (encode(&train)?, evaluate::dev_sets(&root, task, tokenizer)?)
            }
            Self::Tagged { train, dev } => {
                let encode = |set: &TaggedDataset| evaluate::encode_tagged(set, tokenizer).map(Arc::new);
                (encode(&train)?, vec![DevSet::new(encode(&dev)?)])
            }
            Self::Files { train, dev } => (encode(&train)?, vec![DevSet::new(encode(&dev)?)]),
            Self::Images { .. } => {
                bail!("the model reads texts; --task images needs a model of pictures (vit)")
            }
            Self::Questions { train, dev } => {
                let windows = args.spans.windows(args.max_length, tokenizer);
                let may_be_none = train.has_unanswerable();
                if dev.has_unanswerable() && !may_be_none {
                    eprintln!(
                        "warning: {}: some questions have no answer, and every training row has one: the model learns \
                         to give one always",
                        dev.path.display()
                    );
                }
                let (_, train) = Asked::encode(&train, tokenizer, windows)?;
                let dev = evaluate::ask(&dev, tokenizer, windows, args.spans.answers(may_be_none))?;
                (Arc::new(train), vec![dev])
            }
        };
        let hash = hash_rows(std::iter::once(&train).chain(dev.iter().map(|d| &d.data)));
        Ok(Rows { spec, train, dev, hash })
    }
}

/// The extension of a file's name in lower case, empty if it has none.
pub(super) fn extension(path: &Path) -> String {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase()
}

/// Whether the rows are to be classified: those of a task, of a table, of JSON lines any of which has a label beside its text,
/// of tagged words, or questions with answers.
///
/// # Errors
/// A file that cannot be read; a `.json` file with labels.
pub(super) fn are_labelled(args: &Args) -> Result<bool> {
    let Some(path) = args.train.as_ref().filter(|_| args.task.is_none()) else { return Ok(true) };
    if are_questions(path)? {
        return Ok(true);
    }
    match extension(path).as_str() {
        "tsv" => Ok(true),
        "jsonl" | "ndjson" => {
            let file = lowrank_spec::open_file(path).with_context(|| path.display().to_string())?;
            // A line that cannot be read or parsed is reported with its number by the reader of its rows.
            let mut lines = BufReader::new(file).lines().map_while(Result::ok);
            Ok(lines.any(|line| has_label(&line)) || is_tagged(path)?)
        }
        "json" => {
            let text = read_text(path)?;
            if is_json_lines(path, &text) {
                return Ok(text.lines().any(has_label) || is_tagged(path)?);
            }
            if has_label(&text) {
                bail!("{}: has rows with labels; give them as .jsonl or .tsv", path.display());
            }
            Ok(false)
        }
        _ => Ok(is_tagged(path)?),
    }
}

/// Keys of rows of a language model, which may have a column of labels as well.
const ANSWERS: [&str; 4] = ["prompt", "messages", "conversations", "instruction"];

/// Whether an object of the text, a JSON value, is a text with a label.
fn has_label(text: &str) -> bool {
    // Most rows of a large file are not worth parsing.
    if !text.contains("\"label") {
        return false;
    }
    let value = serde_json::from_str(text).unwrap_or_default();
    let rows = if let Value::Array(rows) = &value { rows } else { std::slice::from_ref(&value) };
    rows.iter().any(|row| {
        let has = |key: &str| row.get(key).is_some();
        (has("label") || has("labels")) && !ANSWERS.into_iter().any(has)
    })
}

/// Hash of tokens, row boundaries and labels.
pub(super) fn hash_rows<'a>(sets: impl Iterator<Item = &'a Arc<EncodedDataset>>) -> String {
    let rows = sets.flat_map(|set| (0..set.len()).map(move |row| (set, row)));
    let bytes = rows.flat_map(|(set, row)| {
        let label = &set.labels()[row];
        let label = match label {
            None => vec![0, 0],
            Some(Label::Class(class)) => vec![1, *class],
            Some(Label::Score(score)) => vec![2, score.to_bits()],
            Some(Label::Set(set)) => [3, set.len() as u32].iter().chain(set).copied().collect(),
            Some(Label::Tags(tags)) => {
                [4].into_iter().chain(tags.iter().map(|tag| tag.map_or(0, |tag| tag + 1))).collect()
            }
            Some(Label::Span { start, end }) => vec![5, *start, *end],
        };
        let content: Vec<u32> = match set.images() {
            Some(images) => vec![images.hashes()[row] as u32, (images.hashes()[row] >> 32) as u32],
            None => set.rows()[row].ids.clone(),
        };
        let numbers = [content.len() as u32].into_iter().chain(content).chain(label);
        numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    });
    format!("{:016x}", fnv(bytes))
}
