//! A table as text, Markdown, CSV and LaTeX.

use super::build::are_alike;
use lowrank_spec::text::{csv_field, printable};

use super::{Cell, Cost, GridTable, Row};
use crate::Metric;

/// Digits after the point of a score.
pub(crate) fn score_decimals(metric: &Metric) -> usize {
    if metric.higher_is_better() { 1 } else { 2 }
}

/// A cell of the rendered table.
pub(crate) struct Field {
    pub(crate) text: String,
    pub(crate) best: bool,
}

impl Field {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), best: false }
    }
}

/// Common input of the formats for readers: headers and fields, all as text.
pub(crate) struct Grid {
    pub(crate) headers: Vec<String>,
    pub(crate) rows: Vec<Vec<Field>>,
    /// Columns at the left that hold names rather than numbers.
    pub(crate) names: usize,
    /// Columns at the right that hold time and memory.
    pub(crate) costs: usize,
}

/// Placeholder of an empty field.
const NOTHING: &str = "–";

pub(crate) fn grid(table: &GridTable) -> Grid {
    let several_models = table.rows.iter().any(|row| row.model != table.rows[0].model);
    let mut headers: Vec<String> = Vec::new();
    if several_models {
        headers.push("model".to_owned());
    }
    headers.push("method".to_owned());
    let names = headers.len();
    headers.extend(table.columns.iter().map(|column| column.task.clone()));
    let with_average = table.columns.len() > 1 && are_alike(&table.columns);
    if with_average {
        headers.push("average".to_owned());
    }
    let [size, costs] = cost_columns(table);
    headers.extend(size.iter().chain(&costs).map(|(header, _)| (*header).to_owned()));

    let row = |row: &Row| {
        let mut fields = Vec::with_capacity(headers.len());
        if several_models {
            fields.push(Field::plain(&row.model));
        }
        fields.push(Field::plain(method(row)));
        fields.extend(row.cells.iter().zip(&table.columns).map(|(cell, column)| score(cell, &column.metric)));
        if with_average {
            let decimals = score_decimals(&table.columns[0].metric);
            fields.push(Field { text: number(row.average, decimals), best: row.best_average });
        }
        fields.extend(size.iter().chain(&costs).map(|(_, text)| Field::plain(text(&row.cost))));
        fields
    };
    Grid { rows: table.rows.iter().map(row).collect(), names, costs: costs.len(), headers }
}

