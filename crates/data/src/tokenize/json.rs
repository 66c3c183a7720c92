//! `tokenizer.json`, read once for a folder.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{PaddingParams, Tokenizer};

use lowrank_checkpoint::{has_file, read_file};

use crate::error::{DataError, Result};

/// The `tokenizer.json` of a folder or GGUF file, read on first use.
pub(super) struct TokenizerJson {
    path: PathBuf,
    stored: OnceCell<Option<Stored>>,
}

/// The file's bytes, checked to be JSON, and its `padding`.
struct Stored {
    bytes: Vec<u8>,
    head: Head,
}

#[derive(Deserialize)]
struct Head {
    padding: Option<PaddingParams>,
}

impl TokenizerJson {
    pub(super) fn of(folder: &Path) -> Self {
        Self { path: folder.join("tokenizer.json"), stored: OnceCell::new() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn stored(&self) -> Result<Option<&Stored>> {
        if let Some(stored) = self.stored.get() {
            return Ok(stored.as_ref());
        }
        let stored = if has_file(&self.path) {
            let bytes = read_file(&self.path).map_err(DataError::io("read", &self.path))?;
            let head = head(&self.path, &bytes)?;
            Some(Stored { bytes, head })
        } else {
            None
        };
        Ok(self.stored.get_or_init(|| stored).as_ref())
    }

    /// Whether it has a byte-level part.
    pub(super) fn has_bytes(&self) -> Result<bool> {
        const NAME: &[u8] = b"\"ByteLevel\"";
        let stored = self.stored()?;
        Ok(stored.is_some_and(|stored| stored.bytes.windows(NAME.len()).any(|part| part == NAME)))
    }

    /// `pad_token` of its `padding`.
    pub(super) fn pad_token(&self) -> Result<Option<&str>> {
        let padding = self.stored()?.and_then(|stored| stored.head.padding.as_ref());
        Ok(padding.map(|padding| padding.pad_token.as_str()))
    }

    /// The tokenizer; `None` if the folder has no such file.
    pub(super) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        self.stored()?.map(|stored| build(&self.path, &stored.bytes)).transpose()
    }
}

/// The tokenizer of the bytes of a `tokenizer.json`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    head(path, bytes)?;
    build(path, bytes)
}

fn head(path: &Path, bytes: &[u8]) -> Result<Head> {
    serde_json::from_slice(bytes).map_err(|e| DataError::tokenizer(path, e))
}

/// Catches panics of tokenizers 0.23.2 on malformed parts. It also panics on bytes that are not JSON, which [`head`] refuses
/// first.
fn build(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes));
    parsed
        .map_err(|_| {
            DataError::tokenizer(path, "a part of the tokenizer is malformed; fetch the file again")
        })?
        .map_err(|e| DataError::tokenizer(path, e))
}
