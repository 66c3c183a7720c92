//! From records to a table.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{Cell, Column, Cost, GridTable, Row, names::ModelNames, render::score_decimals};
use crate::{
    Metric,
    run::{LoadedRun, Status},
    summarize,
};

/// The tasks in the order of the GLUE papers' tables.
const TASKS: [&str; 9] = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"];

/// Methods in the order of a table: the untrained model, everything trained, adapters (which sort by name),
/// hardly anything trained.
const FIRST: [&str; 3] = ["dense", "full", "bitfit"];
const LAST: [&str; 3] = ["head", "untouched", "untrained"];

/// Settings that do not distinguish methods.
const NOT_TELLING: [&str; 10] =
    ["lr", "seed", "model", "task", "method", "label", "rank", "output", "log_dir", "resume"];

/// The setting that may name the folder of another run, which in a grid differs for every seed.
const INIT_FROM: &str = "init_from";

/// Key of a row: model, label, rank, settings.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    model: String,
    order: usize,
    label: String,
    rank: Option<u64>,
    settings: String,
}

/// Collects the rows and the notes.
#[derive(Default)]
struct Builder {
    columns: Vec<Column>,
    notes: Vec<String>,
    /// Whether some cell had several learning rates to choose from.
    chose_lr: bool,
}

pub(super) fn table(runs: &[LoadedRun]) -> GridTable {
    let mut builder = Builder::default();
    let done = builder.finished(runs);
    builder.columns = columns(&done);
    let names = ModelNames::new(&done);
    let telling = Telling::new(&done, &names);
    let mut groups: BTreeMap<RowKey, Vec<&LoadedRun>> = BTreeMap::new();
    for run in done.iter().copied() {
        groups.entry(row_key(run, &names, &telling)).or_default().push(run);
    }
    let mut rows: Vec<Row> = groups.into_iter().map(|(key, members)| builder.row(key, &members)).collect();
    let Builder { columns, mut notes, chose_lr } = builder;
    mark_best(&mut rows, &columns);
    if chose_lr {
        notes.push("of several learning rates, the one with the best mean is shown".to_owned());
    }
    notes.extend(mixed(&done, &names));
    GridTable { columns, rows, notes }
}

impl Builder {
    /// The finished runs; failed and unfinished ones go to the notes.
    fn finished<'a>(&mut self, runs: &'a [LoadedRun]) -> Vec<&'a LoadedRun> {
        let mut done = Vec::new();
        for run in runs {
            let folder = run.folder.display();
            match run.record.train_info.status {
                Status::Done => done.push(run),
                Status::Running => self.notes.push(format!("{folder} has not finished")),
                Status::Failed => {
                    let error = run.record.train_info.error.as_deref().unwrap_or("no error was recorded");
                    self.notes.push(format!("{folder} failed: {error}"));
                }
            }
        }
        done
    }

    fn row(&mut self, key: RowKey, runs: &[&LoadedRun]) -> Row {
        let cells: Vec<_> = (0..self.columns.len()).map(|index| self.cell(runs, index)).collect();
        let cost = match cells.iter().any(Option::is_some) {
            true => cost(cells.iter().flatten().flat_map(|cell| &cell.runs)),
            // A run that ended without a score has a cost too.
            false => cost(runs.iter().copied()),
        };
        let average = average(&cells, &self.columns);
        Row {
            model: key.model,
            method: key.label,
            rank: key.rank,
            settings: key.settings,
            cells,
            average,
            best_average: false,
            cost,
            published: false,
        }
    }

    /// The best learning rate's score in a column.
    fn cell(&mut self, runs: &[&LoadedRun], index: usize) -> Option<Cell> {
        let metric = self.columns[index].metric.clone();
        let groups = self.by_lr(runs, index);
        self.chose_lr |= groups.len() > 1;
        let mut best: Option<Cell> = None;
        for (lr, members) in groups {
            let (scored, without): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|run| run.record.train_info.metric.is_some());
            if !without.is_empty() {
                // A mean over the successful seeds would be too optimistic.
                let others = match scored.len() {
                    0 => String::new(),
                    1 => "; 1 other seed is left out with it".to_owned(),
                    count => format!("; {count} other seeds are left out with it"),
                };
                let note = |run: &LoadedRun| {
                    format!("{} ended without a finite score{others}", run.folder.display())
                };
                self.notes.extend(without.into_iter().map(note));
                continue;
            }
            let scores: Vec<f64> = scored
                .iter()
                .filter_map(|run| run.record.train_info.metric)
                .map(|score| score * metric.scale())
                .collect();
            let Some(score) = summarize(&scores) else { continue };
            if best.as_ref().is_none_or(|cell| is_better(score.mean, cell.score.mean, &metric)) {
                best = Some(Cell { score, lr, best: false, runs: scored.into_iter().cloned().collect() });
            }
        }
        best
    }

    /// The runs of a column by learning rate, one per seed.
    fn by_lr<'a>(&mut self, runs: &[&'a LoadedRun], index: usize) -> Vec<(Option<f64>, Vec<&'a LoadedRun>)> {
        let column = &self.columns[index];
        let mut groups: Vec<(Option<f64>, Vec<&LoadedRun>)> = Vec::new();
        for run in runs.iter().copied().filter(|run| run.record.meta_info.task == column.task) {
            let name = &run.record.train_info.metric_name;
            if name != column.metric.name() {
                let its = if name.is_empty() { "has no name" } else { &format!("is {name}") };
                self.notes.push(format!(
                    "{} is left out: its metric {its}, the column's is {}",
                    run.folder.display(),
                    column.metric.name()
                ));
                continue;
            }
            let lr = run.record.lr();
            let position = groups.iter().position(|(known, _)| *known == lr).unwrap_or_else(|| {
                groups.push((lr, Vec::new()));
                groups.len() - 1
            });
            let members = &mut groups[position].1;
            let twin = members.iter_mut().find(|member| member.record.seed() == run.record.seed());
            let Some(twin) = twin else {
                members.push(run);
                continue;
            };
            let twin_is_newer = twin.record.run_info.finished > run.record.run_info.finished;
            let (kept, left) = if twin_is_newer { (*twin, run) } else { (run, *twin) };
            *twin = kept;
            self.notes.push(format!(
                "{} is left out: {} has the same settings",
                left.folder.display(),
                kept.folder.display()
            ));
        }
        groups
    }
}

