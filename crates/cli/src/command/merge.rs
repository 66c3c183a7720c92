//! `lowrank merge`: fold an adapter into its model's weights.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use lowrank_models::Adaptable;

use crate::backend::{Inner, device};
use crate::context::{ModelArgs, model_folder, print_json};

/// Options of `merge`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where the merged model goes
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.model.adapter.is_some(), "nothing to merge: give --adapter");
    let source = model_folder(&args.model.model)?;
    ensure!(
        args.output != source,
        "{}: the output would replace the model; give another folder",
        source.display()
    );
    let loaded = args.model.load::<Inner>(&device()?)?;
    let (model, adapters) = loaded.model.into_parts();
    let sites = adapters.slots().len();
    let merged = model.merged(&adapters)?;
    merged.save(&args.output, &source)?;
    if args.json {
        return print_json(&serde_json::json!({"merged": sites, "output": args.output}));
    }
    println!("{sites} layers merged into {}", args.output.display());
    Ok(())
}
