//! Files for llama.cpp.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lowrank_adapters::algebra::Update;
use lowrank_adapters::peft::CONFIG_FILE;
use lowrank_checkpoint::gguf::{
    AdapterParts, FileType, ModelParts, Pair, Pooling, TokenizerParts, Written, is_gguf, write_adapter,
    write_model,
};
use lowrank_checkpoint::{Checkpoint, Dtype, FloatType};
use lowrank_data::tokenize::SpecialIds;
use lowrank_factor::matrix::to_row_major;
use lowrank_models::{
    Adaptable, Decoder, DecoderConfig, EmbeddingStep, ModelFolder, ModelKind, Parameters, PoolingMode,
};
use lowrank_spec::names::WeightPart;
use lowrank_spec::{BlockFormat, HostTensor, LowrankSection, ModuleEntry, Representation};
use serde_json::json;

use super::Args;
use crate::adapter::{DetachedAdapter, load_adapter};
use crate::backend::{Inner, device};
use crate::command::merge::stored_dtype;
use crate::context::{adapter_folder, open_model, print_json};
use crate::usage::usage;

/// Writes what the options specify.
pub(super) fn run(args: &Args) -> Result<()> {
    ensure_usage!(
        args.rank.is_none() && !args.by_kind,
        "--rank and --by-kind do not apply to --to gguf; resize the adapter first"
    );
    let output = &args.output;
    if output.is_dir() {
        bail!("{}: is a folder; with --to gguf, -o must be a file", output.display());
    }
    for input in [&args.model, &args.adapter].into_iter().flatten() {
        let is_it = output.exists() && input.canonicalize().ok() == output.canonicalize().ok();
        ensure!(!is_it, "{}: the output is the input; give another file", output.display());
    }
    match &args.adapter {
        Some(adapter) if !args.merge => adapter_file(args, adapter),
        _ => model_file(args),
    }
}

/// The language model of a path.
fn language_model(path: &Path) -> Result<ModelFolder> {
    let folder = open_model(path)?;
    if folder.kind() != ModelKind::Decoder {
        bail!(
            "{}: is {}; only language models can be written as GGUF",
            folder.path().display(),
            folder.kind().describe()
        );
    }
    Ok(folder)
}

fn model_file(args: &Args) -> Result<()> {
    let mut folder =
        language_model(args.model.as_deref().ok_or_else(|| usage("give the model with --model"))?)?;
    if let Some(adapter) = &args.adapter {
        folder = folder.with_adapter(&adapter_folder(adapter)?);
    }
    let config = folder.decoder_config()?;
    let Some(formats) = formats(&config.lowrank) else {
        bail!(
            "{}: it is compressed ({}), which llama.cpp cannot run; convert the dense model with --type",
            folder.path().display(),
            config.lowrank.method
        );
    };
    let stored = folder.checkpoint()?.with_blocks(&formats)?;
    let is_quantized = in_blocks(&stored);
    let kind = args.kind.or_else(|| (!is_quantized).then(|| stored_dtype(&stored).into()));
    if args.merge && is_quantized {
        bail!(
            "{}: its weights are quantized; merge into the original model, or leave out --merge and \
             write the adapter alone",
            folder.path().display()
        );
    }
    let merged = args
        .adapter
        .as_deref()
        .map(|adapter| merge(&folder, config.clone(), adapter, args.alpha))
        .transpose()?;
    let weights = match &merged {
        Some(dir) => Checkpoint::open(dir.path())?,
        None => stored,
    };
    let tokenizer = folder.tokenizer(None)?;
    let (json, templates) = (tokenizer.to_json()?, folder.chat_templates()?);
    let frame = tokenizer.encode("", None)?.ids;
    let roles = roles(&tokenizer.special_ids(), &config, &frame);
    let parts = ModelParts {
        name: &name(folder.path()),
        config: folder.config(),
        weights: &weights,
        tokenizer: Some(TokenizerParts { json: &json, roles: &roles, templates: &templates }),
        kind,
        pooling: pooling(&folder)?,
    };
    report(args, kind, &write_model(&args.output, &parts)?)
}

/// The name of a model or an adapter.
fn name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether weights are in blocks.
fn in_blocks(weights: &Checkpoint) -> bool {
    weights.names().filter_map(|name| weights.info(name)).any(|info| matches!(info.dtype, Dtype::Block(_)))
}

/// The block formats of weights that are compressed to nothing else; `None` for other forms.
fn formats(section: &LowrankSection) -> Option<BTreeMap<String, BlockFormat>> {
    let format = |(module, entry): (&String, &ModuleEntry)| {
        let name = entry.formats.get(WeightPart::Dense.name())?;
        let is_dense = entry.representation == Representation::Dense && entry.formats.len() == 1;
        let format = BlockFormat::from_name(name).filter(|_| is_dense)?;
        Some((WeightPart::Dense.key(module), format))
    };
    section.modules.iter().map(format).collect()
}

/// The model with an adapter merged into it, in a temporary folder.
fn merge(
    folder: &ModelFolder,
    config: DecoderConfig,
    adapter: &Path,
    alpha: Option<f64>,
) -> Result<tempfile::TempDir> {
    let device = device()?;
    let mut model = Decoder::<Inner>::load(folder.path(), config, Default::default(), &device)?;
    let adapters = load_adapter(&mut model, &adapter_folder(adapter)?, alpha, &device)?;
    let dir = tempfile::tempdir().context("cannot create a temporary folder for the merged weights")?;
    model.merged(&adapters)?.save(dir.path(), folder.path(), FloatType::F32)?;
    Ok(dir)
}

