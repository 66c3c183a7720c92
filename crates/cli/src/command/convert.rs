//! `lowrank convert`: an adapter of any method as LoRA, or a LoRA as LoTR.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use lowrank_adapters::{AdapterSet, Grouping};
use lowrank_factor::Truncation;
use serde_json::json;

use crate::adapter::DetachedAdapter;
use crate::backend::{Inner, device};
use crate::context::{new_folder, print_json};

/// Target format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A pair of factors per layer; exact unless --rank is below the rank of the update
    Lora,
    /// Factors shared by layers of one shape, the Tucker2 approximation
    Lotr,
}

/// Options of `convert`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Adapter folder, or loralib's tensors
    #[arg(long)]
    adapter: PathBuf,
    /// Target format
    #[arg(long, value_enum)]
    to: Target,
    /// Rank of the result [default: the adapter's rank]
    #[arg(long)]
    rank: Option<usize>,
    /// Alpha, for an adapter whose files do not hold it (loralib)
    #[arg(long)]
    alpha: Option<f64>,
    /// Base model, for an adapter that needs it (DoRA, VeRA)
    #[arg(long)]
    model: Option<PathBuf>,
    /// LoTR: one group per kind of layer instead of one per shape
    #[arg(long)]
    by_kind: bool,
    /// Output folder
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.rank != Some(0), "--rank 0 is out of range; expected 1 or more");
    new_folder(&args.output, &[&args.adapter])?;
    let adapter = DetachedAdapter::read(&args.adapter, args.alpha, args.model.as_deref())?;
    let updates = adapter.updates()?;
    let device = device()?;
    let (set, error) = match args.to {
        Target::Lora => {
            let mut worst: f64 = 0.0;
            let mut pairs = Vec::new();
            for update in updates {
                // An update within the requested rank is kept bit for bit.
                let keep = args.rank.is_none_or(|rank| rank >= update.factors.rank());
                let (update, error) = match args.rank {
                    Some(rank) if !keep => update.resized(&Truncation::Rank(rank))?,
                    _ => (update, 0.0),
                };
                worst = worst.max(error);
                pairs.push(update);
            }
            (AdapterSet::<Inner>::from_updates(pairs, &adapter.sites, &device), worst)
        }
        Target::Lotr => {
            let rank = args.rank.unwrap_or(adapter.config.r);
            let grouping = if args.by_kind { Grouping::Kind } else { Grouping::Shape };
            let (set, errors) =
                AdapterSet::lotr_from_updates(&updates, &adapter.sites, rank, grouping, &device)?;
            (set, errors.into_iter().fold(0.0, f64::max))
        }
    };
    adapter.write(&set, &args.output)?;
    let layers = set.slots().len();
    if args.json {
        return print_json(&json!({"output": args.output, "modules": layers, "relative_error": error}));
    }
    if error == 0.0 {
        println!("{layers} layers converted exactly into {}", args.output.display());
    } else {
        println!(
            "{layers} layers converted into {}; largest relative error {error:.3e}",
            args.output.display()
        );
    }
    Ok(())
}
