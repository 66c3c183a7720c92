//! Tokenizers of `vocab.json` and `merges.txt`, by their class.

use std::path::Path;

use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;

use super::build::unknown_class;
use super::config::{TokenizerConfig, Tokens};
use super::parts::{CLIP_END, Parts};
use crate::error::{DataError, Result};

/// The tokenizer of two files.
///
/// Without a class, a vocabulary with RoBERTa's `<s>` and `</s>` is RoBERTa's, any other is GPT-2's.
pub(super) fn from_files(vocab: &Path, merges: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let error = |e: tokenizers::Error| DataError::tokenizer(vocab, e);
    let (Some(vocab_name), Some(merges_name)) = (vocab.to_str(), merges.to_str()) else {
        return Err(DataError::tokenizer(vocab, "the path is not UTF-8; move the folder"));
    };
    let named = match config.class() {
        None => None,
        Some("Qwen3") => Some(Parts::Qwen2),
        Some(class) => match Parts::of(class) {
            Some(
                parts @ (Parts::Blenderbot
                | Parts::Clip
                | Parts::Cohere
                | Parts::Deberta
                | Parts::Gpt2
                | Parts::GptNeoX
                | Parts::Qwen2
                | Parts::Roberta),
            ) => Some(parts),
            _ => return Err(DataError::tokenizer(vocab, unknown_class(config.class_name(), class))),
        },
    };
    let suffix = if named == Some(Parts::Clip) { CLIP_END } else { "" };
    let model = BPE::from_file(vocab_name, merges_name)
        .end_of_word_suffix(suffix.to_owned())
        .build()
        .map_err(error)?;
    let has_sentence_tokens = ["<s>", "</s>"].iter().all(|t| model.get_vocab().contains_key(*t));
    let guess = if has_sentence_tokens { Parts::Roberta } else { Parts::Gpt2 };
    let parts = named.unwrap_or(guess);
    let config = config.with_defaults(parts.defaults());
    let assemble = || {
        let mut tokenizer = Tokenizer::new(parts.of_pairs(model, &config));
        parts.dress(&mut tokenizer, &config, None)?;
        let added = config.added_tokens(&tokenizer, &Tokens::new());
        tokenizer.add_tokens(added)?;
        parts.frame(&mut tokenizer, &config, None)?;
        Ok(tokenizer)
    };
    assemble().map_err(error)
}