/// The pooling of a sentence embedder, as far as llama.cpp has it.
fn pooling(folder: &ModelFolder) -> Result<Option<Pooling>> {
    if is_gguf(folder.path()) && !folder.has_pooling() {
        let pooling = Pooling::of(&folder.checkpoint()?);
        return Ok(pooling.unwrap_or_else(|error| {
            eprintln!("warning: {error}; it is left out");
            None
        }));
    }
    if !folder.has_pooling() {
        return Ok(None);
    }
    let pooling = folder.pooling()?;
    let known = match *pooling.modes {
        [PoolingMode::Mean] => Some(Pooling::Mean),
        [PoolingMode::First] => Some(Pooling::First),
        [PoolingMode::Last] => Some(Pooling::Last),
        _ => None,
    };
    let is_simple = pooling.steps.iter().all(|step| matches!(step, EmbeddingStep::Normalize));
    if known.is_none() || !is_simple {
        eprintln!(
            "warning: {}: llama.cpp has no such pooling, or none of the steps after it; its embeddings will differ",
            folder.path().display()
        );
    }
    Ok(known)
}

/// Tokens with a role: those that frame a text, else the tokenizer's, else the config's. Its other ends of a text follow.
fn roles(special: &SpecialIds, config: &DecoderConfig, frame: &[u32]) -> Vec<(&'static str, u32)> {
    let firsts = [special.bos, config.bos].into_iter().flatten();
    let bos = firsts.clone().find(|id| frame.first() == Some(id)).or(firsts.clone().next());
    let lasts = special.eos.into_iter().chain(config.eos.iter().copied());
    let eos = lasts.clone().find(|id| frame.last() == Some(id)).or(lasts.clone().next());
    let mut ends: Vec<u32> = Vec::new();
    for id in lasts.filter(|id| Some(*id) != eos) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    let all = [
        ("bos", bos),
        ("eos", eos),
        ("eot", ends.first().copied()),
        ("eom", ends.get(1).copied()),
        ("unknown", special.unk),
        ("padding", special.pad.or(config.padding)),
    ];
    all.into_iter().filter_map(|(role, id)| Some((role, id?))).collect()
}

fn report(args: &Args, kind: Option<FileType>, written: &Written) -> Result<()> {
    let kind = kind.map_or("as stored", |kind| kind.name());
    for warning in &written.warnings {
        eprintln!("warning: {warning}");
    }
    for (wanted, got, count) in &written.fallbacks {
        eprintln!(
            "{count} matrices are in {got} instead of {wanted}: their rows do not fill whole blocks of {wanted}"
        );
    }
    if args.json {
        return print_json(&json!({
            "output": args.output, "type": kind, "tensors": written.tensors, "bytes": written.bytes,
        }));
    }
    println!(
        "{} tensors ({kind}) written to {}, {} bytes",
        written.tensors,
        args.output.display(),
        written.bytes
    );
    Ok(())
}

/// The base that an adapter names, if it is a local folder.
fn base_of(adapter: &Path) -> Option<PathBuf> {
    let text = lowrank_spec::read_file(adapter.join(CONFIG_FILE)).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let base = PathBuf::from(config["base_model_name_or_path"].as_str()?);
    base.exists().then_some(base)
}

fn adapter_file(args: &Args, adapter: &Path) -> Result<()> {
    let dtype = match args.kind {
        None => FloatType::F32,
        Some(kind) => {
            let floats = [FloatType::F32, FloatType::F16, FloatType::BF16];
            let float = floats.into_iter().find(|float| FileType::from(*float) == kind);
            float.with_context(|| {
                format!("--type {kind}: an adapter can be written in F32, F16 or BF16 only")
            })?
        }
    };
    let path = adapter_folder(adapter)?;
    let base = args.model.clone().or_else(|| base_of(&path));
    let base = base.with_context(|| format!("{}: give the base model with --model", path.display()))?;
    let folder = language_model(&base)?;
    let config = folder.decoder_config()?;
    let adapter = DetachedAdapter::read(&path, args.alpha, args.model.as_deref())?;
    // PEFT saves adapted tables and heads whole beside their factors.
    let weights = folder.checkpoint()?;
    let is_copy = |saved: &HostTensor<'_>| {
        weights.contains(&saved.name)
            && weights.read_f32(&saved.name).is_ok_and(|values| values == *saved.data)
    };
    if let Some(saved) = adapter.saved.iter().find(|saved| !is_copy(saved)) {
        bail!(
            "{}: holds '{}' in full, which a llama.cpp LoRA cannot; write the merged model with --merge",
            path.display(),
            saved.name
        );
    }
    let pairs = adapter.updates()?.iter().map(|update| pair(update, &path)).collect::<Result<Vec<_>>>()?;
    let parts =
        AdapterParts { name: &name(&path), config: folder.config(), tied: config.tied, pairs: &pairs, dtype };
    let bytes = write_adapter(&args.output, &parts)?;
    if args.json {
        return print_json(&json!({"output": args.output, "modules": pairs.len(), "bytes": bytes}));
    }
    println!("{} layers written to {}, {bytes} bytes", pairs.len(), args.output.display());
    Ok(())
}

fn pair(update: &Update, path: &Path) -> Result<Pair> {
    if update.bias.as_ref().is_some_and(|bias| bias.iter().any(|x| *x != 0.0)) {
        bail!(
            "{}: '{}' has a bias, which a llama.cpp LoRA cannot have; write the merged model with --merge",
            path.display(),
            update.site.path
        );
    }
    let factors = &update.factors;
    Ok(Pair {
        path: update.site.path.clone(),
        a: to_row_major(factors.left().transpose()),
        b: to_row_major(factors.right().transpose()),
        rank: factors.rank(),
        scale: update.scale,
    })
}
