//! From text to token ids: the tokenizer of a Hugging Face model folder, without padding.

mod build;
mod byte_level;
mod class;
mod config;
mod json;
mod long;
mod parts;
mod protobuf;
mod sentencepiece;
mod train;
mod windows;
mod words;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank_checkpoint::gguf::is_gguf;
use lowrank_checkpoint::has_file;
use rayon::prelude::*;
use tokenizers::{Encoding, ModelWrapper, PostProcessor, Tokenizer, TruncationDirection};

use crate::error::{DataError, Result};
use crate::glue::Example;
use config::TokenizerConfig;
use json::TokenizerJson;

pub use train::train_byte_level;
pub use windows::Window;
pub use words::WordSpan;

/// The tokens of one text or pair, special tokens included, never padded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Token ids, shape `[tokens]`.
    pub ids: Vec<u32>,
    /// The segment of each token (0, or 1 in the second text of a BERT pair), shape `[tokens]`; all 0 if the tokenizer's
    /// `model_input_names`, or its class, have no `token_type_ids`.
    pub type_ids: Vec<u32>,
}

/// The ids of the tokens with special roles; `None` if the model has no such token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    /// First token of an encoder's input.
    pub cls: Option<u32>,
    /// Separator of an encoder's input.
    pub sep: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// The mask token of masked language modelling.
    pub mask: Option<u32>,
    /// Unknown words.
    pub unk: Option<u32>,
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
}

/// The languages that a tokenizer marks in texts (mBART).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Languages {
    /// The token of `src_lang`, which every text has.
    pub source: u32,
    /// The token of `tgt_lang`, which texts to be written have in its place; `None` if the files name none.
    pub target: Option<u32>,
}

/// A model's tokenizer, equal to `transformers`' fast tokenizers on the same files.
///
/// Special tokens and the templates for single texts and pairs are those of the files. Over-long input is
/// truncated longest-first, on the side that the files name (`truncation_side`), to `max_length` tokens including
/// special ones; nothing is ever padded. Special tokens that are written out in a text are parsed as such, unless the files
/// say `split_special_tokens`.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    max_length: Option<usize>,
    truncated_side: TruncationDirection,
    special: SpecialIds,
    languages: Option<Languages>,
    model_max_length: Option<usize>,
    /// Whether decoding removes spaces before punctuation (`clean_up_tokenization_spaces`).
    cleans: bool,
    /// Whether the model is given token types.
    passes_types: bool,
    /// The tokenizer of words, if it is a different one.
    of_words: OnceLock<Option<Tokenizer>>,
}

/// Whether a folder has a tokenizer: one of the files that [`TextTokenizer::from_folder`] reads.
pub fn has_tokenizer(folder: &Path) -> bool {
    has_vocabulary(folder) || sentencepiece::only_file(folder).is_some()
}

/// Whether a folder has a vocabulary other than a SentencePiece model.
fn has_vocabulary(folder: &Path) -> bool {
    let has = |name: &str| has_file(folder.join(name));
    has("tokenizer.json") || has("vocab.txt") || (has("vocab.json") && has("merges.txt"))
}

