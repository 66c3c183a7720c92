//! `lowrank evaluate`: score a model on a task's dev set, or on labelled rows of the user.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Error, Result, anyhow, bail, ensure};
use lowrank_data::glue::{
    GlueDataset, LabelSpace, Metric, Split, TaggedDataset, Task, class_number, class_places, generic_places,
    is_tagged, read_labelled, read_tagged_file,
};
use lowrank_data::images::ImageFolder;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::questions::{Asked, QuestionSet, WindowOptions, are_questions, read_questions};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_eval::AnswerOptions;
use lowrank_models::{HeadLevel, Problem};
use lowrank_train::DevSet;
use serde_json::{Map, json};

use crate::backend::{Inner, device};
use crate::context::{
    Loaded, ModelArgs, Pictures, SpanArgs, TaskName, check_kind, check_task, dev_folder, open_model,
    print_json,
};

/// Options of `evaluate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Task: sst2 cola mrpc stsb qqp mnli qnli rte wnli, or images
    #[arg(long, required_unless_present = "dev")]
    task: Option<TaskName>,
    /// GLUE root with the official folders; for images a folder with validation, val, dev or test
    #[arg(long, requires = "task")]
    data: Option<PathBuf>,
    /// Labelled rows of your own, in the formats of finetune --dev, or with --task images a folder with a folder of
    /// pictures for each class; labels are matched to the model's by name
    #[arg(long, conflicts_with = "data")]
    dev: Option<PathBuf>,
    #[command(flatten)]
    spans: SpanArgs,
    /// Question answering: allow no answer [default: if the model was trained on questions without one]
    #[arg(long)]
    handle_impossible_answer: bool,
    /// Sequences per batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The rows of an official split; the number of broken ones is reported.
pub(crate) fn read_glue(root: &Path, task: Task, split: Split) -> Result<GlueDataset> {
    let rows = GlueDataset::read(root, task, split)?;
    if rows.skipped() > 0 {
        eprintln!("warning: {}: {task}: {} broken rows are skipped", root.display(), rows.skipped());
    }
    Ok(rows)
}

/// The dev sets of a task, encoded; the metrics of a second one end in `_mm`.
pub(crate) fn dev_sets(root: &Path, task: Task, tokenizer: &TextTokenizer) -> Result<Vec<DevSet>> {
    task.dev_splits()
        .iter()
        .map(|&split| {
            let data = Arc::new(EncodedDataset::encode(&read_glue(root, task, split)?, tokenizer)?);
            Ok(DevSet { suffix: suffix(split).into(), ..DevSet::new(data) })
        })
        .collect()
}

fn suffix(split: Split) -> &'static str {
    if split == Split::DevMismatched { "_mm" } else { "" }
}

/// Tokenizes sentences of words; reports how many words are cut off at the tokenizer's limit.
pub(crate) fn encode_tagged(set: &TaggedDataset, tokenizer: &TextTokenizer) -> Result<EncodedDataset> {
    let (rows, cut) = EncodedDataset::encode_tagged(set, tokenizer)?;
    if cut > 0 {
        eprintln!(
            "warning: {}: {cut} words are beyond the model's maximum sequence length (or --max-length) and are left \
             out; give shorter sentences",
            set.path.display()
        );
    }
    Ok(rows)
}

/// An evaluation: the name, the rows, the metrics, and the positions of the classes among the model's
/// outputs.
struct Rows {
    task: String,
    sets: Vec<DevSet>,
    metrics: Vec<Metric>,
    order: Option<Vec<usize>>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    check_task(args.task, args.data.as_deref(), args.dev.as_deref(), "--dev <DEV>");
    check_kind(&open_model(&args.model.model)?, args.task)?;
    let loaded = args.model.load::<Inner>(&device()?)?;
    loaded.require_head()?;
    args.spans.check(loaded.level())?;
    let Rows { task, sets, metrics, order } = match (args.task, &args.data, &args.dev) {
        (Some(TaskName::Images), root, dev) => {
            of_images(&loaded, &dev_folder(root.as_deref(), dev.as_deref())?)?
        }
        (Some(TaskName::Glue(task)), Some(root), _) => of_task(&loaded, task, root)?,
        (_, _, Some(file)) if loaded.level() == HeadLevel::Span => of_questions(&args, &loaded, file)?,
        (_, _, Some(file)) => of_file(&loaded, file)?,
        _ => bail_usage!("give --task and --data, or --dev"),
    };
    let count = |set: &DevSet| set.asked.as_ref().map_or(set.data.len(), |(asked, _)| asked.rows.len());
    let rows: usize = sets.iter().map(count).sum();
    let tokens: usize = sets.iter().map(|s| s.data.n_tokens()).sum();
    let start = Instant::now();
    let output = lowrank_train::evaluate(&loaded.model, &sets, &metrics, order.as_deref(), args.batch_size)?;
    let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
    if args.json {
        let mut object: Map<String, serde_json::Value> =
            output.values.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        object.insert("task".into(), json!(task));
        object.insert("rows".into(), json!(rows));
        let metric = metrics[0].name();
        object.insert("metric".into(), json!(output.values.get(metric)));
        object.insert("metric_name".into(), json!(metric));
        object.insert("tokens_per_second".into(), json!(tokens_per_second));
        return print_json(&object.into());
    }
    for (name, value) in &output.values {
        println!("{name:12} {value:.4}");
    }
    Ok(())
}

