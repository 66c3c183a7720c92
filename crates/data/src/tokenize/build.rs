//! Tokenizers built from a bare vocabulary or a `tokenizer.json`, as in transformers.

use std::path::Path;

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::unicode::{NFC, NFKC};
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::config::{TokenizerConfig, Tokens};
use crate::tokenize::parts::{Parts, Vocabulary};

/// The tokenizer of a `vocab.txt`, one token per line: BERT's unless the files name another class.
pub(crate) fn word_piece(path: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let bytes = lowrank_spec::read_file(path).map_err(DataError::io("read", path))?;
    let japanese = Japanese::of(config);
    let named = if japanese.is_some() { Ok(None) } else { config.named_parts(Vocabulary::Words) };
    let parts = named.map_err(|e| DataError::tokenizer(path, e))?.unwrap_or(Parts::Bert);
    let vocab = WordPiece::read_bytes(&bytes).map_err(|e| DataError::tokenizer(path, e))?;
    let config = config.with_defaults(parts.defaults());
    let unk = config.token("unk_token").to_owned();
    if !vocab.contains_key(&unk) {
        return Err(DataError::tokenizer(path, format!("the vocabulary lacks the unknown token '{unk}'")));
    }
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(unk)
        .build()
        .map_err(|e| DataError::tokenizer(path, e))?;
    let tokenizer = match japanese {
        Some(japanese) => japanese.tokenizer(model, &config),
        None => parts.assemble(model, None, Vec::new(), &config),
    };
    tokenizer.map_err(|e| DataError::tokenizer(path, e))
}

/// BERT's tokenizer for Japanese if it needs no dictionary: words between spaces and punctuation, split into
/// pieces or characters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Japanese {
    Pieces,
    Characters,
}

impl Japanese {
    fn of(config: &TokenizerConfig) -> Option<Self> {
        let is_basic = config.word_tokenizer_type.as_deref() == Some("basic");
        match config.subword_tokenizer_type.as_deref().unwrap_or("wordpiece") {
            _ if config.class() != Some("BertJapanese") || !is_basic => None,
            "wordpiece" => Some(Self::Pieces),
            "character" => Some(Self::Characters),
            _ => None,
        }
    }

    fn tokenizer(self, model: WordPiece, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
        let mut tokenizer = Parts::Bert.assemble(model, None, Vec::new(), config)?;
        tokenizer.with_decoder(Some(WordPieceDecoder::new("##".to_owned(), false)));
        let words =
            BertNormalizer::new(true, false, config.strip_accents, config.do_lower_case.unwrap_or(false));
        if self == Self::Pieces {
            tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), words.into()])))?;
            return Ok(tokenizer);
        }
        tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), words.into(), NFKC.into()])))?;
        let each = SplitPattern::Regex("(?s).".to_owned());
        let characters = Split::new(each, SplitDelimiterBehavior::Isolated, false)?;
        tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![BertPreTokenizer.into(), characters.into()])));
        Ok(tokenizer)
    }
}

/// BERT's template: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the second text with token type 1.
pub(crate) fn frame_as_bert(tokenizer: &mut Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    let (cls, sep) = (config.token("cls_token").to_owned(), config.token("sep_token").to_owned());
    let template = TemplateProcessing::builder()
        .try_single(format!("{cls}:0 $A:0 {sep}:0"))?
        .try_pair(format!("{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"))?
        .special_tokens(vec![(cls.clone(), id_of(tokenizer, &cls)?), (sep.clone(), id_of(tokenizer, &sep)?)])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

/// The tokenizer of a `tokenizer.json`: as it is, or rebuilt around its vocabulary by the class that the
/// files beside it mean; with the added tokens of those files and their flags.
pub(super) fn from_json(mut file: Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    if let Some(parts) = config.parts() {
        return parts.rebuild(&file, config);
    }
    let own: Tokens = file.get_added_tokens_decoder().into_iter().collect();
    let added = config.added_tokens(&file, &own);
    file.add_tokens(added)?;
    Ok(file)
}

/// Whether a class, without `Tokenizer`, takes a `tokenizer.json` as it is.
pub(super) fn is_generic(class: &str) -> bool {
    ["", "PreTrained", "TokenizersBackend", "PythonBackend", "Bloom"].contains(&class)
}

/// The error for a class whose bare vocabulary cannot be read.
pub(super) fn unknown_class(name: &str, class: &str) -> String {
    let remedy = if class == "BertJapanese" {
        "it splits words by a dictionary, which tokenizer.json cannot hold; take a model with a tokenizer.json"
    } else {
        "save it as tokenizer.json once, with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
    };
    format!("tokenizer_class '{name}' is not known by its vocabulary alone: {remedy}")
}

pub(super) fn id_of(tokenizer: &Tokenizer, token: &str) -> tokenizers::Result<u32> {
    tokenizer
        .token_to_id(token)
        .ok_or_else(|| format!("the vocabulary lacks the special token '{token}'").into())
}
