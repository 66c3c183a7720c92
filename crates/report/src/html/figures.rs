//! The figures of a report.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    curves::{self, Curve},
    page::{Cell, TableRow, details, figures, section, table},
};
use crate::{
    run::LoadedRun,
    svg::{COLOURS, Plot, Point, Series},
    table::{Column, GridTable, Row},
};

/// Styles of the series of a report: a method has one colour in all figures.
pub(super) struct Looks {
    methods: Vec<(String, String)>,
    several_models: bool,
}

impl Looks {
    pub(super) fn new(table: &GridTable) -> Self {
        let mut methods: Vec<(String, String)> = Vec::new();
        for row in &table.rows {
            if !methods.contains(&Self::key(row)) {
                methods.push(Self::key(row));
            }
        }
        let models: BTreeSet<&str> = drawn(table).map(|row| row.model.as_str()).collect();
        Self { methods, several_models: models.len() > 1 }
    }

    fn key(row: &Row) -> (String, String) {
        (row.model.clone(), row.method.clone() + &Self::without_ratio(row))
    }

    /// The settings without the amount of compression, which is to a compression what the rank is to an
    /// adapter.
    fn without_ratio(row: &Row) -> String {
        let settings = row.settings.split(", ").filter(|setting| !setting.starts_with("ratio="));
        settings.collect::<Vec<_>>().join(", ")
    }

    fn colour(&self, row: &Row) -> usize {
        let key = Self::key(row);
        self.methods.iter().position(|known| *known == key).unwrap_or(0)
    }

    /// A row's name without its rank or ratio.
    fn method(&self, row: &Row) -> String {
        self.name(row, "", &Self::without_ratio(row))
    }

    /// A row's name.
    pub(super) fn row(&self, row: &Row) -> String {
        self.name(row, &row.rank.map_or(String::new(), |rank| format!(" r={rank}")), &row.settings)
    }

    fn name(&self, row: &Row, rank: &str, settings: &str) -> String {
        let model = if self.several_models { format!("{}: ", row.model) } else { String::new() };
        let settings = if settings.is_empty() { String::new() } else { format!(" ({settings})") };
        let source = if row.published { " (published)" } else { "" };
        format!("{model}{}{rank}{settings}{source}", row.method)
    }
}

/// The rows shown in figures: ours, and published ones for a model that is among ours.
fn drawn(table: &GridTable) -> impl Iterator<Item = &Row> {
    let ours: BTreeSet<&str> =
        table.rows.iter().filter(|row| !row.published).map(|row| row.model.as_str()).collect();
    table.rows.iter().filter(move |row| !row.published || ours.contains(row.model.as_str()))
}

/// The axis label of a column's scores.
fn score_label(column: &Column) -> String {
    let name = column.metric.name();
    if column.metric.scale() == 1.0 { name.to_owned() } else { format!("{name} × 100") }
}

/// One figure per task: score over trained parameters, or, if nothing was trained, over the parameters
/// removed.
pub(super) fn score_against_parameters(table: &GridTable) -> String {
    let looks = Looks::new(table);
    let trains = table.rows.iter().any(|row| !row.published && row.cost.trainable > 0);
    let mut plots = Vec::new();
    for (index, column) in table.columns.iter().enumerate() {
        let is_trained = trains && column.metric.higher_is_better();
        let what = if is_trained { "trainable parameters" } else { "parameters" };
        let size = |run: &LoadedRun| {
            let info = &run.record.train_info;
            if is_trained { info.trainable } else { info.total }
        };
        let mut series: Vec<Series> = Vec::new();
        for row in drawn(table) {
            let Some(cell) = &row.cells[index] else { continue };
            let parameters = cell.runs.iter().map(size).max().unwrap_or(row.cost.trainable);
            let name = looks.method(row);
            let place = series.iter().position(|known| known.name == name).unwrap_or_else(|| {
                let colour = looks.colour(row);
                let hollow = row.published;
                series.push(Series {
                    name: name.clone(),
                    colour,
                    hollow,
                    markers: true,
                    ..Series::default()
                });
                series.len() - 1
            });
            if parameters > 0 {
                series[place].points.push(Point {
                    x: parameters as f64,
                    y: cell.score.mean,
                    error: cell.score.std,
                    label: format!("{}: {:.1} with {parameters} parameters", looks.row(row), cell.score.mean),
                });
            }
        }
        series.retain(|series| !series.points.is_empty());
        series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.x.total_cmp(&b.x)));
        let plot = Plot {
            title: format!("{}: {} against {what}", column.task, score_label(column)),
            x_label: what.to_owned(),
            y_label: score_label(column),
            x_log: true,
            y_log: !column.metric.higher_is_better(),
            series,
        };
        if !plot.is_empty() {
            plots.push((column.task.clone(), plot));
        }
    }
    if plots.is_empty() {
        return String::new();
    }
    let heading = if trains { "Score against trainable parameters" } else { "Score against parameters" };
    section(heading, &figures("parameters", &plots))
}

