//! The `tokenizer.json` and `tokenizer_config.json` that a GGUF file stands for.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::pre::Pre;
use super::read::Parsed;
use super::sentence_piece::merges_by_score;
use crate::error::{Fault, excerpt};

/// What a token is (`llama_token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    fn of_number(number: f64) -> Option<Self> {
        let all = [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
        // 0 is undefined, which converters write for normal ones.
        if number == 0.0 {
            return Some(Self::Normal);
        }
        all.into_iter().find(|kind| f64::from(*kind as u8) == number)
    }
}

/// Roles of tokens: the middle of the metadata's key, the key of `tokenizer_config.json`.
const ROLES: [(&str, &str); 7] = [
    ("bos", "bos_token"),
    ("eos", "eos_token"),
    ("unknown", "unk_token"),
    // llama.cpp spells it so.
    ("seperator", "sep_token"),
    ("padding", "pad_token"),
    ("cls", "cls_token"),
    ("mask", "mask_token"),
];

/// Tokenizer metadata.
struct Vocabulary<'a, 'f> {
    parsed: &'a Parsed<'f>,
    tokens: Vec<&'f str>,
    types: Vec<TokenType>,
}

/// `tokenizer.json`, none where the file has no tokenizer.
pub(crate) fn tokenizer(parsed: &Parsed<'_>) -> Result<Option<Json>, Fault> {
    if let Some(own) = parsed.metadata.get("tokenizer.huggingface.json").and_then(|json| json.as_text()) {
        return match serde_json::from_str(own) {
            Ok(json) => Ok(Some(json)),
            Err(error) => {
                Err(Fault::file(format!("tokenizer.huggingface.json: {}", excerpt(&error.to_string()))))
            }
        };
    }
    let Some(model) = parsed.metadata.get("tokenizer.ggml.model") else { return Ok(None) };
    let vocabulary = match model.as_text() {
        Some("none" | "no_vocab") => return Ok(None),
        _ => Vocabulary::new(parsed)?,
    };
    match model.as_text() {
        Some("gpt2") => vocabulary.byte_level().map(Some),
        Some("llama") => vocabulary.sentence_piece().map(Some),
        Some("bert") => vocabulary.word_piece().map(Some),
        other => Err(Fault::file(format!(
            "tokenizer.ggml.model '{}' is not supported; expected gpt2, llama or bert",
            excerpt(other.unwrap_or("of another type"))
        ))),
    }
}

/// `tokenizer_config.json`, none where the file has no tokenizer.
pub(crate) fn tokenizer_config(parsed: &Parsed<'_>) -> Result<Option<Json>, Fault> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    if let Some(tokens) = parsed.metadata.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.as_array()) {
        for (role, key) in ROLES {
            let Some(id) = id_of(parsed, role) else { continue };
            match tokens.values().nth(id).and_then(|token| token.as_text()) {
                Some(token) => drop(config.insert(key.into(), token.into())),
                None => {
                    let count = tokens.len();
                    return Err(Fault::file(format!("{} is {id} of {count} tokens", id_key(role))));
                }
            }
        }
    }
    let text = |key: &str| parsed.metadata.get(key).and_then(|value| value.as_text());
    let named = parsed.metadata.get("tokenizer.chat_templates").and_then(|names| names.as_array());
    let mut templates: Vec<(&str, &str)> = Vec::new();
    templates.extend(text("tokenizer.chat_template").map(|template| ("default", template)));
    for name in named.iter().flat_map(|names| names.values()).filter_map(|name| name.as_text()) {
        templates.extend(text(&format!("tokenizer.chat_template.{name}")).map(|template| (name, template)));
    }
    match templates.as_slice() {
        [] => {}
        [("default", template)] => drop(config.insert("chat_template".into(), (*template).into())),
        all => {
            let all = all.iter().map(|(name, template)| json!({"name": name, "template": template}));
            config.insert("chat_template".into(), all.collect());
        }
    }
    Ok(Some(config.into()))
}

fn id_key(role: &str) -> String {
    format!("tokenizer.ggml.{role}_token_id")
}

/// The token with a role; none also for the numbers that stand for none.
pub(super) fn id_of(parsed: &Parsed<'_>, role: &str) -> Option<usize> {
    let Some(id) = parsed.metadata.get(id_key(role).as_str()) else { return usual_id(parsed, role) };
    usize::try_from(id.as_count()?).ok().filter(|&id| id < u32::MAX as usize)
}

/// The id of a role that the metadata do not give, as in llama.cpp: those of Llama's SentencePiece model.
fn usual_id(parsed: &Parsed<'_>, role: &str) -> Option<usize> {
    let is_llama = parsed.metadata.get("tokenizer.ggml.model")?.as_text() == Some("llama");
    let id = ["unknown", "bos", "eos"].iter().position(|usual| *usual == role)?;
    let tokens = parsed.metadata.get("tokenizer.ggml.tokens")?.as_array()?;
    (is_llama && id < tokens.len()).then_some(id)
}

