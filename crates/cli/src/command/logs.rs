//! `lowrank logs`: event logs to Parquet or CSV.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use lowrank_report::logs::{Duplicates, LogsOptions, TagFilter, convert};
use serde_json::json;

use crate::context::print_json;

/// Options of `logs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Root of the tree of event files
    root: PathBuf,
    /// Table to write: .parquet or .csv
    output: PathBuf,
    /// Columns that the segments of a run's path become, from the root down
    #[arg(long, num_args = 0.., value_delimiter = ',', default_values = ["model", "method", "task", "lr", "rank", "seed"])]
    names: Vec<String>,
    /// Take the tags that a glob matches, as 'eval/*'; may be repeated
    #[arg(long)]
    tags: Vec<String>,
    /// Take the tags that a regular expression matches as a whole; may be repeated
    #[arg(long)]
    regex: Vec<String>,
    /// Of several values at one step keep the one written last
    #[arg(long)]
    last: bool,
    /// Threads that read [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let options = LogsOptions {
        names: args.names,
        tags: TagFilter::new(&args.tags, &args.regex)?,
        duplicates: if args.last { Duplicates::Last } else { Duplicates::Keep },
        threads: args.threads,
    };
    let terminal = std::io::stderr().is_terminal();
    let summary = convert(&args.root, &args.output, &options, |p| {
        if terminal {
            eprint!("\r{}/{} runs, {:.0} MB", p.runs, p.of, p.bytes as f64 / 1e6);
        }
    })?;
    if terminal {
        eprintln!();
    }
    for warning in &summary.warnings {
        eprintln!("warning: {warning}");
    }
    if args.json {
        return print_json(&json!({
            "runs": summary.runs, "files": summary.files, "bytes": summary.bytes, "rows": summary.rows,
            "no_scalars": summary.no_scalars, "warnings": summary.warnings, "output": args.output,
        }));
    }
    println!("{} rows of {} runs into {}", summary.rows, summary.runs, args.output.display());
    Ok(())
}