/// Two figures per task: the score and the loss during training.
pub(super) fn training(root: &Path, table: &GridTable) -> String {
    let looks = Looks::new(table);
    let mut body = String::new();
    let score = |column: usize, row: &Row| {
        let cell = row.cells[column].as_ref();
        cell.map_or(Vec::new(), |cell| curves::evaluations(&cell.runs, &table.columns[column].metric))
    };
    let scores = curve_plots(table, &looks, true, &score, |column| {
        (score_label(column), !column.metric.higher_is_better())
    });
    if !scores.is_empty() {
        body += &format!("<h3>On the dev set</h3>\n{}", figures("scores", &scores));
        body += &details("Numbers of these figures", &curve_tables("curves", 1, &scores));
    }
    let loss = |column: usize, row: &Row| {
        row.cells[column].as_ref().map_or(Vec::new(), |cell| curves::losses(root, &cell.runs))
    };
    let losses = curve_plots(table, &looks, false, &loss, |_| ("training loss".to_owned(), false));
    if !losses.is_empty() {
        body += &format!("<h3>Loss</h3>\n{}", figures("losses", &losses));
        body += &details("Numbers of these figures", &curve_tables("losses", 3, &losses));
    }
    if body.is_empty() { body } else { section("Training", &body) }
}

/// One figure per task with one curve per row.
fn curve_plots(
    table: &GridTable,
    looks: &Looks,
    markers: bool,
    curve: &dyn Fn(usize, &Row) -> Curve,
    label: impl Fn(&Column) -> (String, bool),
) -> Vec<(String, Plot)> {
    let mut plots = Vec::new();
    for (index, column) in table.columns.iter().enumerate() {
        let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
        let mut series = Vec::new();
        for row in table.rows.iter().filter(|row| !row.published) {
            let colour = looks.colour(row) % COLOURS;
            // The ranks of a method share its colour and differ by dash and marker, as do methods beyond the
            // number of colours.
            let dash = ranks.entry(colour).or_default();
            let name = looks.row(row);
            let point = |(x, y): (f64, f64)| Point {
                label: format!("{name}, step {x:.0}: {y:.3}"),
                x,
                y,
                error: None,
            };
            let points: Vec<Point> = curve(index, row).into_iter().map(point).collect();
            series.push(Series { colour, dash: *dash, markers, points, name: name.clone(), hollow: false });
            *dash += 1;
        }
        series.retain(|series| !series.points.is_empty());
        let (y_label, wants_log) = label(column);
        // A logarithmic axis would leave out values that are not positive.
        let y_log = wants_log && series.iter().flat_map(|series| &series.points).all(|point| point.y > 0.0);
        let title = format!("{}: {y_label} over the optimizer steps", column.task);
        let plot = Plot { title, x_label: "step".to_owned(), y_label, x_log: false, y_log, series };
        if !plot.is_empty() {
            plots.push((column.task.clone(), plot));
        }
    }
    plots
}

/// The data of curves as tables: one row per step, one column per curve.
fn curve_tables(id: &str, decimals: usize, plots: &[(String, Plot)]) -> String {
    let one = |(index, (caption, plot)): (usize, &(String, Plot))| {
        let mut steps: Vec<f64> =
            plot.series.iter().flat_map(|series| series.points.iter().map(|point| point.x)).collect();
        steps.sort_by(f64::total_cmp);
        steps.dedup();
        let headers: Vec<String> = std::iter::once("step".to_owned())
            .chain(plot.series.iter().map(|series| series.name.clone()))
            .collect();
        let value = |series: &Series, step: f64| {
            let point = series.points.iter().find(|point| point.x == step);
            Cell::text(&point.map_or("–".to_owned(), |point| format!("{:.decimals$}", point.y)), "")
        };
        let cells = |step: f64| plot.series.iter().map(move |series| value(series, step));
        let rows: Vec<TableRow> =
            steps.iter().map(|step| TableRow::new(&step.to_string(), cells(*step))).collect();
        table(&format!("{id}-{index}"), &format!("{caption}: {} by step", plot.y_label), &headers, &rows)
    };
    plots.iter().enumerate().map(one).collect()
}