fn of_images(loaded: &Loaded<Inner>, dir: &Path) -> Result<Rows> {
    let config = loaded.model.model().config();
    ensure!(
        config.problem == Problem::SingleLabel,
        "the model's problem_type is {}; folders of pictures have one class for each picture",
        config.problem.name()
    );
    let pictures = Pictures::open(&loaded.folder, config)?;
    let classes = ImageFolder::class_names(dir)?;
    let places = folder_places(dir, &config.labels, &classes)?;
    let place = |name: &str| {
        let class = classes.iter().position(|class| class == name)?;
        places.get(class).copied().flatten()
    };
    let folder = ImageFolder::read_known(dir, &config.labels, place)?;
    let task = dir.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
    let sets = vec![DevSet::new(pictures.read_folder(&folder)?)];
    Ok(Rows { task, sets, metrics: vec![Metric::Accuracy], order: None })
}

fn of_task(loaded: &Loaded<Inner>, task: Task, root: &Path) -> Result<Rows> {
    let config = loaded.model.model().config();
    match config.level {
        HeadLevel::Sequence => {}
        HeadLevel::Token => {
            bail!("the model is a token classifier, which labels every word; {task} has one label per row")
        }
        HeadLevel::Span => bail!("the model answers questions; {task} has one label per row"),
    }
    ensure!(
        config.problem != Problem::MultiLabel,
        "the model is a multi-label classifier (multi_label_classification); {task} has exactly one label per row"
    );
    let (width, wanted) = (config.labels.len(), LabelSpace::width(&task.spec().labels));
    ensure!(
        width == wanted,
        "the model has {width} labels and {task} has {wanted}; give an adapter or model trained on it"
    );
    let order = class_order(&config.labels, &task.spec().labels)?;
    ensure!(
        order.is_some(),
        "the model's labels ({}) are not those of {task} ({}); rename id2label in its config.json, or give a model that \
         was trained on the task",
        config.labels.join(", "),
        task.label_names().join(", ")
    );
    let sets = dev_sets(root, task, loaded.tokenizer()?)?;
    Ok(Rows { task: task.name().into(), sets, metrics: task.metrics().to_vec(), order: order.flatten() })
}

fn of_file(loaded: &Loaded<Inner>, file: &Path) -> Result<Rows> {
    let config = loaded.model.model().config();
    let name = file.file_stem().map_or_else(|| "own".into(), |s| s.to_string_lossy().into_owned());
    let labels = config.labels.clone();
    ensure!(
        !are_questions(file)?,
        "{}: holds questions with their contexts, and the model labels texts; give a question answering model",
        file.display()
    );
    let (data, metrics) = if config.level == HeadLevel::Token {
        let set = read_tagged_file(&name, file, &labels)?;
        (encode_tagged(&set, loaded.tokenizer()?)?, set.spec.metrics)
    } else {
        ensure!(
            !is_tagged(file)?,
            "{}: holds words with tags, and the model labels whole texts; give a token classifier",
            file.display()
        );
        let space = match config.problem {
            Problem::SingleLabel => LabelSpace::Classes(labels),
            Problem::MultiLabel => LabelSpace::Sets(labels),
            Problem::Regression if labels.len() > 1 => bail!(
                "{}: the model predicts {} numbers for a text, and rows have one; evaluate a model with one output",
                file.display(),
                labels.len()
            ),
            Problem::Regression => LabelSpace::Score,
        };
        let set = read_labelled(&name, file, &space)?;
        (EncodedDataset::encode(&set, loaded.tokenizer()?)?, set.spec().metrics.clone())
    };
    let sets = vec![DevSet::new(Arc::new(data))];
    Ok(Rows { task: name, sets, metrics, order: None })
}

