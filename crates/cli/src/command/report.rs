//! `lowrank report`: tables and plots of finished runs.

use std::path::PathBuf;

use anyhow::Result;
use lowrank_report::html::{ReportOptions, write_report};
use serde_json::json;

use crate::context::print_json;

/// Options of `report`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with runs, at any depth
    runs: PathBuf,
    /// Output file: .html (with the table as .md, .csv and .tex beside it), or one of these formats
    #[arg(short, long)]
    output: PathBuf,
    /// Title [default: the runs' folder]
    #[arg(long)]
    title: Option<String>,
    /// Omit published reference results
    #[arg(long)]
    without_published: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let options = ReportOptions { title: args.title, without_published: args.without_published };
    let summary = write_report(&args.runs, &args.output, &options)?;
    for warning in &summary.warnings {
        eprintln!("warning: {warning}");
    }
    if args.json {
        let rows = summary.table.rows.iter().filter(|row| !row.published).count();
        return print_json(&json!({"output": args.output, "rows": rows, "warnings": summary.warnings}));
    }
    crate::terminal::print(&crate::terminal::visible(&summary.table.to_text()));
    Ok(())
}
