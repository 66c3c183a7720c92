//! SentencePiece models (Kudo and Richardson 2018) as the tokenizers into which transformers converts them:
//! Llama's BPE with byte fallback, and the Unigrams of T5 and DeBERTa.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{
    Lowercase, NFC, NormalizerWrapper, Precompiled, Sequence as Normalizers, Strip as StripSpaces,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::build::{add_tokens, frame_as_bert, id_of, unknown_class};
use crate::tokenize::config::TokenizerConfig;
use crate::tokenize::protobuf::{Fields, Value};

/// The character that stands for a space.
const SPACE: char = '▁';
/// The default special tokens of Llama.
const LLAMA: &[(&str, &str)] = &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];
/// The default special tokens of T5.
const T5: &[(&str, &str)] = &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];

/// The default special tokens of DeBERTa v2 and v3.
const DEBERTA: &[(&str, &str)] = &[
    ("bos_token", "[CLS]"),
    ("eos_token", "[SEP]"),
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
/// The name under which DeBERTa's model is published, mostly without a class beside it.
pub(super) const DEBERTA_FILE: &str = "spm.model";

/// A piece of the vocabulary.
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// `ModelProto.SentencePiece.Type`: a token that no text produces.
const CONTROL: u64 = 3;
/// A symbol that is always a single token.
const USER_DEFINED: u64 = 4;
/// `TrainerSpec.ModelType`.
const UNIGRAM: u64 = 1;
const BYTE_PAIRS: u64 = 2;

/// The parts of a `ModelProto` from which tokenizers are built.
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    unk_id: usize,
    /// Compiled normalization rules; empty if the model has none.
    rules: Vec<u8>,
}

