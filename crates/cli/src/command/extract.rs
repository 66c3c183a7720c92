//! `lowrank extract`: a LoRA from the difference of two models.

use std::path::PathBuf;

use anyhow::Result;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::algebra::Update;
use lowrank_adapters::peft::PeftConfig;
use lowrank_compress::{Extracted, extract_with};
use lowrank_models::ClassifierConfig;
use lowrank_models::config::BodyConfig;
use lowrank_spec::Site;
use serde_json::json;

use crate::adapter::{TruncationArgs, warn_unused, write_adapter};
use crate::backend::{Inner, device};
use crate::context::{model_folder, new_folder, open_model, print_json, write_folder, write_labels};
use crate::products::products;

/// Options of `extract`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Base model
    #[arg(long)]
    base: PathBuf,
    /// Fine-tuned model
    #[arg(long)]
    tuned: PathBuf,
    #[command(flatten)]
    truncation: TruncationArgs,
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
    let (base, tuned) = (model_folder(&args.base)?, model_folder(&args.tuned)?);
    new_folder(&args.output, &[&base, &tuned, &args.base, &args.tuned])?;
    let Extracted { modules, saved_modules, saved, biases_differ, ignored, base_hash } =
        extract_with(&base, &tuned, &truncation, products().as_deref())?;
    warn_unused(&ignored, &tuned);
    let rows: Vec<(String, usize, f64)> =
        modules.iter().map(|m| (m.site.path.clone(), m.factors.rank(), m.error)).collect();
    let sites: Vec<Site> = modules.iter().map(|module| module.site.clone()).collect();
    let updates =
        modules.into_iter().map(|m| Update { site: m.site, factors: m.factors, scale: 1.0, bias: None });
    let set = AdapterSet::<Inner>::from_updates(updates.collect(), &sites, &device()?);
    let tuned = open_model(&tuned)?.classifier_config().ok();
    let saves_head = saved_modules.iter().any(|m| m.contains("classifier") || m == "score");
    let adapter = PeftConfig {
        modules_to_save: (!saved_modules.is_empty()).then(|| saved_modules.clone()),
        task_type: tuned.as_ref().filter(|_| saves_head).map(|config| config.level.task_type().into()),
        base_model_name_or_path: Some(args.base.display().to_string()),
        bias: if biases_differ { "all".into() } else { "none".into() },
        inference_mode: true,
        ..PeftConfig::default()
    };
    let is_encoder = |config: &ClassifierConfig| matches!(config.body, BodyConfig::Encoder(_));
    write_folder(&args.output, |dir| {
        write_adapter(&set, &sites, adapter, saved, dir)?;
        match tuned.filter(|config| saves_head || is_encoder(config)) {
            Some(tuned) => write_labels(dir, &tuned, Some(&base_hash)),
            None => Ok(()),
        }
    })?;
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(module, rank, error)| json!({"module": module, "rank": rank, "relative_error": error}))
            .collect();
        return print_json(&json!({"output": args.output, "modules": rows, "saved_in_full": saved_modules}));
    }
    for (module, rank, error) in &rows {
        println!("{module:60} rank {rank}, relative error {error:.3e}");
    }
    if !saved_modules.is_empty() {
        println!("saved in full: {}", saved_modules.join(", "));
    }
    Ok(())
}
