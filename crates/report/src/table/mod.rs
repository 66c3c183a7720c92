//! The table of a grid: one row per method and rank, one column per task, followed by the cost of each
//! method.
//!
//! A cell is the mean over seeds of the task's primary metric. If a grid tried several learning rates, a
//! cell shows the one with the best mean, as in papers on adapters, with a note.

mod build;
mod names;
mod published;
mod render;
#[cfg(test)]
mod tests;

pub(crate) use self::render::{grid, legend, score_decimals};
use crate::{Metric, Summary, run::LoadedRun};

/// The table of a grid of runs.
#[derive(Clone, Debug, PartialEq)]
pub struct GridTable {
    /// The tasks, in GLUE's order, others after them by name.
    pub columns: Vec<Column>,
    /// The rows: by model, then kind of method, then rank.
    pub rows: Vec<Row>,
    /// Notes for the reader: failed and unfinished runs, several learning rates, mixed versions.
    pub notes: Vec<String>,
}

/// A task and its primary metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The task.
    pub task: String,
    /// The metric of its cells.
    pub metric: Metric,
}

/// A method with a certain rank on a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Short name of the model: the last part of its path, with the folders above it if other models have the
    /// same.
    pub model: String,
    /// Method or label.
    pub method: String,
    /// Rank, if the method has one.
    pub rank: Option<u64>,
    /// Further settings that distinguish this row from others of the same method and rank, as `key=value, …`.
    pub settings: String,
    /// A cell per column.
    pub cells: Vec<Option<Cell>>,
    /// Mean of the cells; absent if one is missing or the metrics cannot be averaged.
    pub average: Option<f64>,
    /// Whether no other row of the model has a better average.
    pub best_average: bool,
    /// What the runs cost.
    pub cost: Cost,
    /// Whether it was published by others.
    pub published: bool,
}

/// Score of a row on a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Over seeds, multiplied by the metric's scale.
    pub score: Summary,
    /// The learning rate of these runs.
    pub lr: Option<f64>,
    /// Whether no other row of the model shows a better mean, to the digits shown.
    pub best: bool,
    /// The runs behind it, one per seed; empty if the number was published by others.
    pub runs: Vec<LoadedRun>,
}

/// What the runs of a row cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Trained parameters, the maximum over the tasks: a head's size depends on its labels.
    pub trainable: u64,
    /// All parameters, the maximum over the tasks.
    pub total: u64,
    /// Mean over the runs of their median step in milliseconds.
    pub ms_per_step: Option<f64>,
    /// The largest peak memory in MB.
    pub peak_rss_mb: Option<f64>,
    /// Mean duration of a run in seconds.
    pub wall_s: Option<f64>,
}

impl GridTable {
    /// The table of the finished runs.
    pub fn from_runs(runs: &[LoadedRun]) -> Self {
        build::table(runs)
    }

    /// The same table with rows of published numbers at its end, if there are any for its tasks.
    pub fn with_published(mut self) -> Self {
        published::add(&mut self);
        self
    }

    /// For a terminal: aligned, best values marked with `*`, notes below.
    pub fn to_text(&self) -> String {
        render::text(self)
    }

    /// As a Markdown table, best values bold.
    pub fn to_markdown(&self) -> String {
        render::markdown(self)
    }

    /// As CSV with plain numbers, with separate columns for every mean, standard deviation and count.
    pub fn to_csv(&self) -> String {
        render::csv(self)
    }

    /// As a LaTeX `tabular` for the booktabs package, best values bold.
    pub fn to_latex(&self) -> String {
        render::latex(self)
    }
}
