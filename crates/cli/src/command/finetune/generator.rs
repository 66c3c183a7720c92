//! A model that generates texts, to train: its initial weights, its trained parameters, its saved files.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use lowrank_adapters::peft::PeftConfig;
use lowrank_checkpoint::{Checkpoint, Dtype, FloatType, TensorInfo, replace_dir_atomic};
use lowrank_compress::Tokens;
use lowrank_models::params::WeightType;
use lowrank_models::{LanguageModel, Parameter, Part};
use lowrank_train::Tuned;

use super::Args;
use super::base::check_frozen;
use super::model::{adapt, adapted_paths, save_adapter, save_model, sources};
use super::residual::Unquantized;
use super::start::StartAdapter;
use crate::backend::{Device, Inner, Train};
use crate::context::warn_unused;
use crate::method::{Method, generator_trains, query_and_value};

/// A model to train.
pub(super) struct Built<M> {
    pub(super) model: Tuned<Train, M>,
    /// The adapter that it starts from.
    pub(super) start: Option<StartAdapter>,
    /// Hash of the weights.
    pub(super) hash: String,
    pub(super) default_targets: String,
}

/// The weights of a model to build.
pub(super) enum Weights<'a> {
    /// Newly initialized.
    Random,
    /// Those of a folder, in a storage type.
    Stored(&'a Path, WeightType),
}

/// The model that `make` returns, with its trained parameters marked, and the adapters over it.
pub(super) fn build<M: LanguageModel<Train> + Module<Train>>(
    args: &Args,
    folder: &Path,
    rows: &dyn Fn() -> Result<Vec<Tokens>>,
    device: &Device,
    make: impl FnOnce(Weights<'_>) -> Result<M>,
) -> Result<Built<M>> {
    ensure!(!args.zero_head, "--zero-head applies to classifiers only");
    let (weights, adapter) = sources(args, folder)?;
    let (mut model, hash) = if args.random_init {
        args.base.weights(args, WeightType::F32)?;
        (make(Weights::Random)?, "random".to_string())
    } else {
        let checkpoint = Checkpoint::open(&weights)?;
        let kept = args.base.weights(args, kept_type(args.method, &checkpoint, device))?;
        (make(Weights::Stored(&weights, kept))?, checkpoint.content_hash()?)
    };
    let start = adapter.map(|dir| StartAdapter::load(&mut model, &dir, None, device)).transpose()?;
    let default_targets = query_and_value(&model.decoder().architecture.names.qkv);
    let heads = model.decoder().n_heads;
    let unquantized = Unquantized { folder: &weights, rows: Some(rows) };
    let (mut model, adapters) =
        adapt(args, model, start.as_ref(), &default_targets, heads, &unquantized, device)?;
    args.base.warn_blocks(&weights)?;
    args.base.note_floats(&model);
    let adapted = adapted_paths(&adapters);
    let (bias, tied) = (args.adapter.bias, model.tied());
    let trains = |at: &Parameter<'_>| match args.method {
        Method::Adapter(_) => {
            !adapted.contains(at.module.path) && adapters.carried().any(|carried| carried.trains(&at.key()))
                || bias.takes(at, |module| adapted.contains(module))
        }
        method => generator_trains(Some(method), tied.as_ref(), at),
    };
    check_frozen(args.method, &model, trains)?;
    let mut trains_head = false;
    model.choose_trained(|at, _| {
        let is_trained = trains(at);
        trains_head |= is_trained && at.module.part == Part::Head;
        is_trained
    });
    let rule = "requires a head that is trained in full and not tied to the embeddings";
    warn_unused(trains_head, &["head_lr"], rule);
    let model = Tuned::new(model, adapters);
    ensure!(
        model.count().0 > 0,
        "--method {}: the model has no such parameters; choose another method",
        args.method.name()
    );
    Ok(Built { model, start, hash, default_targets })
}

/// The storage type of a base: that of its float matrices in the checkpoint, if it is frozen and the backend has the type.
fn kept_type(method: Method, checkpoint: &Checkpoint, device: &Device) -> WeightType {
    if method.adapter().is_none() {
        return WeightType::F32;
    }
    let is_matrix = |info: &&TensorInfo| {
        info.shape.len() == 2 && matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    };
    let matrices = checkpoint.names().filter_map(|name| checkpoint.info(name)).filter(is_matrix);
    let mut types = matrices.map(|info| info.dtype);
    match types.next() {
        Some(first @ (Dtype::F16 | Dtype::BF16)) if types.all(|other| other == first) => {
            let stored = if first == Dtype::F16 { WeightType::F16 } else { WeightType::Bf16 };
            if stored.is_kept_by::<Train>(device) { stored } else { WeightType::F32 }
        }
        _ => WeightType::F32,
    }
}

/// Saves what was trained: a model folder if the model's own weights were, otherwise an adapter folder.
pub(super) fn save<M: LanguageModel<Inner>>(
    args: &Args,
    source: &Path,
    tuned: &Tuned<Inner, M>,
) -> Result<u64> {
    let (model, set) = (tuned.model(), tuned.adapters());
    if args.method.adapter().is_none() {
        return save_model(args, |dir| Ok(model.save(dir, source, FloatType::F32)?));
    }
    let task_type = model.tasks().first().map(|task| (*task).to_string());
    let config = PeftConfig { task_type, ..PeftConfig::default() };
    replace_dir_atomic(args.output.join("adapter"), |dir| {
        save_adapter(args, model, set, config, Vec::new(), dir)
    })
}
