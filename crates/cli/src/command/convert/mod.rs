//! `lowrank convert`: an adapter of any method as LoRA, a LoRA as LoTR, and models and adapters as GGUF.

mod gguf;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lowrank_adapters::{AdapterSet, Grouping};
use lowrank_checkpoint::gguf::FileType;
use lowrank_factor::Truncation;
use serde_json::json;

use crate::adapter::DetachedAdapter;
use crate::backend::{Inner, device};
use crate::context::{new_folder, print_json, warn_unused, write_folder};
use crate::usage::usage;

/// Target format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A pair of factors per layer; exact unless --rank is below the rank of the update
    Lora,
    /// Factors shared by layers of one shape, the Tucker2 approximation
    Lotr,
    /// File for llama.cpp: of a model, or of a LoRA with --adapter
    Gguf,
}

/// Options of `convert`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Adapter folder, or loralib's tensors
    #[arg(long, required_unless_present = "model")]
    adapter: Option<PathBuf>,
    /// Target format
    #[arg(long, value_enum)]
    to: Target,
    /// Rank of the result [default: the adapter's rank]
    #[arg(long)]
    rank: Option<usize>,
    /// Alpha, for an adapter whose files do not contain it (loralib)
    #[arg(long)]
    alpha: Option<f64>,
    /// Base model, for an adapter that needs it (DoRA, VeRA, GGUF), or the model to convert
    #[arg(long)]
    model: Option<PathBuf>,
    /// GGUF: merge the adapter into the model and write the model
    #[arg(long, requires = "adapter")]
    merge: bool,
    /// GGUF: type of the matrices, as in llama-quantize (F16, Q8_0, Q4_K_M, …) [default: as stored; F32 for an adapter]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<FileType>,
    /// LoTR: one group per kind of layer instead of one per shape
    #[arg(long)]
    by_kind: bool,
    /// Output folder; GGUF: output file
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure_usage!(args.rank != Some(0), "--rank 0 is out of range; expected 1 or more");
    warn_unused(args.to == Target::Lotr, &["by_kind"], "applies to lotr");
    warn_unused(args.adapter.is_some(), &["alpha", "rank"], "requires --adapter");
    if args.to == Target::Gguf {
        return gguf::run(&args);
    }
    ensure_usage!(args.kind.is_none() && !args.merge, "--type and --merge require --to gguf");
    let adapter = args.adapter.as_deref().ok_or_else(|| usage("give --adapter, or --to gguf for a model"))?;
    new_folder(&args.output, &[adapter])?;
    let adapter = DetachedAdapter::read(adapter, args.alpha, args.model.as_deref())?;
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
        // Written above.
        Target::Gguf => return Ok(()),
    };
    write_folder(&args.output, |dir| adapter.write(&set, dir))?;
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
