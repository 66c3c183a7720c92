//! What the commands share: finding models and adapters, reading texts, printing JSON.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::is_adapter;
use lowrank_checkpoint::Checkpoint;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_models::{Classifier, ClassifierConfig, HeadLevel, ModelFolder, Parameters, Problem};
use lowrank_train::FineTuner;
use serde_json::Value;

use crate::adapter::{load_adapter, warn_ignored};

/// Prints one JSON object on standard output.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").context("standard output cannot be written")
}

/// A model folder: the one named, the `model` folder of a run, or a model of the Hugging Face hub if no such folder exists.
pub(crate) fn model_folder(path: &Path) -> Result<PathBuf> {
    Ok(ModelFolder::open(path)?.path().to_path_buf())
}

/// Refuses an output that is one of the inputs, is a file, or holds something: files of two would mix.
pub(crate) fn new_folder(output: &Path, inputs: &[&Path]) -> Result<()> {
    let place = output.canonicalize().ok();
    let is_it = |input: &&&Path| place.is_some() && input.canonicalize().ok() == place;
    if let Some(input) = inputs.iter().find(is_it) {
        bail!("{}: the output would go into {}; give another folder", output.display(), input.display());
    }
    if output.is_file() {
        bail!("{}: is a file; -o names a folder", output.display());
    }
    if output.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: is not empty; give a new folder", output.display());
    }
    Ok(())
}

/// A text file without its byte order mark; an error names the line of bytes that are not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = lowrank_checkpoint::read_file(path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        anyhow::anyhow!("{}: line {line} is not UTF-8 text", path.display())
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// An adapter folder: the one named, or the `adapter` folder of a run.
pub(crate) fn adapter_folder(path: &Path) -> Result<PathBuf> {
    for candidate in [path.to_path_buf(), path.join("adapter")] {
        if is_adapter(&candidate) {
            return Ok(candidate);
        }
    }
    bail!("{}: no adapter_config.json; expected an adapter folder or the folder of a run", path.display());
}

/// The tokenizer of a model folder, cutting at the model's limit or `max_length`.
pub(crate) fn tokenizer(
    folder: &Path,
    config: &ClassifierConfig,
    max_length: Option<usize>,
) -> Result<TextTokenizer> {
    let limit = config.max_tokens();
    if let Some(n) = max_length.filter(|n| *n > limit) {
        bail!("--max-length {n} is more than the {limit} tokens that the model takes");
    }
    let open = |n| TextTokenizer::from_folder(folder, Some(n));
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
    /// Tokenizer.
    pub(crate) tokenizer: TextTokenizer,
}

impl<B: Backend> Loaded<B> {
    /// What of a text the head labels.
    pub(crate) fn level(&self) -> HeadLevel {
        self.model.model().config().level
    }

