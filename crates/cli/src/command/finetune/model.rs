//! The classifier of a run: its initial weights, its trained parameters, its saved files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig, TENSOR_FILE};
use lowrank_checkpoint::{Checkpoint, FloatType, replace_dir_atomic};
use lowrank_compress::Tokens;
use lowrank_models::params::WeightType;
use lowrank_models::{
    Adaptable, Classifier, ClassifierConfig, HeadLevel, ModelFolder, Parameter, Parameters, Trainable,
    copy_companions,
};
use lowrank_spec::{HostTensor, Site, Targets};
use lowrank_train::FineTuner;

use super::Args;
use super::base::check_frozen;
use super::residual::Unquantized;
use super::start::StartAdapter;
use crate::adapter::add_tied_head;
use crate::backend::{Device, Inner, Train};
use crate::context::{adapter_folder, model_folder, open_model, write_labels};
use crate::method::{Method, default_targets};

/// A model to train.
pub(super) struct Built {
    pub(super) model: FineTuner<Train>,
    /// The adapter that it starts from.
    pub(super) start: Option<StartAdapter>,
    /// Hash of the weights.
    pub(super) hash: String,
    pub(super) warnings: Vec<String>,
}

/// The folder of the weights, and the adapter of `--init-from`.
pub(super) fn sources(args: &Args, folder: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    Ok(match &args.init_from {
        Some(path) => match adapter_folder(path) {
            Ok(dir) => (folder.to_path_buf(), Some(dir)),
            Err(_) => (model_folder(path)?, None),
        },
        None => (folder.to_path_buf(), None),
    })
}

/// The model's folder, with the tokenizer and the chat template of the adapter that training starts from, if it has them.
pub(super) fn opened(args: &Args, folder: &Path) -> Result<ModelFolder> {
    let opened = open_model(folder)?;
    Ok(match sources(args, folder)?.1 {
        Some(adapter) => opened.with_adapter(&adapter),
        None => opened,
    })
}

/// The model with its trained parameters marked, and the adapters over it.
pub(super) fn build(
    args: &Args,
    folder: &Path,
    config: ClassifierConfig,
    order: Option<Vec<usize>>,
    rows: &dyn Fn() -> Result<Vec<Tokens>>,
    device: &Device,
) -> Result<Built> {
    let (weights, adapter) = sources(args, folder)?;
    let labels = config.labels.len();
    let targets = default_targets(&config);
    let kept = args.base.weights(args, WeightType::F32)?;
    let (mut model, hash) = if args.random_init {
        (Classifier::<Train>::init(config, args.seed, device), "random".to_string())
    } else {
        let hash = Checkpoint::open(&weights)?.content_hash()?;
        (Classifier::<Train>::load_as(&weights, config, kept, args.seed, device)?, hash)
    };
    let other = model.other_head_width().filter(|_| adapter.is_none());
    let warning = other.map(|rows| {
        let path = weights.display();
        format!(
            "{path}: its head has {rows} rows, the task has {labels} labels; the head is newly initialized"
        )
    });
    let head = model.head_modules();
    let start =
        adapter.map(|dir| StartAdapter::load(&mut model, &dir, Some((&head, labels)), device)).transpose()?;
    // The head may have come with the adapter.
    if let Some(places) = order.filter(|_| !args.random_init && model.newly_initialized().is_empty()) {
        let adapted = start.as_ref().map(|start| adapted_paths(&start.set)).unwrap_or_default();
        ensure!(
            head.iter().all(|module| !adapted.contains(module.as_str())),
            "the adapter covers the head, whose labels have another order than the data's; merge it into the model first"
        );
        model = model.with_label_order(&places)?;
    }
    if args.zero_head {
        model = model.with_zero_head();
    }
    if let Some(start) = start.as_ref().filter(|start| !start.set.is_empty()) {
        ensure!(
            args.method != Method::Head,
            "--method head saves only the head; merge {} into the model first",
            start.dir().display()
        );
    }
    let heads = model.config().n_heads();
    let unquantized = Unquantized { folder: &weights, rows: Some(rows) };
    let (model, adapters) = adapt(args, model, start.as_ref(), &targets, heads, &unquantized, device)?;
    args.base.warn_blocks(&weights)?;
    args.base.note_floats(&model);
    let trainable = match args.method {
        Method::Full => Trainable::All,
        Method::Bitfit => Trainable::Bias,
        _ => Trainable::Head,
    };
    if args.method == Method::Full {
        check_frozen(args.method, &model, |_| true)?;
    }
    let mut model = model.with_trainable(trainable);
    if args.method.adapter().is_some() {
        let (adapted, bias) = (adapted_paths(&adapters), args.adapter.bias);
        // An adapted head is not trained in full too.
        model.choose_trained(|at, trained| {
            (trained && !adapted.contains(at.module.path))
                || bias.takes(at, |module| adapted.contains(module))
                || adapters.carried().any(|carried| carried.trains(&at.key()))
        });
    }
    Ok(Built { model: FineTuner::new(model, adapters), start, hash, warnings: warning.into_iter().collect() })
}

