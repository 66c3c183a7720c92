//! Tokenizers of `vocab.json` and `merges.txt`, by their class: normalization, splitting, and the template.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::{Lowercase, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::build::{add_tokens, id_of, unknown_class};
use super::config::TokenizerConfig;
use crate::error::{DataError, Result};

/// Splitting rule of Qwen2: single digits, line ends with the punctuation before them.
const QWEN2_PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
                             \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The characters that CLIP keeps; spaces are removed.
const CLIP_PATTERN: &str = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

/// The default special tokens of RoBERTa.
const ROBERTA: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
/// The default special tokens of GPT-2.
const GPT2: &[(&str, &str)] =
    &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
/// The default special tokens of Qwen2.
const QWEN2: &[(&str, &str)] = &[("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];
/// The default special tokens of CLIP.
const CLIP: &[(&str, &str)] = &[
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// The families that share splits and template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Gpt2,
    Roberta,
    Qwen2,
    Clip,
}

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
        Some("GPT2" | "GPTNeoX" | "CodeGen") => Some(Family::Gpt2),
        Some("Roberta" | "Bart" | "Longformer" | "LED") => Some(Family::Roberta),
        Some("Qwen2" | "Qwen3") => Some(Family::Qwen2),
        Some("CLIP") => Some(Family::Clip),
        Some(class) => return Err(DataError::tokenizer(vocab, unknown_class(config.class_name(), class))),
    };
    let suffix = if named == Some(Family::Clip) { "</w>" } else { "" };
    let mut model = BPE::from_file(vocab_name, merges_name)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(suffix.to_owned());
    if named == Some(Family::Clip) {
        model = model.unk_token(config.with_defaults(CLIP).token("unk_token").to_owned());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(error)?);
    let has_sentence_tokens = ["<s>", "</s>"].iter().all(|t| tokenizer.token_to_id(t).is_some());
    let guess = if has_sentence_tokens { Family::Roberta } else { Family::Gpt2 };
    assemble(&mut tokenizer, named.unwrap_or(guess), config).map_err(error)?;
    Ok(tokenizer)
}

/// Adds normalizer, splitter, decoder, added tokens and template to the model.
fn assemble(tokenizer: &mut Tokenizer, family: Family, config: &TokenizerConfig) -> tokenizers::Result<()> {
    let config = config.with_defaults(match family {
        Family::Gpt2 => GPT2,
        Family::Roberta => ROBERTA,
        Family::Qwen2 => QWEN2,
        Family::Clip => CLIP,
    });
    let add_prefix_space = config.add_prefix_space.unwrap_or(false) && family != Family::Clip;
    let bytes = ByteLevel::default().add_prefix_space(add_prefix_space);
    let regex = |pattern: &str| SplitPattern::Regex(pattern.to_owned());
    match family {
        Family::Gpt2 | Family::Roberta => {
            tokenizer.with_pre_tokenizer(Some(bytes));
        }
        Family::Qwen2 => {
            tokenizer.with_normalizer(Some(NFC))?;
            let split = Split::new(regex(QWEN2_PATTERN), SplitDelimiterBehavior::Isolated, false)?;
            let parts = vec![split.into(), bytes.use_regex(false).into()];
            tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
        }
        Family::Clip => {
            let spaces =
                Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex("\\s+".into()), " ")?;
            let parts = vec![NFC.into(), spaces.into(), Lowercase.into()];
            tokenizer.with_normalizer(Some(Normalizers::new(parts)))?;
            let split = Split::new(regex(CLIP_PATTERN), SplitDelimiterBehavior::Removed, true)?;
            tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![split.into(), bytes.into()])));
        }
    }
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    add_tokens(tokenizer, config.added_tokens())?;
    let around = match family {
        Family::Gpt2 | Family::Qwen2 => return Ok(()),
        Family::Roberta => ["sep_token", "cls_token"],
        Family::Clip => ["eos_token", "bos_token"],
    };
    let [sep, cls] = around.map(|role| {
        let token = config.token(role).to_owned();
        id_of(tokenizer, &token).map(|id| (token, id))
    });
    let processing = RobertaProcessing::new(sep?, cls?)
        .trim_offsets(config.trim_offsets.unwrap_or(family == Family::Roberta))
        .add_prefix_space(add_prefix_space);
    tokenizer.with_post_processor(Some(processing));
    Ok(())
}
