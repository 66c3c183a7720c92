//! The text and table sections of a report.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    figures::Looks,
    page::{Cell, TableRow, details, paragraph, section, table},
};
use crate::{
    paired_bootstrap,
    run::LoadedRun,
    svg::escape,
    table::{Column, GridTable, Row, grid, legend, score_decimals},
};

/// The runs and their environment.
pub(super) fn summary(runs: &[LoadedRun], table: &GridTable) -> String {
    let distinct = |name: &dyn Fn(&LoadedRun) -> String| {
        let names: BTreeSet<String> = runs.iter().map(name).filter(|name| !name.is_empty()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    let models = distinct(&|run| {
        if run.record.meta_info.model.is_empty() { String::new() } else { run.record.model().to_owned() }
    });
    let backends = distinct(&|run| run.record.run_info.backend.clone());
    let versions = distinct(&|run| run.record.run_info.version.clone());
    let machines = distinct(&|run| {
        let hardware = &run.record.meta_info.hardware;
        if hardware.cpu.is_empty() {
            String::new()
        } else {
            format!("{} ({} cores)", hardware.cpu, hardware.cores)
        }
    });
    let last =
        runs.iter().filter_map(|run| run.record.run_info.finished.as_deref()).max().unwrap_or_default();
    // The day suffices.
    let last = last.split('T').next().unwrap_or_default();
    let tasks = table.columns.len();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut parts = vec![format!("{} on {}", count(runs.len(), "run"), count(tasks, "task"))];
    let labelled = [
        ("model", models),
        ("backend", backends),
        ("lowrank", versions),
        ("on", machines),
        ("last run", last.to_owned()),
    ];
    parts.extend(
        labelled
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| format!("{name} {text}")),
    );
    format!("<p class=\"faint\">{}</p>\n", escape(&parts.join(" · ")))
}

/// The table.
pub(super) fn scores(results: &GridTable) -> String {
    if results.rows.is_empty() {
        return section("Scores", &paragraph("No run has finished."));
    }
    let grid = grid(results);
    let names = grid.names;
    // Costs have a separate section, except for the parameters.
    let columns = grid.headers.len() - grid.costs;
    let mut rows = Vec::new();
    let mut group = None;
    for (fields, row) in grid.rows.iter().zip(&results.rows) {
        if names > 1 && group != Some((&row.model, row.published)) {
            group = Some((&row.model, row.published));
            rows.push(TableRow::Group(row.model.clone() + if row.published { " (published)" } else { "" }));
        }
        let fields = &fields[names - 1..columns];
        let cells = fields
            .iter()
            .map(|field| Cell::text(&field.text, if field.best { "best" } else { "" }))
            .collect();
        rows.push(TableRow::Cells { cells, published: row.published });
    }
    section("Scores", &table("scores-table", &legend(results), &grid.headers[names - 1..columns], &rows))
}

/// Time and memory per method, as numbers with bars.
pub(super) fn costs(results: &GridTable) -> String {
    let looks = Looks::new(results);
    let rows: Vec<&Row> = results.rows.iter().filter(|row| !row.published).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mean = |row: &Row, value: &dyn Fn(&LoadedRun) -> Option<f64>| {
        let values: Vec<f64> =
            row.cells.iter().flatten().flat_map(|cell| &cell.runs).filter_map(value).collect();
        crate::summarize(&values).map(|summary| summary.mean)
    };
    let measures: [(&str, usize, Vec<Option<f64>>); 5] = [
        ("ms per step", 1, rows.iter().map(|row| row.cost.ms_per_step).collect()),
        (
            "tokens per second",
            0,
            rows.iter().map(|row| mean(row, &|run| run.record.train_info.tokens_per_second)).collect(),
        ),
        ("peak memory, MB", 0, rows.iter().map(|row| row.cost.peak_rss_mb).collect()),
        ("seconds per run", 1, rows.iter().map(|row| row.cost.wall_s).collect()),
        (
            "saved file, kB",
            1,
            rows.iter()
                .map(|row| {
                    mean(row, &|run| run.record.train_info.adapter_bytes.map(|bytes| bytes as f64 / 1e3))
                })
                .collect(),
        ),
    ];
    let measures: Vec<_> =
        measures.into_iter().filter(|(_, _, values)| values.iter().any(Option::is_some)).collect();
    let headers: Vec<String> = std::iter::once("method".to_owned())
        .chain(measures.iter().map(|(name, _, _)| (*name).to_owned()))
        .collect();
    let cells = |index: usize| {
        measures.iter().map(move |(_, decimals, values)| {
            let most = values.iter().flatten().copied().fold(0.0, f64::max);
            let html = match values[index] {
                Some(value) if most > 0.0 => {
                    let part = 100.0 * value / most;
                    format!("{value:.decimals$}<span class=\"bar\" style=\"--part:{part:.1}%\"></span>")
                }
                Some(value) => format!("{value:.decimals$}"),
                None => "–".to_owned(),
            };
            Cell { html, class: "measure" }
        })
    };
    let rows: Vec<TableRow> =
        rows.iter().enumerate().map(|(index, row)| TableRow::new(&looks.row(row), cells(index))).collect();
    let caption =
        "Means over the runs; the memory is the largest peak of a process, its bar relative to the largest";
    section("Time and memory", &table("costs-table", caption, &headers, &rows))
}

/// Texts generated by language models.
pub(super) fn texts(results: &GridTable) -> String {
    let looks = Looks::new(results);
    let text = |row: &Row| {
        let mut runs = row.cells.iter().flatten().flat_map(|cell| &cell.runs);
        runs.find_map(|run| run.record.train_info.text.clone())
    };
    let rows: Vec<TableRow> = results
        .rows
        .iter()
        .filter_map(|row| {
            Some(TableRow::new(&looks.row(row), std::iter::once(Cell::text(&text(row)?, "text"))))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let headers = ["method", "text"].map(str::to_owned);
    section(
        "What they write",
        &table("texts-table", "The first words after the same prompt", &headers, &rows),
    )
}

/// Paired differences between the methods, with bootstrap intervals over the seeds.
pub(super) fn comparison(results: &GridTable) -> String {
    let ours: Vec<&Row> = results.rows.iter().filter(|row| !row.published).collect();
    let mut body = String::new();
    let models = ours.chunk_by(|a, b| a.model == b.model).filter(|rows| rows.len() > 1);
    let groups = alike(&results.columns);
    for (model, rows) in models.enumerate() {
        for (index, columns) in groups.iter().enumerate() {
            let id = if index == 0 {
                format!("comparison-{model}")
            } else {
                format!("comparison-{model}-{index}")
            };
            let tasks: Vec<&str> =
                columns.iter().map(|column| results.columns[*column].task.as_str()).collect();
            let of_tasks = if groups.len() > 1 { format!(", {}", tasks.join(", ")) } else { String::new() };
            let what = format!("{}{of_tasks}", rows[0].model);
            let has_some = |row: &&&Row| columns.iter().any(|column| row.cells[*column].is_some());
            let rows: Vec<&Row> = rows.iter().filter(has_some).copied().collect();
            body += &comparison_table(results, &rows, columns, &id, &what).unwrap_or_default();
        }
    }
    if body.is_empty() {
        if ours.len() < 2 {
            return String::new();
        }
        body = paragraph(
            "With one seed per method nothing can be said about chance; run the grid with --seeds 0,1,2.",
        );
    } else {
        body += &paragraph(
            "The seeds are paired: both methods saw the same rows in the same order. An interval from two or three \
             seeds is narrower than the truth.",
        );
    }
    section("Does one method beat another?", &body)
}

/// The columns whose scores can be averaged, by direction and scale: percentage points and perplexities
/// cannot.
fn alike(columns: &[Column]) -> Vec<Vec<usize>> {
    let kind = |index: usize| {
        let metric = &columns[index].metric;
        (metric.higher_is_better(), metric.scale())
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for index in 0..columns.len() {
        match groups.iter_mut().find(|group| kind(group[0]) == kind(index)) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

/// The differences of a model's rows in comparable columns; empty if no two rows have two seeds in common.
fn comparison_table(
    results: &GridTable,
    rows: &[&Row],
    columns: &[usize],
    id: &str,
    what: &str,
) -> Option<String> {
    let looks = Looks::new(results);
    let decimals = score_decimals(&results.columns[columns[0]].metric);
    let mut any = false;
    let mut cell = |a: &Row, b: &Row| match paired_bootstrap(&differences(results, columns, a, b)) {
        Some(interval) => {
            any = true;
            let sure = interval.low > 0.0 || interval.high < 0.0;
            let [mean, low, high] =
                [interval.mean, interval.low, interval.high].map(|value| format!("{value:+.decimals$}"));
            let html = format!("{mean} <small>[{low}, {high}]</small>");
            Cell { html, class: if sure { "best" } else { "" } }
        }
        None => Cell::text("–", ""),
    };
    let mut table_rows = Vec::new();
    for (index, a) in rows.iter().enumerate().take(rows.len().saturating_sub(1)) {
        let pairs = rows.iter().enumerate().skip(1);
        let cells = pairs.map(|(other, b)| if other > index { cell(a, b) } else { Cell::text("", "") });
        table_rows.push(TableRow::new(&looks.row(a), cells));
    }
    let minus = rows.iter().skip(1).map(|row| format!("− {}", looks.row(row)));
    let headers: Vec<String> = std::iter::once(String::from("row − column")).chain(minus).collect();
    let flipped = match results.columns[columns[0]].metric.higher_is_better() {
        true => "",
        false => ", the sign turned since less is better",
    };
    let caption = format!(
        "{what}: mean difference over the seeds, averaged over the tasks that both have, and its 95 % bootstrap \
         interval; positive: the row is better{flipped}; bold where it leaves out 0"
    );
    any.then(|| table(id, &caption, &headers, &table_rows))
}

/// For every seed that both rows have, the improvement of `a` over `b`, averaged over the columns that both
/// have.
fn differences(table: &GridTable, columns: &[usize], a: &Row, b: &Row) -> Vec<f64> {
    let mut sums: BTreeMap<Option<u64>, (f64, usize)> = BTreeMap::new();
    let mut shared = 0;
    for index in columns {
        let metric = &table.columns[*index].metric;
        let (Some(a), Some(b)) = (&a.cells[*index], &b.cells[*index]) else { continue };
        shared += 1;
        let sign = if metric.higher_is_better() { 1.0 } else { -1.0 };
        for run in &a.runs {
            let twin = b.runs.iter().find(|twin| twin.record.seed() == run.record.seed());
            let scores =
                twin.and_then(|twin| run.record.train_info.metric.zip(twin.record.train_info.metric));
            if let Some((ours, theirs)) = scores {
                let sum = sums.entry(run.record.seed()).or_default();
                *sum = (sum.0 + sign * metric.scale() * (ours - theirs), sum.1 + 1);
            }
        }
    }
    // A seed without a task would compare different tasks.
    sums.into_values().filter(|(_, count)| *count == shared).map(|(sum, count)| sum / count as f64).collect()
}

/// Notes for the reader.
pub(super) fn notes(table: &GridTable, warnings: &[String]) -> String {
    let items: String =
        table.notes.iter().chain(warnings).map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    if items.is_empty() { items } else { section("Notes", &format!("<ul>\n{items}</ul>\n")) }
}

/// The settings of every method, and one of its commands.
pub(super) fn settings(table: &GridTable) -> String {
    let looks = Looks::new(table);
    let mut body = String::new();
    for row in table.rows.iter().filter(|row| !row.published) {
        let runs: Vec<&LoadedRun> = row.cells.iter().flatten().flat_map(|cell| &cell.runs).collect();
        let Some(first) = runs.first() else { continue };
        let mut items = String::new();
        for (key, value) in &first.record.run_info.config {
            let values: BTreeSet<String> =
                runs.iter().filter_map(|run| run.record.run_info.config.get(key)).map(plain).collect();
            let values: Vec<String> = values.into_iter().collect();
            if value.is_null() && values.len() == 1 {
                continue;
            }
            items += &format!("<li>{} = {}</li>\n", escape(key), escape(&values.join(", ")));
        }
        let command = escape(&command(&first.record.run_info.command));
        body += &details(&looks.row(row), &format!("<ul>\n{items}</ul>\n<p><code>{command}</code></p>\n"));
    }
    if body.is_empty() { body } else { section("How they were run", &body) }
}

/// A command line with only the program's name: its folder is of no interest to a reader.
fn command(words: &[String]) -> String {
    let mut words = words.iter().map(String::as_str);
    let program = words.next().map(|program| program.rsplit(['/', '\\']).next().unwrap_or(program));
    program.into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
