//! `lowrank logs`: event logs to Parquet or CSV.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use lowrank_report::logs::{Duplicates, HparamColumns, LogsOptions, TagFilter, convert};
use serde_json::json;

use crate::context::print_json;

/// Options of `logs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Root of the tree of event files
    root: PathBuf,
    /// Table to write: .parquet or .csv
    output: PathBuf,
    /// Columns for the segments of a run's path, from the root down; the rest of a deeper path goes into a
    /// column sub_run
    #[arg(long, num_args = 0.., value_delimiter = ',', default_values = ["model", "method", "task", "lr", "rank", "seed"])]
    names: Vec<String>,
    /// Select tags that match a glob such as 'eval/*'; may be repeated
    #[arg(long)]
    tags: Vec<String>,
    /// Select tags that match a regular expression entirely; may be repeated
    #[arg(long)]
    regex: Vec<String>,
    /// Keep the last of several values of a tag at one step
    #[arg(long)]
    last: bool,
    /// Add columns for all hyper-parameters of the runs, or for some: --hparams=alpha,dropout
    #[arg(long, num_args = 0.., require_equals = true, value_delimiter = ',', value_name = "NAMES")]
    hparams: Option<Vec<String>>,
    /// Add a column wall_time, in seconds since 1970
    #[arg(long)]
    wall_time: bool,
    /// Threads for reading [default: one per core]
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
        hparams: match args.hparams {
            None => HparamColumns::None,
            Some(names) if names.is_empty() => HparamColumns::All,
            Some(names) => HparamColumns::Named(names),
        },
        wall_time: args.wall_time,
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
