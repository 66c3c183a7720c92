//! `lowrank inspect`: layers, shapes and parameters of a model or an adapter.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lowrank_adapters::peft::AdapterFolder;
use lowrank_checkpoint::Checkpoint;
use serde_json::{Value, json};

use crate::context::{adapter_folder, print_json};

/// Options of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder, adapter folder, or tensor file
    path: PathBuf,
    #[command(flatten)]
    spectrum: crate::spectrum::Args,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    if args.spectrum.is_wanted() {
        return args.spectrum.run(&args.path, args.json);
    }
    let object = match adapter_folder(&args.path) {
        Ok(dir) => adapter(&dir)?,
        Err(_) => model(&args.path)?,
    };
    if args.json {
        return print_json(&object);
    }
    for tensor in object["tensors"].as_array().into_iter().flatten() {
        let name = tensor["name"].as_str().unwrap_or_default();
        println!(
            "{name:60} {:16} {}",
            tensor["shape"].to_string(),
            tensor["dtype"].as_str().unwrap_or("F32")
        );
    }
    println!(
        "{} tensors, {} parameters",
        object["tensors"].as_array().map_or(0, Vec::len),
        object["parameters"]
    );
    Ok(())
}

fn model(path: &Path) -> Result<Value> {
    let checkpoint = Checkpoint::open(path)?;
    let mut parameters = 0;
    let tensors: Vec<Value> = checkpoint
        .names()
        .filter_map(|name| {
            let info = checkpoint.info(name)?;
            parameters += info.numel();
            Some(json!({"name": name, "shape": info.shape, "dtype": info.dtype.name()}))
        })
        .collect();
    Ok(json!({"kind": "model", "parameters": parameters, "tensors": tensors}))
}

fn adapter(dir: &Path) -> Result<Value> {
    let folder = AdapterFolder::read(dir)?;
    let parameters: usize = folder.tensors.values().map(|t| t.data.len()).sum();
    let tensors: Vec<Value> =
        folder.tensors.values().map(|t| json!({"name": t.name, "shape": t.shape, "dtype": "F32"})).collect();
    Ok(json!({
        "kind": "adapter",
        "peft_type": folder.config.peft_type,
        "rank": folder.config.r,
        "alpha": folder.config.lora_alpha,
        "parameters": parameters,
        "tensors": tensors,
    }))
}