/// A column per task, with the metric that most of its runs have.
fn columns(runs: &[&LoadedRun]) -> Vec<Column> {
    let mut tasks: BTreeMap<(usize, &str), Vec<(&str, usize)>> = BTreeMap::new();
    for run in runs {
        let task = run.record.meta_info.task.as_str();
        let order = TASKS.iter().position(|known| *known == task).unwrap_or(TASKS.len());
        let metrics = tasks.entry((order, task)).or_default();
        let name = run.record.train_info.metric_name.as_str();
        match metrics.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => metrics.push((name, 1)),
        }
    }
    let column = |((_, task), metrics): ((usize, &str), Vec<(&str, usize)>)| {
        // A run that names no metric is not counted; ties go to the first.
        let named = metrics.iter().rev().filter(|(name, _)| !name.is_empty());
        let most = named.max_by_key(|(_, count)| *count);
        Column { task: task.to_owned(), metric: Metric::new(most.map_or("", |(name, _)| *name)) }
    };
    tasks.into_iter().map(column).collect()
}

/// A note for every model and task whose runs saw different weights or different rows under one name, and one for
/// several versions of the program. Each version is named with a run that has it.
fn mixed(runs: &[&LoadedRun], names: &ModelNames) -> Vec<String> {
    let mut hashes: BTreeMap<String, Versions> = BTreeMap::new();
    let mut programs = Versions::new();
    for run in runs {
        let meta = &run.record.meta_info;
        // A model that was given the name of the model it was made from has its own weights.
        let is_made_of_it = run.record.run_info.config.contains_key("model_name");
        if !run.record.is_random() && !is_made_of_it {
            let weights = hashes.entry(format!("the weights of {}", names.of(run))).or_default();
            weights.entry(&meta.model_hash).or_insert(run);
        }
        hashes.entry(format!("the rows of {}", meta.task)).or_default().entry(&meta.data_hash).or_insert(run);
        programs.entry(&run.record.run_info.version).or_insert(run);
    }
    let mut notes: Vec<String> = hashes
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(what, versions)| {
            format!("{what} are not the same in all runs: {}", list(&versions, HASH_SHOWN))
        })
        .collect();
    if programs.len() > 1 {
        notes.push(format!("runs of several versions are compared: {}", list(&programs, usize::MAX)));
    }
    notes
}