fn of_questions(args: &Args, loaded: &Loaded<Inner>, file: &Path) -> Result<Rows> {
    let set = read_questions(file)?;
    let may_be_none = args.handle_impossible_answer || loaded.model.model().config().may_not_answer();
    if set.has_unanswerable() && !may_be_none {
        eprintln!(
            "warning: {}: some questions have no answer, and the model always gives one; --handle-impossible-answer lets it \
             give none",
            file.display()
        );
    }
    let windows = args.spans.windows(args.model.max_length, loaded.tokenizer()?);
    let dev = ask(&set, loaded.tokenizer()?, windows, args.spans.answers(may_be_none))?;
    let task = file.file_stem().map_or_else(|| "own".into(), |s| s.to_string_lossy().into_owned());
    Ok(Rows { task, sets: vec![dev], metrics: LabelSpace::Spans.metrics(), order: None })
}

/// Questions as a dev set.
pub(crate) fn ask(
    set: &QuestionSet,
    tokenizer: &TextTokenizer,
    windows: WindowOptions,
    options: AnswerOptions,
) -> Result<DevSet> {
    let (asked, data) = Asked::encode(set, tokenizer, windows)?;
    Ok(DevSet { asked: Some((Arc::new(asked), options)), ..DevSet::new(Arc::new(data)) })
}

/// The label of each folder of pictures; by the order of their names if the model's labels have none.
fn folder_places(dir: &Path, labels: &[String], classes: &[String]) -> Result<Vec<Option<usize>>> {
    let places = class_places(labels, classes).map_err(|message| anyhow!("{}: {message}", dir.display()))?;
    // Numbers that are not those of the labels may be counted in the order of their names or of their values.
    let is_ordered = classes.iter().map(|class| class_number(class)).collect::<Option<Vec<_>>>();
    let is_ordered = is_ordered.is_none_or(|numbers| numbers.is_sorted());
    if places.iter().any(Option::is_none)
        && is_ordered
        && labels.len() == classes.len()
        && let Some(generic) = generic_places(labels, classes.len())
    {
        eprintln!(
            "warning: {}: the model's labels have no names (LABEL_0, LABEL_1, …); the folders are taken in the order of \
             their names ({}); name id2label in the model's config.json",
            dir.display(),
            classes.join(", ")
        );
        return Ok(generic.into_iter().map(Some).collect());
    }
    Ok(places)
}

/// Positions of the task's classes among the model's labels: already in order (`Some(None)`), the position of
/// each class (`Some(Some(_))`), or `None` if the labels have other names.
///
/// # Errors
/// A class that is the name of several labels.
pub(crate) fn class_order(model: &[String], task: &LabelSpace) -> Result<Option<Option<Vec<usize>>>> {
    let classes = task.names();
    let found = class_places(model, classes).map_err(Error::msg)?;
    // Labels without names are those of the task in its order.
    let places =
        found.into_iter().collect::<Option<Vec<usize>>>().or_else(|| generic_places(model, classes.len()));
    Ok(places.map(|places| {
        let is_same = places.iter().enumerate().all(|(class, place)| class == *place);
        (!is_same).then_some(places)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_found_by_their_names() {
        let order = |model: &[&str]| {
            let model: Vec<String> = model.iter().map(|label| (*label).to_string()).collect();
            class_order(&model, &Task::Mnli.spec().labels).unwrap()
        };
        assert_eq!(order(&["LABEL_0", "LABEL_1", "LABEL_2"]), Some(None));
        assert_eq!(order(&["entailment", "neutral", "contradiction"]), Some(None));
        assert_eq!(order(&["CONTRADICTION", "Neutral", "entailment"]), Some(Some(vec![2, 1, 0])));
        assert_eq!(order(&["yes", "no", "perhaps"]), None);
        assert_eq!(order(&["LABEL_2", "LABEL_0", "LABEL_1"]), Some(Some(vec![1, 2, 0])));
        let twice = ["neutral", "entailment", "neutral", "contradiction"].map(str::to_owned);
        let error = class_order(&twice, &Task::Mnli.spec().labels).unwrap_err().to_string();
        assert!(error.contains("'neutral' is the name of several labels of the model, 0"), "{error}");
    }
}