/// The requested adapters, newly initialized or loaded from the start; if the method has no adapters, the
/// start is merged into the model.
pub(super) fn adapt<M: Adaptable<Train>>(
    args: &Args,
    mut model: M,
    start: Option<&StartAdapter>,
    default_targets: &str,
    heads: usize,
    unquantized: &Unquantized<'_>,
    device: &Device,
) -> Result<(M, AdapterSet<Train>)> {
    let loaded = start.filter(|start| !start.set.is_empty());
    let Some(method) = args.method.adapter() else {
        let model = loaded.map(|start| model.merged(&start.set)).transpose()?.unwrap_or(model);
        return Ok((model, AdapterSet::empty()));
    };
    let config = args.adapter.config(method, heads, args.seed, default_targets)?;
    let fresh = |model: &M| unquantized.adapters(args, &config, model, device);
    let Some(start) = loaded else {
        if let Some([_, head]) = model.tied()
            && names_head(&config.targets, &head)
        {
            // A tied head that is adapted is decoupled from the embedding, as in PEFT.
            model.untie()?;
        }
        let adapters = fresh(&model)?;
        if let Some((table, called)) = model.uncalled() {
            ensure!(
                !adapted_paths(&adapters).contains(&table),
                "--targets names '{table}', whose adapter would have no effect in PEFT: transformers calls {} in its place; name \
                 other modules",
                called.join(" and ")
            );
        }
        return Ok((model, adapters));
    };
    start.check(args, method)?;
    if args.adapter.names_layers() {
        start.check_targets(&fresh(&model)?)?;
    }
    Ok((model, start.factors(args)))
}

/// Whether a model's head is among the targets.
fn names_head(targets: &Targets, head: &str) -> bool {
    let path = head.to_owned();
    let site = Site { path, layer: None, d_input: 1, d_output: 1, head: true, ..Site::default() };
    let is_left_out = targets.layers.is_some() || targets.exclude.as_ref().is_some_and(|e| e.takes(&site));
    targets.include.takes(&site) && !is_left_out
}

pub(super) fn adapted_paths<B: Backend>(adapters: &AdapterSet<B>) -> BTreeSet<String> {
    adapters.slots().iter().map(|slot| slot.path.clone()).collect()
}

/// Saves what was trained: a model folder for `full` and `bitfit`, otherwise an adapter folder. Returns its
/// bytes.
pub(super) fn save(args: &Args, source: &Path, tuner: &FineTuner<Inner>, base_hash: &str) -> Result<u64> {
    if matches!(args.method, Method::Full | Method::Bitfit) {
        return save_model(args, |dir| Ok(tuner.model().save(dir, source, FloatType::F32)?));
    }
    let (set, model) = (tuner.adapters(), tuner.model());
    let saved = model.head_tensors();
    let level = model.config().level;
    let (modules_to_save, task_type) = head_in_peft(model.head_modules(), &saved, &adapted_paths(set), level);
    // PEFT has no task for pictures.
    let task_type = task_type.filter(|_| model.config().patches().is_none());
    let config = PeftConfig { modules_to_save: Some(modules_to_save), task_type, ..PeftConfig::default() };
    replace_dir_atomic(args.output.join("adapter"), |dir| {
        let bytes = save_adapter(args, model, set, config, saved, dir)?;
        write_labels(dir, model.config(), Some(base_hash))?;
        Ok(bytes)
    })
}