/// The first run of every version or hash.
type Versions<'a> = BTreeMap<&'a str, &'a LoadedRun>;

/// Number of displayed characters of a hash.
const HASH_SHOWN: usize = 12;

/// Versions by their first `shown` characters, each with a folder of it.
fn list(versions: &Versions, shown: usize) -> String {
    let one = |(version, run): (&&str, &&LoadedRun)| {
        let short: String = version.chars().take(shown).collect();
        let short = if short.is_empty() { "unknown" } else { &short };
        format!("{short} ({})", run.folder.display())
    };
    versions.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The settings in which runs of the same model, label, rank and task differ: they define separate rows.
fn telling_settings(runs: &[&LoadedRun], names: &ModelNames) -> BTreeSet<String> {
    let mut groups: BTreeMap<_, Vec<&LoadedRun>> = BTreeMap::new();
    for run in runs.iter().copied() {
        let record = &run.record;
        let key = (names.of(run), record.label(), record.rank(), &record.meta_info.task);
        groups.entry(key).or_default().push(run);
    }
    let mut telling = BTreeSet::new();
    for members in groups.values() {
        let keys: BTreeSet<&String> =
            members.iter().flat_map(|run| run.record.run_info.config.keys()).collect();
        for key in keys.into_iter().map(String::as_str).chain(["backend"]) {
            let first = setting(members[0], key);
            let differ = match key {
                INIT_FROM => starts_differ(members),
                _ => members.iter().any(|run| setting(run, key) != first),
            };
            if differ && !NOT_TELLING.contains(&key) {
                telling.insert(key.to_owned());
            }
        }
    }
    telling
}

/// Whether the initial folders of runs distinguish methods: those of one seed come from several folders, or
/// only some of them come from a folder.
fn starts_differ(runs: &[&LoadedRun]) -> bool {
    let mut by_seed: BTreeMap<Option<u64>, String> = BTreeMap::new();
    let mut alike = |run: &LoadedRun| {
        let start = setting(run, INIT_FROM);
        *by_seed.entry(run.record.seed()).or_insert_with(|| start.clone()) == start
    };
    let given = runs.iter().filter(|run| !setting(run, INIT_FROM).is_empty()).count();
    (given > 0 && given < runs.len()) || !runs.iter().all(|run| alike(run))
}

/// A grid's cell `<model>-<method>-<task>-<settings>-s<seed>-<hash>` in a path without its task, seed and
/// hash: the common part of the cells of all seeds and tasks.
fn without_seed(path: &str, task: &str) -> String {
    let part = |part: &str| {
        let name = part
            .rsplit_once('-')
            .filter(|(_, hash)| hash.len() == 10 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let name = name.and_then(|(name, _)| name.rsplit_once("-s"));
        let is_seed = |seed: &str| !seed.is_empty() && seed.bytes().all(|byte| byte.is_ascii_digit());
        match name.filter(|(_, seed)| is_seed(seed)) {
            Some((name, _)) => {
                format!("{name}-").replacen(&format!("-{task}-"), "-", 1).trim_end_matches('-').to_owned()
            }
            None => part.to_owned(),
        }
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The settings that define separate rows.
struct Telling {
    keys: BTreeSet<String>,
    /// Initial folders, without their seed, that stand for several folders of one seed.
    ambiguous: BTreeSet<String>,
}

impl Telling {
    fn new(runs: &[&LoadedRun], names: &ModelNames) -> Self {
        let mut starts: BTreeMap<_, String> = BTreeMap::new();
        let mut ambiguous = BTreeSet::new();
        for run in runs {
            let (start, task) = (setting(run, INIT_FROM), &run.record.meta_info.task);
            let short = without_seed(&start, task);
            let known =
                starts.entry((short.clone(), task, run.record.seed())).or_insert_with(|| start.clone());
            if *known != start {
                ambiguous.insert(short);
            }
        }
        Self { keys: telling_settings(runs, names), ambiguous }
    }

    /// A setting as text, empty where it is absent; the same for all seeds.
    fn value(&self, run: &LoadedRun, key: &str) -> String {
        let text = setting(run, key);
        if key != INIT_FROM {
            return text;
        }
        let short = without_seed(&text, &run.record.meta_info.task);
        // A superfluous row is better than the mean of different things.
        if self.ambiguous.contains(&short) { text } else { short }
    }
}

/// A setting as text, empty if it is absent, or a switch that is off: an older version may not have known it.
fn setting(run: &LoadedRun, key: &str) -> String {
    match run.record.run_info.config.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => String::new(),
        Some(value) => value.to_string(),
        None if key == "backend" => run.record.run_info.backend.clone(),
        None => String::new(),
    }
}

fn row_key(run: &LoadedRun, names: &ModelNames, telling: &Telling) -> RowKey {
    let record = &run.record;
    let label = record.label();
    let order = FIRST.iter().position(|name| *name == label).unwrap_or_else(|| {
        FIRST.len() + LAST.iter().position(|name| *name == label).map_or(0, |position| 1 + position)
    });
    let settings: Vec<String> = telling
        .keys
        .iter()
        .map(|key| (key, telling.value(run, key)))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    RowKey {
        model: names.of(run),
        order,
        label: label.to_owned(),
        rank: record.rank(),
        settings: settings.join(", "),
    }
}

/// Whether the scores of all columns have one direction and scale, so that they can be averaged.
pub(super) fn are_alike(columns: &[Column]) -> bool {
    columns.windows(2).all(|pair| {
        pair[0].metric.higher_is_better() == pair[1].metric.higher_is_better()
            && pair[0].metric.scale() == pair[1].metric.scale()
    })
}

pub(super) fn average(cells: &[Option<Cell>], columns: &[Column]) -> Option<f64> {
    let means: Option<Vec<f64>> =
        cells.iter().map(|cell| cell.as_ref().map(|cell| cell.score.mean)).collect();
    means.filter(|_| are_alike(columns)).and_then(|means| summarize(&means)).map(|summary| summary.mean)
}

fn cost<'a>(runs: impl Iterator<Item = &'a LoadedRun> + Clone) -> Cost {
    let infos = || runs.clone().map(|run| &run.record.train_info);
    let mean = |values: Vec<f64>| summarize(&values).map(|summary| summary.mean);
    Cost {
        trainable: infos().map(|info| info.trainable).max().unwrap_or(0),
        total: infos().map(|info| info.total).max().unwrap_or(0),
        ms_per_step: mean(infos().filter_map(|info| info.ms_per_step_median).collect()),
        peak_rss_mb: infos().filter_map(|info| info.peak_rss_mb).max_by(f64::total_cmp),
        wall_s: mean(infos().filter_map(|info| info.wall_s).collect()),
    }
}

fn is_better(one: f64, other: f64, metric: &Metric) -> bool {
    let order = one.total_cmp(&other);
    order == if metric.higher_is_better() { Ordering::Greater } else { Ordering::Less }
}

/// Marks the best of every column and average, per model; the only row of a model is not marked.
fn mark_best(rows: &mut [Row], columns: &[Column]) {
    for model_rows in rows.chunk_by_mut(|a, b| a.model == b.model).filter(|rows| rows.len() > 1) {
        for (index, column) in columns.iter().enumerate() {
            let means: Vec<Option<f64>> =
                model_rows.iter().map(|row| row.cells[index].as_ref().map(|cell| cell.score.mean)).collect();
            let marks = best_of(&means, &column.metric);
            for (row, mark) in model_rows.iter_mut().zip(marks) {
                if let Some(cell) = &mut row.cells[index] {
                    cell.best = mark;
                }
            }
        }
        if let Some(column) = columns.first() {
            let averages: Vec<Option<f64>> = model_rows.iter().map(|row| row.average).collect();
            let marks = best_of(&averages, &column.metric);
            for (row, mark) in model_rows.iter_mut().zip(marks) {
                row.best_average = mark;
            }
        }
    }
}

/// The values shown with the same digits as the best one.
fn best_of(values: &[Option<f64>], metric: &Metric) -> Vec<bool> {
    let decimals = score_decimals(metric);
    let mut best: Option<f64> = None;
    for value in values.iter().flatten().copied() {
        if best.is_none_or(|best| is_better(value, best, metric)) {
            best = Some(value);
        }
    }
    let shown = |value: f64| format!("{value:.decimals$}");
    let is_best =
        |value: &Option<f64>| value.zip(best).is_some_and(|(value, best)| shown(value) == shown(best));
    values.iter().map(is_best).collect()
}