impl TextTokenizer {
    /// Loads the tokenizer of a model folder, or of a GGUF file by its metadata: `tokenizer.json`, or else
    /// `vocab.txt` (WordPiece of BERT or MPNet), or else `vocab.json` with `merges.txt` (byte-level BPE of GPT-2, RoBERTa,
    /// Qwen2, CLIP and others), or else a SentencePiece model (Llama's, T5's, DeBERTa's, XLM-RoBERTa's or mBART's); in each case by the class.
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` are honoured if present.
    ///
    /// A `tokenizer.json` is taken as it is, or rebuilt around its vocabulary, as transformers 5 does by
    /// `tokenizer_class` and `model_type`; `do_lower_case`, `strip_accents`, `tokenize_chinese_chars`,
    /// `add_prefix_space` and `legacy` count in the latter case.
    ///
    /// `max_length` counts special tokens; with `None` nothing is truncated.
    ///
    /// # Errors
    /// A missing folder or file, malformed files, a vocabulary without the unknown token or without the template's
    /// tokens, a `max_length` that leaves no room beside the special tokens of a pair.
    pub fn from_folder(folder: &Path, max_length: Option<usize>) -> Result<Self> {
        if !folder.is_dir() && !is_gguf(folder) {
            return Err(DataError::NotFound {
                what: "model folder".to_owned(),
                path: folder.to_path_buf(),
                remedy: "name a folder in Hugging Face layout".to_owned(),
            });
        }
        let json = TokenizerJson::of(folder);
        let config = TokenizerConfig::read(folder, &json)?;
        let vocab_txt = folder.join("vocab.txt");
        let (vocab_json, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let (path, inner) = if let Some(file) = json.tokenizer()? {
            let inner = build::from_json(file, &config).map_err(|e| DataError::tokenizer(json.path(), e))?;
            (json.path().to_path_buf(), inner)
        } else if has_file(&vocab_txt) {
            let inner = build::word_piece(&vocab_txt, &config)?;
            (vocab_txt, inner)
        } else if has_file(&vocab_json) && has_file(&merges) {
            let inner = byte_level::from_files(&vocab_json, &merges, &config)?;
            (vocab_json, inner)
        } else if let Some(path) = sentencepiece::only_file(folder) {
            let inner = sentencepiece::from_file(&path, &config)?;
            (path, inner)
        } else {
            return Err(DataError::NotFound {
                what: "tokenizer".to_owned(),
                path: folder.to_path_buf(),
                remedy:
                    "looked for tokenizer.json, vocab.txt, vocab.json with merges.txt, and tokenizer.model; copy one from the \
                         model's original folder"
                        .to_owned(),
            });
        };
        if let Some((token, id, found)) = config.misplaced(&inner) {
            let found = found.map_or("no id".to_owned(), |id| format!("the id {id}"));
            let message = format!("the files beside it give '{token}' the id {id}, and here it has {found}");
            return Err(DataError::tokenizer(&path, message));
        }
        Self::new(path, inner, &config, max_length)
    }

    /// Loads one `tokenizer.json`, without the configuration beside it.
    ///
    /// # Errors
    /// As [`TextTokenizer::from_folder`].
    pub fn from_file(path: &Path, max_length: Option<usize>) -> Result<Self> {
        let bytes = lowrank_spec::read_file(path).map_err(DataError::io("read", path))?;
        Self::from_bytes(path, &bytes, max_length)
    }

    /// Loads the bytes of a `tokenizer.json`; `path` identifies them in messages.
    ///
    /// # Errors
    /// As [`TextTokenizer::from_folder`].
    pub fn from_bytes(path: &Path, bytes: &[u8], max_length: Option<usize>) -> Result<Self> {
        let inner = json::parse(path, bytes)?;
        Self::new(path.to_path_buf(), inner, &TokenizerConfig::default(), max_length)
    }

    fn new(
        path: PathBuf,
        mut inner: Tokenizer,
        config: &TokenizerConfig,
        max_length: Option<usize>,
    ) -> Result<Self> {
        if let Some(post_processor) = inner.get_post_processor() {
            let post_processor = serde_json::to_value(post_processor)
                .map_err(|e| DataError::tokenizer(&path, e.to_string()))?;
            check_templates(&post_processor).map_err(|e| DataError::tokenizer(&path, e))?;
        }
        let own_side = inner.get_truncation().map(|truncation| truncation.direction);
        let side = config.truncation_side().map_err(|e| DataError::tokenizer(&path, e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| DataError::tokenizer(&path, e))?;
        inner.set_encode_special_tokens(config.split_special_tokens == Some(true));
        let added = added_tokens(&inner, true);
        if let Some(max_length) = max_length
            && max_length <= added
        {
            let expected = format!("this tokenizer adds {added} special tokens to a pair, so give more");
            return Err(DataError::OutOfRange { what: "max_length", got: max_length.to_string(), expected });
        }
        let special = config.special_ids(&inner);
        let languages = config.languages(&inner).map_err(|e| DataError::tokenizer(&path, e))?;
        // transformers ignores it for BPE, where it would remove spaces of the text.
        let cleans = config.clean_up_tokenization_spaces == Some(true)
            && !matches!(inner.get_model(), ModelWrapper::BPE(_));
        let tokenizer = Self {
            inner,
            max_length,
            truncated_side: side.or(own_side).unwrap_or(TruncationDirection::Right),
            special,
            languages,
            model_max_length: config.model_max_length(),
            cleans,
            passes_types: config.passes_types(),
            of_words: OnceLock::new(),
        };
        // Encoding anything detects a vocabulary without its unknown token now instead of at some row of a
        // data set.
        tokenizer.encode("\u{10FFFD} a", None).map_err(|e| match e {
            DataError::Encoding { message, .. } => DataError::Tokenizer { path, message },
            other => other,
        })?;
        Ok(tokenizer)
    }

    /// Encodes a text or a pair with the model's special tokens.
    ///
    /// # Errors
    /// [`DataError::Encoding`] if the tokenizer's model refuses the text.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Encoded> {
        // The library's own truncation stops tokenizing early and then picks the wrong one of two over-long
        // texts as the longer (tokenizers 0.23.2), so each text is tokenized completely and truncated here,
        // by transformers' rule. Only of a single text whose end is cut off is the beginning enough.
        let is_beginning = pair.is_none() && matches!(self.truncated_side, TruncationDirection::Right);
        let room = self.max_length.filter(|_| is_beginning);
        let mut first = self.part(text, room)?;
        let mut second = pair.map(|pair| self.part(pair, None)).transpose()?;
        if let Some(max_length) = self.max_length {
            let room = max_length - added_tokens(&self.inner, pair.is_some());
            truncate(&mut first, second.as_mut(), room, self.truncated_side);
        }
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let encoding = self.inner.post_process(first, second, true).map_err(DataError::encoding)?;
        Ok(self.encoded(&encoding))
    }

    fn encoded(&self, encoding: &Encoding) -> Encoded {
        let ids = encoding.get_ids().to_vec();
        let type_ids = if self.passes_types { encoding.get_type_ids().to_vec() } else { vec![0; ids.len()] };
        Encoded { ids, type_ids }
    }

    /// Encodes a text unchanged: special tokens that it spells out are parsed as such, none is added, nothing
    /// is truncated. Each token comes with its byte range in `text`.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        if text.len() > long::LONG {
            let (ids, offsets) = self.long_spans(text)?;
            return Ok((ids, offsets.into_iter().map(|(start, end)| start..end).collect()));
        }
        let encoding = self.inner.encode(text, false).map_err(DataError::encoding)?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The first `room` tokens of a text without special ones, or the last if the files say to truncate on the left; and
    /// whether there were more.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn encode_within(&self, text: &str, room: usize) -> Result<(Vec<u32>, bool)> {
        let is_right = matches!(self.truncated_side, TruncationDirection::Right);
        let mut encoding = self.part(text, is_right.then_some(room))?;
        let is_cut = encoding.len() > room;
        truncate(&mut encoding, None, room, self.truncated_side);
        Ok((encoding.get_ids().to_vec(), is_cut))
    }

    /// Encodes many texts or pairs on all cores, in order.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`], with the number of the text, from 1.
    pub fn encode_batch<'s>(
        &self,
        rows: impl IntoIterator<Item = (&'s str, Option<&'s str>)>,
    ) -> Result<Vec<Encoded>> {
        let rows: Vec<(&str, Option<&str>)> = rows.into_iter().collect();
        let encode = |(index, (text, pair)): (usize, &(&str, Option<&str>))| {
            self.encode(text, *pair).map_err(|error| error.of_text(index))
        };
        rows.par_iter().enumerate().map(encode).collect()
    }

    /// Encodes the rows of a task.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn encode_examples(&self, examples: &[Example]) -> Result<Vec<Encoded>> {
        self.encode_batch(examples.iter().map(|e| (e.text.as_str(), e.pair.as_deref())))
    }

    /// Decodes ids into text, without the special tokens if `skip_special`, and without the spaces before punctuation if
    /// `tokenizer_config.json` asks for it (`clean_up_tokenization_spaces`).
    ///
    /// # Errors
    /// [`DataError::Encoding`] if the tokenizer's decoder refuses the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self.inner.decode(ids, skip_special).map_err(DataError::encoding)?;
        Ok(if self.cleans { cleaned(&text) } else { text })
    }

    /// The number of characters at the end of a decoded text that further tokens may change, incomplete characters aside.
    pub fn unsettled(&self) -> usize {
        // The longest are the four of ` n '`, which becomes `n't` with ` t`.
        if self.cleans { 4 } else { 0 }
    }

    /// The ids that the tokenizer adds before and after a single text.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn frame(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let encoding = self.inner.encode("a", true).map_err(DataError::encoding)?;
        let is_added = encoding.get_special_tokens_mask();
        let (ids, n) = (encoding.get_ids(), is_added.len());
        let before = is_added.iter().take_while(|&&added| added == 1).count();
        let after = is_added.iter().rev().take_while(|&&added| added == 1).count().min(n - before);
        Ok((ids[..before].to_vec(), ids[n - after..].to_vec()))
    }

    /// Whether an id belongs to a special token added by tokenizer.json or the files beside it.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .id_to_token(id)
            .is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The ids of the tokens with special roles.
    pub fn special_ids(&self) -> SpecialIds {
        self.special
    }

    /// The languages that the tokenizer marks, if it does.
    pub fn languages(&self) -> Option<Languages> {
        self.languages
    }

    /// The ids that have no text (`[CLS]`, `[MASK]`, …), ascending.
    pub fn reserved_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let mut ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let SpecialIds { cls, sep, pad, mask, unk, bos, eos } = self.special;
        ids.extend([cls, sep, pad, mask, unk, bos, eos].into_iter().flatten());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The tokenizer as a `tokenizer.json`, including the additions of the files beside it.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for a part that cannot be serialized.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(&self.inner).map_err(|e| DataError::tokenizer(Path::new("tokenizer.json"), e))
    }

    /// The length in tokens at which texts are truncated.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// `model_max_length` of `tokenizer_config.json`, if it is a real limit.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }
}

