//! Shared by the commands over adapters: reading them, with warnings on standard error.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use lowrank_adapters::algebra::Update;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{AdapterSet, BaseWeights, NoWeights, Site};
use lowrank_checkpoint::write_atomic;
use lowrank_factor::Truncation;
use lowrank_models::{
    Adaptable, Classifier, Decoder, HeadLevel, ModelKind, Parameters, Seq2Seq, copy_companions,
};
use lowrank_spec::HostTensor;

use crate::backend::{Device, Inner, device};
use crate::context::{LABELS_FILE, adapter_folder, open_model};
use crate::usage::usage;

/// Reads an adapter's files; warns if they do not contain an alpha.
pub(crate) fn read(path: &Path, alpha: Option<f64>) -> Result<AdapterFolder> {
    let folder = AdapterFolder::read_with_alpha(path, alpha)?;
    if folder.alpha_is_assumed {
        eprintln!(
            "warning: {}: the file has no alpha; using {}; set another one with convert --alpha",
            path.display(),
            folder.config.lora_alpha
        );
    }
    Ok(folder)
}

/// Warns of tensors of a checkpoint that belong to a head that the model does not have.
pub(crate) fn warn_ignored<B: Backend>(model: &impl Parameters<B>, path: &Path) {
    warn_unused(model.ignored(), path);
}

/// Warns once of all tensors of a checkpoint that are left out.
pub(crate) fn warn_unused(ignored: &[String], path: &Path) {
    if let [first, others @ ..] = ignored {
        let what = match others.len() {
            0 => "belongs".to_owned(),
            1 => "and another tensor belong".to_owned(),
            more => format!("and {more} more tensors belong"),
        };
        eprintln!("warning: {}: '{first}' {what} to a head that is not used here", path.display());
    }
}

/// Loads an adapter over a model; warns of layers that it does not change. `alpha` is for files without one.
pub(crate) fn load_adapter<B: Backend, M: Adaptable<B>>(
    model: &mut M,
    path: &Path,
    alpha: Option<f64>,
    device: &B::Device,
) -> Result<AdapterSet<B>> {
    let known = model.ignored().len();
    let set = model.load_adapter_folder(read(path, alpha)?, path, device)?;
    warn_unused(&model.ignored()[known..], path);
    warn_idle(&set, path);
    Ok(set)
}

/// Warns of layers whose update is zero: they were never trained, or not saved.
pub(crate) fn warn_idle<B: Backend>(set: &AdapterSet<B>, path: &Path) {
    let idle = set.idle();
    let n = set.slots().len();
    if let Some(first) = idle.first() {
        let which = if idle.len() == n {
            "every layer".to_string()
        } else {
            format!("{} of {n} layers, the first is '{first}'", idle.len())
        };
        eprintln!("warning: {}: the update is zero in {which} and changes nothing there", path.display());
    }
}

/// An adapter without its model.
pub(crate) struct DetachedAdapter {
    /// Its config.
    pub(crate) config: PeftConfig,
    /// The sites that it adapts.
    pub(crate) sites: Vec<Site>,
    /// Its factors over these sites.
    pub(crate) set: AdapterSet<Inner>,
    /// The parameters that were trained and saved in full.
    pub(crate) saved: Vec<HostTensor<'static>>,
    /// Its path.
    pub(crate) path: PathBuf,
    weights: Box<dyn BaseWeights<Inner>>,
    /// Table and head of the base model that share their weights.
    tied: Option<[String; 2]>,
}

/// What an adapter is read over: the base model, or what its own files say.
struct Base {
    sites: Vec<Site>,
    weights: Box<dyn BaseWeights<Inner>>,
    tied: Option<[String; 2]>,
}

impl DetachedAdapter {
    /// Reads an adapter; `model` provides what its files do not contain (the weights under DoRA, the widths
    /// under VeRA).
    pub(crate) fn read(path: &Path, alpha: Option<f64>, model: Option<&Path>) -> Result<Self> {
        let path = adapter_folder(path)?;
        let mut folder = read(&path, alpha)?;
        let device = device()?;
        let Base { sites, weights, tied } = match model {
            Some(model) => base(model, &mut folder, &device)?,
            None => {
                Base { sites: folder.own_sites::<Inner>(&path)?, weights: Box::new(NoWeights), tied: None }
            }
        };
        let config = folder.config.clone();
        let (set, saved) = folder.into_set(&path, &sites, weights.as_ref(), &device).with_context(|| {
            if model.is_none() {
                "give the base model with --model"
            } else {
                "the adapter does not fit the model"
            }
        })?;
        warn_idle(&set, &path);
        Ok(Self { config, sites, set, saved: saved.tensors, path, weights, tied })
    }

