//! `lowrank report`: tables and plots of finished runs.

use std::path::PathBuf;

use anyhow::Result;
use lowrank_report::html::{ReportOptions, write_report};

/// Options of `report`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with runs, at any depth
    runs: PathBuf,
    /// The report: .html (with the table as .md, .csv and .tex beside it), or one of these alone
    #[arg(short, long)]
    output: PathBuf,
    /// Title [default: the runs' folder]
    #[arg(long)]
    title: Option<String>,
    /// Leave out the numbers that others published
    #[arg(long)]
    without_published: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let options = ReportOptions { title: args.title, without_published: args.without_published };
    let summary = write_report(&args.runs, &args.output, &options)?;
    for warning in &summary.warnings {
        eprintln!("warning: {warning}");
    }
    print!("{}", summary.table.to_text());
    Ok(())
}
