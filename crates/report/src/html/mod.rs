//! The report of a grid: one self-contained HTML file, and the same tables for papers and programs.

mod curves;
mod figures;
mod page;
mod sections;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use lowrank_checkpoint::write_together;

use crate::{
    Error, Result,
    run::{LoadedRun, load_runs},
    table::GridTable,
};

/// Options of a report.
#[derive(Clone, Debug, Default)]
pub struct ReportOptions {
    /// Its title; the runs' folder by default.
    pub title: Option<String>,
    /// Whether to leave out published numbers.
    pub without_published: bool,
}

/// The result of writing a report.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportSummary {
    /// The table of the runs, without published rows.
    pub table: GridTable,
    /// Records that could not be read; the table's notes hold all other remarks.
    pub warnings: Vec<String>,
    /// The files, the requested one first.
    pub written: Vec<PathBuf>,
}

/// Reads the runs below `root` and writes their report to `output`.
///
/// The extension selects the format: `.md`, `.csv` and `.tex` give only the table, `.html` gives the whole
/// report and the table in the three other formats beside it.
///
/// # Errors
/// [`Error::Report`] for another extension and for a folder without a single run; [`Error::Io`] if a folder
/// cannot be read or a file cannot be written, in which case no file is written.
pub fn write_report(
    root: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &ReportOptions,
) -> Result<ReportSummary> {
    let (root, output) = (root.as_ref(), output.as_ref());
    let formats = Format::of(output)?;
    let (runs, errors) = load_runs(root)?;
    let warnings: Vec<String> = errors.iter().map(Error::to_string).collect();
    if runs.is_empty() {
        let more = warnings.first().map_or(String::new(), |warning| format!(" that can be read: {warning}"));
        return Err(Error::Report(format!("no run.json below {}{more}", root.display())));
    }
    let table = GridTable::from_runs(&runs);
    let shown = if options.without_published { table.clone() } else { table.clone().with_published() };
    let text = |format| match format {
        Format::Html => html(root, options, &runs, &shown, &warnings),
        Format::Markdown => shown.to_markdown(),
        Format::Csv => shown.to_csv(),
        Format::Latex => shown.to_latex(),
    };
    let file = |format: Format| (output.with_extension(format.extension()), text(format));
    let files: Vec<(PathBuf, String)> = formats.into_iter().map(file).collect();
    write_together(&files)?;
    let written = files.into_iter().map(|(path, _)| path).collect();
    Ok(ReportSummary { table, warnings, written })
}

fn html(
    root: &Path,
    options: &ReportOptions,
    runs: &[LoadedRun],
    table: &GridTable,
    warnings: &[String],
) -> String {
    let folder =
        || root.file_name().map_or_else(|| "Runs".to_owned(), |name| name.to_string_lossy().into_owned());
    let title = options.title.clone().unwrap_or_else(folder);
    let sections = [
        sections::summary(runs, table),
        sections::scores(table),
        figures::score_against_parameters(table),
        figures::training(root, table),
        sections::costs(table),
        sections::texts(table),
        sections::comparison(table),
        sections::notes(table, warnings),
        sections::settings(table),
    ];
    page::page(&title, &sections.concat())
}

/// A format of a report.
#[derive(Clone, Copy)]
enum Format {
    Html,
    Markdown,
    Csv,
    Latex,
}

impl Format {
    /// The files to write for an output of this name, the output itself first.
    fn of(output: &Path) -> Result<Vec<Self>> {
        match output.extension().and_then(|extension| extension.to_str()) {
            Some("html") => Ok(vec![Self::Html, Self::Markdown, Self::Csv, Self::Latex]),
            Some("md") => Ok(vec![Self::Markdown]),
            Some("csv") => Ok(vec![Self::Csv]),
            Some("tex") => Ok(vec![Self::Latex]),
            _ => Err(Error::Report(format!("{} does not end in .html, .md, .csv or .tex", output.display()))),
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Markdown => "md",
            Self::Csv => "csv",
            Self::Latex => "tex",
        }
    }
}
