//! `lowrank extract`: a LoRA from the difference of two models.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lowrank_adapters::algebra::update_of_difference;
use lowrank_adapters::peft::PeftConfig;
use lowrank_adapters::{AdapterSet, Site};
use lowrank_checkpoint::Checkpoint;
use lowrank_models::architecture::is_buffer;
use lowrank_models::{DecoderConfig, EncoderConfig, Problem};
use lowrank_spec::{HostTensor, transpose};
use serde_json::{Value, json};

use crate::adapter::{TruncationArgs, write_adapter};
use crate::backend::{Inner, device};
use crate::context::{model_folder, new_folder, print_json, write_labels};

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

/// Tables that ids look up, by parts of their names in the architectures we know.
const EMBEDDINGS: [&str; 4] = ["embed", "wte", "wpe", "lookup"];

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let truncation = args.truncation.required()?;
    let (base_dir, tuned_dir) = (model_folder(&args.base)?, model_folder(&args.tuned)?);
    new_folder(&args.output, &[&base_dir, &tuned_dir, &args.base, &args.tuned])?;
    let config = read_config(&tuned_dir)?;
    for (dir, config) in [(&base_dir, &read_config(&base_dir)?), (&tuned_dir, &config)] {
        ensure!(
            config.get("lowrank").is_none(),
            "{}: its weights are factors already; start from dense models",
            dir.display()
        );
    }
    let (base, tuned) = (Checkpoint::open(&base_dir)?, Checkpoint::open(&tuned_dir)?);
    // GPT-2 stores its maps as (in, out), but not its embeddings and head.
    let conv1d = config["model_type"] == "gpt2";
    let prefix = missing_prefix(&base, &tuned);
    let named_alike = |name: &str| -> Option<&str> {
        let before = prefix.as_deref().and_then(|p| base.names().find(|n| name.strip_prefix(p) == Some(*n)));
        before.or_else(|| base.names().find(|n| *n == name))
    };
    let shape = |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|info| info.shape.clone());
    let counterpart =
        |name: &str| named_alike(name).filter(|before| shape(&base, before) == shape(&tuned, name));
    // A head that the base lacks, or has for another task.
    let mut modules: Vec<String> = Vec::new();
    for name in tuned.names().filter(|name| counterpart(name).is_none() && !is_buffer(name)) {
        ensure!(
            is_head(name),
            "'{name}' of {} has no counterpart in {}: {:?} beside {}; the two are not one model before and after",
            tuned_dir.display(),
            base_dir.display(),
            shape(&tuned, name).unwrap_or_default(),
            named_alike(name).and_then(|n| shape(&base, n)).map_or("nothing".into(), |s| format!("{s:?}"))
        );
        note(name, &mut modules);
    }
    // The name of a head without weights of its own, and of the table whose weights it has.
    let decoder = DecoderConfig::read(&base_dir).ok().filter(|config| config.tied);
    let names = decoder.as_ref().map(|config| &config.architecture.names);
    let tied_head = names.map(|names| names.head).filter(|head| {
        let key = format!("{head}.weight");
        !base.contains(&key) || !tuned.contains(&key)
    });
    let is_input = |path: &str| names.is_some_and(|names| path.ends_with(names.embedding));
    let (mut updates, mut sites, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut biases_differ = false;
    for name in tuned.names() {
        let (Some(before), Some(info)) = (counterpart(name), tuned.info(name)) else { continue };
        if modules.contains(&module_of(name)) {
            continue;
        }
        let (before, after) = (base.read_f32(before)?, tuned.read_f32(name)?);
        ensure!(
            after.iter().chain(&before).all(|v| v.is_finite()),
            "'{name}' holds values that are not finite"
        );
        let (Some(path), [rows_n, columns_n]) = (name.strip_suffix(".weight"), &info.shape[..]) else {
            if before != after {
                // Biases are a kind of their own to PEFT; norms are saved as modules.
                if name.ends_with(".bias") { biases_differ = true } else { note(name, &mut modules) }
            }
            continue;
        };
        let leaf = path.rsplit('.').next().unwrap_or(path);
        let embedding = EMBEDDINGS.iter().any(|part| leaf.contains(part));
        let is_in_out = embedding || (conv1d && leaf.starts_with("c_"));
        let mut difference: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        let (mut d_input, mut d_output) = (*rows_n, *columns_n);
        if !is_in_out {
            difference = transpose(&difference, d_input, d_output);
            (d_input, d_output) = (d_output, d_input);
        }
        let site = Site { path: path.into(), layer: None, d_input, d_output, head: false, embedding };
        if let Some((update, error)) = update_of_difference(site.clone(), &difference, &truncation)? {
            rows.push(json!({"module": path, "rank": update.factors.rank(), "relative_error": error}));
            // A head that is tied to the table moves with it; an adapter of the embedding alone would leave it behind.
            if let Some(head) = tied_head.filter(|_| embedding && is_input(path)) {
                let (path, [d_input, d_output]) = (head.to_string(), [d_output, d_input]);
                let site = Site { path, layer: None, d_input, d_output, head: true, embedding: false };
                updates.push(update.transposed(site.clone())?);
                sites.push(site);
            }
            updates.push(update);
            sites.push(site);
        }
    }
    let is_saved =
        |name: &&str| modules.contains(&module_of(name)) || (biases_differ && name.ends_with(".bias"));
    let saved = tuned.names().filter(is_saved).map(|name| {
        let shape = tuned.info(name).map(|i| i.shape.clone()).unwrap_or_default();
        Ok(HostTensor::new(name, shape, tuned.read_f32(name)?))
    });
    let saved = saved.collect::<Result<Vec<_>>>()?;
    ensure!(!updates.is_empty(), "the two models have the same matrices: there is nothing to extract");
    let set = AdapterSet::<Inner>::from_updates(updates, &sites, &device()?);
    let adapter = PeftConfig {
        modules_to_save: (!modules.is_empty()).then(|| modules.clone()),
        task_type: modules.iter().any(|m| m.contains("classifier")).then(|| "SEQ_CLS".into()),
        base_model_name_or_path: Some(args.base.display().to_string()),
        bias: if biases_differ { "all".into() } else { "none".into() },
        inference_mode: true,
        ..PeftConfig::default()
    };
    write_adapter(&set, &sites, adapter, saved, &args.output)?;
    if let Ok(tuned) = EncoderConfig::read(&tuned_dir) {
        let base_hash = base.content_hash();
        write_labels(&args.output, &tuned.labels, tuned.problem == Problem::Regression, Some(&base_hash))?;
    }
    if args.json {
        return print_json(&json!({"output": args.output, "modules": rows, "saved_in_full": modules}));
    }
    for row in &rows {
        println!(
            "{:60} rank {}, relative error {:.3e}",
            row["module"].as_str().unwrap_or_default(),
            row["rank"],
            row["relative_error"].as_f64().unwrap_or(f64::NAN)
        );
    }
    if !modules.is_empty() {
        println!("saved in full: {}", modules.join(", "));
    }
    Ok(())
}

