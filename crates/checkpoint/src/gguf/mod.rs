//! llama.cpp's files (GGUF): read as the Hugging Face folder that they were made from, and written.
//!
//! A file of a supported architecture is opened by [`Checkpoint::open`](crate::Checkpoint::open) as a checkpoint with
//! Hugging Face's tensor names, in which llama.cpp's changes (interleaved rows of queries and keys, 1 added to gains) are
//! undone. The small files of a folder are derived from its metadata: [`read_file`](crate::read_file) reads
//! `model.gguf/config.json`, `model.gguf/tokenizer.json` and `model.gguf/tokenizer_config.json` as if the file were a
//! folder.

mod adapter;
mod architecture;
mod config;
mod mix;
mod model;
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
pub use value::{Array, Value};
pub use write_tokenizer::TokenizerParts;

use crate::error::{Fault, excerpt};
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

/// The tensors of a file, and bytes that some of them lie in.
pub(crate) fn table(file: &[u8]) -> Result<(Table, Bytes), Fault> {
    let parsed = read::parse(file)?;
    refuse_part(&parsed)?;
    table::table(file, &parsed)
}

/// One of the [`MEMBERS`] of a file; none for another name, and for a tokenizer where the file has none.
pub(crate) fn member(file: &[u8], name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let parsed = read::parse(file)?;
    refuse_part(&parsed)?;
    let value = match name {
        "config.json" => Some(config::config(file, &parsed)?.into()),
        "tokenizer.json" => tokenizer::tokenizer(&parsed)?,
        "tokenizer_config.json" => tokenizer::tokenizer_config(&parsed)?,
        _ => None,
    };
    Ok(value.map(|value: serde_json::Value| value.to_string().into_bytes()))
}

/// Whether a file has a member, as far as its keys tell.
pub(crate) fn has_member(file: &[u8], name: &str) -> bool {
    match read::parse(file) {
        Ok(parsed) if name.starts_with("tokenizer") => {
            let model = parsed.metadata.get("tokenizer.ggml.model").and_then(|model| model.as_text());
            !matches!(model, None | Some("none" | "no_vocab"))
        }
        // The error is for who reads the file.
        _ => MEMBERS.contains(&name),
    }
}

/// Refuses one of several files of a model.
fn refuse_part(parsed: &read::Parsed<'_>) -> Result<(), Fault> {
    let count = parsed.metadata.get("split.count").and_then(|count| count.as_count()).unwrap_or(1);
    if count > 1 {
        let number = parsed.metadata.get("split.no").and_then(|number| number.as_count()).unwrap_or(0);
        let reason = format!("is part {} of {count}; join them with `llama-gguf-split --merge`", number + 1);
        return Err(Fault::file(excerpt(&reason)));
    }
    Ok(())
}
