//! Tokenizers made from a bare vocabulary, as transformers makes them, and settings that override a `tokenizer.json`.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::config::TokenizerConfig;

/// The default special tokens of BERT.
const BERT: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
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

/// BERT's tokenizer from `vocab.txt`, one token per line.
pub(crate) fn word_piece(path: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    let vocab = WordPiece::read_bytes(&bytes).map_err(|e| DataError::tokenizer(path, e))?;
    let config = config.with_defaults(BERT);
    let unk = config.token("unk_token").to_owned();
    if !vocab.contains_key(&unk) {
        return Err(DataError::tokenizer(path, format!("the vocabulary lacks the unknown token '{unk}'")));
    }
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(unk)
        .build()
        .map_err(|e| DataError::tokenizer(path, e))?;
    bert_tokenizer(model, &config).map_err(|e| DataError::tokenizer(path, e))
}

/// Puts BERT's normalizer, splitter, template and decoder around a WordPiece model.
pub(crate) fn bert_tokenizer(model: WordPiece, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let config = config.with_defaults(BERT);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(
        true,
        config.tokenize_chinese_chars.unwrap_or(true),
        config.strip_accents,
        config.do_lower_case.unwrap_or(true),
    )))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    add_tokens(&mut tokenizer, config.added_tokens())?;
    let (cls, sep) = (config.token("cls_token").to_owned(), config.token("sep_token").to_owned());
    let template = TemplateProcessing::builder()
        .try_single(format!("{cls}:0 $A:0 {sep}:0"))?
        .try_pair(format!("{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"))?
        .special_tokens(vec![
            (cls.clone(), id_of(&tokenizer, &cls)?),
            (sep.clone(), id_of(&tokenizer, &sep)?),
        ])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// RoBERTa's or GPT-2's tokenizer from `vocab.json` and `merges.txt`.
///
/// It is RoBERTa's where the configuration says so, or says nothing and the vocabulary has RoBERTa's `<s>` and `</s>`.
pub(crate) fn byte_level_bpe(vocab: &Path, merges: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let error = |e: tokenizers::Error| DataError::tokenizer(vocab, e);
    let (Some(vocab_name), Some(merges_name)) = (vocab.to_str(), merges.to_str()) else {
        return Err(DataError::tokenizer(vocab, "the path is not UTF-8; move the folder"));
    };
    let model = BPE::from_file(vocab_name, merges_name)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build()
        .map_err(error)?;
    let mut tokenizer = Tokenizer::new(model);
    let has_sentence_tokens = ["<s>", "</s>"].iter().all(|t| tokenizer.token_to_id(t).is_some());
    let is_roberta =
        config.class_contains("roberta") || (!config.class_contains("gpt2") && has_sentence_tokens);
    let config = config.with_defaults(if is_roberta { ROBERTA } else { GPT2 });
    let add_prefix_space = config.add_prefix_space.unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(add_prefix_space)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    add_tokens(&mut tokenizer, config.added_tokens()).map_err(error)?;
    if is_roberta {
        let pair = |role: &str| -> tokenizers::Result<(String, u32)> {
            let token = config.token(role).to_owned();
            let id = id_of(&tokenizer, &token)?;
            Ok((token, id))
        };
        let (sep, cls) = (pair("sep_token").map_err(error)?, pair("cls_token").map_err(error)?);
        let processing = RobertaProcessing::new(sep, cls)
            .trim_offsets(config.trim_offsets.unwrap_or(true))
            .add_prefix_space(add_prefix_space);
        tokenizer.with_post_processor(Some(processing));
    }
    Ok(tokenizer)
}

/// Lets what `tokenizer_config.json` states outright win over `tokenizer.json`, as transformers does.
pub(crate) fn apply_config(tokenizer: &mut Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    if let Some(NormalizerWrapper::BertNormalizer(stored)) = tokenizer.get_normalizer() {
        let mut normalizer = *stored;
        normalizer.lowercase = config.do_lower_case.unwrap_or(normalizer.lowercase);
        normalizer.strip_accents = config.strip_accents.or(normalizer.strip_accents);
        normalizer.handle_chinese_chars =
            config.tokenize_chinese_chars.unwrap_or(normalizer.handle_chinese_chars);
        tokenizer.with_normalizer(Some(normalizer))?;
    }
    if let Some(PreTokenizerWrapper::ByteLevel(stored)) = tokenizer.get_pre_tokenizer()
        && let Some(add_prefix_space) = config.add_prefix_space
    {
        let splitter = stored.add_prefix_space(add_prefix_space);
        tokenizer.with_pre_tokenizer(Some(splitter));
    }
    Ok(())
}

fn add_tokens(tokenizer: &mut Tokenizer, tokens: Vec<AddedToken>) -> tokenizers::Result<()> {
    for token in tokens {
        if token.special {
            tokenizer.add_special_tokens([token])?;
        } else {
            tokenizer.add_tokens([token])?;
        }
    }
    Ok(())
}

fn id_of(tokenizer: &Tokenizer, token: &str) -> tokenizers::Result<u32> {
    tokenizer
        .token_to_id(token)
        .ok_or_else(|| format!("the vocabulary lacks the special token '{token}'").into())
}