    /// Refuses a model without a trained head: its answers would be chance.
    pub(crate) fn require_head(&self) -> Result<()> {
        let missing = self.model.model().newly_initialized();
        if missing.is_empty() {
            return Ok(());
        }
        let labels = self.model.model().config().labels.len();
        if let Some(rows) = self.model.model().other_head_width() {
            bail!(
                "the head in the checkpoint has {rows} rows, and config.json (or the adapter) names {labels} labels; name \
                 one label for each row in id2label"
            );
        }
        bail!(
            "the model has no trained head ({} missing); give an adapter that holds one, or a fine-tuned model",
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
    /// Loads what the options name. Labels saved with the adapter replace the model's own.
    pub(crate) fn load<B: Backend>(&self, device: &B::Device) -> Result<Loaded<B>> {
        let folder = ModelFolder::open(&self.model)?;
        let adapter = self.adapter.as_deref().map(adapter_folder).transpose()?;
        let config = classifier_config(folder.path(), adapter.as_deref())?;
        let tokenizer = folder.cutting_tokenizer(self.max_length)?;
        if let Some(dir) = &adapter {
            warn_other_base(dir, folder.path())?;
        }
        let mut model = Classifier::<B>::load(folder.path(), config, 0, device)?;
        warn_ignored(&model, folder.path());
        let adapters = match &adapter {
            Some(dir) => load_adapter(&mut model, dir, device)?,
            None => AdapterSet::empty(),
        };
        Ok(Loaded { model: FineTuner::new(model, adapters), tokenizer })
    }
}

/// Name of the file beside an adapter that holds its task's labels: PEFT's config has no place for them.
pub(crate) const LABELS_FILE: &str = "labels.json";

/// Writes [`LABELS_FILE`].
pub(crate) fn write_labels(dir: &Path, config: &ClassifierConfig, base_hash: Option<&str>) -> Result<()> {
    let value = serde_json::json!({
        "labels": config.labels,
        "problem_type": config.problem.name(),
        "task_type": config.level.task_type(),
        BASE_HASH: base_hash,
    });
    let text = serde_json::to_string_pretty(&value)?;
    Ok(lowrank_checkpoint::write_atomic(dir.join(LABELS_FILE), text.as_bytes())?)
}

/// The classifier that a model and an adapter make: what is labelled is what the model's head says, or else the adapter's
/// task; labels saved with the adapter replace the model's own.
pub(crate) fn classifier_config(folder: &Path, adapter: Option<&Path>) -> Result<ClassifierConfig> {
    let config = ClassifierConfig::read(folder)?;
    let Some(dir) = adapter else { return Ok(config) };
    let config = match (HeadLevel::named(config.raw()), adapter_level(dir)?) {
        (None, Some(level)) => config.at_level(level),
        _ => config,
    };
    Ok(match saved_labels(dir, &config)? {
        Some((labels, problem)) => config.with_problem(labels, problem),
        None => config,
    })
}

/// What of a text an adapter's head labels, `None` where it tells nothing of a head.
pub(crate) fn adapter_level(dir: &Path) -> Result<Option<HeadLevel>> {
    let task = |name: &str| -> Result<Option<String>> {
        let path = dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let value: Value =
            serde_json::from_str(&read_text(&path)?).with_context(|| path.display().to_string())?;
        Ok(value["task_type"].as_str().map(str::to_owned))
    };
    let name = task("adapter_config.json")?.or(task(LABELS_FILE)?);
    Ok(HeadLevel::of_task(name.as_deref()))
}

/// Key of [`LABELS_FILE`] with the hash of the weights that the adapter was trained over.
const BASE_HASH: &str = "base_hash";

/// Says where an adapter of ours was trained over other weights than it is to be used on.
fn warn_other_base(dir: &Path, folder: &Path) -> Result<()> {
    let saved = std::fs::read(dir.join(LABELS_FILE)).ok();
    let saved: Option<Value> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let Some(hash) = saved.as_ref().and_then(|saved| saved[BASE_HASH].as_str()) else { return Ok(()) };
    if hash != Checkpoint::open(folder)?.content_hash() {
        eprintln!(
            "warning: {}: was trained over other weights than those of {}; its adapter_config.json names its base",
            dir.display(),
            folder.display()
        );
    }
    Ok(())
}

fn saved_labels(dir: &Path, base: &ClassifierConfig) -> Result<Option<(Vec<String>, Problem)>> {
    let path = dir.join(LABELS_FILE);
    if path.is_file() {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let value: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let labels = value["labels"].as_array().into_iter().flatten();
        let labels: Option<Vec<String>> = labels.map(|l| l.as_str().map(str::to_string)).collect();
        let labels = labels.filter(|l| !l.is_empty());
        let labels = labels.with_context(|| format!("{}: no list of labels", path.display()))?;
        let problem = match (value["problem_type"].as_str(), value["regression"].as_bool()) {
            (Some(name), _) => Problem::named(name).with_context(|| {
                format!("{}: problem_type '{name}' is not known; fetch the adapter again", path.display())
            })?,
            (None, Some(true)) => Problem::Regression,
            (None, _) => Problem::SingleLabel,
        };
        return Ok(Some((labels, problem)));
    }
    // An adapter from elsewhere: the width of its head tells the number of labels, where it is not the base's.
    let folder = lowrank_adapters::peft::AdapterFolder::read(dir)?;
    let head = ["classifier.weight", "classifier.out_proj.weight", "score.weight"]
        .iter()
        .find_map(|k| folder.tensors.get(*k));
    let width = head.map(|t| t.shape[0]).filter(|width| *width != base.labels.len());
    let problem = |width| match base.problem {
        Problem::MultiLabel => Problem::MultiLabel,
        _ if width == 1 && base.level == HeadLevel::Sequence => Problem::Regression,
        _ => Problem::SingleLabel,
    };
    Ok(width.map(|width| ((0..width).map(|i| format!("LABEL_{i}")).collect(), problem(width))))
}

/// Texts from `--text`, `--text-pair` and `--file`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Texts {
    /// Texts, each with the pair that belongs to it.
    pub(crate) rows: Vec<(String, Option<String>)>,
}

impl Texts {
    /// Reads the options of `matches` in the order in which they were written: each `--text-pair` belongs to the
    /// `--text` before it.
    pub(crate) fn gather(order: &[TextOption], file: Option<&Path>) -> Result<Self> {
        let mut rows: Vec<(String, Option<String>)> = Vec::new();
        for option in order {
            match (option, rows.last_mut()) {
                (TextOption::Text(text), _) => rows.push((text.clone(), None)),
                (TextOption::Pair(pair), Some((_, slot @ None))) => *slot = Some(pair.clone()),
                (TextOption::Pair(pair), _) => {
                    bail!("--text-pair {pair:?} has no --text of its own before it")
                }
            }
        }
        if let Some(path) = file {
            let text = read_text(path)?;
            if text.is_empty() {
                bail!("{}: is empty; give a line for each text", path.display());
            }
            rows.extend(text.lines().map(|line| match line.split_once('\t') {
                Some((text, pair)) => (text.to_string(), Some(pair.to_string())),
                None => (line.to_string(), None),
            }));
        }
        if rows.is_empty() {
            bail!("nothing to do: give --text or --file");
        }
        Ok(Self { rows })
    }

