//! SentencePiece models (Kudo and Richardson 2018) as the tokenizers into which transformers converts them:
//! Llama's BPE with byte fallback, and the Unigrams of T5, DeBERTa, XLM-RoBERTa and mBART.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::has_file;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{DataError, Result};
use crate::tokenize::build::unknown_class;
use crate::tokenize::config::TokenizerConfig;
use crate::tokenize::has_vocabulary;
use crate::tokenize::parts::{Parts, Vocabulary};
use crate::tokenize::protobuf::{Fields, Value};

/// The name under which DeBERTa's model is published, mostly without a class beside it.
const DEBERTA_FILE: &str = "spm.model";

/// Names of SentencePiece models.
const NAMES: [&str; 4] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", DEBERTA_FILE];

/// The SentencePiece model of a folder without any other vocabulary.
pub(super) fn only_file(folder: &Path) -> Option<PathBuf> {
    let name = NAMES.iter().find(|name| !has_vocabulary(folder) && has_file(folder.join(name)))?;
    Some(folder.join(name))
}

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

    /// Control tokens, which are special, and user-defined symbols: the special tokens without a role, unless the files
    /// list others.
    fn added(&self, config: &TokenizerConfig) -> Vec<AddedToken> {
        if config.has_extra() {
            return Vec::new();
        }
        let added = self.pieces.iter().filter(|piece| [CONTROL, USER_DEFINED].contains(&piece.kind));
        added
            .map(|piece| AddedToken::from(piece.text.as_str(), piece.kind == CONTROL).normalized(false))
            .collect()
    }

    fn rules(&self) -> tokenizers::Result<Option<Precompiled>> {
        Ok((!self.rules.is_empty()).then(|| Precompiled::from(&self.rules)).transpose()?)
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

/// The tokenizer of a SentencePiece model, by the class that the files beside it name or imply.
pub(super) fn from_file(path: &Path, config: &TokenizerConfig) -> Result<Tokenizer> {
    let bytes = lowrank_spec::read_file(path).map_err(DataError::io("read", path))?;
    let error = |message: String| DataError::tokenizer(path, message);
    let model = Model::parse(&bytes).map_err(error)?;
    let kind = if model.kind == UNIGRAM { Vocabulary::Pieces } else { Vocabulary::Characters };
    let parts = match config.class() {
        None if path.ends_with(DEBERTA_FILE) && model.kind == UNIGRAM => Some(Parts::DebertaV2),
        _ => config.named_parts(kind).map_err(error)?,
    };
    let built = match (parts, model.kind) {
        (Some(parts @ (Parts::CodeLlama | Parts::Llama)), BYTE_PAIRS) => byte_pairs(parts, &model, config),
        (
            Some(parts @ (Parts::DebertaV2 | Parts::MBart | Parts::MBart50 | Parts::T5 | Parts::XlmRoberta)),
            UNIGRAM,
        ) => unigram(parts, &model, config),
        _ => {
            return Err(error(match config.class() {
                Some(class) => unknown_class(config.class_name(), class),
                None => "the folder has only a SentencePiece model, and no file names a tokenizer_class that can be built \
                         from it; save it as tokenizer.json once, with \
                         AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
                    .into(),
            }));
        }
    };
    built.map_err(|e| error(e.to_string()))
}

fn byte_pairs(parts: Parts, model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let vocab: Vocab = (0..).zip(&model.pieces).map(|(id, piece)| (piece.text.clone(), id)).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, model.merges()).build()?;
    let config = config.with_defaults(parts.defaults());
    parts.assemble(parts.of_pairs(bpe, &config), model.rules()?, model.added(&config), &config)
}

fn unigram(parts: Parts, model: &Model, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
    let n_extra = if parts == Parts::T5 { config.extra_ids.unwrap_or(100) } else { 0 };
    let extra: Vec<String> = (0..n_extra).map(|i| format!("<extra_id_{i}>")).collect();
    let config = config.with_defaults(parts.defaults());
    let mut vocab = model.scores();
    if matches!(parts, Parts::MBart | Parts::MBart50 | Parts::XlmRoberta) {
        // The layout of fairseq, whose first tokens stand for the model's own three.
        let start = if parts == Parts::MBart50 { "cls_token" } else { "bos_token" };
        let first = [start, "pad_token", "eos_token", "unk_token"].map(|role| config.token(role));
        vocab.splice(..vocab.len().min(3), first.map(|token| (token.to_owned(), 0.0)));
        let last = parts.additional().iter().copied().chain([config.token("mask_token")]);
        vocab.extend(last.map(|token| (token.to_owned(), 0.0)));
    }
    vocab.extend(extra.iter().rev().map(|token| (token.clone(), 0.0)));
    let unk_id = parts.unknown(&vocab, &config);
    let mut own = model.added(&config);
    if !config.has_extra() {
        own.extend(extra.iter().map(|token| AddedToken::from(token.as_str(), true)));
    }
    parts.assemble(Unigram::from(vocab, Some(unk_id), false)?, model.rules()?, own, &config)
}
