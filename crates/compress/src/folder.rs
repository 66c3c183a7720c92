//! Model folders: reading the config, sizes, and copying everything other than the weights.

use std::path::{Path, PathBuf};

use lowrank_checkpoint::{
    Checkpoint, Dtype, FloatType, gguf, has_file, nested_companions, read_file, write_atomic,
};
use lowrank_spec::LowrankSection;
use lowrank_spec::names::is_buffer;
use serde_json::{Map, Value};

use crate::amount::Sizes;
use crate::error::{CompressError, Result};
use crate::weights::Weight;

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CompressError {
    let path = path.to_owned();
    move |e| CompressError::File { path, reason: e.to_string() }
}

/// Refuses an output that is the input, lies inside it, or is not empty.
pub(crate) fn check_output(model: &Path, output: &Path) -> Result<()> {
    let source = std::fs::canonicalize(model).map_err(io(model))?;
    // The output need not exist; its nearest existing ancestor determines where it would be.
    let absolute = std::path::absolute(output).map_err(io(output))?;
    let known = absolute.ancestors().find_map(|a| std::fs::canonicalize(a).ok().map(|c| (a.to_owned(), c)));
    let place = known.map_or(absolute.clone(), |(ancestor, canonical)| {
        canonical.join(absolute.strip_prefix(&ancestor).unwrap_or(Path::new("")))
    });
    if place.starts_with(&source) {
        return Err(CompressError::File {
            path: output.to_owned(),
            reason: "the output is the model folder or inside it; choose another folder".into(),
        });
    }
    Ok(())
}

/// `config.json` of a model folder, without the quantization of its weights, which are read as floats.
pub(crate) fn read_config(model: &Path) -> Result<Map<String, Value>> {
    let path = model.join("config.json");
    let text = read_file(&path).map_err(io(&path))?;
    let error = |reason| CompressError::File { path: path.clone(), reason };
    let mut config: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| error(e.to_string()))?;
    lowrank_spec::storage::take_storage(&mut config).map_err(|e| error(e.to_string()))?;
    Ok(config)
}

/// `config.json` of a model folder whose weights are neither quantized nor factored.
///
/// # Errors
/// As [`read_config`], and for a model that is compressed already.
pub(crate) fn read_dense_config(model: &Path) -> Result<Map<String, Value>> {
    let config = read_config(model)?;
    let section = LowrankSection::of_config(&config)?;
    if section.modules.is_empty() {
        return Ok(config);
    }
    Err(CompressError::Input(format!(
        "{}: compressed already ({}); start from the dense model",
        model.display(),
        section.method
    )))
}

/// Sizes of a model of which `taken` are factored.
pub(crate) fn sizes(checkpoint: &Checkpoint, taken: &[Weight], dtype: Option<FloatType>) -> Result<Sizes> {
    let mut model = 0u64;
    let keys: std::collections::BTreeSet<String> = taken.iter().map(Weight::key).collect();
    // Approximate size of a tensor's offsets and shapes beside its name, twice for a tensor split into two
    // factors.
    const ENTRY: usize = 80;
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        if info.dtype.is_float() && !is_buffer(name) {
            model += info.numel() as u64;
        }
    }
    let mut other_bytes: u64 = keys.iter().map(|name| 2 * (name.len() + ENTRY) as u64).sum();
    for name in checkpoint.unchanged(&keys) {
        let Some(info) = checkpoint.info(name) else { continue };
        let size = output_dtype(info.dtype, dtype, false).size();
        other_bytes += (info.numel() * size + name.len() + ENTRY) as u64;
    }
    let touched: u64 = taken.iter().map(|w| w.numel() as u64).sum();
    let bytes: u64 =
        taken.iter().map(|w| (w.numel() * output_dtype(w.dtype, dtype, true).size()) as u64).sum();
    let file = weight_files(checkpoint)?.iter().map(|path| file_size(path)).sum::<Result<u64>>()?;
    Ok(Sizes { touched, model, file, other_bytes, bytes_each: bytes as f64 / touched as f64 })
}

/// The files that hold the tensors: the opened one, or the index and its shards.
pub(crate) fn weight_files(checkpoint: &Checkpoint) -> Result<Vec<PathBuf>> {
    let path = checkpoint.path().to_owned();
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![path]);
    }
    let text = read_file(&path).map_err(io(&path))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|e| CompressError::File { path: path.clone(), reason: e.to_string() })?;
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let names: std::collections::BTreeSet<&str> = shards.filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).chain([path]).collect())
}

pub(crate) fn file_size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(io(path))?.len())
}

/// The type in which a tensor is written: factors are at most f32, integers keep their type.
pub(crate) fn output_dtype(stored: Dtype, wanted: Option<FloatType>, is_factor: bool) -> Dtype {
    match wanted {
        Some(wanted) if stored.is_float() => wanted.into(),
        _ if is_factor && stored == Dtype::F64 => Dtype::F32,
        // Safetensors files have no blocks.
        _ if matches!(stored, Dtype::Block(_)) => Dtype::F32,
        _ => stored,
    }
}

/// Sets the type of the weights in a config.
pub(crate) fn set_dtype(config: &mut Map<String, Value>, dtype: FloatType) {
    let name = match dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::BF16 => "bfloat16",
    };
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), name.into());
}

/// Suffixes of weight files, in any framework's format.
const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "h5", "msgpack", "onnx", "gguf", "index.json"];

/// Files that tell how the weights of the source were quantized, which those of the output are not.
const QUANTISERS: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Copies the files other than weights: tokenizer, generation config, licence.
pub(crate) fn copy_files(from: &Path, to: &Path) -> Result<()> {
    if gguf::is_gguf(from) {
        for name in gguf::MEMBERS.into_iter().filter(|name| *name != "config.json") {
            let path = from.join(name);
            if has_file(&path) {
                write_atomic(to.join(name), read_file(&path).map_err(io(&path))?)?;
            }
        }
        return Ok(());
    }
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_weights = WEIGHTS.iter().any(|ending| name.ends_with(&format!(".{ending}")));
        if name == "config.json"
            || QUANTISERS.contains(&name)
            || name.starts_with('.')
            || is_weights
            || path.is_dir()
        {
            continue;
        }
        write_atomic(to.join(name), read_file(&path).map_err(io(&path))?)?;
    }
    for name in nested_companions(from).map_err(io(from))? {
        let (path, to) = (from.join(&name), to.join(&name));
        let folder = to.parent().unwrap_or(&to);
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        write_atomic(&to, read_file(&path).map_err(io(&path))?)?;
    }
    Ok(())
}

/// Name of the file that identifies the job of a partial folder.
const IDENTITY: &str = "job.txt";

/// Records which job works in a partial folder, or refuses to continue another one's.
pub(crate) fn check_identity(staged: &Path, identity: &str) -> Result<()> {
    let path = staged.join(IDENTITY);
    match std::fs::read_to_string(&path) {
        Ok(found) if found != identity => Err(CompressError::File {
            path: staged.to_owned(),
            reason: "the interrupted job had another model or other options; start again without --resume"
                .into(),
        }),
        Ok(_) => Ok(()),
        Err(_) => Ok(write_atomic(path, identity)?),
    }
}

/// Removes the record.
pub(crate) fn remove_identity(staged: &Path) -> Result<()> {
    let path = staged.join(IDENTITY);
    std::fs::remove_file(&path).map_err(io(&path))
}