/// A header and its column.
type CostColumn = (&'static str, fn(&Cost) -> String);

/// Columns of size, and of time and memory: those with any value. If nothing is trained, as in
/// compression, the size is that of the whole model.
fn cost_columns(table: &GridTable) -> [Vec<CostColumn>; 2] {
    let is_trained = table.rows.iter().any(|row| !row.published && row.cost.trainable > 0);
    let size: CostColumn = if is_trained {
        ("trainable", |cost| count(cost.trainable))
    } else {
        ("parameters", |cost| count(cost.total))
    };
    let costs: [CostColumn; 3] = [
        ("ms/step", |cost| number(cost.ms_per_step, 1)),
        ("peak MB", |cost| number(cost.peak_rss_mb, 0)),
        ("s/run", |cost| number(cost.wall_s, 1)),
    ];
    [vec![size], costs.to_vec()].map(|mut columns| {
        columns.retain(|(_, text)| table.rows.iter().any(|row| text(&row.cost) != NOTHING));
        columns
    })
}

/// `lora r=8 (dropout=0.1)`.
fn method(row: &Row) -> String {
    let mut text = row.method.clone();
    if let Some(rank) = row.rank {
        text.push_str(&format!(" r={rank}"));
    }
    if !row.settings.is_empty() {
        text.push_str(&format!(" ({})", row.settings));
    }
    if row.published {
        text.push_str(" †");
    }
    text
}

fn score(cell: &Option<Cell>, metric: &Metric) -> Field {
    let Some(cell) = cell else { return Field::plain(NOTHING) };
    let decimals = score_decimals(metric);
    let mean = format!("{:.decimals$}", cell.score.mean);
    let text = match cell.score.std {
        Some(std) => format!("{mean} ± {std:.decimals$}"),
        None => mean,
    };
    Field { text, best: cell.best }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or(NOTHING.to_owned(), |value| format!("{value:.decimals$}"))
}

/// A number of parameters; 0 is not shown.
fn count(value: u64) -> String {
    if value == 0 { NOTHING.to_owned() } else { thousands(value) }
}

/// `1234567` as `1,234,567`.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Description of the cells: `cola: matthews; sst2: accuracy; × 100; mean ± standard deviation over seeds`.
pub(crate) fn legend(table: &GridTable) -> String {
    let mut parts: Vec<String> = table
        .columns
        .iter()
        .filter(|column| !column.metric.name().is_empty())
        .map(|column| format!("{}: {}", column.task, column.metric.name()))
        .collect();
    if table.columns.iter().any(|column| column.metric.scale() != 1.0) {
        parts.push("scores × 100".to_owned());
    }
    let measured = table.rows.iter().filter(|row| !row.published);
    let runs = || measured.clone().flat_map(|row| row.cells.iter().flatten()).flat_map(|cell| &cell.runs);
    if runs().any(|run| run.record.train_info.evals.len() > 1) {
        parts.push("a run's best evaluation".to_owned());
    }
    let mut seeds = measured.flat_map(|row| row.cells.iter().flatten()).map(|cell| cell.score.count);
    if let Some(first) = seeds.next() {
        parts.push(match (first, seeds.all(|count| count == first)) {
            (1, true) => "one seed".to_owned(),
            (count, true) => format!("mean ± standard deviation over {count} seeds"),
            (_, false) => "mean ± standard deviation over the seeds at hand".to_owned(),
        });
    }
    parts.join("; ")
}

pub(super) fn text(table: &GridTable) -> String {
    if table.rows.is_empty() {
        return lines(std::iter::once("no run has finished".to_owned()).chain(table.notes.clone()));
    }
    let grid = grid(table);
    // A column's mark has its own position, so that the digits stay aligned.
    let marked = |field: &Field| format!("{}{}", field.text, if field.best { "*" } else { " " });
    let cells: Vec<Vec<String>> = grid.rows.iter().map(|row| row.iter().map(marked).collect()).collect();
    let headers: Vec<String> = grid.headers.iter().map(|header| format!("{header} ")).collect();
    let widths: Vec<usize> = (0..headers.len())
        .map(|index| cells.iter().chain([&headers]).map(|row| row[index].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let mut out = String::new();
        for (index, (field, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - field.chars().count());
            let gap = if index == 0 { "" } else { "  " };
            if index < grid.names {
                out.extend([gap, field, &pad]);
            } else {
                out.extend([gap, &pad, field]);
            }
        }
        out.trim_end().to_owned()
    };
    let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1) - 1);
    let mut notes = vec![legend(table)];
    if table.rows.iter().any(|row| row.best_average || row.cells.iter().flatten().any(|cell| cell.best)) {
        notes.push("* best of the column".to_owned());
    }
    notes.extend(table.notes.clone());
    let body = cells.iter().map(line);
    lines([line(&headers), rule].into_iter().chain(body).chain([String::new()]).chain(notes))
}

pub(super) fn markdown(table: &GridTable) -> String {
    if table.rows.is_empty() {
        return text(table);
    }
    let grid = grid(table);
    let line = |fields: Vec<String>| format!("| {} |", fields.join(" | "));
    let rule = (0..grid.headers.len()).map(|index| if index < grid.names { ":--" } else { "--:" }.to_owned());
    let field = |field: &Field| match field.best {
        true => format!("**{}**", markdown_escape(&field.text)),
        false => markdown_escape(&field.text),
    };
    let head = grid.headers.iter().map(|header| markdown_escape(header));
    let head = [line(head.collect()), line(rule.collect())];
    let body = grid.rows.iter().map(|row| line(row.iter().map(field).collect()));
    let notes = std::iter::once(legend(table))
        .chain(table.notes.clone())
        .flat_map(|note| [String::new(), markdown_escape(&note)]);
    lines(head.into_iter().chain(body).chain(notes))
}

