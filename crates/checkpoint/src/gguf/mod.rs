//! llama.cpp's files (GGUF): read as the Hugging Face folder that they were made from, and written.
//!
//! A file of a supported architecture is opened by [`Checkpoint::open`](crate::Checkpoint::open) as a checkpoint with
//! Hugging Face's tensor names, in which llama.cpp's changes (interleaved rows of queries and keys, 1 added to gains) are
//! undone. The small files of a folder are derived from its metadata: [`read_file`](crate::read_file) reads
//! `model.gguf/config.json`, `model.gguf/tokenizer.json` and `model.gguf/tokenizer_config.json` as if the file were a
//! folder. Of a model in several files (`model-00001-of-00003.gguf`), the path of each stands for all of them.

mod adapter;
mod architecture;
mod config;
mod mix;
mod model;
mod parts;
mod pre;
mod read;
mod rules;
mod sentence_piece;
mod table;
mod tokenizer;
mod value;
mod write;
mod write_config;
mod write_tokenizer;

use std::io::Read;
use std::path::Path;

pub use adapter::{AdapterParts, Pair, write_adapter};
pub use mix::FileType;
pub use model::{ModelParts, Pooling, Written, write_model};
pub(crate) use parts::{Part, open};
pub use value::{Array, Value};
pub use write_tokenizer::TokenizerParts;

use crate::error::CheckpointError;
use crate::map::Bytes;
use crate::source::Table;

/// The files of a folder that a GGUF file stands for.
pub const MEMBERS: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

/// Whether a path names a GGUF file, by its first bytes.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    lowrank_spec::open_file(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *read::MAGIC
}

/// Whether bytes are a GGUF file.
pub(crate) fn recognises(file: &[u8]) -> bool {
    file.starts_with(read::MAGIC)
}

/// The tensors of a model, and bytes that some of them lie in, which come after its files.
pub(crate) fn table(parts: &[Part]) -> Result<(Table, Bytes), CheckpointError> {
    let parsed = parts::parse(parts)?;
    table::table(&parsed).map_err(|fault| fault.at(&parts[0].path))
}

/// One of the [`MEMBERS`] of a model; none for another name, and for a tokenizer where the file has none.
pub(crate) fn member(parts: &[Part], name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
    let parsed = parts::parse(parts)?;
    let value = match name {
        "config.json" => config::config(&parsed).map(|config| Some(config.into())),
        "tokenizer.json" => tokenizer::tokenizer(&parsed),
        "tokenizer_config.json" => tokenizer::tokenizer_config(&parsed),
        _ => Ok(None),
    };
    let value = value.map_err(|fault| fault.at(&parts[0].path))?;
    Ok(value.map(|value: serde_json::Value| value.to_string().into_bytes()))
}

/// Whether a model has a member, as far as its keys tell.
pub(crate) fn has_member(parts: &[Part], name: &str) -> bool {
    match parts::parse(parts) {
        Ok(parsed) if name.starts_with("tokenizer") => {
            let model = parsed.metadata.get("tokenizer.ggml.model").and_then(|model| model.as_text());
            !matches!(model, None | Some("none" | "no_vocab"))
        }
        // The error is for who reads the file.
        _ => MEMBERS.contains(&name),
    }
}
