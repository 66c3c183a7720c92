//! SentencePiece models (Kudo and Richardson 2018) as the tokenizers into which transformers converts them:
//! Llama's BPE with byte fallback, and the Unigrams of T5 and DeBERTa.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::build::unknown_class;
use crate::tokenize::config::{TokenizerConfig, Tokens};
use crate::tokenize::parts::Parts;
use crate::tokenize::protobuf::{Fields, Value};

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

    /// The pieces with their scores.
    fn scores(&self) -> Vec<(String, f64)> {
        self.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect()
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
    let parts = if config.class() == Some("CodeLlama") { Parts::CodeLlama } else { Parts::Llama };
    let vocab: Vocab = (0..).zip(&model.pieces).map(|(id, piece)| (piece.text.clone(), id)).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, model.merges()).build()?;
    let config = config.with_defaults(parts.defaults());
    assemble(parts, parts.of_pairs(bpe, &config), model, &[], &config)
}

fn t5(model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let extra: Vec<String> =
        (0..config.extra_ids.unwrap_or(100)).map(|i| format!("<extra_id_{i}>")).collect();
    let mut vocab = model.scores();
    vocab.extend(extra.iter().rev().map(|token| (token.clone(), 0.0)));
    let config = config.with_defaults(Parts::T5.defaults());
    let unk_id = Parts::T5.unknown(&vocab, &config);
    assemble(Parts::T5, Unigram::from(vocab, Some(unk_id), false)?, model, &extra, &config)
}

fn deberta(model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let config = config.with_defaults(Parts::DebertaV2.defaults());
    let vocab = model.scores();
    let unk_id = Parts::DebertaV2.unknown(&vocab, &config);
    assemble(Parts::DebertaV2, Unigram::from(vocab, Some(unk_id), false)?, model, &[], &config)
}

/// The class's tokenizer around a vocabulary, with added tokens of the model and `extra` ones.
fn assemble(
    parts: Parts,
    vocabulary: impl Into<ModelWrapper>,
    model: &Model,
    extra: &[String],
    config: &TokenizerConfig,
) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(vocabulary);
    let rules = (!model.rules.is_empty()).then(|| Precompiled::from(&model.rules)).transpose()?;
    parts.dress(&mut tokenizer, config, rules)?;
    tokenizer.add_tokens(model.added())?;
    tokenizer.add_tokens(extra.iter().map(|token| AddedToken::from(token.as_str(), true)))?;
    let added = config.added_tokens(&tokenizer, &Tokens::new());
    tokenizer.add_tokens(added)?;
    parts.frame(&mut tokenizer, config, None)?;
    Ok(tokenizer)
}