/// Writes the folder of a tuned model, completely or not at all, over that of an earlier part of the run. Returns the bytes of
/// its weights.
pub(super) fn save_model(args: &Args, write: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
    replace_dir_atomic(args.output.join("model"), |dir| {
        write(dir)?;
        copy_of_start(args, dir)?;
        file_size(&dir.join("model.safetensors"))
    })
}

/// Copies the tokenizer and the other files of the adapter that training started from.
fn copy_of_start(args: &Args, dir: &Path) -> Result<()> {
    match args.init_from.as_deref().map(adapter_folder) {
        Some(Ok(start)) => Ok(copy_companions(&start, dir)?),
        _ => Ok(()),
    }
}

/// Writes adapters with the trained biases and the extras of the initial adapter. Returns their bytes.
pub(super) fn save_adapter<M: Adaptable<Inner>>(
    args: &Args,
    model: &M,
    set: &AdapterSet<Inner>,
    config: PeftConfig,
    mut saved: Vec<HostTensor<'static>>,
    dir: &Path,
) -> Result<u64> {
    let starts_from_model = args.init_from.as_ref().filter(|path| adapter_folder(path).is_err());
    // Random weights are not stored anywhere.
    let base = (!args.random_init).then_some(starts_from_model.unwrap_or(&args.model));
    let config = PeftConfig {
        use_rslora: args.adapter.rslora,
        bias: args.adapter.bias.peft_name().into(),
        base_model_name_or_path: base.map(|base| base.display().to_string()),
        inference_mode: true,
        ..config
    };
    // The task of the adapter at the start may be another one.
    let carried = set.carried().map(|carried| PeftConfig {
        task_type: carried.config.task_type.clone().filter(|_| config.task_type.is_none()),
        ..carried.config.clone()
    });
    let carried: Vec<PeftConfig> = carried.collect();
    let configs: Vec<&PeftConfig> = [&config].into_iter().chain(&carried).collect();
    let config = PeftConfig::united(&configs)?;
    let adapted = adapted_paths(set);
    let is_carried = |at: &Parameter<'_>| {
        args.adapter.bias.takes(at, |module| adapted.contains(module))
            || set.carried().any(|carried| carried.holds(&at.key()))
    };
    for tensor in model.tensors_where(is_carried) {
        if saved.iter().all(|t| t.name != tensor.name) {
            saved.push(tensor);
        }
    }
    add_tied_head(&mut saved, model.tied().as_ref(), &config);
    AdapterFolder::from_set(set, model.sites(), config, saved)?.write(dir)?;
    copy_of_start(args, dir)?;
    file_size(&dir.join(TENSOR_FILE))
}

/// The head's modules for `modules_to_save`, and the task's name. PEFT saves in full what it does not adapt, and adds a
/// classifier to the former by the name of the task: an adapted head is written without either.
fn head_in_peft(
    modules: Vec<String>,
    tensors: &[HostTensor<'_>],
    adapted: &BTreeSet<String>,
    level: HeadLevel,
) -> (Vec<String>, Option<String>) {
    let of_head: BTreeSet<&str> = tensors.iter().filter_map(|t| Some(t.name.rsplit_once('.')?.0)).collect();
    if !of_head.iter().any(|module| adapted.contains(*module)) {
        return (modules, Some(level.task_type().into()));
    }
    let in_full = of_head.into_iter().filter(|module| !adapted.contains(*module));
    (in_full.map(str::to_string).collect(), None)
}

fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.len())
}
