//! The model of a run: what it starts from, what of it is trained, what is saved.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use lowrank_adapters::peft::{AdapterFolder, Carried, PeftConfig};
use lowrank_adapters::{AdapterSet, HostTensor, Method as AdapterMethod};
use lowrank_checkpoint::{Checkpoint, FloatType};
use lowrank_models::{Adaptable, ClassifierConfig, Parameter, Parameters, SequenceClassifier, Trainable};
use lowrank_train::FineTuner;

use super::Args;
use crate::adapter::load_adapter;
use crate::backend::Train;
use crate::context::{adapter_folder, model_folder, write_labels};
use crate::method::Method;

impl Args {
    /// Whether an adapter to start from is of the method and the shape that the options ask for.
    fn check_start(&self, dir: &Path, set: &AdapterSet<Train>, method: AdapterMethod) -> Result<()> {
        if set.is_empty() {
            return Ok(());
        }
        let folder = AdapterFolder::read(dir)?;
        ensure!(
            !set.carried().any(Carried::has_token_rows),
            "{}: carries trainable_token_indices, which are not trained further; merge it into the model first",
            dir.display()
        );
        let config = folder.config;
        let is_of = AdapterMethod::of(&config) == Some(method);
        ensure!(
            is_of,
            "{}: is of another method ({}) than --method {}; convert it, or name its own",
            dir.display(),
            config.peft_type,
            self.method.name()
        );
        ensure!(
            (self.adapter.rank, self.adapter.alpha) == (config.r, config.lora_alpha),
            "{}: has rank {} and alpha {}; give them as --rank and --alpha (now {} and {})",
            dir.display(),
            config.r,
            config.lora_alpha,
            self.adapter.rank,
            self.adapter.alpha
        );
        Ok(())
    }
}

/// The model with what is to be trained marked, the adapters over it, and the hash of the weights it started from.
pub(super) fn build(
    args: &Args,
    folder: &Path,
    config: ClassifierConfig,
    device: &crate::backend::Device,
) -> Result<(FineTuner<Train>, String)> {
    let (weights, adapter_from) = match &args.init_from {
        Some(path) => match adapter_folder(path) {
            Ok(dir) => (folder.to_path_buf(), Some(dir)),
            Err(_) => (model_folder(path)?, None),
        },
        None => (folder.to_path_buf(), None),
    };
    let (mut model, hash) = if args.random_init {
        (SequenceClassifier::<Train>::init(config, args.seed, device), "random".to_string())
    } else {
        let hash = Checkpoint::open(&weights)?.content_hash();
        (SequenceClassifier::<Train>::load(&weights, config, args.seed, device)?, hash)
    };
    if args.zero_head {
        model = model.with_zero_head();
    }
    let loaded = match &adapter_from {
        Some(dir) => Some(load_adapter(&mut model, dir, device)?),
        None => None,
    };
    if let (Some(dir), Some(set), Some(method)) = (&adapter_from, &loaded, args.method.adapter()) {
        args.check_start(dir, set, method)?;
    }
    let heads = model.config().n_heads();
    let adapters = match args.method.adapter() {
        None => AdapterSet::empty(),
        Some(method) => {
            let config = args.adapter.config(method, heads, args.seed)?;
            AdapterSet::init(&config, model.sites(), &model.base_weights(), device)?
        }
    };
    let trainable = match args.method {
        Method::Full => Trainable::All,
        Method::Bitfit => Trainable::Bias,
        _ => Trainable::Head,
    };
    // An adapter to start from brings its own factors, at its own sites and rank.
    let adapters = match loaded {
        Some(mut set) if !set.is_empty() && !adapters.is_empty() => {
            let [own, asked] = [adapted_paths(&set), adapted_paths(&adapters)];
            if let Some(path) = own.symmetric_difference(&asked).next() {
                let (has, other) =
                    if own.contains(path) { ("adapts", "do not") } else { ("does not adapt", "do") };
                bail!("the adapter to start from {has} '{path}', and --targets {other}; name its own layers");
            }
            set.set_dropout(args.adapter.dropout);
            set
        }
        Some(set) if !set.is_empty() => {
            ensure!(
                args.method != Method::Head,
                "--method head saves the head alone; merge the adapter to start from into the model first"
            );
            model = model.merged(&set)?;
            adapters
        }
        _ => adapters,
    };
    let mut model = model.with_trainable(trainable);
    if args.method.adapter().is_some() {
        let adapted = adapted_paths(&adapters);
        let bias = args.adapter.bias;
        // A head that is adapted is not trained in full too.
        let goes_on = |key: &str| adapters.carried().any(|carried| carried.trains(key));
        model.choose_trained(|at, trained| {
            (trained && !adapted.contains(at.module.path))
                || bias.takes(at, |module| adapted.contains(module))
                || goes_on(&at.key())
        });
    }
    Ok((FineTuner::new(model, adapters), hash))
}

