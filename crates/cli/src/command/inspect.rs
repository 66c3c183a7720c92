//! `lowrank inspect`: layers, shapes and parameters of a model or an adapter.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lowrank_adapters::peft::AdapterFolder;
use lowrank_adapters::{Pattern, Targets};
use lowrank_checkpoint::{Checkpoint, write_atomic};
use lowrank_compress::spectrum;
use serde_json::{Value, json};

use crate::bars::Bars;
use crate::context::{adapter_folder, model_folder, print_json};

/// Options of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder, adapter folder, or tensor file
    path: PathBuf,
    /// Singular values of the linear weights: ranks for energies, errors for ratios
    #[arg(long)]
    spectrum: bool,
    /// With --spectrum, only these weights: names, all-linear, or a regular expression
    #[arg(long, requires = "spectrum")]
    targets: Option<String>,
    /// With --spectrum, write spectrum.csv and spectrum.svg into this folder
    #[arg(short, long, requires = "spectrum")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    if args.spectrum {
        return spectrum(&args);
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

fn spectrum(args: &Args) -> Result<()> {
    let folder = model_folder(&args.path)?;
    let targets = args.targets.as_deref().map(|text| Targets::new(Pattern::parse(text)));
    let progress = Bars::new();
    let spectra = spectrum::spectra(&folder, targets.as_ref(), &progress)?;
    progress.finish();
    if let Some(output) = &args.output {
        std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
        write_atomic(output.join("spectrum.csv"), spectrum::to_csv(&spectra))?;
        write_atomic(output.join("spectrum.svg"), spectrum::to_svg(&spectra))?;
    }
    if args.json {
        return print_json(&json!({"kind": "spectrum", "modules": spectra}));
    }
    let energies = spectrum::ENERGIES.map(|e| format!("{:>6}", format!("{}%", 100.0 * e))).join("");
    let ratios = spectrum::RATIOS.map(|r| format!("{:>7}", format!("-{}%", 100.0 * r))).join("");
    println!("{:56} {:>12} {:>6} rank for{energies}   error at{ratios}", "module", "shape", "pays");
    for module in &spectra {
        let ranks: String = module.energy_ranks.values().map(|rank| format!("{rank:>6}")).collect();
        let errors: String = module.ratio_errors.values().map(|error| format!("{error:>7.3}")).collect();
        let shape = format!("{}x{}", module.shape[0], module.shape[1]);
        println!(
            "{:56} {shape:>12} {:>6}         {ranks}           {errors}",
            module.module, module.break_even_rank
        );
    }
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
