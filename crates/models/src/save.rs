//! Writing a model folder that transformers reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{
    Dtype, FloatType, RawTensor, has_file, nested_companions, write_atomic, write_safetensors_with,
};
use lowrank_spec::names::expert_of;
use lowrank_spec::{HostTensor, LowrankSection, Representation};
use serde_json::{Map, Value};

use crate::error::{ModelError, Result};
use crate::folder::TRANSFORMER_CONFIGS;
use crate::kept::InBlocks;

/// Files of a model folder that go with any weights, beside [`TRANSFORMER_CONFIGS`] and those in folders below it:
/// tokenizer, templates, generation settings, pooling, the preparation of pictures.
const COMPANIONS: [&str; 18] = [
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "modules.json",
    "config_sentence_transformers.json",
];

/// The names of all such files of the folder itself.
pub(crate) fn companions() -> impl Iterator<Item = &'static str> {
    COMPANIONS.into_iter().chain(TRANSFORMER_CONFIGS)
}

/// Writes weights, config, and the files of `source` that go with them.
pub(crate) fn write_folder(
    dir: &Path,
    source: &Path,
    tensors: Vec<HostTensor<'static>>,
    blocks: &[InBlocks],
    mut config: Map<String, Value>,
    dtype: FloatType,
) -> Result<()> {
    note_formats(&mut config, blocks)?;
    std::fs::create_dir_all(dir).map_err(|e| file_error(dir, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors_with(dir.join("model.safetensors"), tensors, dtype, raw_tensors(blocks), &metadata)?;
    // transformers 5 calls the key `dtype`; it and its predecessors read `torch_dtype` too.
    let mut keys: Vec<&str> = vec!["dtype", "torch_dtype"];
    keys.retain(|key| config.contains_key(*key));
    for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
        config.insert(key.into(), type_name(dtype).into());
    }
    let json = serde_json::to_string_pretty(&config).map_err(|e| file_error(dir, e.into()))?;
    write_atomic(dir.join("config.json"), format!("{json}\n").as_bytes())?;
    copy_companions(source, dir)
}

/// Copies the files of a model that go with any weights: tokenizer, templates, generation settings, pooling, the preparation
/// of pictures. Those that `dir` has are replaced.
///
/// # Errors
/// Files that cannot be read or written.
pub fn copy_companions(source: &Path, dir: &Path) -> Result<()> {
    let mut companions: Vec<PathBuf> = companions().map(PathBuf::from).collect();
    if source.is_dir() {
        companions.extend(nested_companions(source).map_err(|e| file_error(source, e))?);
    }
    for name in companions {
        let from = source.join(&name);
        if source != dir && has_file(&from) {
            let to = dir.join(&name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(|e| file_error(parent, e))?;
            }
            let bytes = lowrank_checkpoint::read_file(&from).map_err(|e| file_error(&from, e))?;
            write_atomic(to, &bytes)?;
        }
    }
    Ok(())
}

fn file_error(path: &Path, error: std::io::Error) -> ModelError {
    ModelError::File { path: path.to_path_buf(), reason: error.to_string() }
}

/// Whether all experts are dense floats; others are written one by one, which only this program reads.
pub(crate) fn has_dense_experts(config: &Map<String, Value>, blocks: &[InBlocks]) -> Result<bool> {
    let section = LowrankSection::of_config(config).map_err(|e| ModelError::Input(e.to_string()))?;
    let mut modules = section.modules.keys().chain(blocks.iter().map(|block| &block.module));
    Ok(!modules.any(|module| expert_of(module).is_some()))
}

/// The bytes of the matrices in blocks, `(rows, bytes of a row)`.
fn raw_tensors(blocks: &[InBlocks]) -> Vec<RawTensor<'_>> {
    let tensors = blocks.iter().map(|block| {
        let ([rows, _], bytes) = (block.matrix.stored_dims(), block.matrix.bytes());
        RawTensor { name: block.key(), dtype: Dtype::U8, shape: vec![rows, bytes.len() / rows.max(1)], bytes }
    });
    tensors.collect()
}

/// Brings the section of a config in line with what the model holds: block formats, and whole factors.
fn note_formats(config: &mut Map<String, Value>, blocks: &[InBlocks]) -> Result<()> {
    let input = |e: lowrank_spec::SpecError| ModelError::Input(e.to_string());
    if let Some(block) = blocks.iter().find(|block| !block.is_in_order) {
        return Err(ModelError::Input(format!(
            "'{}' is in {} in an order that files do not have; it cannot be saved",
            block.key(),
            block.matrix.format()
        )));
    }
    let mut section = LowrankSection::of_config(config).map_err(input)?;
    if section.modules.is_empty() && blocks.is_empty() {
        return Ok(());
    }
    for entry in section.modules.values_mut() {
        entry.formats.clear();
        entry.representation.forget_pivots();
    }
    for block in blocks {
        let known = section.find(&block.module).map(|(name, _)| name.to_string());
        let entry = section.modules.entry(known.unwrap_or_else(|| block.module.clone())).or_default();
        entry.formats.insert(block.part.name().into(), block.matrix.format().name().into());
    }
    section
        .modules
        .retain(|_, entry| !entry.formats.is_empty() || entry.representation != Representation::Dense);
    if section.method.is_empty() {
        section.method = "quant".into();
    }
    section.write(config).map_err(input)
}

fn type_name(dtype: FloatType) -> &'static str {
    match dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::BF16 => "bfloat16",
    }
}