/// The special tokens of a model folder by role (`bos_token`) or other name (`image_token`), as passed to
/// templates.
pub(crate) fn special_tokens(folder: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    Ok(TokenizerConfig::read(folder, &TokenizerJson::of(folder))?.special_tokens())
}

/// As `clean_up_tokenization` of transformers.
fn cleaned(text: &str) -> String {
    const REPLACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Checks that templates do not refer to undefined special tokens: the library panics on those when it
/// encodes (tokenizers 0.23.2).
fn check_templates(value: &serde_json::Value) -> std::result::Result<(), String> {
    for processor in value["processors"].as_array().into_iter().flatten() {
        check_templates(processor)?;
    }
    if value["type"] != "TemplateProcessing" {
        return Ok(());
    }
    for piece in ["single", "pair"].iter().flat_map(|key| value[key].as_array()).flatten() {
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && value["special_tokens"].get(token).is_none()
        {
            return Err(format!("the template has the special token {token:?}, which it does not define"));
        }
    }
    Ok(())
}

/// Fuzz body: any bytes as a `tokenizer.json` are refused in one line, or encode and decode.
#[doc(hidden)]
pub fn fuzz_tokenizer(data: &[u8]) {
    match TextTokenizer::from_bytes(Path::new("fuzz"), data, Some(16)) {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(tokenizer) => {
            for text in ["", "The cat sat.", "\u{0}\u{1F600} e\u{301}"] {
                if let Ok(encoded) = tokenizer.encode(text, Some("on")) {
                    assert!(encoded.ids.len() <= 16 && encoded.ids.len() == encoded.type_ids.len());
                    drop(tokenizer.decode(&encoded.ids, true));
                }
            }
        }
    }
}

/// The number of special tokens around a text or a pair.
fn added_tokens(tokenizer: &Tokenizer, is_pair: bool) -> usize {
    tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(is_pair))
}

/// Truncates a text, or the longer of two texts token by token until both fit; the first of two equally long
/// ones. The tokens of one side are cut off.
fn truncate(first: &mut Encoding, second: Option<&mut Encoding>, room: usize, side: TruncationDirection) {
    let cut = |encoding: &mut Encoding, len: usize| {
        encoding.truncate(len, 0, side);
        // The post-processor would combine the truncated parts of two texts in all ways.
        encoding.set_overflowing(Vec::new());
    };
    let Some(second) = second else {
        return cut(first, room);
    };
    let (a, b) = (first.len(), second.len());
    if a + b <= room {
        return;
    }
    // The remainder for the longer text once the shorter has at most half; an odd token goes to the longer.
    let shorter = a.min(b).min(room / 2);
    if a > b {
        cut(first, room - shorter);
        cut(second, shorter);
    } else {
        cut(first, shorter);
        cut(second, room - shorter);
    }
}