/// The module of a tensor, as it is saved in full; PEFT saves a head as one module.
fn module_of(name: &str) -> String {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    if module.starts_with("classifier.") { "classifier".into() } else { module.into() }
}

fn note(name: &str, modules: &mut Vec<String>) {
    let module = module_of(name);
    if !modules.contains(&module) {
        modules.push(module);
    }
}

/// What stands before every name of the tuned model and before none of the base (`bert.`).
fn missing_prefix(base: &Checkpoint, tuned: &Checkpoint) -> Option<String> {
    let shared = |prefix: &str| {
        tuned.names().filter(|n| n.strip_prefix(prefix).is_some_and(|n| base.contains(n))).count()
    };
    let prefixes = tuned.names().filter_map(|n| n.split_once('.').map(|(first, _)| format!("{first}.")));
    let best = prefixes.map(|p| (shared(&p), p)).max_by_key(|(n, _)| *n)?;
    (best.0 > tuned.names().filter(|n| base.contains(n)).count()).then_some(best.1)
}

/// Parts of the names of modules that come after the layers.
const HEADS: [&str; 7] = ["classifier", "pooler", "score", "lm_head", "qa_outputs", "cls", "vocab_"];

fn is_head(name: &str) -> bool {
    name.split('.')
        .any(|part| HEADS.iter().any(|head| part.starts_with(head) || part == format!("pre_{head}")))
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
