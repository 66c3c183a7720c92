//! Writing a model folder that transformers reads.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_checkpoint::{FloatType, write_atomic, write_safetensors};
use lowrank_spec::HostTensor;
use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Files of a model folder that go with any weights: tokenizer, templates, generation settings, pooling.
const COMPANIONS: [&str; 17] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

/// Writes weights, config, and the files of `source` that go with them.
pub(crate) fn write_folder(
    dir: &Path,
    source: &Path,
    tensors: Vec<HostTensor<'static>>,
    mut config: Map<String, Value>,
    dtype: FloatType,
) -> Result<()> {
    let file_error =
        |path: &Path, e: std::io::Error| ModelError::File { path: path.to_path_buf(), reason: e.to_string() };
    std::fs::create_dir_all(dir).map_err(|e| file_error(dir, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_safetensors(dir.join("model.safetensors"), tensors, dtype, &metadata)?;
    // transformers 5 calls the key `dtype`; it and its predecessors read `torch_dtype` too.
    let mut keys: Vec<&str> = vec!["dtype", "torch_dtype"];
    keys.retain(|key| config.contains_key(*key));
    for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
        config.insert(key.into(), type_name(dtype).into());
    }
    let json = serde_json::to_string_pretty(&config).map_err(|e| file_error(dir, e.into()))?;
    write_atomic(dir.join("config.json"), format!("{json}\n").as_bytes())?;
    for name in COMPANIONS {
        let from = source.join(name);
        if from.is_file() && source != dir {
            let to = dir.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(|e| file_error(parent, e))?;
            }
            let bytes = lowrank_checkpoint::read_file(&from).map_err(|e| file_error(&from, e))?;
            write_atomic(to, &bytes)?;
        }
    }
    Ok(())
}

fn type_name(dtype: FloatType) -> &'static str {
    match dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::BF16 => "bfloat16",
    }
}
