//! `lowrank report`: tables of finished runs.

use std::path::PathBuf;

use anyhow::Result;
use lowrank_report::run::load_runs;
use lowrank_report::table::GridTable;

/// Options of `report`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with runs, at any depth
    runs: PathBuf,
    /// Where the report goes
    #[arg(short, long)]
    output: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let (runs, errors) = load_runs(&args.runs)?;
    for error in errors {
        eprintln!("warning: {error}");
    }
    anyhow::ensure!(!runs.is_empty(), "{}: no run.json below it; give the folder of a grid", args.runs.display());
    let table = GridTable::from_runs(&runs);
    print!("{}", table.to_text());
    lowrank_checkpoint::write_atomic(&args.output, table.to_markdown())?;
    Ok(())
}