    /// Turns every text to lower case.
    pub(crate) fn lower_case(&mut self) {
        for (text, pair) in &mut self.rows {
            *text = text.to_lowercase();
            *pair = pair.as_ref().map(|pair| pair.to_lowercase());
        }
    }

    /// Encodes the texts.
    pub(crate) fn encode(&self, tokenizer: &TextTokenizer) -> Result<Arc<EncodedDataset>> {
        let rows: Vec<Encoded> = self
            .rows
            .iter()
            .map(|(text, pair)| tokenizer.encode(text, pair.as_deref()))
            .collect::<lowrank_data::Result<_>>()?;
        Ok(Arc::new(EncodedDataset::unlabelled(rows)))
    }
}

/// One of the options that give texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TextOption {
    /// `--text`.
    Text(String),
    /// `--text-pair`.
    Pair(String),
}

/// `--text`, `--text-pair` and `--file`.
#[derive(Debug)]
pub(crate) struct TextArgs {
    order: Vec<TextOption>,
    file: Option<PathBuf>,
}

impl TextArgs {
    /// The texts, in the order in which they were given.
    pub(crate) fn texts(&self) -> Result<Texts> {
        Texts::gather(&self.order, self.file.as_deref())
    }
}

impl clap::FromArgMatches for TextArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut order: Vec<(usize, TextOption)> = Vec::new();
        for (id, make) in
            [("text", TextOption::Text as fn(String) -> TextOption), ("text_pair", TextOption::Pair)]
        {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            let places = matches.indices_of(id).into_iter().flatten();
            order.extend(places.zip(values.map(|v| make(v.clone()))));
        }
        order.sort_by_key(|(place, _)| *place);
        Ok(Self {
            order: order.into_iter().map(|(_, option)| option).collect(),
            file: matches.get_one::<PathBuf>("file").cloned(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for TextArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        use clap::{Arg, ArgAction, value_parser};
        command
            .arg(
                Arg::new("text")
                    .long("text")
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true)
                    .help("A text; may be repeated"),
            )
            .arg(
                Arg::new("text_pair")
                    .long("text-pair")
                    .action(ArgAction::Append)
                    .allow_hyphen_values(true)
                    .help("The second text of the --text before it"),
            )
            .arg(
                Arg::new("file")
                    .long("file")
                    .value_parser(value_parser!(PathBuf))
                    .help("A file of texts, one a line; a tab parts a text from its pair"),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> TextOption {
        TextOption::Text(s.into())
    }

    fn pair(s: &str) -> TextOption {
        TextOption::Pair(s.into())
    }

    #[test]
    fn a_pair_belongs_to_the_text_before_it() -> Result<()> {
        let texts = Texts::gather(&[text("a"), text("b"), pair("c"), text("")], None)?;
        let rows: Vec<_> = texts.rows.iter().map(|(t, p)| (t.as_str(), p.as_deref())).collect();
        assert_eq!(rows, [("a", None), ("b", Some("c")), ("", None)]);
        Ok(())
    }

    #[test]
    fn a_pair_without_a_text_is_an_error() {
        assert!(Texts::gather(&[pair("c")], None).is_err());
        assert!(Texts::gather(&[text("a"), pair("b"), pair("c")], None).is_err());
        assert!(Texts::gather(&[], None).is_err());
    }
}
