//! `lowrank combine`: several adapters into one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::algebra::{Combination, combine};
use lowrank_adapters::peft::PeftConfig;
use lowrank_checkpoint::write_atomic;
use lowrank_factor::Truncation;
use lowrank_models::copy_companions;
use lowrank_spec::HostTensor;
use serde_json::{Value, json};

use crate::adapter::{DetachedAdapter, TruncationArgs};
use crate::backend::{Inner, device};
use crate::context::{LABELS_FILE, new_folder, print_json, warn_unused, write_folder};
use crate::usage::usage;

/// Method of combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// Weighted sum of the updates, at their combined rank
    Linear,
    /// The same by concatenated factors; the rank is the sum of the ranks
    Cat,
    /// The same, truncated to --rank or --energy
    Svd,
    /// TIES on the updates, truncated to --rank or --energy
    Ties,
    /// DARE on the updates, truncated to --rank or --energy
    Dare,
}

/// Options of `combine`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Adapter folder and its weight, e.g. A=0.5; may be repeated
    #[arg(long, required = true)]
    adapter: Vec<String>,
    /// Method of combination
    #[arg(long, value_enum)]
    how: How,
    #[command(flatten)]
    truncation: TruncationArgs,
    /// TIES, DARE: fraction of the entries to keep
    #[arg(long, default_value_t = 0.5)]
    density: f64,
    /// DARE: seed of the entries to drop
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Base model, for adapters that need it (DoRA, VeRA)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Output folder
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `A=w`, or `A` for a weight of 1.
fn parse(text: &str) -> Result<(PathBuf, f64)> {
    let Some((path, weight)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok((text.into(), 1.0));
    };
    let weight: f64 = weight
        .parse()
        .map_err(|_| usage(format!("--adapter {text}: expected a folder and a weight, e.g. A=0.5")))?;
    ensure_usage!(weight.is_finite(), "--adapter {text}: the weight is not finite");
    Ok((path.into(), weight))
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let truncation = args.truncation.truncation()?;
    ensure_usage!(
        truncation.is_none() || !matches!(args.how, How::Linear | How::Cat),
        "--rank and --energy are for svd, ties and dare; linear and cat keep every rank (lowrank resize truncates)"
    );
    warn_unused(matches!(args.how, How::Ties | How::Dare), &["density"], "applies to ties and dare");
    warn_unused(args.how == How::Dare, &["seed"], "applies to dare");
    let given = args.adapter.iter().map(|text| parse(text)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Path> = given.iter().map(|(path, _)| path.as_path()).collect();
    new_folder(&args.output, &inputs)?;
    let mut adapters = Vec::new();
    for (path, weight) in &given {
        adapters.push((DetachedAdapter::read(path, None, args.model.as_deref())?, *weight));
    }
    for ((saved, _), (other, _)) in
        adapters.iter().flat_map(|one| adapters.iter().map(move |other| (one, other)))
    {
        if let Some(module) = other.adapts(saved).filter(|_| saved.path != other.path) {
            bail!(
                "'{module}' is saved in full in {} and adapted in {}, which PEFT cannot read from one folder; merge one of them \
                 into the model first",
                saved.path.display(),
                other.path.display()
            );
        }
    }
    let parts = adapters.iter().map(|(adapter, weight)| Ok((adapter.updates()?, *weight)));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    // Without a rank, that of the widest adapter.
    let widest = parts.iter().flat_map(|(updates, _)| updates).map(|u| u.factors.rank()).max().unwrap_or(1);
    let truncation = truncation.unwrap_or(Truncation::Rank(widest));
    let how = match args.how {
        How::Linear => Combination::Linear,
        How::Cat => Combination::Concatenation,
        How::Svd => Combination::Svd(truncation),
        How::Ties => Combination::Ties { density: args.density, truncation },
        How::Dare => Combination::Dare { density: args.density, seed: args.seed, truncation },
    };
    let combined = combine(&parts, &how)?;
    let error = combined.iter().map(|(_, error)| *error).fold(0.0, f64::max);
    let rank = combined.iter().map(|(update, _)| update.factors.rank()).max().unwrap_or(0);
    let sites: Vec<_> = combined.iter().map(|(update, _)| update.site.clone()).collect();
    let updates = combined.into_iter().map(|(update, _)| update).collect();
    let saved = mean_saved(&adapters)?;
    let configs: Vec<&PeftConfig> = adapters.iter().map(|(adapter, _)| &adapter.config).collect();
    let config = PeftConfig::united(&configs)?;
    let labels = united_labels(&adapters)?;
    let folders: Vec<PathBuf> = adapters.iter().map(|(adapter, _)| adapter.path.clone()).collect();
    warn_other_tokenizers(&folders);
    let (mut first, _) = adapters.swap_remove(0);
    (first.sites, first.saved, first.config) = (sites, saved, config);
    let set = AdapterSet::<Inner>::from_updates(updates, &first.sites, &device()?);
    write_folder(&args.output, |dir| {
        first.write(&set, dir)?;
        // Where several have a file, the first named adapter's is kept.
        for folder in folders.iter().rev() {
            copy_companions(folder, dir)?;
        }
        if let Some(labels) = labels {
            write_atomic(dir.join(LABELS_FILE), &labels)?;
        }
        Ok(())
    })?;
    let layers = set.slots().len();
    if args.json {
        let object = json!({"output": args.output, "modules": layers, "rank": rank, "relative_error": error});
        return print_json(&object);
    }
    println!(
        "{} adapters combined over {layers} layers at rank {rank} into {}; largest relative error {error:.3e}",
        args.adapter.len(),
        args.output.display()
    );
    Ok(())
}

/// Warns of adapters that were trained with different tokenizers, of which one is kept.
fn warn_other_tokenizers(folders: &[PathBuf]) {
    let read = |folder: &PathBuf| lowrank_spec::read_file(folder.join("tokenizer.json")).ok();
    let mut found = folders.iter().filter_map(|folder| Some((folder, read(folder)?)));
    let Some((first, kept)) = found.next() else { return };
    if let Some((other, _)) = found.find(|(_, bytes)| *bytes != kept) {
        eprintln!(
            "warning: {} and {} have different tokenizers; that of the first is kept",
            first.display(),
            other.display()
        );
    }
}

/// The labels of the adapters' heads, which must be identical and in the same order.
fn united_labels(adapters: &[(DetachedAdapter, f64)]) -> Result<Option<Vec<u8>>> {
    let mut found: Option<(&Path, Vec<u8>, Value)> = None;
    for (adapter, _) in adapters {
        let path = adapter.path.join(LABELS_FILE);
        if !lowrank_spec::is_present(&path) {
            continue;
        }
        let bytes = lowrank_spec::read_file(&path).with_context(|| path.display().to_string())?;
        let value: Value = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        match &found {
            Some((other, _, labels)) => ensure!(
                labels["labels"] == value["labels"],
                "{} has the labels {} and {} has {}; heads with different labels cannot be combined",
                other.display(),
                labels["labels"],
                adapter.path.display(),
                value["labels"]
            ),
            None => found = Some((&adapter.path, bytes, value)),
        }
    }
    Ok(found.map(|(_, bytes, _)| bytes))
}

/// The modules saved in full: the weighted mean over the adapters that have them.
fn mean_saved(adapters: &[(DetachedAdapter, f64)]) -> Result<Vec<HostTensor<'static>>> {
    let mut mean: Vec<(HostTensor<'static>, f64)> = Vec::new();
    for (adapter, weight) in adapters {
        for tensor in &adapter.saved {
            let weight = weight.abs();
            match mean.iter_mut().find(|(t, _)| t.name == tensor.name) {
                Some((sum, total)) => {
                    ensure!(
                        sum.shape == tensor.shape,
                        "'{}' has shape {:?} in one adapter and {:?} in another; heads of different tasks cannot be combined",
                        tensor.name,
                        sum.shape,
                        tensor.shape
                    );
                    let all = *total + weight;
                    let share = if all > 0.0 { (weight / all) as f32 } else { 0.0 };
                    sum.data.to_mut().iter_mut().zip(&*tensor.data).for_each(|(s, v)| *s += (v - *s) * share);
                    *total = all;
                }
                None => mean.push((tensor.clone(), weight)),
            }
        }
    }
    Ok(mean.into_iter().map(|(tensor, _)| tensor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_its_weight_after_the_last_equals_sign() -> Result<()> {
        assert_eq!(parse("runs/a=b=0.5")?, ("runs/a=b".into(), 0.5));
        assert_eq!(parse("runs/a")?, ("runs/a".into(), 1.0));
        assert!(parse("runs/a=half").is_err() && parse("runs/a=inf").is_err());
        Ok(())
    }
}