    /// The first of these saved modules that is adapted here.
    pub(crate) fn adapts<'a>(&self, saved: &'a Self) -> Option<&'a str> {
        let modules = saved.config.modules_to_save.iter().flatten();
        let is_saved = |path: &str| {
            modules.clone().any(|m| {
                path.strip_suffix(m.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        let paths = saved.saved.iter().filter_map(|tensor| tensor.name.strip_suffix(".weight"));
        let mut paths = paths.filter(|path| is_saved(path));
        paths.find(|path| self.set.slots().iter().any(|slot| slot.path == *path))
    }

    /// Its updates as low-rank matrices.
    pub(crate) fn updates(&self) -> Result<Vec<Update>> {
        let updates = self.set.updates(&self.sites, |site| self.weights.weight(site));
        updates.with_context(|| format!("{}: give the base model with --model", self.path.display()))
    }

    /// Writes a set in place of this one's factors, with this one's head, config, labels and tokenizer.
    pub(crate) fn write(&self, set: &AdapterSet<Inner>, dir: &Path) -> Result<()> {
        let mut saved = self.saved.clone();
        add_tied_head(&mut saved, self.tied.as_ref(), &self.config);
        write_adapter(set, &self.sites, self.config.clone(), saved, dir)?;
        copy_companions(&self.path, dir)?;
        let labels = self.path.join(LABELS_FILE);
        if lowrank_spec::is_present(&labels) {
            let bytes = lowrank_spec::read_file(&labels).with_context(|| labels.display().to_string())?;
            write_atomic(dir.join(LABELS_FILE), &bytes)?;
        }
        Ok(())
    }
}

/// Adds the head to a saved table that stays tied: PEFT reads both names.
pub(crate) fn add_tied_head(
    saved: &mut Vec<HostTensor<'static>>,
    tied: Option<&[String; 2]>,
    config: &PeftConfig,
) {
    let Some([table, head]) = tied.filter(|_| config.ensure_weight_tying) else { return };
    let [table, head] = [table, head].map(|module| format!("{module}.weight"));
    if saved.iter().any(|tensor| tensor.name == head) {
        return;
    }
    let table = saved.iter().find(|tensor| tensor.name == table).cloned();
    saved.extend(table.map(|table| HostTensor { name: head, ..table }));
}

/// Writes an adapter folder.
pub(crate) fn write_adapter(
    set: &AdapterSet<Inner>,
    sites: &[Site],
    config: PeftConfig,
    saved: Vec<HostTensor<'static>>,
    dir: &Path,
) -> Result<()> {
    Ok(AdapterFolder::from_set(set, sites, config, saved)?.write(dir)?)
}

/// A model of any architecture, arranged for an adapter.
fn base(path: &Path, adapter: &mut AdapterFolder, device: &Device) -> Result<Base> {
    fn of<M: Adaptable<Inner> + 'static>(mut model: M, adapter: &mut AdapterFolder) -> Result<Base> {
        model.prepare(adapter)?;
        let weights = Box::new(model.base_weights());
        Ok(Base { sites: model.sites().to_vec(), weights, tied: model.tied() })
    }
    let folder = open_model(path)?;
    let (task, mapping) = (adapter.config.task_type.as_deref(), adapter.config.other.get("auto_mapping"));
    let level = HeadLevel::of_adapter(task, mapping);
    if folder.kind() == ModelKind::Decoder && level.is_none() {
        let model =
            Decoder::<Inner>::load(folder.path(), folder.decoder_config()?, Default::default(), device)?;
        warn_ignored(&model, folder.path());
        return of(model, adapter);
    }
    if folder.kind() == ModelKind::Seq2Seq {
        let model =
            Seq2Seq::<Inner>::load(folder.path(), folder.seq2seq_config()?, Default::default(), device)?;
        warn_ignored(&model, folder.path());
        return of(model, adapter);
    }
    let config = folder.classifier_config()?;
    let config = match (HeadLevel::named(config.raw()), level) {
        (None, Some(level)) => config.at_level(level),
        _ => config,
    };
    of(Classifier::<Inner>::load(folder.path(), config, 0, device)?, adapter)
}

/// `--rank` and `--energy`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TruncationArgs {
    /// Target rank
    #[arg(long, conflicts_with = "energy")]
    pub(crate) rank: Option<usize>,
    /// Fraction of the squared Frobenius norm to keep, in (0, 1]
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) energy: Option<f64>,
}

impl TruncationArgs {
    /// The truncation, if the options specify one.
    pub(crate) fn truncation(&self) -> Result<Option<Truncation>> {
        let truncation = match (self.rank, self.energy) {
            (Some(rank), _) => Some(Truncation::Rank(rank)),
            (None, Some(energy)) => Some(Truncation::Energy(energy)),
            (None, None) => None,
        };
        ensure_usage!(self.rank != Some(0), "--rank 0 is out of range; expected 1 or more");
        if let Some(truncation) = &truncation {
            truncation.validate().map_err(usage)?;
        }
        Ok(truncation)
    }

    /// The truncation.
    pub(crate) fn required(&self) -> Result<Truncation> {
        self.truncation()?.ok_or_else(|| usage("give --rank or --energy"))
    }
}