fn adapted_paths<B: Backend>(adapters: &AdapterSet<B>) -> BTreeSet<String> {
    adapters.slots().iter().map(|slot| slot.path.clone()).collect()
}

/// Saves what was trained: a model folder for `full` and `bitfit`, an adapter folder else. Returns its bytes.
pub(super) fn save(
    args: &Args,
    source: &Path,
    tuner: &FineTuner<crate::backend::Inner>,
    labels: &[String],
    regression: bool,
    base_hash: &str,
) -> Result<u64> {
    if matches!(args.method, Method::Full | Method::Bitfit) {
        let dir = args.output.join("model");
        tuner.model().save(&dir, source, FloatType::F32)?;
        return file_size(&dir.join("model.safetensors"));
    }
    let dir = args.output.join("adapter");
    let starts_from_model = args.init_from.as_ref().filter(|path| adapter_folder(path).is_err());
    // Random weights are kept nowhere.
    let base = (!args.random_init).then_some(starts_from_model.unwrap_or(&args.model));
    let (set, model) = (tuner.adapters(), tuner.model());
    let adapted = adapted_paths(set);
    let mut saved = model.head_tensors();
    let (modules_to_save, task_type) = head_in_peft(model.head_modules(), &saved, &adapted);
    let config = PeftConfig {
        use_rslora: args.adapter.rslora,
        bias: args.adapter.bias.peft_name().into(),
        modules_to_save: Some(modules_to_save),
        task_type,
        base_model_name_or_path: base.map(|base| base.display().to_string()),
        inference_mode: true,
        ..PeftConfig::default()
    };
    // What an adapter to start from carried is written again.
    let mut configs = vec![&config];
    configs.extend(set.carried().map(|carried| &carried.config));
    let config = PeftConfig::united(&configs)?;
    let is_carried = |at: &Parameter<'_>| {
        args.adapter.bias.takes(at, |module| adapted.contains(module))
            || set.carried().any(|carried| carried.holds(&at.key()))
    };
    for tensor in model.tensors_where(is_carried) {
        if saved.iter().all(|t| t.name != tensor.name) {
            saved.push(tensor);
        }
    }
    AdapterFolder::from_set(set, model.sites(), config, saved)?.write(&dir)?;
    write_labels(&dir, labels, regression, Some(base_hash))?;
    file_size(&dir.join("adapter_model.safetensors"))
}

/// The head's modules for `modules_to_save`, and the task's name. PEFT saves in full what it does not adapt, and adds a
/// classifier to the former by the name of the task: a head that is adapted goes without either.
fn head_in_peft(
    modules: Vec<String>,
    tensors: &[HostTensor<'_>],
    adapted: &BTreeSet<String>,
) -> (Vec<String>, Option<String>) {
    let of_head: BTreeSet<&str> = tensors.iter().filter_map(|t| Some(t.name.rsplit_once('.')?.0)).collect();
    if !of_head.iter().any(|module| adapted.contains(*module)) {
        return (modules, Some("SEQ_CLS".into()));
    }
    let in_full = of_head.into_iter().filter(|module| !adapted.contains(*module));
    (in_full.map(str::to_string).collect(), None)
}

fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.len())
}
