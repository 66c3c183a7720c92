//! `--init-from` an adapter: its factors, and everything else it contains.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use lowrank_adapters::peft::{AdapterFolder, Carried, PeftConfig};
use lowrank_adapters::{AdapterSet, Method as AdapterMethod};
use lowrank_models::Adaptable;

use super::Args;
use super::model::adapted_paths;
use crate::adapter::{read, warn_idle};
use crate::backend::{Device, Train};
use crate::context::check_effect;

/// An adapter that a run starts from.
pub(super) struct StartAdapter {
    /// Its factors.
    pub(super) set: AdapterSet<Train>,
    /// Its config.
    pub(super) config: PeftConfig,
    dir: PathBuf,
}

impl StartAdapter {
    /// Loads an adapter and its extras over a model. A head of these modules for another number of labels is
    /// left out.
    pub(super) fn load<M: Adaptable<Train>>(
        model: &mut M,
        dir: &Path,
        labels: Option<(&[String], usize)>,
        device: &Device,
    ) -> Result<Self> {
        let mut folder = read(dir, None)?;
        if let Some((head, n)) = labels {
            leave_other_head(&mut folder, head, n, dir);
        }
        let config = folder.config.clone();
        let set = model.load_adapter_folder(folder, dir, device)?;
        warn_idle(&set, dir);
        Ok(Self { set, config, dir: dir.to_path_buf() })
    }

    /// Its folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether its method and shape are the requested ones.
    pub(super) fn check(&self, args: &Args, method: AdapterMethod) -> Result<()> {
        if self.set.is_empty() {
            return Ok(());
        }
        let (config, dir) = (&self.config, self.dir.display());
        ensure!(
            args.adapter.init.is_none(),
            "{dir}: gives the first factors, and so does --init; leave one of them out"
        );
        check_effect(
            false,
            &["rank_pattern", "alpha_pattern"],
            "is given by the adapter of --init-from, whose ranks and alphas stay as they are",
        )?;
        args.adapter.warn_unused_beside_start(method);
        ensure!(
            !self.set.carried().any(Carried::has_token_rows),
            "{dir}: contains trainable_token_indices, which cannot be trained further; merge it into the model first"
        );
        ensure!(
            AdapterMethod::of(config) == Some(method),
            "{dir}: its method is {}, not --method {}; convert it, or give its own method",
            config.peft_type,
            args.method.name()
        );
        ensure!(
            (args.adapter.rank, args.adapter.alpha) == (config.r, config.lora_alpha),
            "{dir}: has rank {} and alpha {}; give them as --rank and --alpha (now {} and {})",
            config.r,
            config.lora_alpha,
            args.adapter.rank,
            args.adapter.alpha
        );
        Ok(())
    }

    /// Its factors with the dropout of the options, if given.
    pub(super) fn factors(&self, args: &Args) -> AdapterSet<Train> {
        let mut set = self.set.clone();
        set.set_dropout(args.adapter.dropout.unwrap_or(self.config.lora_dropout));
        set
    }

    /// Whether it adapts the layers of `asked`, which the options name.
    pub(super) fn check_targets(&self, asked: &AdapterSet<Train>) -> Result<()> {
        let [own, asked]: [BTreeSet<String>; 2] = [adapted_paths(&self.set), adapted_paths(asked)];
        if let Some(path) = own.symmetric_difference(&asked).next() {
            let (has, other) =
                if own.contains(path) { ("adapts", "do not") } else { ("does not adapt", "do") };
            bail!(
                "the adapter to start from {has} '{path}', and --targets, --layers and --exclude {other}; name its own layers, or \
                 leave these options out"
            );
        }
        Ok(())
    }
}

/// Removes a head for another number of labels, with a note.
fn leave_other_head(folder: &mut AdapterFolder, head: &[String], labels: usize, dir: &Path) {
    let is_head = |name: &str| {
        head.iter().any(|module| {
            let bare = module.split_once('.').map_or(module.as_str(), |(_, rest)| rest);
            name.contains(module.as_str()) || name.contains(bare)
        })
    };
    let is_output = |name: &str| {
        ["classifier.weight", "classifier.out_proj.weight", "score.weight"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let widths = folder.tensors.iter().filter(|(name, _)| is_output(name));
    let other = widths.filter_map(|(_, tensor)| tensor.shape.first().copied()).find(|&n| n != labels);
    let Some(other) = other else { return };
    eprintln!(
        "warning: {}: its head has {other} labels, the task has {labels}; the head is newly initialized",
        dir.display()
    );
    folder.tensors.retain(|name, _| !is_head(name));
    let names = folder.config.modules_to_save.take().unwrap_or_default();
    let kept: Vec<String> = names.into_iter().filter(|name| !is_head(name)).collect();
    folder.config.modules_to_save = (!kept.is_empty()).then_some(kept);
}