pub(super) fn latex(table: &GridTable) -> String {
    let grid = grid_or_empty(table);
    let line = |fields: Vec<String>| {
        let row = fields.join(" & ");
        // The previous row's command would take these as its own.
        let guard = if row.starts_with(['*', '[']) { "{}" } else { "" };
        format!("{guard}{row} \\\\")
    };
    let field = |field: &Field| {
        let text = latex_escape(&field.text);
        if field.best { format!("\\textbf{{{text}}}") } else { text }
    };
    let alignment: String =
        (0..grid.headers.len()).map(|index| if index < grid.names { 'l' } else { 'r' }).collect();
    let notes = std::iter::once(legend(table)).chain(table.notes.clone());
    let notes = notes.filter(|note| !note.is_empty()).map(|note| format!("% {}", one_line(&note)));
    let head = [
        format!("\\begin{{tabular}}{{{alignment}}}"),
        "\\toprule".to_owned(),
        line(grid.headers.iter().map(|header| latex_escape(header)).collect()),
        "\\midrule".to_owned(),
    ];
    let body = grid.rows.iter().map(|row| line(row.iter().map(field).collect()));
    let foot = ["\\bottomrule".to_owned(), "\\end{tabular}".to_owned()];
    lines(notes.chain(head).chain(body).chain(foot))
}

fn grid_or_empty(table: &GridTable) -> Grid {
    if table.rows.is_empty() {
        return Grid { headers: vec!["method".to_owned()], rows: Vec::new(), names: 1, costs: 0 };
    }
    grid(table)
}

/// Line breaks, which would end a row or a comment, as spaces.
fn one_line(text: &str) -> String {
    printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn markdown_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            '\\' | '*' | '_' | '`' | '[' | ']' | '|' => out.extend(['\\', c]),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            _ => out.push(c),
        }
    }
    out
}

fn latex_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            // The straight one is not in TeX's own encoding.
            '"' => out.push_str("\\textquotedblright{}"),
            '±' => out.push_str("$\\pm$"),
            '†' => out.push_str("$\\dagger$"),
            '–' => out.push_str("--"),
            _ => out.push(c),
        }
    }
    out
}

pub(super) fn csv(table: &GridTable) -> String {
    let mut headers: Vec<String> =
        ["source", "model", "method", "rank", "settings"].map(str::to_owned).to_vec();
    for column in &table.columns {
        headers.extend(["mean", "std", "seeds", "lr"].map(|part| format!("{}_{part}", column.task)));
    }
    let costs = ["average", "trainable", "parameters", "ms_per_step", "peak_rss_mb", "wall_s"];
    headers.extend(costs.map(str::to_owned));

    let plain = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let row = |row: &Row| {
        let rank = row.rank.map_or(String::new(), |rank| rank.to_string());
        let source = if row.published { "published" } else { "measured" };
        let mut fields =
            vec![source.to_owned(), row.model.clone(), row.method.clone(), rank, row.settings.clone()];
        for cell in &row.cells {
            let score = cell.as_ref().map(|cell| cell.score);
            fields.push(plain(score.map(|score| score.mean)));
            fields.push(plain(score.and_then(|score| score.std)));
            fields.push(score.map_or(String::new(), |score| score.count.to_string()));
            fields.push(cell.as_ref().and_then(|cell| cell.lr).map_or(String::new(), |lr| format!("{lr:e}")));
        }
        let cost = &row.cost;
        fields.push(plain(row.average));
        let size = |count: u64| if count == 0 { String::new() } else { count.to_string() };
        fields.extend([cost.trainable, cost.total].map(size));
        fields.extend([cost.ms_per_step, cost.peak_rss_mb, cost.wall_s].map(plain));
        fields
    };
    let line =
        |fields: Vec<String>| fields.iter().map(|field| csv_field(field)).collect::<Vec<_>>().join(",");
    lines(std::iter::once(headers).chain(table.rows.iter().map(row)).map(line))
}

fn lines(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}