impl<'a, 'f> Vocabulary<'a, 'f> {
    fn new(parsed: &'a Parsed<'f>) -> Result<Self, Fault> {
        let list = |key: &str| parsed.metadata.get(key).and_then(|value| value.as_array());
        let tokens = list("tokenizer.ggml.tokens").and_then(|list| list.texts());
        let tokens =
            tokens.ok_or_else(|| Fault::file("tokenizer.ggml.tokens is not a list of UTF-8 strings"))?;
        let types = match list("tokenizer.ggml.token_type") {
            None => vec![TokenType::Normal; tokens.len()],
            Some(types) => {
                let types: Option<Vec<_>> =
                    types.numbers().and_then(|n| n.into_iter().map(TokenType::of_number).collect());
                types
                    .filter(|types| types.len() == tokens.len())
                    .ok_or_else(|| Fault::file("tokenizer.ggml.token_type does not give each token a type"))?
            }
        };
        Ok(Self { parsed, tokens, types })
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        let value = self.parsed.metadata.get(format!("tokenizer.ggml.{key}").as_str());
        value.and_then(|value| value.as_bool()).unwrap_or(default)
    }

    /// The text of the token with a role.
    fn with_role(&self, role: &str) -> Option<&'f str> {
        self.tokens.get(id_of(self.parsed, role)?).copied()
    }

    /// Ids by text, without unused tokens where `skip_unused`.
    fn ids(&self, skip_unused: bool) -> Result<BTreeMap<&'f str, u32>, Fault> {
        let mut ids = BTreeMap::new();
        for (id, (&token, &kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            if kind == TokenType::Unused && (skip_unused || ids.contains_key(token)) {
                continue;
            }
            let id = u32::try_from(id).map_err(|_| Fault::file("more than 2³² tokens"))?;
            if let Some(first) = ids.insert(token, id) {
                let reason = format!("tokens {first} and {id} are both '{}'", excerpt(token));
                return Err(Fault::file(reason));
            }
        }
        Ok(ids)
    }

    /// Tokens that are found before the others: those of the user, and those that stand for no text.
    fn added(&self) -> Json {
        let name = self.parsed.metadata.get("general.name").and_then(|name| name.as_text()).unwrap_or("");
        let name = name.to_lowercase();
        // As llama.cpp has it: these models' files do not say which of their tokens take the spaces after them.
        let is_phi3 = name.contains("phi-3") || name.contains("phi3");
        let keeps_space = ["<unk>", "<s>", "<|endoftext|>"];
        let entry = |(id, (&token, &kind)): (usize, (&&str, &TokenType))| {
            let is_special = kind != TokenType::UserDefined;
            let strips = is_phi3 && !keeps_space.contains(&token);
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": strips,
                "normalized": false, "special": is_special,
            })
        };
        let is_added = |kind: TokenType| {
            matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown)
        };
        let all = self.tokens.iter().zip(&self.types).enumerate();
        all.filter(|(_, (_, kind))| is_added(**kind)).map(entry).collect()
    }

    /// The frame around a text: the tokens that begin and end it.
    fn frame(&self, begins: bool, ends: bool) -> Json {
        let token = |role: &str, wanted: bool| {
            let id = id_of(self.parsed, role).filter(|_| wanted)?;
            Some((self.tokens.get(id).copied()?, id))
        };
        let bos = token("bos", self.flag("add_bos_token", begins));
        let eos = token("eos", self.flag("add_eos_token", ends));
        template(bos, eos, [1, 1])
    }

    /// Byte-level BPE.
    fn byte_level(&self) -> Result<Json, Fault> {
        let name = self.parsed.metadata.get("tokenizer.ggml.pre").and_then(|name| name.as_text());
        let name = name.unwrap_or("default");
        let pre = Pre::of_name(name).ok_or_else(|| {
            let known = super::pre::ALL.iter().map(|pre| pre.names[0]).collect::<Vec<_>>().join(", ");
            Fault::file(format!(
                "tokenizer.ggml.pre '{}' is not supported; expected one of {known} or a name of the same",
                excerpt(name)
            ))
        })?;
        let merges = self.parsed.metadata.get("tokenizer.ggml.merges").and_then(|list| list.as_array());
        let merges = merges.and_then(|list| list.texts());
        let merges =
            merges.ok_or_else(|| Fault::file("tokenizer.ggml.merges is not a list of UTF-8 strings"))?;
        let split = |pattern: &&str| {
            json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
            })
        };
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let parts: Vec<Json> = pre.patterns.iter().map(split).chain([byte_level]).collect();
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": pre.composed.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "post_processor": self.frame(pre.add_bos, false),
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
            },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": pre.ignore_merges,
                "vocab": self.ids(true)?,
                "merges": merges,
            },
        }))
    }

    /// SentencePiece's BPE, whose merges follow from the scores.
    fn sentence_piece(&self) -> Result<Json, Fault> {
        let has_prefix = self.flag("add_space_prefix", true);
        let ids = self.ids(false)?;
        let merges = self.parsed.metadata.get("tokenizer.ggml.merges").and_then(|list| list.as_array());
        // llama.cpp's model saver writes an empty list for each SentencePiece model.
        let own = merges.and_then(|list| list.texts()).filter(|own| !own.is_empty());
        let merges: Vec<(String, String)> = match own {
            Some(own) => {
                let pair = |merge: &&str| {
                    let (left, right) = merge.split_once(' ')?;
                    Some((left.to_owned(), right.to_owned()))
                };
                let own: Option<_> = own.iter().map(pair).collect();
                own.ok_or_else(|| Fault::file("tokenizer.ggml.merges holds something else than pairs"))?
            }
            None => self.merges(&ids)?,
        };
        let space = "\u{2581}";
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
        let normalizer = if has_prefix {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace]})
        } else {
            replace
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if has_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.types.iter().position(|kind| *kind == TokenType::Unknown);
        let unknown = self.with_role("unknown").or_else(|| self.tokens.get(unknown?).copied());
        let has_bytes = ids.contains_key("<0x00>");
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": null,
            "post_processor": self.frame(true, false),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": has_bytes, "ignore_merges": false,
                "vocab": ids,
                "merges": merges,
            },
        }))
    }

    fn merges(&self, ids: &BTreeMap<&'f str, u32>) -> Result<Vec<(String, String)>, Fault> {
        let scores = self.parsed.metadata.get("tokenizer.ggml.scores").and_then(|list| list.as_array());
        let scores = scores.and_then(|list| list.numbers()).filter(|list| list.len() == self.tokens.len());
        let scores =
            scores.ok_or_else(|| Fault::file("tokenizer.ggml.scores does not give each token a score"))?;
        let is_piece =
            |kind: TokenType| matches!(kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused);
        let pieces = self.tokens.iter().zip(&self.types).zip(&scores);
        let pieces =
            pieces.filter(|((_, kind), _)| is_piece(**kind)).map(|((&token, _), &score)| (token, score));
        let merges = merges_by_score(pieces, ids);
        let of_normal = |(kind, score)| (kind == &TokenType::Normal).then_some(score);
        let mut scores = self.types.iter().zip(&scores).filter_map(of_normal);
        let first = scores.next();
        // llama.cpp's converter writes such scores for a folder without a SentencePiece model.
        if merges.len() > 1 && scores.all(|score| Some(score) == first) {
            return Err(Fault::file(
                "tokenizer.ggml.scores are the same for all pieces, and tokenizer.ggml.merges, which would order them, is missing; \
                 convert the original folder again, with `lowrank convert --to gguf` or with its tokenizer.model",
            ));
        }
        Ok(merges)
    }

    /// BERT's WordPiece: pieces that begin a word carry a mark here, and those inside one there.
    fn word_piece(&self) -> Result<Json, Fault> {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let own = match token.strip_prefix('\u{2581}') {
                Some(word) if !word.is_empty() => word.to_owned(),
                _ if token.starts_with('[') && token.ends_with(']') => (*token).to_owned(),
                _ => format!("##{token}"),
            };
            if vocab.insert(own, id.into()).is_some() {
                let reason = format!("the token '{}' is there twice", excerpt(token));
                return Err(Fault::file(reason));
            }
        }
        let named = |role: &str, usual: &'static str| self.with_role(role).unwrap_or(usual);
        let at = |token: &str| vocab.get(token).and_then(Json::as_u64).map(|id| id as usize);
        let (cls, sep) =
            (self.with_role("cls").or(self.with_role("bos")).unwrap_or("[CLS]"), named("seperator", "[SEP]"));
        let frame = template(at(cls).map(|id| (cls, id)), at(sep).map(|id| (sep, id)), [1, 2]);
        let special =
            [cls, sep, named("unknown", "[UNK]"), named("padding", "[PAD]"), named("mask", "[MASK]")];
        let special: BTreeMap<usize, &str> =
            special.iter().filter_map(|token| Some((at(token)?, *token))).collect();
        let entry = |(id, token): (&usize, &&str)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let added: Json = special.iter().map(entry).collect();
        Ok(json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": self.flag("normalizer.lowercase", true),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": frame,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": named("unknown", "[UNK]"), "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab,
            },
        }))
    }
}

/// The template of a tokenizer with a token before and after a text. The second text of a pair has the type `pair[0]`,
/// and begins anew where `pair[1]` is 1.
fn template(before: Option<(&str, usize)>, after: Option<(&str, usize)>, pair: [u8; 2]) -> Json {
    if before.is_none() && after.is_none() {
        return Json::Null;
    }
    let special = |token: Option<(&str, usize)>, kind: u8| {
        token.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
    };
    let text = |id: &str, kind: u8| Some(json!({"Sequence": {"id": id, "type_id": kind}}));
    let single: Vec<Json> =
        [special(before, 0), text("A", 0), special(after, 0)].into_iter().flatten().collect();
    let again = special(before, pair[0]).filter(|_| pair[1] == 1);
    let second = [again, text("B", pair[0]), special(after, pair[0])];
    let both: Vec<Json> = single.iter().cloned().chain(second.into_iter().flatten()).collect();
    let tokens = [before, after].into_iter().flatten();
    let tokens: Map<String, Json> = tokens
        .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": both, "special_tokens": tokens})
}
