//! Byte-level BPE trained on texts, as for GPT-2 (Sennrich et al. 2016, Radford et al. 2019).

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use crate::error::{DataError, Result};

/// A tokenizer of the raw byte-level family.
type ByteLevelBpe =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains a byte-level BPE; the result is the content of a `tokenizer.json`, identical for identical texts.
///
/// The special tokens have the first ids, followed by the 256 bytes. The result has fewer than `vocab_size`
/// tokens if the texts have no more pairs to merge.
///
/// # Errors
/// [`DataError::OutOfRange`] for a vocabulary without room for bytes and special tokens,
/// [`DataError::Tokenizer`] if the training fails.
///
/// ```
/// let json = lowrank_data::tokenize::train_byte_level(["low rank", "low lows"], 260, &["<eos>"])?;
/// let tokenizer = lowrank_data::tokenize::TextTokenizer::from_bytes("tokenizer.json".as_ref(), json.as_bytes(), None)?;
/// let ids = tokenizer.encode("lower", None)?.ids;
/// assert_eq!(tokenizer.decode(&ids, false)?, "lower");
/// assert!(ids.len() < 5);
/// # Ok::<(), lowrank_data::DataError>(())
/// ```
pub fn train_byte_level<'t, I>(texts: I, vocab_size: usize, special: &[&str]) -> Result<String>
where
    I: IntoIterator<Item = &'t str>,
    I::IntoIter: Send,
{
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + special.len();
    if vocab_size < least {
        let expected = format!("at least {least}, for the bytes and the special tokens");
        return Err(DataError::OutOfRange { what: "vocabulary", got: vocab_size.to_string(), expected });
    }
    let error = |e: tokenizers::Error| DataError::tokenizer(Path::new("(new)"), e);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .special_tokens(special.iter().map(|token| AddedToken::from(*token, true)).collect())
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer: ByteLevelBpe = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(byte_level.into()))
        .with_post_processor(None)
        .with_decoder(Some(byte_level.into()))
        .build()
        .map_err(error)?;
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(error)?;
    let mut json = tokenizer.to_string(true).map_err(error)?;
    json.push('\n');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_is_repeatable_and_refuses_too_small_a_vocabulary() {
        let texts: Vec<String> = (0..200).map(|i| format!("word{} of {}", i % 17, i % 13)).collect();
        let learn = |size| train_byte_level(texts.iter().map(String::as_str), size, &["<a>", "<b>"]);
        assert_eq!(learn(300).unwrap(), learn(300).unwrap());
        let error = learn(257).unwrap_err().to_string();
        assert!(error.contains("257") && error.contains("258"), "{error}");
    }
}
