//! Tokenizers of `vocab.json` and `merges.txt`, by their class.

use std::path::Path;

use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;

use super::config::TokenizerConfig;
use super::parts::{Parts, Vocabulary};
use crate::error::{DataError, Result};

/// The tokenizer of two files.
///
/// If the files neither name nor imply a class, a vocabulary with `<s>` and `</s>` is taken for RoBERTa's, any other for
/// GPT-2's.
pub(super) fn from_files(vocab: &Path, merges: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let error = |e: tokenizers::Error| DataError::tokenizer(vocab, e);
    let (Some(vocab_name), Some(merges_name)) = (vocab.to_str(), merges.to_str()) else {
        return Err(DataError::tokenizer(vocab, "the path is not UTF-8; move the folder"));
    };
    let named = config.named_parts(Vocabulary::Bytes).map_err(|e| DataError::tokenizer(vocab, e))?;
    let model = BPE::from_file(vocab_name, merges_name).build().map_err(error)?;
    let has_sentence_tokens = ["<s>", "</s>"].iter().all(|t| model.get_vocab().contains_key(*t));
    let guess = if has_sentence_tokens { Parts::Roberta } else { Parts::Gpt2 };
    let parts = named.unwrap_or(guess);
    let config = config.with_defaults(parts.defaults());
    parts.assemble(parts.of_pairs(model, &config), None, Vec::new(), &config).map_err(error)
}
