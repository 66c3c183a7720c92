//! `lowrank resize`: an adapter at another rank.

use std::path::PathBuf;

use anyhow::Result;
use lowrank_adapters::AdapterSet;
use serde_json::json;

use crate::adapter::{DetachedAdapter, TruncationArgs};
use crate::backend::{Inner, device};
use crate::context::{new_folder, print_json, write_folder};

/// Options of `resize`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Adapter folder
    #[arg(long)]
    adapter: PathBuf,
    #[command(flatten)]
    truncation: TruncationArgs,
    /// Alpha, for an adapter whose files do not contain it (loralib)
    #[arg(long)]
    alpha: Option<f64>,
    /// Base model, for an adapter that needs it (DoRA, VeRA)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Output folder
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let truncation = args.truncation.required()?;
    new_folder(&args.output, &[&args.adapter])?;
    let adapter = DetachedAdapter::read(&args.adapter, args.alpha, args.model.as_deref())?;
    let mut updates = Vec::new();
    let mut rows = Vec::new();
    for update in adapter.updates()? {
        let before = update.factors.rank();
        let (resized, error) = update.resized(&truncation)?;
        let rank = resized.factors.rank();
        rows.push(json!({"module": update.site.path, "from": before, "to": rank, "relative_error": error}));
        updates.push(resized);
    }
    let set = AdapterSet::<Inner>::from_updates(updates, &adapter.sites, &device()?);
    write_folder(&args.output, |dir| adapter.write(&set, dir))?;
    if args.json {
        return print_json(&json!({"output": args.output, "modules": rows}));
    }
    for row in &rows {
        println!(
            "{:60} rank {} -> {}, relative error {:.3e}",
            row["module"].as_str().unwrap_or_default(),
            row["from"],
            row["to"],
            row["relative_error"].as_f64().unwrap_or(f64::NAN)
        );
    }
    Ok(())
}