impl Model {
    /// `sentencepiece_model.proto`, by its field numbers.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self { pieces: Vec::new(), kind: UNIGRAM, unk_id: 0, rules: Vec::new() };
        for field in Fields::new(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Value::Bytes(trainer)) => {
                    for field in Fields::new(trainer) {
                        match field? {
                            (3, Value::Number(kind)) => model.kind = kind,
                            (40, Value::Number(id)) => model.unk_id = id as usize,
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields::new(normalizer) {
                        if let (2, Value::Bytes(rules)) = field? {
                            model.rules = rules.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() || model.unk_id >= model.pieces.len() {
            return Err("holds no SentencePiece model".into());
        }
        Ok(model)
    }

    /// Control tokens, which are special, and user-defined symbols.
    fn added(&self) -> Vec<AddedToken> {
        let added = self.pieces.iter().filter(|piece| [CONTROL, USER_DEFINED].contains(&piece.kind));
        added
            .map(|piece| AddedToken::from(piece.text.as_str(), piece.kind == CONTROL).normalized(false))
            .collect()
    }

    /// The merges implied by the order of the pieces: the parts of every piece that are pieces too, earlier
    /// pieces first.
    fn merges(&self) -> Vec<(String, String)> {
        let ids: HashMap<&str, usize> =
            self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
        let mut merges = Vec::new();
        for piece in &self.pieces {
            let id = ids[piece.text.as_str()];
            for (cut, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(cut);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    merges.push(((id, left.chars().count(), right.chars().count(), *l, *r), left, right));
                }
            }
        }
        merges.sort_by_key(|(order, _, _)| *order);
        merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for field in Fields::new(bytes) {
            match field? {
                (1, Value::Bytes(text)) => {
                    piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not UTF-8")?;
                }
                (2, Value::Fixed(bits)) => piece.score = f32::from_bits(bits),
                (3, Value::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }
}

/// The tokenizer of a SentencePiece model, by the class that the files beside it name.
pub(super) fn from_file(path: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let bytes = lowrank_spec::read_file(path).map_err(DataError::io("read", path))?;
    let error = |message: String| DataError::tokenizer(path, message);
    let model = Model::parse(&bytes).map_err(error)?;
    let build = match (config.class(), model.kind) {
        (Some("Llama" | "CodeLlama"), BYTE_PAIRS) => llama,
        (Some("T5"), UNIGRAM) => t5,
        (Some("DebertaV2"), UNIGRAM) => deberta,
        (None, UNIGRAM) if path.ends_with(DEBERTA_FILE) => deberta,
        (Some(class), _) => return Err(error(unknown_class(config.class_name(), class))),
        (None, _) => {
            return Err(error(
                "the folder has a SentencePiece model alone, and no file names its tokenizer_class; save it as \
                 tokenizer.json once, with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
                    .into(),
            ));
        }
    };
    build(&model, config).map_err(|e| error(e.to_string()))
}

fn llama(model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let config = config.with_defaults(LLAMA);
    let vocab: Vocab = (0..).zip(&model.pieces).map(|(id, piece)| (piece.text.clone(), id)).collect();
    let bpe =
        BPE::builder().vocab_and_merges(vocab, model.merges()).fuse_unk(true).byte_fallback(true).build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    let spaced = config.add_prefix_space.unwrap_or(true);
    let scheme = match (spaced, config.legacy.unwrap_or(false)) {
        (false, _) => PrependScheme::Never,
        (true, true) => PrependScheme::Always,
        (true, false) => PrependScheme::First,
    };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, false)));
    let mut decoders =
        vec![Replace::new(SPACE.to_string(), " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if spaced {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    add_tokens(&mut tokenizer, model.added())?;
    add_tokens(&mut tokenizer, config.added_tokens())?;
    let frame = |wanted: bool, role: &str| wanted.then(|| config.token(role).to_owned());
    let bos = frame(config.add_bos_token.unwrap_or(true), "bos_token");
    let eos = frame(config.add_eos_token.unwrap_or(false), "eos_token");
    let part = |text: &str, segment: usize| -> String {
        let token = |token: &Option<String>| token.as_ref().map(|token| format!("{token}:{segment} "));
        let (bos, eos) = (token(&bos).unwrap_or_default(), token(&eos).unwrap_or_default());
        format!("{bos}{text}:{segment} {eos}").trim().to_owned()
    };
    let special = [&bos, &eos].into_iter().flatten();
    let special = special.map(|token| Ok((token.clone(), id_of(&tokenizer, token)?)));
    let template = TemplateProcessing::builder()
        .try_single(part("$A", 0))?
        .try_pair(format!("{} {}", part("$A", 0), part("$B", 1)))?
        .special_tokens(special.collect::<tokenizers::Result<Vec<_>>>()?)
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

fn t5(model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let config = config.with_defaults(T5);
    let extra: Vec<String> =
        (0..config.extra_ids.unwrap_or(100)).map(|i| format!("<extra_id_{i}>")).collect();
    let mut vocab: Vec<(String, f64)> =
        model.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
    vocab.extend(extra.iter().rev().map(|token| (token.clone(), 0.0)));
    let mut tokenizer = Tokenizer::new(Unigram::from(vocab, Some(2), false)?);
    if !model.rules.is_empty() {
        tokenizer.with_normalizer(Some(Precompiled::from(&model.rules)?))?;
    }
    let spaces = || Metaspace::new(SPACE, PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![WhitespaceSplit.into(), spaces().into()])));
    tokenizer.with_decoder(Some(spaces()));
    add_tokens(&mut tokenizer, model.added())?;
    add_tokens(&mut tokenizer, extra.iter().map(|token| AddedToken::from(token.as_str(), true)).collect())?;
    add_tokens(&mut tokenizer, config.added_tokens())?;
    let eos = config.token("eos_token").to_owned();
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {eos}"))?
        .try_pair(format!("$A {eos} $B {eos}"))?
        .special_tokens(vec![(eos.clone(), id_of(&tokenizer, &eos)?)])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// transformers 5 takes the pieces of the model and none of its rules.
fn deberta(model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let config = config.with_defaults(DEBERTA);
    let vocab: Vec<(String, f64)> =
        model.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
    let unk_token = config.token("unk_token");
    // As transformers: the id of a later default where the vocabulary has no such token of score 0.
    let unk_id = vocab.iter().position(|(text, score)| text == unk_token && *score == 0.0).unwrap_or(1);
    let mut tokenizer = Tokenizer::new(Unigram::from(vocab, Some(unk_id), false)?);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if config.do_lower_case.unwrap_or(false) {
        normalizers.push(Lowercase.into());
    }
    let spaces = ReplacePattern::Regex(r"\s{2,}|[\n\r\t]".to_owned());
    normalizers.extend([Replace::new(spaces, " ")?.into(), NFC.into(), StripSpaces::new(false, true).into()]);
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
    let scheme =
        if config.add_prefix_space.unwrap_or(true) { PrependScheme::Always } else { PrependScheme::First };
    let spaces = || Metaspace::new(SPACE, scheme, true);
    let mut splitters: Vec<PreTokenizerWrapper> = Vec::new();
    if config.split_by_punct.unwrap_or(false) {
        splitters.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    splitters.push(spaces().into());
    tokenizer.with_pre_tokenizer(Some(Splitters::new(splitters)));
    tokenizer.with_decoder(Some(spaces()));
    add_tokens(&mut tokenizer, model.added())?;
    add_tokens(&mut tokenizer, config.added_tokens())?;
    frame_as_bert(&mut tokenizer, &config)?;
    Ok(tokenizer)
}
